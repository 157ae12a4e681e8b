"""The first ten seconds: the same noises through an ordinary and a distilled sampler, in 8 to 1 network calls."""

import random
from dataclasses import dataclass, replace

from markupsafe import Markup

from pdlab.app import html
from pdlab.app.condition import TWICE, Condition
from pdlab.app.ladders import PAGE, Drawn, Shelf, ShownLadder
from pdlab.app.views import cells
from pdlab.app.views.cells import KINDS, Cell, drawn

SENTENCE = (
    "Both rows start from the same 16 noises, and both cells of a column call a network equally often: "
    "only the training differs."
)
BY_CLASS = (
    "All rows start from the same noises, one of each class. Two rows of equally many network calls cost the same: "
    "what differs is the training."
)
ROWS = ("ddim", "distilled")
_MOST_CLASSES = 10  # columns


def columns(ladder: ShownLadder) -> list[int]:
    """The step counts shown: 8, 4, 2 and 1, or those of them that the ladder has."""
    return [steps for steps in (8, 4, 2, 1) if steps in ladder.steps]


def cell(ladder: ShownLadder, kind: str, calls: int, page: int = 0) -> Cell:
    """A cell as the ladder is shown first: of all classes in turn, in its own guidance."""
    return Cell(kind, calls, page, condition=Condition(guidance=ladder.shown))


def _at_hand(shelf: Shelf, ladder: ShownLadder, one: Cell) -> Drawn | None:
    """What is precomputed, else what was drawn: a visitor's live pictures change no other's first view."""
    return cells.stored(ladder, one) or drawn(shelf, ladder, one)


def view(shelf: Shelf, ladder: ShownLadder) -> Markup:
    """The picture with its figures, from what is precomputed; no model is loaded."""
    every = [cell(ladder, kind, calls) for kind in ROWS for calls in columns(ladder)]
    sheet = _by_class(shelf, ladder) if ladder.classes else _by_calls(shelf, ladder)
    told = [_how(ladder, every), f"Trained on {ladder.described()}."]
    if ladder.shown:
        told.insert(0, f"Drawn with guidance {ladder.shown:g} towards the class. {TWICE}")
    paragraphs = Markup().join(html.note(text, "how") for text in told if text)
    return Markup('<div class="opening">{}<div>{}</div></div>').format(sheet, paragraphs)


def _by_calls(shelf: Shelf, ladder: ShownLadder) -> Markup:
    """Sixteen samples a cell: samplers in rows, network calls in columns."""
    rows, live = [], False
    for kind in ROWS:
        line = []
        for calls in columns(ladder):
            one = cell(ladder, kind, calls)
            found, figures = _at_hand(shelf, ladder, one), cells.figures_text(ladder, one)
            live = live or (found is not None and found.seconds is not None)
            alt = f"16 samples, {KINDS[kind]}, {html.steps_text(calls)}"
            line.append(
                (html.picture(found.images, alt) if found else missing())
                + (Markup("<small>{}</small>").format(figures) if figures else "")
            )
        rows.append((KINDS[kind], line))
    heads = [html.steps_text(calls) for calls in columns(ladder)]
    return html.sheet(heads, rows, Markup("{} {}").format(SENTENCE, html.source(live)))


def _by_class(shelf: Shelf, ladder: ShownLadder) -> Markup:
    """One sample a cell: a class a column, a sampler and its network calls a row."""
    names, rows, sources = ladder.classes[:_MOST_CLASSES], [], set()
    for calls in columns(ladder):
        for kind in ROWS:
            one = cell(ladder, kind, calls)
            found, figures = _at_hand(shelf, ladder, one), cells.figures_text(ladder, one)
            if found:
                sources.add(found.seconds is not None)
            what = f"{html.calls_text(calls)}, {KINDS[kind]}"
            why = one.missing(ladder) or ("" if found else "not drawn yet")
            name: str = f"{what}: {why}" if why else what
            line = [
                html.picture(found.images[k : k + 1], f"{names[k]}, {what}") if found else ""
                for k in range(len(names))
            ]
            if figures:
                name = Markup('{} <span class="figure">{}</span>').format(name, figures)
            rows.append((name, [] if why else line))
    badge = html.source(any(sources)) if sources else "Draw them in Compare."
    return html.sheet(names, rows, Markup("{} {}").format(BY_CLASS, badge), narrow=True)


def _how(ladder: ShownLadder, every: list[Cell]) -> str:
    """What the figures are, and what real images reach; empty where nothing was measured."""
    text = ""
    if row := next(filter(None, (cells.figure(ladder, one) for one in every)), None):
        floor = (
            f" Real images score {row.card.real['value']:.3g}: no model can be expected to go lower."
            if row.card.real
            else ""
        )
        text = (
            f"{row.metric} is the distance of {row.card.n:,} samples from {row.card.reference['size']:,} training "
            f"images; lower is better.{floor}"
        )
    if row := next(filter(None, (cells.figure(ladder, one, "agreement") for one in every)), None):
        real = f"; of real images, in {row.card.real['value']:.3g}" if row.card.real else ""
        text += (
            f" {row.metric} is the share of samples in which a classifier sees the class that was asked for{real}."
        )
    return text.strip()


def missing(why: str = "not drawn yet") -> Markup:
    """What stands where nothing is drawn."""
    return Markup('<div class="missing">{}</div>').format(why)


@dataclass(frozen=True)
class Guess:
    """A round of "which is which": two pictures of the same noises, one of them distilled."""

    calls: int
    page: int
    distilled_left: bool
    right: int = 0
    asked: int = 0


def deal(ladder: ShownLadder, score: Guess | None = None, seed: int | None = None) -> Guess:
    """A new round with the score so far; `seed` makes it repeatable."""
    draw = random.Random(seed)
    pairs = [
        (calls, page, [cell(ladder, kind, calls, page) for kind in ROWS])
        for calls in columns(ladder)
        for page in range(4)
    ]
    choices = [(calls, page) for calls, page, both in pairs if all(cells.stored(ladder, one) for one in both)]
    calls, page = draw.choice(choices or [(0, 0)])
    dealt = Guess(calls, page, draw.random() < 0.5)
    return replace(dealt, right=score.right, asked=score.asked) if score else dealt


def question(shelf: Shelf, ladder: ShownLadder, guess: Guess, answer: str | None = None) -> tuple[str, Guess]:
    """The two pictures, with the truth once `answer` ("left" or "right") is given, and the score then."""
    pair = {kind: cell(ladder, kind, guess.calls, guess.page) for kind in ROWS}
    order = ("distilled", "ddim") if guess.distilled_left else ("ddim", "distilled")
    pictures, among = [], pair["ddim"].condition.among(ladder, pair["ddim"].first, PAGE)
    for kind, side in zip(order, ("Left", "Right"), strict=True):
        found = _at_hand(shelf, ladder, pair[kind])
        if found is None:
            return html.note("Nothing is precomputed for this ladder: draw it in the tab Compare first."), guess
        name = f"{side}, {KINDS[kind] if answer else 'one of the two'}"
        pictures.append(
            html.picture(found.images, f"16 samples{among}, {name}")
            + (Markup("<small>{}</small>").format(KINDS[kind]) if answer else "")
        )
    verdict = f"Both from the same noises in {html.calls_text(guess.calls)}. Which one is distilled?"
    if answer in ("left", "right"):
        correct = (answer == "left") == guess.distilled_left
        guess = replace(guess, right=guess.right + correct, asked=guess.asked + 1)
        verdict = f"{'Right' if correct else 'No, it is the other'}. {guess.right} of {guess.asked} so far."
    return html.sheet(["Left", "Right"], [(verdict, pictures)], html.source(False)), guess
