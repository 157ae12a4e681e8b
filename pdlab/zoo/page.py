"""A ladder's picture and its README, made from its report: no figure is typed by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pdlab.figures.grids import class_grid, sample_grid
from pdlab.metrics.card import Row, by_sampler

COLUMNS = (64, 16, 8, 4, 2, 1)
SAMPLERS = {
    "distilled": "distilled",
    "ddim": "DDIM",
    "ancestral": "ancestral (best ν)",
    "heun": "Heun (one evaluation less)",
    "dpm-solver++": "DPM-Solver++(2M)",
}


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


def _captions(report: Mapping[str, Any], kind: str, guidance: float, between: str) -> dict[int, str]:
    """Distance and, where it was measured, class agreement of one kind of model, by its steps."""
    texts: dict[int, str] = {}
    for what in ("frechet", "agreement"):
        for row in by_sampler(report, guidance, what).get(kind, {}).values():
            text = f"{row.metric if what == 'frechet' else what} {row.value:.3g}"
            texts[row.card.steps] = f"{texts[row.card.steps]}{between}{text}" if row.card.steps in texts else text
    return texts


def page(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The README of a ladder's folder: what it is, how it was made, what it measures, how to make it again."""
    name, data = manifest["name"], manifest["data"]
    weights, shown = manifest["recipe"]["guidances"], manifest["guidance"]["shown"]
    values = by_sampler(report, shown)
    row = next(iter(next(iter(values.values())).values()))
    cost, floor = report["cost"], report["real"]["frechet"]
    size = "×".join(str(side) for side in data["shape"])
    lines = [
        f"# {name}",
        "",
        f"A teacher and its students, trained on {data['name']} ({size}, {data['split']} split) by preset "
        f"`{manifest['preset']}` on: {manifest['rungs'][0]['device']}. The weights are float16; they were "
        "measured as they are here, and are computed with in float32 or bfloat16.",
        "",
        "![The same noises, undistilled above, distilled below, from 64 steps to 1](samples.png)",
        "",
        f"{row.metric} (lower is better) of {row.card.n:,} samples against {row.card.reference['size']:,} images, "
        f"± the standard error over draws; real images score {floor['value']:.3g} ({floor['how']}). It is "
        "comparable only with figures of equal n, features and reference: see the cards in `report.json`.",
        "",
    ]
    for w in sorted(weights, key=lambda w: (w != shown, w)):
        lines += _distances(report, w, len(weights) > 1)
    lines += [
        "FID was "
        + ("measured, see `report.json`." if report["fid"] else "not measured: no Inception weights were at hand."),
        "",
        *_shares(report, weights),
        "| rung | images seen | seconds | FLOPs |",
        "|---|---|---|---|",
        *(
            f"| {rung['name']} | {rung['images']:,} | {rung['seconds']:.0f} | {rung['flops']:.2e} |"
            for rung in manifest["rungs"]
        ),
        "",
    ]
    if ratio := cost.get("distillation_over_teacher"):
        lines += [
            f"All distillation together cost {ratio['flops']:.2f} × the teacher's FLOPs and "
            f"{ratio['seconds']:.2f} × its seconds.",
            "",
        ]
    speed = manifest["throughput"]
    lines += [
        f"Throughput, {speed['device']} ({speed['bf16_matrix_flops'] / 1e12:.3g} bf16 TFLOP/s in matrix products):",
        "",
        "| preset | step | batch | images/s | share of the matrix rate |",
        "|---|---|---|---|---|",
        *(
            f"| {s['preset']} | {s['step']} | {s['batch']} | {s['images_per_second']:,.0f} | {s['share']:.0%} |"
            for s in speed["steps"]
        ),
        "",
        "## Make it again",
        "",
        "```bash",
        f"pdlab zoo build {name}{' --download' if data['name'].startswith('cifar10') else ''} "
        f"--run runs/{name} --out pdlab/zoo/{name}",
        "```",
        "",
        "Interrupted, the same command goes on. It is the same as `pdlab train`, `pdlab distill`, `pdlab evaluate` "
        "with the settings in `manifest.json`, with every checkpoint in float16.",
        "",
    ]
    return "\n".join(lines)


def _distances(report: Mapping[str, Any], w: float, several: bool) -> list[str]:
    """The table of Fréchet distances at guidance `w`, and the students' relative to the teacher's best there."""
    values = by_sampler(report, w)
    kinds = [kind for kind in SAMPLERS if kind in values]
    lines = (
        [f"At guidance {w:g}; guided, an undistilled model takes two evaluations a step:", ""] if several else []
    )
    lines += [
        "| network evaluations | " + " | ".join(SAMPLERS[kind] for kind in kinds) + " |",
        "|---" * (1 + len(kinds)) + "|",
    ]
    for nfe in sorted({n for column in values.values() for n in column}):
        lines.append(f"| {nfe} | " + " | ".join(_cell(values[kind].get(nfe)) for kind in kinds) + " |")
    best = min(
        (row for kind in kinds if kind != "distilled" for row in values[kind].values()), key=lambda r: r.value
    )
    ratios = [
        f"{steps} step{'s' if steps > 1 else ''} {student.value / best.value:.2f} ×"
        for steps, student in sorted(values.get("distilled", {}).items())
        if steps <= 8
    ]
    how = _how(best.card.sampler)
    return [
        *lines,
        "",
        f"The teacher's best is {best.value:.3g} ({how}, {best.steps} steps). Distilled, relative to it: "
        f"{', '.join(reversed(ratios))}.",
        "",
    ]


def _shares(report: Mapping[str, Any], weights: Sequence[float]) -> list[str]:
    """Class agreement, precision and recall of the students and of the teacher's DDIM at as many steps."""
    lines = []
    for what in ("agreement", "precision", "recall"):
        found = {w: by_sampler(report, w, what) for w in weights}
        rows = {w: columns.get("distilled", {}) for w, columns in found.items()}
        if not any(rows.values()):
            continue
        first = next(iter(next(r for r in rows.values() if r).values()))
        real = f"; real images {first.card.real['value']:.3g} ({first.card.real['how']})" if first.card.real else ""
        lines += [
            f"{first.metric} (higher is better{real}), distilled and, in brackets, DDIM at as many steps:",
            "",
            "| steps | " + " | ".join(f"guidance {w:g}" for w in weights) + " |",
            "|---" * (1 + len(weights)) + "|",
        ]
        for steps in sorted({n for columns in rows.values() for n in columns}, reverse=True):
            ddim = {w: {r.steps: r for r in columns.get("ddim", {}).values()} for w, columns in found.items()}
            cells = [
                f"{rows[w][steps].value:.3f}" + (f" ({ddim[w][steps].value:.3f})" if steps in ddim[w] else "")
                if steps in rows[w]
                else ""
                for w in weights
            ]
            lines.append(f"| {steps} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    nu = f" (ν = {row.card.sampler['nu']:g})" if "nu" in row.card.sampler else ""
    spread = f" ± {row.spread:.2g}" if row.spread is not None else ""
    return f"{row.value:.3g}{spread}{nu}"


def _how(sampler: Mapping[str, Any]) -> str:
    nu = f", ν = {sampler['nu']:g}" if "nu" in sampler else ""
    return f"{SAMPLERS[sampler['name']].split(' (')[0]}{nu}"
