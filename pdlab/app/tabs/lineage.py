"""Lineage: one noise, what every rung makes of it, how far each halving moved it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import NOISES, ShownLadder
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
from pdlab.app.views import lineage
from pdlab.app.views.lineage import NoiseChoice

NAME = "lineage"


def build(context: Context) -> Tab:
    """Builds the tab."""
    noise = Slider(1, NOISES, step=1, label="Noise", elem_id="lineage-noise")
    conditions = condition_controls(NAME)
    with gr.Row():
        draw = gr.Button("Draw live", variant="primary", elem_id="lineage-draw", min_width=120, scale=0)
        run = gr.Button("Find the nearest training image", elem_id="lineage-run", min_width=320, scale=0)
        stop_button(context, NAME)
    said = status()
    images = gr.HTML(elem_id="lineage-images")
    nearest = gr.HTML()
    bars = gr.HTML()
    code = code_box(NAME)

    views = [images, bars, code, said, nearest]

    def view(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        return [*lineage.view(context.shelf, ladder, NoiseChoice.of(ladder, given)), "", ""]

    def restore(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        choice = NoiseChoice.of(ladder, given)
        return [choice.noise, *condition_values(ladder, choice.condition), *view(ladder, given)]

    tab = Tab(NAME, {"noise": noise, **conditions}, views, restore)
    bind(context, tab, view)

    async def live(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder = context.shelf.ladder(model)
        choice = NoiseChoice.of(ladder, named(tab, values))
        work = stream(
            context, lambda show: lineage.draw(context.shelf, ladder, choice, show), owner(request, NAME), 3
        )
        async for frame in work:
            yield frame

    async def find(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder = context.shelf.ladder(model)
        choice = NoiseChoice.of(ladder, named(tab, values))
        work = stream(
            context, lambda show: lineage.nearest(context.shelf, ladder, choice, show), owner(request, NAME), 2
        )
        async for frame in work:
            yield frame

    inputs = [context.model, *tab.controls.values()]
    draw.click(live, inputs, [said, images, bars], api_name="lineage_live", **LIVE)
    run.click(find, inputs, [said, nearest], api_name="nearest", **LIVE)
    return tab
