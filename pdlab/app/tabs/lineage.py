"""Lineage: one noise, what every rung makes of it, how far each halving moved it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import NOISES, Ladder
from pdlab.app.tabs.binding import Context, Tab, bind, code_box, named, owner, status, stop_button, stream, within
from pdlab.app.views import lineage
from pdlab.app.views.lineage import Choice

NAME = "lineage"


def build(context: Context) -> Tab:
    """Builds the tab."""
    noise = within(gr.Slider(1, NOISES, step=1, label="Noise", elem_id="lineage-noise"))
    images = gr.HTML()
    bars = gr.HTML()
    with gr.Row():
        run = gr.Button("Find the nearest training image", elem_id="lineage-run", min_width=320, scale=0)
        stop_button(context, NAME)
    said = status()
    nearest = gr.HTML()
    code = code_box(NAME)

    views = [images, bars, code, said, nearest]

    def view(ladder: Ladder, given: Mapping[str, Any]) -> list[Any]:
        return [*lineage.view(ladder, Choice.of(given)), "", ""]

    def restore(ladder: Ladder, given: Mapping[str, Any]) -> list[Any]:
        return [Choice.of(given).noise, *view(ladder, given)]

    tab = Tab(NAME, {"noise": noise}, views, restore)
    bind(context, tab, view)

    async def live(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder, choice = context.shelf.ladder(model), Choice.of(named(tab, values))
        work = stream(context, lambda show: lineage.nearest(ladder, choice, show), owner(request, NAME), 2)
        async for frame in work:
            yield frame

    run.click(
        live,
        [context.model, noise],
        [said, nearest],
        api_name="nearest",
        concurrency_limit=None,
        show_progress="hidden",
    )
    return tab
