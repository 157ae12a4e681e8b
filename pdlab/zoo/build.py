"""Build a ladder: train, distil, pack, measure, sample, and write its folder; interrupted, it goes on.

RUN/teacher/, RUN/student-0032/, …   as `pdlab train` and `pdlab distill` leave them (float32)
RUN/packed/      the same in float16: these are what is measured, sampled and shipped
RUN/figures/     one file for every figure
OUT/             the ladder, renamed into place when it is whole
"""

import io
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from pdlab import schema
from pdlab.data import ImageSource
from pdlab.data.source import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.distillation.rounds import STAGES, distill
from pdlab.distillation.throughput import Throughput, matrix_rate, throughput
from pdlab.errors import PdlabError
from pdlab.files import alone, digest_of, replaced_folder, restore, write
from pdlab.metrics.bias import sample_size_bias
from pdlab.metrics.card import Row, versions
from pdlab.metrics.evaluate import Yardstick, labels_of, noise, samples_of
from pdlab.metrics.features import FeatureExtractor, extractor, inception_at_hand
from pdlab.metrics.gauge import Gauge
from pdlab.metrics.reference import nearest_distances, reference_features
from pdlab.training.checkpoint import Checkpoint, load, save
from pdlab.training.cost import cost_report
from pdlab.training.log import Log, figures
from pdlab.training.loop import Upkeep
from pdlab.training.machine import Machine
from pdlab.training.presets import Preset, to_dict
from pdlab.training.run import Run
from pdlab.training.teacher import TEACHER, describe, train
from pdlab.zoo import MANIFEST, NOISE, POOL, PROGRESS, REPORT, SAMPLES, Manifest, Report, manifest_at
from pdlab.zoo.measure import (
    NEAREST,
    Reading,
    best_nus,
    kept,
    measure,
    nu_readings,
    own_readings,
    powers,
    quantiles,
    teacher_readings,
)
from pdlab.zoo.page import page, picture, progress_chart
from pdlab.zoo.recipe import LadderRecipe

NOISES = 64
MOST_BYTES = 58 << 20  # of all weights together; with what is drawn a ladder stays below 64 MiB
_FIGURES = "figures"

Drawn = dict[tuple[str, int, float], Tensor]  # by kind, steps and guidance: uint8 [NOISES, C, H, W]


def build(
    name: str,
    settings: Preset,
    recipe: LadderRecipe,
    source: ImageSource,
    held_out: ImageSource | None,
    run: Path,
    out: Path,
    machine: Machine,
    *,
    earlier: Sequence[tuple[Preset, ImageSource]] = (),
    features: str = "effnet-lite0",
    seed: int = 0,
    log: Log | None = None,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Build ladder `name` by `settings` into the new folder `out`; returns its manifest.

    The teacher grows from those of the `earlier` settings and data, trained in folders of `run` that bear their
    names.
    `run` keeps all that was done, so the same call goes on from where it was stopped. A ladder at `out` is
    replaced when the new one is whole. `seconds` is how long each throughput is measured. FID is measured too
    where Inception's weights are at hand, and left empty otherwise.

    Raises PdlabError for settings that do not fit the data, another `run`'s settings, or an `out` that is
    something else than a ladder, that another process builds, or that lies in `run` or around it.
    """
    check_apart(run, out)
    log = log or Log(quiet=True)
    started, commit = time.monotonic(), _commit()
    with _alone(out), Run(run) as folder:
        check_replaceable(out)
        small = None
        for stage, data in earlier:
            with Run(run / stage.name) as inner:
                small = load(train(stage, data, inner, machine, grow_from=small, seed=seed, log=log))
        upkeep = _on_the_way(settings, recipe, source, machine)
        trained = [train(settings, source, folder, machine, grow_from=small, seed=seed, log=log, upkeep=upkeep)]
        teacher = load(trained[0])
        trained += distill(
            teacher, source, settings, folder, machine, first=settings.first_steps, seed=seed, log=log
        )
        models = pack(name, settings, trained, run / "packed")
        speed = _throughput(settings, machine, run, seconds)
        report = _measure(models, recipe, source, held_out, machine, run / _FIGURES, features, seed, log)
        with replaced_folder(out, lambda: check_replaceable(out), "choose another --out") as folder_out:
            for path in models:
                shutil.copytree(path, folder_out / path.name)
            drawn = draw(models, folder_out, seed, recipe)
            pool, images = _pool(models[0], report, recipe, folder_out, machine, seed, log)
            # Of every stage, also of those that do not ship.
            report["cost"] = cost_report([teacher], [load(path) for path in trained[1:]])
            report["bias"] = _bias(images, {"pixels", features}, machine)
            if progress := _progress(run / "log.jsonl", settings.teaching.batch):
                report["progress"] = progress
                write(folder_out / PROGRESS, _png(progress_chart(progress)))
            _write_json(folder_out / REPORT, report, Report)
            write(folder_out / "samples.png", _png(picture(drawn, report, recipe.shown, source.classes)))
            manifest = {
                "name": name,
                "preset": settings.name,
                "settings": to_dict(settings),
                "data": describe(source) | {"size": settings.size},
                "first_steps": settings.first_steps,
                "seed": seed,
                "recipe": asdict(recipe),
                "commit": commit,
                "versions": versions(),
                "rungs": [_rung(path, report) for path in models],
                "samples": {"noises": NOISES, "seed": seed, "precision": "fp32", "sampler": "ddim", "clip": True},
                "guidance": _guidance(models[-1], recipe),
                "pool": pool,
                "throughput": speed,
                "seconds": time.monotonic() - started,
            }
            write(folder_out / "README.md", page(manifest, report).encode())
            files = [p for p in sorted(folder_out.rglob("*")) if p.is_file() and p.name != "README.md"]
            manifest["files"] = {
                str(p.relative_to(folder_out)): {"sha256": digest_of(p), "bytes": p.stat().st_size} for p in files
            }
            _write_json(folder_out / MANIFEST, manifest, Manifest)
    return manifest


def _on_the_way(settings: Preset, recipe: LadderRecipe, source: ImageSource, machine: Machine) -> Upkeep:
    if not recipe.on_the_way:
        return Upkeep()
    every = max(1, settings.teaching.updates // recipe.on_the_way)
    return Upkeep(measure=Gauge(source, machine), measure_every=every)


def _progress(log: Path, batch: int) -> dict[str, Any] | None:
    """The quick distances of the teacher on its way, by images seen; None where there are none."""
    for name, values in figures(log, TEACHER).items():
        if name.startswith("KD"):
            points = [[batch * update, value] for update, value in sorted(values.items())]
            return {"figure": name, "points": points}
    return None


def check_apart(run: Path, out: Path) -> None:
    """Raise PdlabError where `out` and `run` are the same folder, or one lies inside the other."""
    one, other = (Path(os.path.realpath(path)) for path in (out, run))  # also of links that lead nowhere
    if one == other or one in other.parents or other in one.parents:
        raise PdlabError(
            f"--out {out} and --run {run} lie inside one another: choose an --out apart from the run, whose files "
            "are not the ladder's"
        )


def check_replaceable(out: Path) -> None:
    """Raise PdlabError unless `out` is not there, or is a ladder with no file in it that is not the ladder's.

    What a kill left between the two renames of an earlier build is put back first.
    """
    restore(out)
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir() or not (out / MANIFEST).is_file():
        raise PdlabError(f"{out} exists and is no ladder: choose another --out")
    try:
        own = {MANIFEST, "README.md", *manifest_at(out)["files"]}
    except PdlabError as error:
        raise PdlabError(f"{out} exists and is not replaced ({error}): choose another --out") from None
    own |= {str(parent) for name in own for parent in Path(name).parents}
    foreign = sorted(name for path in out.rglob("*") if (name := str(path.relative_to(out))) not in own)
    if foreign:
        raise PdlabError(
            f"{out} holds what is not the ladder's ({', '.join(foreign[:3])}): move it away, or choose "
            "another --out"
        )


def pack(name: str, settings: Preset, trained: list[Path], packed: Path) -> list[Path]:
    """Copies of the checkpoints `trained` (teacher first) in `packed`, in float16, each naming its packed teacher.

    The students of the most steps are left out if all together exceed `MOST_BYTES`, and the stages before the first
    halving always: their teacher, guided, draws the same.
    """
    sizes = {path: (path / "model.safetensors").stat().st_size // 2 for path in trained if path.name not in STAGES}
    teacher, *students = sizes
    kept = [teacher]
    for path in reversed(students):  # fewest steps first
        if sum(sizes[p] for p in kept) + sizes[path] <= MOST_BYTES:
            kept.append(path)
    parent, paths = None, []
    for path in trained:
        model = load(path)
        to = packed / path.name
        weights = {key: tensor.half() for key, tensor in model.denoiser.network.state_dict().items()}
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise PdlabError(f"the weights of {path} exceed float16's range: train with a smaller lr")
        if not (to / "model.json").exists():
            known = {"preset": to_dict(settings), "teacher": parent, "zoo": name, "float32": model.sha256}
            save(to, model.denoiser, {**model.info, **known}, weights)
        done = load(to)
        if done.info.get("float32") != model.sha256 or done.info["teacher"] != parent:
            raise PdlabError(f"{to} was packed from another {path.name}: remove {packed} and {_FIGURES} beside it")
        parent = done.sha256
        if path in kept:
            paths.append(to)
    return paths


def draw(models: list[Path], out: Path, seed: int, recipe: LadderRecipe) -> Drawn:
    """Write the fixed noises, and what the students and undistilled DDIM make of them in float32, into `out`.

    Noise k of a conditional ladder is drawn as class k modulo their number, at guidance 0 and that which is shown.
    """
    loaded = [load(path) for path in models]
    z = noise(loaded[0].shape, NOISES, seed)
    content = io.BytesIO()
    np.savez_compressed(content, noise=z.numpy())
    write(out / NOISE, content.getvalue())
    most = max(int(loaded[0].info["preset"]["first_steps"]), recipe.drawn)
    labels = labels_of(loaded[0].denoiser, NOISES)
    drawn: Drawn = {}
    for w in {0.0, recipe.shown}:
        how: dict[str, Any] = {"labels": labels, "guidance": w}
        drawn |= {("ddim", n, w): to_uint8(sample(loaded[0].denoiser, z, n, **how)) for n in powers(most)}
        drawn |= {
            ("distilled", m.denoiser.steps or 0, w): to_uint8(sample(m.denoiser, z, **how)) for m in loaded[1:]
        }
    tensors = {f"{kind}/{n:04d}/{w:g}": images.contiguous() for (kind, n, w), images in sorted(drawn.items())}
    write(out / SAMPLES, safetensors.torch.save(tensors))
    return drawn


def _guidance(student: Path, recipe: LadderRecipe) -> dict[str, Any]:
    """The weights that samples are stored at, the one shown first, and the largest that students were made for."""
    return {
        "shown": recipe.shown,
        "stored": sorted({0.0, recipe.shown}),
        "most": load(student).denoiser.guidance_max,
    }


def tiled(images: Tensor, columns: int) -> np.ndarray:
    """Images uint8 `[N, C, H, W]` as one sheet `[rows·H, columns·W, C]` without gaps; N a multiple of `columns`."""
    n, c, h, w = images.shape
    sheet = images.reshape(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)
    return sheet.reshape(n // columns * h, columns * w, c).numpy()


def _pool(
    teacher: Path, report: dict[str, Any], recipe: LadderRecipe, out: Path, machine: Machine, seed: int, log: Log
) -> tuple[dict[str, Any], Tensor]:
    """Write `recipe.pool` samples of the teacher, by the sampler that measured best, as one lossless mosaic.

    Returns how they were made, and them.
    """
    how, model = report["teacher_best"], load(teacher)
    options = {key: value for key, value in how["sampler"].items() if key != "name"}
    name, steps = how["sampler"]["name"], how["steps"]
    parts = samples_of(
        model,
        recipe.pool,
        steps,
        machine,
        name,
        seed=seed + 1,  # not the images that were measured
        batch=250,
        guidance=how["guidance"],
        progress=lambda done, n: log.advance("pool", done, n),
        options=options,
    )
    images = torch.cat([to_uint8(part.cpu()) for part in parts])  # every class in turn, as `labels_of` says
    columns = 2 ** (max(1, recipe.pool).bit_length() // 2)
    content = io.BytesIO()
    Image.fromarray(tiled(images, columns).squeeze()).save(content, format="png", optimize=True)
    write(out / POOL, content.getvalue())
    made = {"n": recipe.pool, "sampler": how["sampler"], "steps": steps, "guidance": how["guidance"]}
    return {**made, "seed": seed + 1}, images


def _bias(images: Tensor, extractors: set[str], machine: Machine) -> dict[str, Any]:
    """What the number of samples alone does to the distances of these images, by extractor."""
    found = {}
    for name in sorted(extractors):
        by = extractor(name, device=machine.device)
        features = torch.cat([by(part.to(machine.device)).cpu() for part in images.split(250)])
        points = [asdict(point) for point in sample_size_bias(features)]
        found[name] = {"label": by.label, "points": points}
    return found


def _measure(
    models: list[Path],
    recipe: LadderRecipe,
    source: ImageSource,
    held_out: ImageSource | None,
    machine: Machine,
    kept: Path,
    features: str,
    seed: int,
    log: Log,
) -> dict[str, Any]:
    started = time.monotonic()
    extract = extractor(features, device=machine.device)

    def progress(done: int, n: int) -> None:
        log.advance("reference features", done, n)

    def yardstick(n: int, search: bool = False, by: FeatureExtractor = extract) -> Yardstick:
        kinds: Any = ("frechet",) if search else recipe.kinds
        return Yardstick(source, by, n, held_out, kinds, progress, spread=not search)

    main = yardstick(recipe.n)
    own = measure(own_readings(models, recipe), main, machine, kept, log, seed)
    undistilled = measure(teacher_readings(models[0], recipe), main, machine, kept, log, seed)
    search: list[tuple[Reading, dict[str, Any]]] = []
    if recipe.nus:
        readings = nu_readings(models[0], recipe)
        search = measure(readings, yardstick(recipe.nu_n, search=True), machine, kept, log, seed)
    chosen = best_nus(search)
    ancestral = measure(chosen, main, machine, kept, log, seed)
    results = [*own, *undistilled, *ancestral]
    rows = [row for _, result in results for row in result["rows"]]
    frechet = [row for row in rows if Row.from_dict(row).kind == "frechet" and row["model"] == "teacher"]
    best = min(frechet, key=lambda row: row["value"])
    loaded = [load(path) for path in models]
    assert main.features is not None
    report = {
        "teacher_steps": loaded[0].info["preset"]["first_steps"],
        "rows": rows,
        "real": main.real,
        "best_nu": {str(reading.steps): reading.nu for reading in chosen},
        "nu_search": [row for _, result in search for row in result["rows"]],
        "teacher_best": {**best["card"], "value": best["value"], "spread": best["spread"]},
        "memorising": {
            "what": f"Euclidean distance in {extract.label} features to the nearest of {len(source.images)} images",
            "n": min(NEAREST, recipe.n),
            "held_out": _nearest_held_out(held_out, main, extract),
            "models": {_label(reading): result["nearest"] for reading, result in results if "nearest" in result},
        },
        "fid": _fid(models, recipe, yardstick, machine, kept, seed, log),
        "seconds": time.monotonic() - started,
    }
    return report


def _fid(
    models: list[Path], recipe: LadderRecipe, yardstick: Any, machine: Machine, kept: Path, seed: int, log: Log
) -> list[dict[str, Any]]:
    """FID (or its like at fewer samples) of students and DDIM; empty where Inception's weights are not at hand."""
    if not inception_at_hand():
        return []
    readings = own_readings(models, recipe)
    readings += [Reading(models[0], "ddim", n, guidance=w) for w in recipe.guidances for n in powers(recipe.ddim)]
    by = extractor("inception", device=machine.device)
    results = measure(readings, yardstick(recipe.n, search=True, by=by), machine, kept, log, seed)
    return [row for _, result in results for row in result["rows"]]


def _nearest_held_out(
    held_out: ImageSource | None, yardstick: Yardstick, extract: FeatureExtractor
) -> dict[str, float] | None:
    if held_out is None or yardstick.features is None:
        return None
    real = reference_features(held_out, extract, min(NEAREST, len(held_out.images))).to(yardstick.device)
    return quantiles(nearest_distances(real, yardstick.features))


class Throughputs(TypedDict):
    """figures/throughput.json."""

    device: str
    bf16_matrix_flops: schema.Positive
    steps: list[Throughput]


def _throughput(settings: Preset, machine: Machine, run: Path, seconds: float) -> dict[str, Any]:
    """Images a second of the preset; measured once a run."""

    def work() -> dict[str, Any]:
        rate = matrix_rate(machine)
        measured = throughput(settings, machine, settings.teaching.batch, rate, seconds)
        return {
            "device": machine.describe(),
            "bf16_matrix_flops": rate,
            "steps": [asdict(entry) for entry in measured],
        }

    return kept(run / _FIGURES / "throughput.json", Throughputs, work)


def _rung(path: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    model: Checkpoint = load(path)
    steps, cost = model.denoiser.steps, model.info["cost"]
    return {
        "name": path.name,
        "steps": steps,
        "file": f"{path.name}/model.safetensors",
        "sha256": model.sha256,
        "teacher": model.info["teacher"],
        "float32": model.info["float32"],
        "preset": model.info["preset"]["name"],
        "images": cost["images"],
        "flops": cost["flops"],
        "seconds": cost["seconds"],
        "device": model.info["device"],
        "rows": [row for row in report["rows"] if Row.from_dict(row).card.checkpoint == model.sha256],
    }


def _label(reading: Reading) -> str:
    guided = f", guidance {reading.guidance:g}" if reading.guidance else ""
    return (
        f"{reading.model.name}, {reading.steps} steps" if reading.model.name == "teacher" else reading.model.name
    ) + guided


def _commit() -> str | None:
    """The commit of the source that runs, marked where files differ from it; None for an installed package."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _alone(out: Path) -> AbstractContextManager[None]:
    return alone(out, f"another pdlab builds {out}: wait for it, or choose another --out", "choose another --out")


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _write_json(path: Path, value: Mapping[str, Any], kind: Any) -> None:
    content = schema.sealed(value)
    write(path, content)
    schema.read(path, kind)  # what could not be read again is not shipped
