"""What a page shows of a ladder: its students, noises to begin with, and their measured distances."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pdlab import zoo
from pdlab.errors import PdlabError
from pdlab.metrics.card import by_sampler
from pdlab.metrics.evaluate import noise
from pdlab.training.checkpoint import Checkpoint, checkpoints_in, load

#: Noises that are shipped for every class, or in all where there are none: known beginnings.
NOISES, PLAIN_NOISES = 2, 16
#: Steps that a visitor has patience for: students of more are left out.
MOST_STEPS = 64


@dataclass(frozen=True)
class Students:
    """The students of a ladder, by their steps, least first; `load` gives one.

    `noise` is float32 `[n, C, H, W]`, noise k for class k mod `len(classes)`. `shown` is the guidance to begin
    with, `most` the largest. `figures` are Fréchet distances by steps, each with the guidance it was measured at.
    """

    name: str
    data: str
    shape: tuple[int, ...]
    classes: list[str]
    shown: float
    most: float
    noise: Tensor
    steps: list[int]
    load: Callable[[int], Checkpoint]
    figures: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def students(ladder: str) -> Students:
    """Those of a ladder that ships, or of the folder of a ladder or a run.

    PdlabError for another name, and where there are none, or none of images.
    """
    place = Path(ladder)
    if ladder not in zoo.names() and not os.path.lexists(place / zoo.MANIFEST) and place.is_dir():
        return _of_run(place)
    return _of_zoo(ladder)


def _of_zoo(name: str) -> Students:
    made, classes = zoo.manifest(name), zoo.classes(name)
    steps = sorted(rung["steps"] for rung in made["rungs"] if 0 < (rung["steps"] or 0) <= MOST_STEPS)
    if not steps:
        raise PdlabError(f"{name} has no student of up to {MOST_STEPS} steps: more are too slow for a page")
    report = zoo.report(name)
    figures: dict[int, list[dict[str, Any]]] = {}
    for w in made["guidance"]["stored"]:
        for row in by_sampler(report, w).get("distilled", {}).values():
            real = row.card.real["value"] if row.card.real else None
            how = {"metric": row.metric, "value": row.value, "n": row.card.n, "guidance": w, "real": real}
            figures.setdefault(row.steps, []).append(how)
    return Students(
        Path(made["name"]).name,
        made["data"]["name"],
        tuple(made["data"]["shape"]),
        classes,
        made["guidance"]["shown"],
        made["guidance"]["most"],
        zoo.noise(name)[: NOISES * len(classes) or PLAIN_NOISES],
        steps,
        lambda count: zoo.checkpoint(name, count),
        figures,
    )


def _of_run(place: Path) -> Students:
    found: dict[int, Checkpoint] = {}
    for path in checkpoints_in(place):
        model = load(path)
        if 0 < (model.denoiser.steps or 0) <= MOST_STEPS:
            found[model.step_count(None)] = model
    if not found:
        raise PdlabError(
            f"{place} holds no student of up to {MOST_STEPS} steps: make some with pdlab distill … --run {place}"
        )
    first = found[min(found)]
    if len(first.shape) != 3 or not first.denoiser.bounded or first.denoiser.condition is not None:
        raise PdlabError(f"the students in {place} draw no images: there is nothing for a page to show")
    most, classes = first.denoiser.guidance_max, first.classes
    return Students(
        place.resolve().name,
        first.info.get("data", {}).get("name", "images of your own"),
        first.shape,
        classes,
        min(1.0, most),
        most,
        noise(first.shape, NOISES * len(classes) or PLAIN_NOISES, 0),
        sorted(found),
        lambda count: found[count],
    )
