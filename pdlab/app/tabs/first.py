"""The first view, above the tabs, with the game of guessing; without a ladder, the offer to make one."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from markupsafe import Markup

from pdlab.app import html
from pdlab.app.ladders import Shelf
from pdlab.app.tabs.binding import QUICK, Context, guarded, owner, stop_button, stream
from pdlab.app.views import first, quickstart
from pdlab.errors import PdlabError


def shown(shelf: Shelf, model: object = None) -> str:
    """The first view of a ladder, or what to do where there is none."""
    try:
        refused = Markup().join(html.note(text, "error") for text in shelf.refused)
        return first.view(shelf, shelf.ladder(model)) + refused
    except PdlabError as error:
        return quickstart.offer() if not shelf.ladders and not shelf.refused else html.note(str(error), "error")


def build(context: Context) -> list[Any]:
    """Builds it; returns what changes with the ladder: the view, the offer to run the quickstart, the game."""
    view = gr.HTML(shown(context.shelf), elem_id="first")
    empty = not context.shelf.ladders
    with gr.Column(visible=empty) as offer:
        with gr.Row():
            run = gr.Button(
                "Run the quickstart", variant="primary", elem_id="quickstart-run", min_width=220, scale=0
            )
            stop_button(context, "quickstart")
        said = gr.HTML("", elem_id="quickstart-said", elem_classes="status")
    with gr.Accordion("Guess which is which", open=False, elem_id="guess", visible=not empty) as game:
        table = gr.HTML(html.note("Press Deal: two grids from the same noises; one of them is distilled."))
        dealt = gr.State(None)
        with gr.Row():
            deal = gr.Button("Deal", elem_id="guess-deal", min_width=80, scale=0)
            left = gr.Button("The left one is distilled", interactive=False, min_width=120, scale=0)
            right = gr.Button("The right one is distilled", interactive=False, min_width=120, scale=0)

    async def work(request: gr.Request) -> AsyncIterator[list[Any]]:
        async for frame in stream(
            context, lambda show: quickstart.work(context.shelf, show), owner(request, "quickstart"), 1
        ):
            yield frame

    run.click(work, None, [said], api_name="quickstart", concurrency_limit=None, show_progress="hidden").then(
        None,
        # Half a second later: the requests of this very event, still open, would be reported as aborted.
        js="() => { if (document.getElementById('quickstart-said').textContent.includes('ready')) "
        "setTimeout(() => location.reload(), 500); }",
    )

    def do_deal(model: str, score: Any) -> list[Any]:
        def make() -> list[Any]:
            ladder = context.shelf.ladder(model)
            shown, guess = first.question(context.shelf, ladder, first.deal(ladder, score))
            return [shown, guess, gr.update(interactive=True), gr.update(interactive=True)]

        return guarded(make, 4)

    def answer(side: str, model: str, guess: Any) -> list[Any]:
        def make() -> list[Any]:
            if guess is None:
                return [gr.skip()] * 4
            shown, scored = first.question(context.shelf, context.shelf.ladder(model), guess, side)
            return [shown, scored, gr.update(interactive=False), gr.update(interactive=False)]

        return guarded(make, 4)

    outputs = [table, dealt, left, right]
    deal.click(do_deal, [context.model, dealt], outputs, api_name="deal", **QUICK)
    for button, side in ((left, "left"), (right, "right")):
        button.click(
            lambda m, g, side=side: answer(side, m, g), [context.model, dealt], outputs, api_name=side, **QUICK
        )
    return [view, offer, game]
