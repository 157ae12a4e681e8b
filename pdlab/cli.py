"""The `pdlab` command. Options are checked here; the work is the library's, imported when a command runs."""

import contextlib
import os
import sys
import warnings
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pdlab import __version__, console
from pdlab.errors import PdlabError, extra, reason
from pdlab.schema import MOST_RANK, MOST_STEPS

app = typer.Typer(
    name="pdlab",
    help="Learn, run and measure progressive distillation of diffusion models (Salimans & Ho, ICLR 2022).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


zoo_app = typer.Typer(help="The ladders that ship with the package.", invoke_without_command=True)
app.add_typer(zoo_app, name="zoo")
export_app = typer.Typer(help="A student's whole sampler, for other programs.", no_args_is_help=True)
app.add_typer(export_app, name="export")


class Device(str, Enum):
    """Where networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """What networks compute in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Features(str, Enum):
    """What images are compared by."""

    pixels = "pixels"
    effnet = "effnet-lite0"
    inception = "inception"


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint folder, e.g. runs/a/student-0004, or LADDER:STEPS of pdlab zoo."
    ),
]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run; the same command again resumes it.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with the data set (default: $PDLAB_DATA, then the cache)."),
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 if it is not found.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a CUDA GPU where there is one.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="auto takes bf16 where the hardware has it and the network gains."),
]
CompileOption = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile the networks (default: where it pays)."),
]


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    """Run the files that register samplers, data sets, networks or presets, and what is installed to do so."""
    from pdlab.plugins import load_file, load_installed

    load_installed()
    for file in files or []:
        load_file(file)
    return files


PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        is_eager=True,
        callback=_load_plugins,
        help="Run this Python file first: it registers samplers, data sets, networks or presets of yours.",
    ),
]
SamplerOption = Annotated[
    str, typer.Option("--sampler", help="ddim, ancestral, heun, dpm-solver++, or one that a plugin registers.")
]
NuOption = Annotated[
    float,
    typer.Option("--nu", min=0, max=1, help="Variance of the ancestral sampler: 0 lower, 1 upper."),
]
ClipOption = Annotated[
    bool | None, typer.Option("--clip/--no-clip", help="Clip x to [-1, 1] in every step (default: for images).")
]
GuidanceOption = Annotated[
    float, typer.Option("--guidance", metavar="W", help="How far beyond its class each sample is drawn; 0 is not.")
]
ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS", help="A class to draw, by name or number; again for more, or a,b,c."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override any field, e.g. --set network.channels=64."),
]
UpdatesOption = Annotated[int | None, typer.Option("--updates", min=1, max=10**8 - 1, help="Optimizer updates.")]
BatchOption = Annotated[int | None, typer.Option("--batch", min=1, max=10**9, help="Examples an update.")]
MicroOption = Annotated[
    int | None,
    typer.Option("--micro-batch", min=0, max=10**9, help="Examples at a time, of an update's batch; 0: all."),
]
LrOption = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
SaveOption = Annotated[
    float | None,
    typer.Option(
        "--save-every",
        min=0,
        max=10**9,
        help="Seconds between saved states (default: 60, or more where saving would take over 2 % of the time).",
    ),
]
SkipOption = Annotated[
    int,
    typer.Option(
        "--skip-bad", min=0, max=10**6, help="Pass over up to so many updates whose loss is not finite, in a stage."
    ),
]
ChangeOption = Annotated[
    bool,
    typer.Option(
        "--change",
        help="Go on with another lr, muon_lr, warmup, clip, --precision or (train) more --updates than before.",
    ),
]
MeasureOption = Annotated[
    int,
    typer.Option("--measure-every", min=0, help="Updates between quick distances in the log; 0: none."),
]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("pdlab-quickstart"),
    seed: SeedOption = 0,
) -> None:
    """Teacher, all halvings and a measured report on handwritten digits: minutes on a laptop."""
    from pdlab.quickstart import quickstart as work
    from pdlab.report import print_report

    report = work(out, seed)
    print_report(report)
    console.say(f"Wrote {out}/samples.png, {out}/curve.png, {out}/report.json and the checkpoints.")


@app.command()
def train(
    preset: Annotated[
        str,
        typer.Argument(
            help="digits, toy, cifar10-cpu, cifar10-gpu, cifar10-paper, imagenet64, lsun128: see pdlab presets."
        ),
    ],
    run: RunOption,
    data: DataOption = None,
    dataset: Annotated[str | None, typer.Option(help="Another data set than the preset's.")] = None,
    download: DownloadOption = False,
    updates: UpdatesOption = None,
    batch: BatchOption = None,
    micro_batch: MicroOption = None,
    lr: LrOption = None,
    output: Annotated[str | None, typer.Option(help="What the network predicts: x, eps, v or both.")] = None,
    weighting: Annotated[str | None, typer.Option(help="Loss weighting: snr, truncated or snr+1.")] = None,
    grow_from: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="Start as this smaller network: half the side, less wide, without classes."
        ),
    ] = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    compile: CompileOption = None,
    save_every: SaveOption = None,
    skip_bad: SkipOption = 0,
    change: ChangeOption = False,
    measure_every: MeasureOption = 0,
    snapshot_every: Annotated[
        int,
        typer.Option(
            "--snapshot-every",
            min=0,
            help="Updates between checkpoints RUN/teacher@N and grids of samples; 0: none.",
        ),
    ] = 0,
    plugin: PluginOption = None,
) -> None:
    """Train a teacher into RUN/teacher."""
    from pdlab.data import load as load_data
    from pdlab.training.log import Log
    from pdlab.training.machine import Machine
    from pdlab.training.presets import override
    from pdlab.training.presets import preset as find_preset
    from pdlab.training.run import Run
    from pdlab.training.teacher import check_preset
    from pdlab.training.teacher import train as work
    from pdlab.zoo import find

    given = _changes(
        set_,
        {
            "data": dataset,
            "output": output,
            "weighting": weighting,
            "precision": precision and precision.value,
            "teacher.updates": updates,
            "teacher.batch": batch,
            "teacher.micro_batch": micro_batch,
            "teacher.lr": lr,
        },
    )
    settings = override(find_preset(preset), given)
    machine = Machine(device.value, settings.precision, compile)
    source = load_data(settings.data, "train", data, settings.size, download, settings.resize)
    check_preset(settings, source)
    small = find(grow_from) if grow_from is not None else None
    with Run(run) as folder, Log(folder.path) as log:
        log.say(f"{settings.name} on {source.name}, {machine.describe()}")
        path = work(
            settings,
            source,
            folder,
            machine,
            grow_from=small,
            seed=seed,
            log=log,
            upkeep=_upkeep(source, machine, log, save_every, skip_bad, change, measure_every),
            snapshot_every=snapshot_every,
            picture=_picture(machine) if snapshot_every else None,
        )
    console.say(f"{path} is ready; next: pdlab distill {path} --run {run}")


@app.command("presets")
def presets_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One preset, whole.")] = None,
    plugin: PluginOption = None,
) -> None:
    """The presets, a line each; or one whole, as the fields that --set changes."""
    from pdlab.report import print_preset, print_presets

    print_presets() if name is None else print_preset(name)


@app.command()
def distill(
    checkpoint: CheckpointArgument,
    run: RunOption,
    first: Annotated[
        int | None,
        typer.Option("--from", min=2, max=MOST_STEPS, help="Steps of the teacher (default: the preset's)."),
    ] = None,
    last: Annotated[int, typer.Option("--to", min=1, max=MOST_STEPS, help="Steps of the last student.")] = 1,
    hops: Annotated[
        int,
        typer.Option("--hops", min=2, max=MOST_STEPS, help="Teacher's steps that one of the student's replaces."),
    ] = 2,
    lora: Annotated[
        int | None,
        typer.Option(
            "--lora",
            metavar="RANK",
            min=1,
            max=MOST_RANK,
            help="Students are adapters of this rank: a few percent of the weights, beside a frozen teacher.",
        ),
    ] = None,
    data: DataOption = None,
    dataset: Annotated[str | None, typer.Option(help="Data set (default: the one it was trained on).")] = None,
    download: DownloadOption = False,
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates", min=1, max=10**8 - 1, help="Updates a halving; twice as many for those to 2 and 1."
        ),
    ] = None,
    batch: BatchOption = None,
    micro_batch: MicroOption = None,
    lr: LrOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    compile: CompileOption = None,
    save_every: SaveOption = None,
    skip_bad: SkipOption = 0,
    change: ChangeOption = False,
    measure_every: MeasureOption = 0,
    plugin: PluginOption = None,
) -> None:
    """Distil CHECKPOINT, halving by halving, into RUN/student-NNNN; diffusers:FOLDER is a pipeline of diffusers."""
    from pdlab.api import kept
    from pdlab.distillation.rounds import check_rounds
    from pdlab.distillation.rounds import distill as work
    from pdlab.training.checkpoint import load
    from pdlab.training.cost import cost_line
    from pdlab.training.log import Log
    from pdlab.training.machine import Machine
    from pdlab.training.presets import override
    from pdlab.training.run import Run
    from pdlab.zoo import find

    teacher, source = _foreign(checkpoint, data, dataset, download) or (find(checkpoint), None)
    settings = teacher.preset
    micro = {f"{stage}.micro_batch": micro_batch for stage in ("distill", "guide")}
    given = _changes(set_, {"distill.updates": updates, "distill.batch": batch, "distill.lr": lr, **micro})
    if other := [name for name in given if not name.startswith(("distill.", "guide.")) and name != "guidance_max"]:
        raise PdlabError(
            f"--set {other[0]}: a round keeps its teacher's settings but for distill.*, guide.* and guidance_max, "
            "e.g. distill.lr"
        )
    settings = override(settings, given)
    first = first or teacher.denoiser.steps or settings.first_steps
    machine = Machine(device.value, precision.value if precision else settings.precision, compile)
    if source is None:
        source = _data_of(teacher, data, dataset, download)
    check_rounds(teacher, source, settings, first, last, hops, lora)
    with Run(run) as folder, Log(folder.path) as log:
        log.say(f"{checkpoint}: {first} steps to {last}, {machine.describe()}")
        teacher = kept(teacher, folder)
        paths = work(
            teacher,
            source,
            settings,
            folder,
            machine,
            first=first,
            last=last,
            hops=hops,
            rank=lora,
            seed=seed,
            log=log,
            upkeep=_upkeep(source, machine, log, save_every, skip_bad, change, measure_every),
        )
    console.say(cost_line(teacher, [load(path) for path in paths]))
    console.say(f"{paths[-1]} is ready; next: pdlab sample {paths[-1]} --out grid.png")


@app.command()
def sample(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option("--out", help="grid.png, or samples.npz (arr_0: uint8 [N, H, W, C]).")],
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MOST_STEPS, help="Sampling steps (default: a student's own)."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=10**9, help="How many samples.")] = 64,
    sampler: SamplerOption = "ddim",
    nu: NuOption = 0.0,
    clip: ClipOption = None,
    guidance: GuidanceOption = 0.0,
    class_: ClassOption = None,
    decode: Annotated[
        Path | None, typer.Option("--decode", help="Of latents: a diffusers autoencoder's folder.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    plugin: PluginOption = None,
) -> None:
    """Draw samples from CHECKPOINT; of one with classes all in turn, or those given."""
    from pdlab.data.latents import from_autoencoder
    from pdlab.diffusion.samplers import takes
    from pdlab.report import write_samples
    from pdlab.training.machine import Machine
    from pdlab.zoo import find

    if out.suffix not in (".png", ".npz"):
        raise PdlabError(f"--out {out} must end in .png (a grid) or .npz (all samples)")
    model = find(checkpoint)
    count = model.step_count(steps)
    machine = Machine(device.value, precision.value if precision else model.precision)
    options = {"nu": nu} if takes(sampler, "nu") else {}
    write_samples(
        out,
        model,
        n,
        count,
        machine,
        sampler=sampler,
        seed=seed,
        clip=clip,
        guidance=guidance,
        classes=None if class_ is None else [name.strip() for text in class_ for name in text.split(",")],
        options=options,
        decode=None if decode is None else from_autoencoder(decode).images,
    )
    console.say(f"Wrote {n} samples of {checkpoint} in {count} step{'s' if count > 1 else ''} to {out}.")


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Checkpoint folders, or LADDER:STEPS of pdlab zoo.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The report to write.")] = Path("report.json"),
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="e.g. 1,2,4 (default: a student's own; of a teacher 1, 2, 4, …)."),
    ] = None,
    features: Annotated[Features, typer.Option(help="FID is inception's at n = 50000.")] = Features.effnet,
    weights: Annotated[Path | None, typer.Option(help="Weights of the features (default: the published).")] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=2, max=10**9, help="Samples a figure (default: 5000; of --density 256 images)."),
    ] = None,
    density: Annotated[
        bool,
        typer.Option("--density", help="Bits per dimension of a teacher instead, by its flow and by the bound."),
    ] = False,
    sampler: SamplerOption = "ddim",
    nu: NuOption = 0.0,
    clip: ClipOption = None,
    guidance: GuidanceOption = 0.0,
    data: DataOption = None,
    dataset: Annotated[str | None, typer.Option(help="Data set (default: the one it was trained on).")] = None,
    download: DownloadOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    plugin: PluginOption = None,
) -> None:
    """Measure checkpoints against their training images; every figure carries how it was measured."""
    from pdlab.diffusion.samplers import takes
    from pdlab.report import evaluate_checkpoints, evaluate_density, print_density, print_report
    from pdlab.training.checkpoint import known
    from pdlab.training.machine import Machine
    from pdlab.zoo import find

    if out.suffix != ".json":
        raise PdlabError(f"--out {out} must end in .json")
    counts = None if steps is None else _counts(steps)
    models = [find(text) for text in checkpoints]
    machine = Machine(device.value, precision.value if precision else models[0].precision)
    options = {"nu": nu} if takes(sampler, "nu") else {}
    sources = {known(model)["data"]["name"] for model in models}
    if len(sources) > 1:
        names = ", ".join(sorted(sources))
        raise PdlabError(f"these checkpoints are of different data sets ({names}): evaluate one at a time")
    source, held_out = _data_of(models[0], data, dataset, download), _held_out(models[0], data)
    if density:
        images = source if held_out is None else held_out
        print_density(evaluate_density(models, images, machine, out, n=n or 256, seed=seed))
        console.say(f"Wrote {out}.")
        return
    report = evaluate_checkpoints(
        models,
        source,
        held_out,
        machine,
        out,
        counts=counts,
        features=features.value,
        weights=weights,
        n=n or 5000,
        sampler=sampler,
        seed=seed,
        clip=clip,
        guidance=guidance,
        options=options,
    )
    print_report(report)
    console.say(f"Wrote {out}.")


@zoo_app.callback()
def zoo(context: typer.Context) -> None:
    """The ladders that ship with the package, and how to build one."""
    if context.invoked_subcommand is None:
        from pdlab.report import print_zoo

        print_zoo()


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(metavar="LADDER", help="cifar10, or a preset, such as digits.")],
    by: Annotated[
        str | None, typer.Option("--preset", help="Another preset to make it by, such as cifar10-cpu.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Where to work (default: runs/LADDER).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The ladder's folder (default: RUN-zoo).")] = None,
    data: DataOption = None,
    download: DownloadOption = False,
    n: Annotated[
        int | None, typer.Option("--n", min=2, max=10**9, help="Samples a figure (default: the recipe's).")
    ] = None,
    features: Annotated[Features, typer.Option(help="What figures are computed by.")] = Features.effnet,
    set_: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    compile: CompileOption = None,
    plugin: PluginOption = None,
) -> None:
    """Train, distil, measure and pack a whole ladder; the same command again goes on from where it was."""
    from pdlab.metrics.features import extractor
    from pdlab.training.log import Log
    from pdlab.training.machine import Machine
    from pdlab.training.presets import override, preset
    from pdlab.training.teacher import check_preset
    from pdlab.zoo.build import build
    from pdlab.zoo.recipe import adjusted, recipe

    settings, how = recipe(name, by)
    settings = override(settings, _changes(set_, {"precision": precision and precision.value}))
    source = _images(settings, data, download)
    check_preset(settings, source)
    if features is Features.inception:
        raise PdlabError("FID is measured beside where Inception's weights are at hand: choose other --features")
    how = adjusted(how, n, extractor(features.value, shape=source.shape).dim)
    earlier = [(stage, _images(stage, data)) for stage in map(preset, how.grown_from)]
    run = _named(run or Path("runs") / name)
    machine = Machine(device.value, settings.precision, compile)
    with Log(run) as log:
        log.say(f"{name} on {source.name}, {machine.describe()}; figures of {how.n:,} samples")
        held_out = _held_out_of(settings.data, data, settings.size)
        place = _named(out or Path(f"{run}-zoo"))
        build(
            name,
            settings,
            how,
            source,
            held_out,
            run,
            place,
            machine,
            earlier=earlier,
            features=features.value,
            seed=seed,
            log=log,
        )
    console.say(f"{place} is ready: see {place}/README.md")


GraphFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]
GraphSteps = Annotated[
    int | None, typer.Option("--steps", min=1, max=64, help="Steps in the graph (default: a student's own).")
]


@export_app.command("onnx")
def export_onnx(
    checkpoint: CheckpointArgument, out: GraphFile, steps: GraphSteps = None, plugin: PluginOption = None
) -> None:
    """Write the sampler as ONNX: noise (label, guidance) in, image out; checked in onnxruntime against ours."""
    from pdlab.adapters.graph import export_onnx as work

    _export(work, checkpoint, out, steps)


@export_app.command("torch")
def export_torch(
    checkpoint: CheckpointArgument, out: GraphFile, steps: GraphSteps = None, plugin: PluginOption = None
) -> None:
    """Write the same as a .pt2 of torch.export, for torch.export.load and AOTInductor."""
    from pdlab.adapters.graph import export_torch as work

    _export(work, checkpoint, out, steps)


@export_app.command("web")
def export_web(
    ladder: Annotated[
        str, typer.Argument(metavar="LADDER", help="A ladder of pdlab zoo, or the folder of one or a run.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    vendored: Annotated[
        bool, typer.Option("--vendored", help="onnxruntime-web beside the page, not from a CDN; fetched once.")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Write a page that runs the students in its reader's browser: for any static host, nothing to install."""
    from pdlab.web.site import write_site

    out = _named(out)
    sizes = write_site(ladder, out, vendored, console.say)
    console.say(
        f"Wrote {out}, {sum(sizes.values()) / 2**20:.0f} MiB; look at it with: python -m http.server -d {out}"
    )


@export_app.command("diffusers")
def export_diffusers(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; it must not be there yet.")],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=1024, help="Sampling steps (default: a student's own).")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write the sampler as a folder that diffusers loads: DIR/README.md says how; checked against ours."""
    from pdlab.adapters.export_diffusers import export_diffusers as work
    from pdlab.zoo import find

    model = find(checkpoint)
    count = model.step_count(steps)
    apart = work(model.denoiser, out, count, model.classes)
    console.say(
        f"Wrote {out}: {count} step{'s' if count > 1 else ''}, its images within {apart:.1g} of ours; "
        f"{out / 'README.md'} says how to draw from it in a diffusers script."
    )


def _export(work: Any, checkpoint: str, out: Path, steps: int | None) -> None:
    from pdlab.zoo import find

    model = find(checkpoint)
    count = model.step_count(steps)
    apart = work(model.denoiser, out, count)
    console.say(
        f"Wrote {out}, {out.stat().st_size / 2**20:.1f} MiB: {count} step{'s' if count > 1 else ''} in one graph, "
        f"its images within {apart:.1g} of ours."
    )


@app.command()
def push(
    name: Annotated[str, typer.Argument(metavar="NAME", help="OWNER/NAME on the hub.")],
    checkpoint: CheckpointArgument,
    public: Annotated[bool, typer.Option("--public", help="For all to see (default: private).")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Though there are files under this name.")] = False,
    licence: Annotated[
        str, typer.Option("--license", metavar="ID", help="The model's, as the hub calls it, e.g. apache-2.0.")
    ] = "unknown",
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Figures of pdlab evaluate (default: report.json beside the checkpoint)."),
    ] = None,
    device: DeviceOption = Device.auto,
    plugin: PluginOption = None,
) -> None:
    """Put CHECKPOINT on the Hugging Face Hub, with a model card; private unless --public."""
    from pdlab.hub import push as work
    from pdlab.training.machine import Machine
    from pdlab.zoo import find

    model = find(checkpoint)
    machine = Machine(device.value, model.precision)
    address = work(name, model, machine, public=public, replace=replace, licence=licence, report=report)
    console.say(f"{address} holds {checkpoint}; next: pdlab pull {name}")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="OWNER/NAME on the hub.")],
    out: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A new folder (default: NAME).")] = None,
    plugin: PluginOption = None,
) -> None:
    """Fetch a checkpoint from the Hugging Face Hub into DIR, checked as every file is."""
    from pdlab.hub import pull as work

    path = work(name, out)
    console.say(f"{path} is ready; next: pdlab sample {path} --out grid.png")


@app.command()
def bench(
    out: Annotated[Path | None, typer.Option("--out", help="Also write the figures as JSON.")] = None,
    preset: Annotated[str, typer.Option(help="A preset with a U-Net.")] = "cifar10-gpu",
    batch: Annotated[int, typer.Option(min=1, max=10**9, help="Examples a training step.")] = 128,
    repeats: Annotated[int, typer.Option(min=3, max=1000, help="Alternating repeats; the median counts.")] = 9,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Also the graphs of pdlab export, which take a minute to make.")
    ] = False,
    device: DeviceOption = Device.auto,
    compile: CompileOption = None,
    plugin: PluginOption = None,
) -> None:
    """Speed against diffusers on equal networks, alternating in one run, as ratios with their spread."""
    from pdlab.bench import bench as work

    where: dict[str, Any] = {"device": device.value, "compile": compile}
    work(out, preset=preset, batch=batch, repeats=repeats, exported=graphs, **where)


@app.command("app")
def app_(
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="A run or ladder of your own, or a folder of such, to show as well."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Samples and distances across step counts, side by side in a browser; works offline."""
    try:
        with extra("app", "the app"):
            from pdlab.app.server import launch
    except ValueError as error:  # what Gradio reads of the environment as it is imported
        raise PdlabError(f"the app cannot start ({reason(error)}): unset GRADIO_…, or set them right") from None

    launch(runs, port)


def _version(value: bool) -> None:
    if value:
        console.say(f"pdlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a `PdlabError` is one line and exit code 2; a stop that can be resumed is 130."""
    console.prepare()
    warnings.showwarning = _show_warning
    message, code = _ended()
    if message:
        console.line(f"pdlab: {message}")
    sys.exit(code)


def _ended() -> tuple[str, int]:
    """Run the command; what there is to say of its end, and the exit code."""
    try:
        code = _run()
        sys.stdout.flush()
        return "", code
    except PdlabError as error:
        return str(error), 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has what it wanted
        _silence()
        return "", 141
    except OSError as error:  # of the system's making wherever it comes from: no room, no permission, no such name
        if error.filename is None:
            _silence()
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{reason(error)}; put that right or choose another place, then give the command again", 2
    except KeyboardInterrupt:
        return "interrupted; the same command goes on from the last saved state", 130
    except MemoryError:
        return "out of memory: take a smaller --batch, --n or size", 2
    except Exception as error:
        return _expected(error)


def _run() -> int:
    command = typer.main.get_command(app)
    try:
        return command.main(prog_name="pdlab", standalone_mode=False) or 0
    except Exception as error:
        message = getattr(error, "format_message", None)  # a usage error, from click or typer's own copy of it
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "pdlab"
        text = " ".join(message().split())
        if text:
            raise PdlabError(f"{text.rstrip('.')}; see {where} --help") from None
        return 2


def _expected(error: Exception) -> tuple[str, int]:
    import torch

    from pdlab.training.loop import Stopped

    if isinstance(error, Stopped):
        return f"{error}; the same command goes on from there", 130
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory does not suffice: take a smaller --batch, or --device cpu", 2
    raise error


def _silence() -> None:
    """Let the interpreter's last flush of standard output go nowhere: it would fail once more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    if issubclass(category, UserWarning) and not issubclass(category, (FutureWarning, DeprecationWarning)):
        console.line(f"pdlab: note: {message}")


def _changes(assignments: list[str] | None, options: dict[str, Any]) -> dict[str, str]:
    pairs = {}
    for text in assignments or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise PdlabError(f"--set {text} is not of the form FIELD=VALUE, e.g. --set teacher.lr=1e-4")
        pairs[name.strip()] = value.strip()
    return pairs | {name: str(value) for name, value in options.items() if value is not None}


def _upkeep(
    source: Any, machine: Any, log: Any, save_every: float | None, skip_bad: int, change: bool, every: int
) -> Any:
    from pdlab.training.loop import Upkeep

    measure = None
    if every:
        from pdlab.metrics.gauge import Gauge

        measure = Gauge(source, machine, partial(log.advance, "reference features"))
    return Upkeep(save_every, skip_bad, change, measure, every)


def _picture(machine: Any) -> Any:
    from pdlab.report import draw_snapshot

    return partial(draw_snapshot, machine=machine)


def _named(path: Path) -> Path:
    """`path` with a name of its own, to put others beside it: "." has none."""
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > MOST_STEPS:
        raise PdlabError(f"--steps {text:.100} must be step counts from 1 to {MOST_STEPS}, with commas: 1,2,4")
    return counts


def _foreign(name: str, root: Path | None, dataset: str | None, download: bool) -> Any:
    """The teacher that diffusers:FOLDER names, not kept anywhere yet, and its data; None for another name."""
    from pdlab.adapters.pipelines import PREFIX, from_diffusers
    from pdlab.api import foreign
    from pdlab.data import load as load_data
    from pdlab.data.latents import from_autoencoder, kept_at
    from pdlab.hub import pull_pipeline

    if not name.startswith(PREFIX):
        return None
    folder = Path(name.removeprefix(PREFIX))
    if not folder.exists():
        if not download:
            raise PdlabError(f"there is no folder {folder}; one of the Hugging Face Hub is fetched with --download")
        folder = pull_pipeline(str(folder))
    denoiser = from_diffusers(folder)
    if denoiser.condition is not None:
        raise PdlabError(f"{folder} is told the states of a text: distil it from Python, see pdlab.from_diffusers")
    assert denoiser.shape is not None
    side = denoiser.shape[-1]
    if denoiser.bounded:
        source = load_data(dataset or "folder", "train", root, side, download)
    else:
        codec = from_autoencoder(folder / "vae")
        images: Any = load_data(dataset or "folder", "train", root, side * codec.factor, download)
        source = codec.latents(images, kept_at(images, codec))
    return foreign(denoiser, source), source


def _data_of(model: Any, root: Path | None, dataset: str | None, download: bool) -> Any:
    from pdlab.data import load as load_data
    from pdlab.data import names
    from pdlab.distillation.rounds import check_same_data

    settings = model.preset
    name = dataset or model.info["data"]["name"]
    if dataset is None and name not in names():
        raise PdlabError(
            f"{model.path} was trained on {name}, which no data set here is called: give --dataset with the same "
            "images (folder, with --data DIR), or --plugin FILE.py that registers it"
        )
    source = load_data(name, "train", root, settings.size or model.shape[-1], download, settings.resize)
    check_same_data(model, source)
    return source


def _images(settings: Any, root: Path | None, download: bool = False) -> Any:
    from pdlab.data import ImageSource
    from pdlab.data import load as load_data

    source = load_data(settings.data, "train", root, settings.size, download, settings.resize)
    if not isinstance(source, ImageSource):
        raise PdlabError(f"{settings.data} is 2-D: the zoo measures images only; try pdlab train and pdlab distill")
    return source


def _held_out(model: Any, root: Path | None) -> Any:
    return _held_out_of(model.info["data"]["name"], root, model.info["preset"]["size"])


def _held_out_of(name: str, root: Path | None, size: int | None) -> Any:
    from pdlab.data import load as load_data

    try:
        return load_data(name, "test", root, size)
    except PdlabError:
        return None  # digits and folders have no test split; the floor is then resampled, and says so


if __name__ == "__main__":
    main()
