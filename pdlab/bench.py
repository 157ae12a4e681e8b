"""Speed beside diffusers, in one run: both sides alternate, and what counts is the ratio of neighbours.

Ours is the loop, the round and the sampler that `pdlab train`, `distill` and `sample` run. The peer is what a
tutorial would write: diffusers' `UNet2DModel` of equal blocks, parameters and FLOPs, AdamW and a DataLoader;
and its `DDIMPipeline`; once as they come, in float32, and once in the precision that ours runs in. The graphs that
`pdlab export` writes are peers of our sampler in float32. Machines differ and are shared, so no absolute time is a
result.
"""

import importlib
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._inductor
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pdlab import console
from pdlab.adapters.graph import GraphSampler, export_onnx, export_torch
from pdlab.data.source import ImageSource, to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.distillation.throughput import distillation_step, training_step
from pdlab.errors import PdlabError, extra
from pdlab.files import atomic_file, check_place
from pdlab.metrics.card import versions
from pdlab.metrics.evaluate import labels_of
from pdlab.networks.unet import UNetConfig
from pdlab.training.cost import check_memory, size
from pdlab.training.machine import Machine
from pdlab.training.presets import Preset, preset
from pdlab.training.teacher import new_denoiser


@dataclass(frozen=True)
class Ratio:
    """Median seconds of both sides, and the ratio peer / ours of neighbouring measurements with quartiles."""

    name: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float


def bench(
    out: Path | None = None,
    *,
    preset: str = "cifar10-gpu",
    batch: int = 128,
    repeats: int = 9,
    device: str = "auto",
    compile: bool | None = None,
    exported: bool = False,
) -> dict[str, Any]:
    """Run all comparisons on the network of `preset`, print them, and write them to `out`.

    With `exported` also that with the graphs of `pdlab export`, which take a minute to make.

    Raises PdlabError without diffusers, for a preset without a U-Net, a batch that does not fit in memory, or an
    `out` that cannot be written.
    """
    settings = _settings(preset)
    training = replace(settings.distill, batch=batch)
    check_memory(size(settings.network, settings.output), settings.network.shape, training)
    if out is not None:
        check_place(out, "choose another --out")
    machine = Machine(device, "auto", compile)
    source = _random_images(settings.network.image_size, batch).to(machine.device)
    printer = console.output()
    started = os.getloadavg()
    printer.print(
        f"{settings.name} on {machine.describe()}, batch {batch}, {repeats} repeats; load {started[0]:.1f}"
    )
    peer = peer_network(settings.network).to(machine.device)
    sizes = _sizes(settings, peer)
    ours = partial(training_step(settings, source, machine, batch), 2)
    round_ = partial(distillation_step(settings, source, machine, batch), 2)
    results = [compare("a round beside our training", round_, ours, machine, max(3, repeats // 2))]
    own = machine.precision_for(peer)
    for precision in dict.fromkeys(("fp32", own)):
        theirs = peer_training_step(peer, source, machine, batch, precision)
        results.append(compare(f"training, {own}; diffusers, {precision}", ours, theirs, machine, repeats))
        for steps in (8, 1):
            name = f"16 images in {steps} step{'s' if steps > 1 else ''}, {own}; diffusers, {precision}"
            one = sampling(settings, machine, 16, steps)
            results.append(
                compare(name, one, peer_sampling(peer, machine, 16, steps, precision), machine, 2 * repeats)
            )
    plain, one_call = Machine("cpu", "fp32", compile), _unguided(settings)
    for kind, graph in (graphs(one_call, 16, 1) if exported else {}).items():
        name = f"16 images in 1 step on the CPU, fp32; {kind}, fp32"
        results.append(compare(name, sampling(one_call, plain, 16, 1), graph, plain, 2 * repeats))
    error = bf16_error(settings, machine)
    table = Table("", "ours, s", "peer, s", "peer / ours", "quartiles")
    for r in results:
        table.add_row(r.name, f"{r.ours:.3f}", f"{r.peer:.3f}", f"{r.ratio:.2f}", f"{r.low:.2f} – {r.high:.2f}")
    printer.print(table)
    printer.print(
        f"{sizes}; images of our sampling precision are within {255 * error:.2f}/255 of float32's on average"
    )
    report = {
        "preset": settings.name,
        "device": machine.describe(),
        "batch": batch,
        "repeats": repeats,
        "load": [started, os.getloadavg()],
        "versions": {**versions(), "diffusers": _diffusers().__version__},
        "sizes": sizes,
        "results": [asdict(r) for r in results],
        "bf16_mean_absolute_difference": error,
    }
    if out is not None:
        with atomic_file(out) as file:
            file.write(json.dumps(report, indent=2).encode())
    return report


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], machine: Machine, repeats: int
) -> Ratio:
    """Alternate `ours` and `peer` (ABBA) after a warm-up of each; drifting load cancels in neighbours' ratios."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    sides = (ours, peer)
    for side in sides:
        side()
    for k in range(repeats):
        for index in (0, 1) if k % 2 == 0 else (1, 0):
            machine.wait()
            before = time.perf_counter()
            sides[index]()
            machine.wait()
            seconds[index].append(time.perf_counter() - before)
    ratios = [b / a for a, b in zip(seconds[0], seconds[1], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    medians = [statistics.median(seconds[k]) for k in (0, 1)]
    return Ratio(name, medians[0], medians[1], statistics.median(ratios), low, high)


def sampling(settings: Preset, machine: Machine, n: int, steps: int) -> Callable[[], object]:
    """`n` images as uint8 by our DDIM, in the precision that this machine samples in."""
    denoiser = machine.place(new_denoiser(settings, 0)).eval()
    shape = (n, 3, settings.network.image_size, settings.network.image_size)
    labels = labels_of(denoiser, n)
    labels = None if labels is None else labels.to(machine.device)

    def work() -> Tensor:
        with machine.for_sampling(denoiser) as live, torch.inference_mode():
            return to_uint8(sample(live, torch.randn(shape, device=machine.device), steps, labels=labels))

    return work


def peer_network(config: UNetConfig) -> nn.Module:
    """diffusers' `UNet2DModel` with the block plan of `config`: equal FLOPs, parameters within a few per cent."""
    attends = [resolution in config.attention for resolution in config.resolutions]
    network: nn.Module = _diffusers().UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=math.gcd(32, *(width // config.group_size for width in config.widths)),
        norm_eps=1e-6,
        attention_head_dim=config.head_dim,
    )
    return network


class _Images(Dataset[Tensor]):
    """One image at a time: to float, perhaps flipped."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        x = self.images[index].float() / 127.5 - 1
        return x.flip(2) if torch.rand(()) < 0.5 else x


def peer_training_step(
    network: nn.Module, source: ImageSource, machine: Machine, batch: int, precision: str
) -> Callable[[], object]:
    """Two updates of a plain loop, under autocast for "bf16"."""
    scheduler = _diffusers().DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    loader = DataLoader(_Images(source.images.cpu()), batch_size=batch, shuffle=True, drop_last=True)
    stream = iter(loader)

    def work() -> None:
        nonlocal stream
        for _ in range(2):
            x = next(stream, None)
            if x is None:
                stream = iter(loader)
                x = next(stream)
            x = x.to(machine.device)
            eps = torch.randn_like(x)
            t = torch.randint(0, 1000, (batch,), device=x.device)
            with _autocast(machine, precision):
                found = network(scheduler.add_noise(x, eps, t), t).sample
            loss = F.mse_loss(found.float(), eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return work


def peer_sampling(network: nn.Module, machine: Machine, n: int, steps: int, precision: str) -> Callable[[], object]:
    """`n` images by diffusers' `DDIMPipeline`, under autocast for "bf16"."""
    diffusers = _diffusers()
    pipeline = diffusers.DDIMPipeline(network.eval(), diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def work() -> object:
        with _autocast(machine, precision):
            return pipeline(batch_size=n, num_inference_steps=steps, output_type="np")

    return work


def _autocast(machine: Machine, precision: str) -> torch.autocast:
    return torch.autocast(machine.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def graphs(settings: Preset, n: int, steps: int) -> dict[str, Callable[[], object]]:
    """`n` images by the graphs of `pdlab export`, by the name of what runs them on the CPU.

    The `.pt2` is run as it is loaded, and compiled by AOTInductor where there is a C++ compiler. PdlabError without
    onnxruntime.
    """
    denoiser = new_denoiser(settings, 0).eval()
    found: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        onnx, exported = Path(folder) / "sampler.onnx", Path(folder) / "sampler.pt2"
        export_onnx(denoiser, onnx, steps)
        export_torch(denoiser, exported, steps)
        sampler = GraphSampler(denoiser, steps)
        given = [part.repeat(n, *[1] * (part.ndim - 1))[:n] for part in sampler.examples(settings.network.shape)]
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
        feed = {name: part.numpy() for name, part in zip(sampler.inputs, given, strict=True)}
        found["onnxruntime"] = lambda: session.run(None, feed)
        program = torch.export.load(exported)
        module = program.module()
        found["torch.export"] = torch.inference_mode()(lambda: module(*given))
        if shutil.which("g++") or shutil.which("clang++"):
            package = str(Path(folder) / "compiled.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=package)
            compiled = torch._inductor.aoti_load_package(package)
            found["AOTInductor"] = lambda: compiled(*given)
    return found


def bf16_error(settings: Preset, machine: Machine, n: int = 16, steps: int = 8) -> float:
    """Mean absolute difference, in units of the range [0, 1], of images sampled as usual and in float32."""
    denoiser = machine.place(new_denoiser(settings, 0)).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in denoiser.parameters():
            if not parameter.any():  # layers that begin at zero would hide every error
                parameter.copy_(0.02 * torch.randn(parameter.shape))
        z = torch.randn(n, 3, settings.network.image_size, settings.network.image_size)
    z = z.to(machine.device)
    full = sample(denoiser, z, steps)
    with machine.for_sampling(denoiser) as live:
        low = sample(live, z, steps)
    return float((full - low).abs().mean()) / 2


def _unguided(settings: Preset) -> Preset:
    """The same without a class for none: its graph asks the network once a step, as ours does."""
    network = replace(settings.network, null_class=False)
    teacher = settings.teacher and replace(settings.teacher, label_drop=0.0)
    return replace(settings, network=network, teacher=teacher, guidance_max=0.0)


def _settings(name: str) -> Preset:
    settings = preset(name)
    if not isinstance(settings.network, UNetConfig):
        raise PdlabError(f"preset {name} has no U-Net to compare: take cifar10-gpu")
    if settings.network.patch > 1:
        raise PdlabError(f"preset {name} works on patches, which diffusers' U-Net cannot: take cifar10-gpu")
    _diffusers()
    return settings


def _diffusers() -> Any:
    with extra("bench", "pdlab bench, which compares with a peer,"):
        import diffusers
    return diffusers


def _random_images(size: int, least: int) -> ImageSource:
    generator = torch.Generator().manual_seed(0)
    shape = (max(2048, least), 3, size, size)
    return ImageSource(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def _sizes(settings: Preset, peer: nn.Module) -> str:
    ours = sum(p.numel() for p in new_denoiser(settings, 0).parameters())
    theirs = sum(p.numel() for p in peer.parameters())
    flops = size(settings.network, settings.output).flops
    return f"ours {ours / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOPs forward; peer {theirs / 1e6:.2f} M"
