"""What tabs share: controls bound to a view and kept in the page's address; frames streamed from the queue."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from pdlab.app import html, state
from pdlab.app.compute import Cancelled, Compute, Waiting, Work
from pdlab.app.condition import ALL, Condition
from pdlab.app.ladders import MOST_GUIDANCE, Shelf, ShownLadder
from pdlab.errors import PdlabError

#: Sends {"key": …} of whatever was pressed that has one.
PRESSED = """element.addEventListener('click', event => {
    const pressed = event.target.closest('[data-key]');
    if (pressed) trigger('click', {key: pressed.dataset.key});
});"""


@dataclass
class Context:
    """What tabs are built with: the ladders, the queue, and the control that chooses the ladder."""

    shelf: Shelf
    compute: Compute
    model: gr.Radio


@dataclass
class Tab:
    """A built tab. `restore(ladder, given)` gives the values of all `controls`, then of all `views`.

    One that is `alone` needs no ladder, and is given None.
    """

    name: str
    controls: dict[str, Any]
    views: list[Any]
    restore: Callable[[Any, Mapping[str, Any]], Sequence[Any]] = field(repr=False)
    alone: bool = False


def bind(
    context: Context,
    tab: Tab,
    view: Callable[[Any, Mapping[str, Any]], Sequence[Any]],
    live: Sequence[Any] = (),
    but: Sequence[str] = (),
) -> None:
    """When a visitor changes a control, put it into the address and show `view` again.

    What was computed for the controls as they were is stopped and no longer shown: the outputs `live` become empty.
    The controls `but` are bound elsewhere.
    """
    controls = list(tab.controls.values())

    def changed(request: gr.Request, model: str, *values: Any) -> list[Any]:
        def make() -> list[Any]:
            ladder = None if tab.alone else context.shelf.ladder(model)
            return list(view(ladder, named(tab, values)))

        context.compute.clear(owner(request, tab.name))
        return [*guarded(make, len(tab.views)), *[""] * len(live)]

    gr.on(
        [control.input for name, control in tab.controls.items() if name not in but],
        changed,
        [context.model, *controls],
        [*tab.views, *live],
        js=link(tab),
        trigger_mode="always_last",
        api_name=tab.name,
        **QUICK,
    )


#: Work through the queue: its own bound and its own words stand for Gradio's; a press while it runs begins anew.
LIVE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "multiple"}
#: A precomputed view: no progress overlay, and not through Gradio's queue, whose polling would double its time.
QUICK: dict[str, Any] = {"show_progress": "hidden", "queue": False}


def link(tab: Tab) -> str:
    """Script that puts the values of a tab's controls (after the ladder's) into the page's address."""
    names = json.dumps([f"{tab.name}.{name}" for name in tab.controls])
    return f"(...values) => {{ pdlab.link({names}, values.slice(1)); return values; }}"


def named(tab: Tab, values: Sequence[Any]) -> dict[str, Any]:
    """A tab's values by the names of its controls."""
    return dict(zip(tab.controls, values, strict=False))


def guarded(make: Callable[[], list[Any]], n: int) -> list[Any]:
    """What `make` gives, or its error with the remedy in the first of `n` outputs."""
    try:
        return make()
    except PdlabError as error:
        return [html.note(str(error), "error"), *[gr.skip()] * (n - 1)]


async def stream(context: Context, work: Work, owner: str, n: int) -> AsyncIterator[list[Any]]:
    """The frames of `work`, `n` outputs each; the first is text, which also says when it waits or is stopped."""
    rest = [gr.skip()] * (n - 1)
    try:
        async for frame in context.compute.run(work, owner):
            if isinstance(frame, Waiting):
                yield [html.note(f"Waiting: position {frame.position} in the queue."), *rest]
            elif isinstance(frame, Cancelled):
                yield [html.note("Stopped; nothing is being computed."), *rest]
            else:
                text, *others = frame
                yield [html.note(text), *others]
    except PdlabError as error:
        yield [html.note(str(error), "error"), *rest]


def owner(request: gr.Request | None, tab: str) -> str:
    """Names a visitor's work in a tab: each has one piece at a time in each."""
    return f"{request.session_hash if request else 'nobody'}/{tab}"


def _bounded(kind: type) -> Any:
    """Sliders or numbers that bring a value into their bounds; Gradio's own refuse one that was typed beyond them.

    A class and not a changed instance: whenever a control is updated, Gradio makes it anew.
    """

    def preprocess(self: Any, payload: object) -> float:
        return state.number(payload, self.minimum, self.maximum, self.minimum)

    # Past Gradio's metaclass, which would write a file beside this one.
    return type.__new__(type(kind), kind.__name__, (kind,), {"is_template": True, "preprocess": preprocess})


Slider, Number = _bounded(gr.Slider), _bounded(gr.Number)


def condition_controls(tab: str) -> dict[str, Any]:
    """What a class and a guidance are chosen with; hidden until a ladder has them."""
    with gr.Row():
        classes = gr.Radio(label="Class", elem_id=f"{tab}-class", visible=False, scale=2, min_width=320)
        guidance = Slider(0, MOST_GUIDANCE, step=0.5, label="Guidance", elem_id=f"{tab}-guidance", visible=False)
    return {"class": classes, "guidance": guidance}


def condition_values(ladder: ShownLadder, condition: Condition, most: float | None = None) -> list[Any]:
    """Their values; `most` is the largest guidance, by default the ladder's."""
    names = ladder.classes
    most = ladder.most if most is None else most
    value = ALL if condition.label is None else names[condition.label]
    return [
        gr.update(choices=[ALL, *names], value=value, visible=bool(names)),
        gr.update(maximum=most or MOST_GUIDANCE, value=condition.guidance, visible=most > 0),
    ]


def stop_button(context: Context, tab: str) -> gr.Button:
    """A button that stops the visitor's work in this tab."""
    button = gr.Button("Stop", elem_id=f"{tab}-stop", min_width=80, scale=0)

    def stop(request: gr.Request) -> None:
        context.compute.stop(owner(request, tab))

    button.click(stop, None, None, queue=False, api_name=f"{tab}_stop", show_progress="hidden")
    return button


def code_box(tab: str) -> gr.Code:
    """Where "the same in Python" stands, with a button that copies it."""
    with gr.Accordion("The same in Python", open=False, elem_id=f"{tab}-code"):
        return gr.Code(language="python", interactive=False, show_label=False, container=False)


def status() -> gr.HTML:
    """A line that says what is going on, read out by screen readers."""
    return gr.HTML("", elem_classes="status")
