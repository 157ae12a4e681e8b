"""Compare: samplers in rows, network calls in columns, every cell from the same noises."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import ShownLadder
from pdlab.app.tabs.binding import (
    LIVE,
    Context,
    Slider,
    Tab,
    bind,
    code_box,
    condition_controls,
    condition_values,
    named,
    owner,
    status,
    stop_button,
    stream,
)
from pdlab.app.views import cells, compare
from pdlab.app.views.compare import PAGES, ZOOMS, Comparison

NAME = "compare"


def build(context: Context) -> Tab:
    """Builds the tab."""
    steps = gr.CheckboxGroup(label="Network calls", elem_id="compare-steps")
    rows = gr.CheckboxGroup(label="Samplers", elem_id="compare-rows")
    with gr.Row():
        page = gr.Radio(list(range(1, PAGES + 1)), label="Page of noises")
        zoom = gr.Radio([(f"{n}", n) for n in ZOOMS], label="Images in a cell")
        clip = gr.Checkbox(label="Clip x̂ to [−1, 1] in every step")
        nu = Slider(0, 1, step=0.1, label="ν of the ancestral sampler")
    conditions = condition_controls(NAME)
    with gr.Row():
        run = gr.Button("Draw live", variant="primary", elem_id="compare-run", min_width=120, scale=0)
        stop_button(context, NAME)
    said = status()
    grid = gr.HTML()
    table = gr.HTML()
    with gr.Accordion("Two samplers under a slider", open=False):
        with gr.Row():
            left = gr.Radio(label="Left of the border")
            right = gr.Radio(label="Right of the border")
        pair = gr.HTML()
    code = code_box(NAME)

    controls = {
        "steps": steps,
        "rows": rows,
        "page": page,
        "zoom": zoom,
        "clip": clip,
        "nu": nu,
        "left": left,
        "right": right,
        **conditions,
    }
    views = [grid, table, pair, code]

    def view(ladder: ShownLadder, given: Mapping[str, Any]) -> tuple[str, ...]:
        return compare.view(context.shelf, ladder, Comparison.of(ladder, given))

    def restore(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        what = Comparison.of(ladder, given)
        set_steps = gr.update(choices=[(str(n), n) for n in ladder.counts], value=list(what.steps))
        kinds = [(label, kind) for kind, label in cells.kinds(ladder).items()]
        values = [
            gr.update(choices=kinds, value=list(what.rows)),
            *(what.page, what.zoom, what.clip, what.nu),
            gr.update(choices=kinds, value=what.left),
            gr.update(choices=kinds, value=what.right),
            *condition_values(ladder, what.condition),
        ]
        return [set_steps, *values, *compare.view(context.shelf, ladder, what)]

    tab = Tab(NAME, controls, views, restore)
    bind(context, tab, view, [said])

    async def live(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder = context.shelf.ladder(model)
        what = Comparison.of(ladder, named(tab, values))
        work = stream(
            context, lambda show: compare.work(context.shelf, ladder, what, show), owner(request, NAME), 4
        )
        async for frame in work:
            yield frame

    inputs = [context.model, *controls.values()]
    run.click(live, inputs, [said, *views[:3]], api_name="compare_live", **LIVE)
    return tab
