"""The first ten seconds: the same noises through an ordinary and a distilled sampler, at 8, 4, 2 and 1 steps."""

import random
from dataclasses import dataclass, replace
from html import escape

from pdlab.app import html
from pdlab.app.ladders import Ladder, Shelf
from pdlab.app.views import cells
from pdlab.app.views.cells import KINDS, Cell, drawn, figure

SENTENCE = (
    "Both rows start from the same 16 noises, and both cells of a column call a network equally often: "
    "only the training differs."
)
ROWS = ("ddim", "distilled")


def columns(ladder: Ladder) -> list[int]:
    """The step counts shown: 8, 4, 2 and 1, or those of them that the ladder has."""
    return [steps for steps in (8, 4, 2, 1) if steps in ladder.steps]


def view(shelf: Shelf, ladder: Ladder) -> str:
    """The picture with its figures, from what is precomputed; no model is loaded."""
    counts = columns(ladder)
    rows, measured = [], None
    for kind in ROWS:
        line = []
        for calls in counts:
            cell = Cell(kind, calls)
            found, row = drawn(shelf, ladder, cell), figure(ladder, cell)
            measured = row or measured
            caption = f"<small>{cells.figure_text(row)}</small>" if row else ""
            alt = f"16 samples, {KINDS[kind]}, {html.steps_text(calls)}"
            line.append((html.picture(found.images, alt) if found else missing()) + caption)
        rows.append((f"{escape(KINDS[kind])}", line))
    how = ""
    if measured:
        card = measured.card
        floor = (
            f" Real images score {card.real['value']:.3g}: no model can be expected to go lower."
            if card.real
            else ""
        )
        how = (
            f'<p class="how">Below each cell: {escape(measured.metric)}, the distance of {card.n:,} samples from '
            f"{card.reference['size']:,} training images; lower is better.{floor}</p>"
        )
    live = any((d := drawn(shelf, ladder, Cell(k, n))) and d.seconds is not None for k in ROWS for n in counts)
    caption = f"{escape(SENTENCE)} {html.source(live)}"
    heads = [html.steps_text(calls) for calls in counts]
    trained = f'<p class="how">Trained on {escape(ladder.described())}.</p>'
    return f'<div class="opening">{html.sheet(heads, rows, caption)}<div>{how}{trained}</div></div>'


def missing() -> str:
    """What stands where nothing is drawn yet."""
    return '<div class="missing">not drawn yet</div>'


@dataclass(frozen=True)
class Guess:
    """A round of "which is which": two pictures of the same noises, one of them distilled."""

    calls: int
    page: int
    distilled_left: bool
    right: int = 0
    asked: int = 0


def deal(ladder: Ladder, score: Guess | None = None, seed: int | None = None) -> Guess:
    """A new round with the score so far; `seed` makes it repeatable."""
    draw = random.Random(seed)
    stored = ladder.samples
    choices = [
        (calls, page)
        for calls in columns(ladder)
        for page in range(4)
        if all((kind, calls) in stored and len(stored[kind, calls]) >= 16 * (page + 1) for kind in ROWS)
    ]
    calls, page = draw.choice(choices or [(0, 0)])
    dealt = Guess(calls, page, draw.random() < 0.5)
    return replace(dealt, right=score.right, asked=score.asked) if score else dealt


def question(shelf: Shelf, ladder: Ladder, guess: Guess, answer: str | None = None) -> tuple[str, Guess]:
    """The two pictures, with the truth once `answer` ("left" or "right") is given, and the score then."""
    cells = {kind: drawn(shelf, ladder, Cell(kind, guess.calls, guess.page)) for kind in ROWS}
    order = ("distilled", "ddim") if guess.distilled_left else ("ddim", "distilled")
    pictures = []
    for kind, side in zip(order, ("Left", "Right"), strict=True):
        found = cells[kind]
        if found is None:
            return html.note("Nothing is precomputed for this ladder: draw it in the tab Compare first."), guess
        name = f"{side}, {KINDS[kind] if answer else 'one of the two'}"
        pictures.append(
            html.picture(found.images, f"16 samples, {name}") + (f"<small>{KINDS[kind]}</small>" if answer else "")
        )
    verdict = f"Both from the same noises in {html.steps_text(guess.calls)}. Which one is distilled?"
    if answer in ("left", "right"):
        correct = (answer == "left") == guess.distilled_left
        guess = replace(guess, right=guess.right + correct, asked=guess.asked + 1)
        verdict = f"{'Right' if correct else 'No, it is the other'}. {guess.right} of {guess.asked} so far."
    return html.sheet(["Left", "Right"], [(escape(verdict), pictures)], html.source(False)), guess
