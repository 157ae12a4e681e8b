"""Sampler bench: one model, one sampler, now."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app import html
from pdlab.app.ladders import ShownLadder
from pdlab.app.tabs.binding import (
    LIVE,
    QUICK,
    Context,
    Number,
    Slider,
    Tab,
    bind,
    code_box,
    condition_controls,
    condition_values,
    link,
    named,
    owner,
    status,
    stop_button,
    stream,
)
from pdlab.app.views import bench
from pdlab.app.views.bench import IMAGES, MOST_SEED, MOST_STEPS, Sampling
from pdlab.app.views.compare import PAGES
from pdlab.diffusion.samplers import SAMPLERS

NAME = "bench"


def build(context: Context) -> Tab:
    """Builds the tab."""
    model = gr.Radio(label="Model: the teacher, or the student of so many steps", elem_id="bench-model")
    with gr.Row():
        sampler = gr.Radio(list(SAMPLERS), label="Sampler")
        steps = Slider(1, MOST_STEPS, step=1, label="Steps", elem_id="bench-steps")
        nu = Slider(0, 1, step=0.1, label="ν of the ancestral sampler")
    with gr.Row():
        page = gr.Radio([("of the seed", 0), *((f"page {k}", k) for k in range(1, PAGES + 1))], label="Noises")
        seed = Number(label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)
        images = gr.Radio(list(IMAGES), label="Images")
    conditions = condition_controls(NAME)
    warning = gr.HTML()
    with gr.Row():
        run = gr.Button("Sample", variant="primary", elem_id="bench-run", min_width=120, scale=0)
        stop_button(context, NAME)
    said = status()
    pictures = gr.HTML(elem_id="bench-pictures")
    table = gr.HTML()
    code = code_box(NAME)

    controls = {
        "model": model,
        "sampler": sampler,
        "steps": steps,
        "nu": nu,
        "page": page,
        "seed": seed,
        "images": images,
        **conditions,
    }

    def view(ladder: ShownLadder, given: Mapping[str, Any]) -> list[str]:
        what = Sampling.of(ladder, given)
        return [html.note(bench.warning(what)) if bench.warning(what) else "", bench.code(ladder, what)]

    def restore(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        what = Sampling.of(ladder, given)
        set_model = gr.update(choices=list(bench.models(ladder)), value=what.model)
        values = [what.sampler, what.steps, what.nu, what.page, what.seed, what.images]
        most = ladder.takes(what.which)
        return [set_model, *values, *condition_values(ladder, what.condition, most), *view(ladder, given)]

    tab = Tab(NAME, controls, [warning, code], restore)
    drawn = [said, pictures, table]
    bind(context, tab, view, drawn, but=["model"])

    def own_steps(request: gr.Request, ladder_name: str, *values: Any) -> list[Any]:
        """Another model comes with its own steps and bound of guidance; what is said of it is said of those."""
        context.compute.clear(owner(request, NAME))
        ladder, given = context.shelf.ladder(ladder_name), named(tab, values)
        what = Sampling.of(ladder, given)
        given["steps"] = what.which if isinstance(what.which, int) else what.steps
        set_guidance = condition_values(ladder, what.condition, ladder.takes(what.which))[1]
        return [given["steps"], set_guidance, *view(ladder, given), "", "", ""]

    inputs = [context.model, *controls.values()]
    chosen = model.input(
        own_steps,
        inputs,
        [steps, conditions["guidance"], *tab.views, *drawn],
        trigger_mode="always_last",
        api_visibility="private",
        **QUICK,
    )
    chosen.then(None, inputs, None, js=link(tab))

    async def live(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder = context.shelf.ladder(model)
        what = Sampling.of(ladder, named(tab, values))
        work = stream(context, lambda show: bench.work(context.shelf, ladder, what, show), owner(request, NAME), 3)
        async for frame in work:
            yield frame

    run.click(live, inputs, drawn, api_name="bench_live", **LIVE)
    return tab
