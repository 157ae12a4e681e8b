"""Metrics: what the number of samples alone does to a distance."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import ShownLadder
from pdlab.app.tabs.binding import LIVE, Context, Tab, bind, code_box, named, owner, status, stop_button, stream
from pdlab.app.views import metrics
from pdlab.app.views.metrics import EXTRACTORS, SIZES, FeatureChoice

NAME = "metrics"


def build(context: Context) -> Tab:
    """Builds the tab."""
    gr.HTML(metrics.introduction())
    with gr.Row():
        extractor = gr.Radio(list(EXTRACTORS), label="Features", elem_id="metrics-extractor")
        n = gr.Radio(list(SIZES[2:]), label="Most samples, n")
    with gr.Row():
        run = gr.Button("Measure", variant="primary", elem_id="metrics-run", min_width=120, scale=0)
        stop_button(context, NAME)
    said = status()
    charts = gr.HTML()
    cards = gr.HTML()
    code = code_box(NAME)

    controls = {"extractor": extractor, "n": n}

    def view(ladder: ShownLadder, given: Mapping[str, Any]) -> list[str]:
        choice = FeatureChoice.of(given)
        return [metrics.stored(ladder, choice), metrics.cards(ladder), metrics.code(ladder, choice)]

    def restore(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        choice = FeatureChoice.of(given)
        return [choice.extractor, choice.n, *view(ladder, given)]

    tab = Tab(NAME, controls, [charts, cards, code], restore)
    bind(context, tab, view)

    async def live(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        ladder, choice = context.shelf.ladder(model), FeatureChoice.of(named(tab, values))
        work = stream(
            context, lambda show: metrics.work(context.shelf, ladder, choice, show), owner(request, NAME), 2
        )
        async for frame in work:
            yield frame

    inputs = [context.model, *controls.values()]
    run.click(live, inputs, [said, charts], api_name="metrics_live", **LIVE)
    return tab
