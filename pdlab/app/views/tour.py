"""Tour: seven stops, each points at a control and is done when that was used; the page keeps score."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Stop:
    """`target` is the id of the control in tab `tab`; using it completes the stop."""

    target: str
    tab: str
    title: str
    text: str


STOPS = (
    Stop(
        "guess", "", "Guess which is which", "Two grids from the same noises, in equally few steps. Can you tell?"
    ),
    Stop(
        "compare-steps",
        "compare",
        "Fewer and fewer steps",
        "Tick more step counts: the ordinary sampler blurs first.",
    ),
    Stop(
        "compare-rows",
        "compare",
        "Better samplers",
        "Add Heun or DPM-Solver++: how far does a better sampler alone get?",
    ),
    Stop(
        "curve-plot",
        "curve",
        "Every number has a card",
        "Press a point of the curve: how many samples, which features?",
    ),
    Stop(
        "lineage-noise",
        "lineage",
        "One noise, every round",
        "Choose a noise: how far does each halving move its image?",
    ),
    Stop(
        "bench-run",
        "bench",
        "Watch a sampler work",
        "Sample live: the film strip shows what the model expects at each step.",
    ),
    Stop(
        "lab-teach", "lab", "Do it yourself", "Train a teacher of points in the plane, then halve it to one step."
    ),
)


def view() -> Markup:
    """The stops as a list; the page's script marks those that are done."""
    item = Markup(
        '<li data-stop="{0.target}"><b>{0.title}</b> <span class="done">to do</span>'
        '<br>{0.text} <button type="button" data-go="{0.tab}" data-target="{0.target}">Show me</button></li>'
    )
    return Markup(
        '<p class="how">Seven stops, in any order. A stop is done when its control was used; this browser '
        'remembers.</p><ol class="tour">{}</ol>'
    ).format(Markup().join(item.format(stop) for stop in STOPS))
