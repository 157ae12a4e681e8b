"""FID curve: a figure against network calls, and every figure's card."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import ShownLadder
from pdlab.app.tabs.binding import PRESSED, QUICK, Context, Tab, bind, code_box, guarded, named
from pdlab.app.views import cells, curve
from pdlab.app.views.curve import CurveChoice

NAME = "curve"


def build(context: Context) -> Tab:
    """Builds the tab."""
    with gr.Row():
        metric = gr.Radio(label="Metric", elem_id="curve-metric")
        n = gr.Radio(label="Samples, n")
        guidance = gr.Radio(label="Guidance", elem_id="curve-guidance", visible=False)
        paper = gr.Checkbox(label="Show the paper's curve")
    kinds = gr.CheckboxGroup(label="Samplers")
    with gr.Row():
        with gr.Column(min_width=320):  # HTML's own min_width does not make a row wrap
            plot = gr.HTML(js_on_load=PRESSED, elem_id="curve-plot")
        with gr.Column(min_width=320):
            table = gr.HTML(js_on_load=PRESSED)
            card = gr.HTML(elem_id="curve-card")
    code = code_box(NAME)

    controls = {"metric": metric, "n": n, "guidance": guidance, "kinds": kinds, "paper": paper}
    views = [plot, table, card, code]

    def measured(ladder: ShownLadder, choice: CurveChoice) -> list[Any]:
        """The numbers of samples, and the guidances, that the metric was measured at."""
        weights = curve.weights(ladder, choice.metric, choice.n)
        return [
            gr.update(choices=curve.options(ladder).get(choice.metric, []), value=choice.n),
            gr.update(choices=[(f"{w:g}", w) for w in weights], value=choice.guidance, visible=len(weights) > 1),
        ]

    def view(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        choice = CurveChoice.of(ladder, given)
        return [*curve.view(ladder, choice), *measured(ladder, choice)]

    def restore(ladder: ShownLadder, given: Mapping[str, Any]) -> list[Any]:
        choice = CurveChoice.of(ladder, given)
        set_metric = gr.update(choices=list(curve.options(ladder)), value=choice.metric)
        set_kinds = gr.update(
            choices=[(label, kind) for kind, label in cells.kinds(ladder).items()], value=list(choice.kinds)
        )
        return [
            set_metric,
            *measured(ladder, choice),
            set_kinds,
            choice.paper,
            *curve.view(ladder, choice),
        ]

    tab = Tab(NAME, controls, views, restore)
    bind(context, Tab(NAME, controls, [*views, n, guidance], restore), view)

    def pressed(event: gr.EventData, model: str, *values: Any) -> list[Any]:
        def make() -> list[Any]:
            ladder = context.shelf.ladder(model)
            choice = CurveChoice.of(ladder, named(tab, values))
            return [curve.card(curve.chosen(ladder, choice), str(getattr(event, "key", "")))]

        return guarded(make, 1)

    for part in (plot, table):
        part.click(pressed, [context.model, *controls.values()], [card], api_visibility="private", **QUICK)
    return tab
