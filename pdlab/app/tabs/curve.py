"""FID curve: a distance against network calls, and every figure's card."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from pdlab.app.ladders import Ladder
from pdlab.app.tabs.binding import PRESSED, QUICK, Context, Tab, bind, code_box, guarded, named
from pdlab.app.views import curve
from pdlab.app.views.cells import KINDS
from pdlab.app.views.curve import Choice

NAME = "curve"


def build(context: Context) -> Tab:
    """Builds the tab."""
    with gr.Row():
        metric = gr.Radio(label="Metric", elem_id="curve-metric")
        n = gr.Radio(label="Samples, n")
        paper = gr.Checkbox(label="Show the paper's curve")
    kinds = gr.CheckboxGroup([(label, kind) for kind, label in KINDS.items()], label="Samplers")
    with gr.Row():
        with gr.Column(min_width=320):  # HTML's own min_width does not make a row wrap
            plot = gr.HTML(js_on_load=PRESSED, elem_id="curve-plot")
        with gr.Column(min_width=320):
            table = gr.HTML(js_on_load=PRESSED)
            card = gr.HTML(elem_id="curve-card")
    code = code_box(NAME)

    controls = {"metric": metric, "n": n, "kinds": kinds, "paper": paper}
    views = [plot, table, card, code]

    def view(ladder: Ladder, given: Mapping[str, Any]) -> list[Any]:
        found, choice = curve.options(ladder), Choice.of(ladder, given)
        return [*curve.view(ladder, choice), gr.update(choices=found.get(choice.metric, []), value=choice.n)]

    def restore(ladder: Ladder, given: Mapping[str, Any]) -> list[Any]:
        found, choice = curve.options(ladder), Choice.of(ladder, given)
        set_metric = gr.update(choices=list(found), value=choice.metric)
        set_n = gr.update(choices=found.get(choice.metric, []), value=choice.n)
        return [set_metric, set_n, list(choice.kinds), choice.paper, *curve.view(ladder, choice)]

    tab = Tab(NAME, controls, views, restore)
    bind(context, Tab(NAME, controls, [*views, n], restore), view)

    def pressed(event: gr.EventData, model: str, *values: Any) -> list[Any]:
        def make() -> list[Any]:
            ladder = context.shelf.ladder(model)
            choice = Choice.of(ladder, named(tab, values))
            return [curve.card(curve.chosen(ladder, choice), str(getattr(event, "key", "")))]

        return guarded(make, 1)

    for part in (plot, table):
        part.click(pressed, [context.model, *controls.values()], [card], api_visibility="private", **QUICK)
    return tab
