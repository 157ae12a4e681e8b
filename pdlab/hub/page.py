"""The model card that a checkpoint has on the hub: what it is, where it comes from, how it was measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdlab import __version__
from pdlab.files import write
from pdlab.metrics.card import Row
from pdlab.networks.registry import Own, config_of, kind_of
from pdlab.report import read_rows, write_samples
from pdlab.templates import markdown
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.machine import Machine

SAMPLES, REPORT = 64, "report.json"
_STEPS = 64  # of a picture of a teacher, which has no step count of its own

_TEMPLATE = markdown(Path(__file__).parent).get_template("README.md.j2")


def write_page(
    folder: Path, name: str, checkpoint: Checkpoint, machine: Machine, licence: str, report: Path | None
) -> None:
    """Write README.md, samples.png and, of a model that was measured, report.json into `folder`.

    There is no picture of latents, or of what is told a condition. Figures are this model's in `report`, or in
    report.json beside it. PdlabError for a report that is none.
    """
    denoiser, path = checkpoint.denoiser, checkpoint.path
    if report is None and path is not None and (path.parent / REPORT).is_file():
        report = path.parent / REPORT
    rows = [] if report is None else [r for r in read_rows(report) if r.card.checkpoint == checkpoint.sha256]
    if rows:
        content = json.dumps({"rows": [row.to_dict() for row in rows]}, indent=2, allow_nan=False)
        write(folder / REPORT, content.encode())
    steps = denoiser.steps or min(checkpoint.info.get("preset", {}).get("first_steps", _STEPS), _STEPS)
    drawn = denoiser.condition is None and (denoiser.bounded or len(checkpoint.shape) == 1)
    if drawn:
        write_samples(folder / "samples.png", checkpoint, SAMPLES, steps, machine, quiet=True)
    text = page(name, checkpoint, licence, rows, steps, drawn)
    write(folder / "README.md", text.encode())


def page(name: str, checkpoint: Checkpoint, licence: str, rows: Sequence[Row], steps: int, drawn: bool) -> str:
    """The text of README.md. `steps` are those of its picture, if there is one (`drawn`)."""
    denoiser, info = checkpoint.denoiser, checkpoint.info
    config = config_of(denoiser)
    facts: dict[str, Any] = {
        "kind": f"{info.get('model', 'a denoiser')}, {denoiser.steps or 'no fixed number of'} steps",
        "network": f"{config.name if isinstance(config, Own) else kind_of(config)}, "
        f"{sum(p.numel() for p in denoiser.network.parameters()):,} parameters, "
        f"{'×'.join(map(str, checkpoint.shape))}, output {denoiser.output}",
        "schedule": f"cosine, log-SNR from {denoiser.schedule.logsnr_max:g} to {denoiser.schedule.logsnr_min:g}",
    }
    if denoiser.num_classes:
        guided = f"; guidance up to {denoiser.guidance_max:g}" if denoiser.guidance_max else ""
        facts["classes"] = ", ".join(checkpoint.classes) + guided
    if info:
        data, preset = info["data"], info["preset"]
        facts["trained on"] = f"{data['name']}, {data['split']} split, sha256 `{data['digest']}`"
        facts["preset"] = f"{preset['name']}, seed {info['seed']}{', moving average' if info['ema'] else ''}"
        if info["teacher"] is not None:
            hops = info.get("hops", 2)
            read = f" in {hops * denoiser.steps} steps" if info["model"] == "distilled" and denoiser.steps else ""
            facts["teacher"] = f"sha256 `{info['teacher']}`{read}"
        if cost := info.get("cost"):
            facts["cost"] = f"{cost['images']:,} images, {cost['flops']:.2e} FLOPs, {cost['seconds']:,.0f} s"
        facts["device"] = info["device"]
    facts["weights"] = f"sha256 `{checkpoint.sha256}`"
    images = len(checkpoint.shape) == 3
    return _TEMPLATE.render(
        name=name,
        licence=licence,
        task="unconditional-image-generation" if images and not denoiser.num_classes else None,
        drawn=drawn,
        condition=denoiser.condition,
        first=checkpoint.classes[0] if denoiser.num_classes else None,
        steps=steps,
        own=denoiser.steps,
        facts=facts,
        rows=rows,
        version=__version__,
    )
