"""A ladder's picture and its README, made from its report: no figure is typed by hand.

The README's words are in README.md.j2, what stands in its tables is here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pdlab.figures.charts import curves
from pdlab.figures.grids import class_grid, sample_grid
from pdlab.metrics.card import Kind, Row, by_sampler
from pdlab.templates import markdown

COLUMNS = (64, 16, 8, 4, 2, 1)
SAMPLERS = {
    "distilled": "distilled",
    "ddim": "DDIM",
    "ancestral": "ancestral (best ν)",
    "heun": "Heun (one evaluation less)",
    "dpm-solver++": "DPM-Solver++(2M)",
}
SHARES: tuple[Kind, ...] = ("agreement", "precision", "recall")

_TEMPLATES = markdown(Path(__file__).parent)
_TEMPLATES.filters["f"] = format  # as in an f-string
_README = _TEMPLATES.get_template("README.md.j2")


def picture(
    drawn: Mapping[tuple[str, int, float], Tensor],
    report: Mapping[str, Any],
    guidance: float = 0.0,
    classes: Sequence[str] = (),
    n: int = 16,
) -> Figure:
    """The first noises at the step counts `COLUMNS`: undistilled DDIM above, distilled below, with their figures.

    With classes, one of each in a row for a step count; without, `n` in a square cell for each.
    """
    models = {"teacher": "ddim", "distilled": "distilled"}
    there = {model: [k for k in COLUMNS if (kind, k, guidance) in drawn] for model, kind in models.items()}
    told = f", guidance {guidance:g}" if guidance else ""
    title = f"The same noises everywhere: only training and steps differ{told}"
    captions = {
        model: _captions(report, kind, guidance, "\n" if classes else ", ") for model, kind in models.items()
    }
    if not classes:
        cells = {m: {k: drawn[models[m], k, guidance][:n] for k in counts} for m, counts in there.items()}
        return sample_grid(cells, captions, title)
    rows = {
        m: {
            f"{k} step{'s' if k > 1 else ''}\n{captions[m].get(k, '')}".strip(): drawn[models[m], k, guidance][
                : len(classes)
            ]
            for k in counts
        }
        for m, counts in there.items()
    }
    return class_grid(rows, classes, title)


def progress_chart(progress: Mapping[str, Any]) -> Figure:
    """The quick distance of the teacher's moving average against the images it had seen at the full side."""
    name, n, steps = progress["figure"].rsplit("_", 2)
    title = f"{n.removeprefix('n')} samples in {steps.removeprefix('steps')} steps"
    points = {seen / 1000: value for seen, value in progress["points"]}
    return curves({name: points}, "thousands of images seen", f"{name} (lower is better)", ylog=False, title=title)


def _captions(report: Mapping[str, Any], kind: str, guidance: float, between: str) -> dict[int, str]:
    """Distance and, where it was measured, class agreement of one kind of model, by its steps."""
    texts: dict[int, str] = {}
    for what in ("frechet", "agreement"):
        for row in by_sampler(report, guidance, what).get(kind, {}).values():
            text = f"{row.metric if what == 'frechet' else what} {row.value:.3g}"
            texts[row.card.steps] = f"{texts[row.card.steps]}{between}{text}" if row.card.steps in texts else text
    return texts


def page(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The README of a ladder's folder: what it is, how it was made, what it measures, how to make it again.

    What no figure says of a ladder that ships stands in notes/NAME.md.
    """
    notes = Path(__file__).parent / "notes" / f"{Path(manifest['name']).name}.md"
    weights, shown = manifest["recipe"]["guidances"], manifest["guidance"]["shown"]
    return _README.render(
        manifest=manifest,
        report=report,
        notes=notes.read_text() if notes.is_file() else "",
        data=manifest["data"],
        speed=manifest["throughput"],
        first=next(iter(next(iter(by_sampler(report, shown).values())).values())),
        floor=report["real"]["frechet"],
        ratio=report["cost"].get("distillation_over_teacher"),
        distances=[_distances(report, w) for w in sorted(weights, key=lambda w: (w != shown, w))],
        shares=[found for what in SHARES if (found := _shares(report, weights, what))],
    )


def _distances(report: Mapping[str, Any], w: float) -> dict[str, Any]:
    """The table of Fréchet distances at guidance `w`, and the students' relative to the teacher's best there.

    `best` is None where the teacher was not measured.
    """
    values = by_sampler(report, w)
    kinds = [kind for kind in SAMPLERS if kind in values]
    undistilled = (row for kind in kinds if kind != "distilled" for row in values[kind].values())
    best = min(undistilled, key=lambda r: r.value, default=None)
    return {
        "guidance": w,
        "heads": ["network evaluations", *(SAMPLERS[kind] for kind in kinds)],
        "rows": [
            [nfe, *(_cell(values[kind].get(nfe)) for kind in kinds)]
            for nfe in sorted({n for column in values.values() for n in column})
        ],
        "best": best,
        "how": _how(best.card.sampler) if best else "",
        "ratios": []
        if best is None
        else [
            f"{steps} step{'s' if steps > 1 else ''} {student.value / best.value:.2f} ×"
            for steps, student in sorted(values.get("distilled", {}).items(), reverse=True)
            if steps <= 8
        ],
    }


def _shares(report: Mapping[str, Any], weights: Sequence[float], what: Kind) -> dict[str, Any] | None:
    """Shares of the students and, in brackets, of the teacher's DDIM at as many steps; None if not measured."""
    found = [by_sampler(report, w, what) for w in weights]
    students = [columns.get("distilled", {}) for columns in found]
    ddim = [{row.steps: row for row in columns.get("ddim", {}).values()} for columns in found]
    if not any(students):
        return None
    first = next(iter(next(filter(None, students)).values()))

    def cell(column: int, steps: int) -> str:
        student, teacher = students[column].get(steps), ddim[column].get(steps)
        return (f"{student.value:.3f}" + (f" ({teacher.value:.3f})" if teacher else "")) if student else ""

    return {
        "metric": first.metric,
        "real": first.card.real,
        "heads": ["steps", *(f"guidance {w:g}" for w in weights)],
        "rows": [
            [steps, *(cell(column, steps) for column in range(len(weights)))]
            for steps in sorted(set().union(*students), reverse=True)
        ],
    }


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    nu = f" (ν = {row.card.sampler['nu']:g})" if "nu" in row.card.sampler else ""
    spread = f" ± {row.spread:.2g}" if row.spread is not None else ""
    return f"{row.value:.3g}{spread}{nu}"


def _how(sampler: Mapping[str, Any]) -> str:
    nu = f", ν = {sampler['nu']:g}" if "nu" in sampler else ""
    return f"{SAMPLERS[sampler['name']].split(' (')[0]}{nu}"
