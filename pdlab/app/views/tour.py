"""Tour: seven stops, each points at a control and is done when that was used; the page keeps score."""

from dataclasses import dataclass
from html import escape


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


def view() -> str:
    """The stops as a list; the page's script marks those that are done."""
    items = "".join(
        f'<li data-stop="{stop.target}"><b>{escape(stop.title)}</b> <span class="done">to do</span>'
        f'<br>{escape(stop.text)} <button type="button" data-go="{stop.tab}" data-target="{stop.target}">'
        "Show me</button></li>"
        for stop in STOPS
    )
    return (
        '<p class="how">Seven stops, in any order. A stop is done when its control was used; this browser '
        "remembers.</p>"
        f'<ol class="tour">{items}</ol>'
    )
