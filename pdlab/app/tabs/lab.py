"""2-D lab: a teacher trained on the spot, and round after round."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from pdlab.app import html
from pdlab.app.ladders import Recent
from pdlab.app.tabs.binding import (
    LIVE,
    QUICK,
    Context,
    Tab,
    bind,
    code_box,
    named,
    owner,
    status,
    stop_button,
    stream,
)
from pdlab.app.views import lab
from pdlab.app.views.lab import DISTRIBUTIONS, FIRST, OUTPUTS, OWN, REACH, Session, Spec
from pdlab.diffusion.weighting import WEIGHTINGS

NAME = "lab"
_SESSIONS = 64
#: Where the picture was pressed, in the plane's coordinates.
_POINT = f"""element.addEventListener('click', event => {{
    const svg = event.target.closest('svg.chart');
    if (!svg) return;
    const box = svg.getBoundingClientRect();
    const at = (value, from, size) => (2 * (value - from) / size - 1) * {REACH};
    trigger('click', {{x: at(event.clientX, box.left, box.width), y: -at(event.clientY, box.top, box.height)}});
}});"""


def build(context: Context) -> Tab:
    """Builds the tab."""
    sessions: Recent[Session] = Recent(_SESSIONS)
    distribution = gr.Radio(list(DISTRIBUTIONS), label="Distribution", elem_id="lab-distribution")
    points = gr.Textbox(label="Own points", info="x y; x y; …, or press into the picture", max_length=1000)
    with gr.Row():
        output = gr.Radio(list(OUTPUTS), label="The network's output")
        weighting = gr.Radio(list(WEIGHTINGS), label="Loss weighting")
        first = gr.Radio(list(FIRST), label="The teacher's steps, N")
    with gr.Row():
        teach = gr.Button("Train a teacher", variant="primary", elem_id="lab-teach", min_width=170, scale=0)
        again = gr.Button("Next round", elem_id="lab-next", min_width=140, scale=0)
        stop_button(context, NAME)
    said = status()
    with gr.Row():
        with gr.Column(min_width=320):
            picture = gr.HTML(js_on_load=_POINT, elem_id="lab-picture")
        with gr.Column(min_width=320):
            tables = gr.HTML()
    code = code_box(NAME)

    controls = {
        "distribution": distribution,
        "points": points,
        "output": output,
        "weighting": weighting,
        "first": first,
    }

    def view(ladder: None, given: Mapping[str, Any]) -> list[str]:
        spec = Spec.of(given)
        return [lab.preview(spec), lab.code(spec), "", ""]

    def restore(ladder: None, given: Mapping[str, Any]) -> list[Any]:
        spec = Spec.of(given)
        values = [spec.distribution, lab.points_text(spec.points), spec.output, spec.weighting, spec.first]
        return [*values, *view(None, given)]

    tab = Tab(NAME, controls, [picture, code, said, tables], restore, alone=True)

    bind(context, tab, view)

    def pressed(event: gr.EventData, model: str, *values: Any) -> list[Any]:
        spec = Spec.of(named(tab, values))
        if spec.distribution != OWN:
            return [gr.skip()] * 5
        more = f"{lab.points_text(spec.points)}; {getattr(event, 'x', '')} {getattr(event, 'y', '')}"
        text = lab.points_text(lab.parse_points(more))
        return [text, *view(None, {**named(tab, values), "points": text})]

    picture.click(
        pressed, [context.model, *controls.values()], [points, *tab.views], api_visibility="private", **QUICK
    )

    async def live(work: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for frame in stream(context, work, owner(request, NAME), 3):
            yield frame

    async def train(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        spec, who = Spec.of(named(tab, values)), owner(request, NAME)
        async for frame in live(
            lambda show: lab.teach(spec, show, lambda done: sessions.put(who, done, 1)), request
        ):
            yield frame

    async def halve(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        session = sessions.get(owner(request, NAME))
        why = lab.why_not(session, Spec.of(named(tab, values)))
        if session is None or why:
            yield [html.note(why), gr.skip(), gr.skip()]
            return
        async for frame in live(lambda show: lab.halve(session, show), request):
            yield frame

    inputs = [context.model, *controls.values()]
    teach.click(train, inputs, [said, picture, tables], api_name="lab_teach", **LIVE)
    again.click(halve, inputs, [said, picture, tables], api_name="lab_next", **LIVE)
    return tab
