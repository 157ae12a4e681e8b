"""A whole few-step sampler as one graph: noise in, images out, for ONNX runtimes and for PyTorch's own.

The graph holds every step of DDIM, the schedule's numbers as constants, and clipping. Its inputs are `noise`
float32 `[B, C, H, W]`; `label` int64 `[B]` where the network has classes, or `condition` float32 `[B, …]` where it
is told one; `guidance` float32 `[B]` where it was distilled for guidance (or has a null class, which takes two
evaluations a step). Its output is `image`, float32
`[B, C, H, W]`, in [−1, 1] for images. B is free.
"""

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import ddim
from pdlab.errors import PdlabError
from pdlab.files import check_place, write

#: Widest differences from PyTorch's eager float32, in units of [−1, 1], before a file is written.
TOLERANCE = 1e-4
#: The ONNX operator set; from 18 on there is GroupNormalization.
OPSET = 20
#: Examples that a graph is traced and checked with; neither 0 nor 1, which tracing makes constants.
EXAMPLES = 3


class GraphSampler(nn.Module):
    """`forward(noise, *condition) -> image`: `steps` of DDIM, clipped as the denoiser's data are."""

    def __init__(self, denoiser: Denoiser, steps: int) -> None:
        super().__init__()
        if denoiser.output == "eps":
            raise PdlabError("an eps network has no x at its noisiest time: distil it, which converts it first")
        self.denoiser, self.steps = denoiser, steps

    @property
    def inputs(self) -> list[str]:
        """The names of what `forward` takes, in order."""
        classes, guided = self.denoiser.num_classes > 0, self.denoiser.guidance_max > 0 or self.denoiser.null_class
        told = ["condition"] * (self.denoiser.condition is not None)
        return ["noise"] + ["label"] * classes + told + ["guidance"] * guided

    def forward(self, noise: Tensor, *condition: Tensor) -> Tensor:
        """Images `[B, …]` of `noise` `[B, …]` and, as `inputs` has them, labels and guidance weights."""
        told: dict[str, Any] = dict(zip(self.inputs[1:], condition, strict=True))
        z = noise
        labels = told.get("label", told.get("condition"))
        for step in ddim(self.denoiser, noise, self.steps, labels=labels, guidance=told.get("guidance")):
            z = step.z
        return z

    def examples(self, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs to trace and to check with."""
        generator = torch.Generator().manual_seed(seed)
        made = {"noise": torch.randn(EXAMPLES, *shape, generator=generator)}
        made["label"] = torch.arange(EXAMPLES) % max(1, self.denoiser.num_classes)
        made["condition"] = torch.randn(EXAMPLES, *(self.denoiser.condition or ()), generator=generator)
        made["guidance"] = torch.rand(EXAMPLES, generator=generator) * (self.denoiser.guidance_max or 1.0)
        return tuple(made[name] for name in self.inputs)


def export_onnx(denoiser: Denoiser, out: Path, steps: int) -> float:
    """Write the sampler of `denoiser` as the ONNX file `out`; returns the widest difference from ours that it saw.

    It is run in onnxruntime before it is written. Raises PdlabError where onnx is not installed, for an eps network
    or one whose `shape` is not known, and where the graph's images differ by more than `TOLERANCE`.
    """
    runtime = onnx_runtime("pdlab export onnx")
    sampler, traced, check = _prepared(denoiser, out, steps)
    content = to_onnx(sampler, traced, sampler.inputs, ["image"], _free(sampler)).SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(sampler.inputs, check, strict=True)}
    apart = _compared(sampler, check, torch.from_numpy(session.run(["image"], given)[0]))
    write(out, content, "choose another FILE")
    return apart


def to_onnx(
    module: nn.Module, traced: tuple[Tensor, ...], inputs: list[str], outputs: list[str], free: Any = None
) -> Any:
    """`module` as a ModelProto, as it runs on `traced`; `free` says which of their sides are, see torch.export."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def export_torch(denoiser: Denoiser, out: Path, steps: int) -> float:
    """Write the same as a `.pt2` of torch.export, for `torch.export.load` and AOTInductor; see `export_onnx`."""
    sampler, traced, check = _prepared(denoiser, out, steps)
    with _quiet(), torch.no_grad():
        program = torch.export.export(sampler, traced, dynamic_shapes=_free(sampler))
        content = io.BytesIO()
        torch.export.save(program, content)
        content.seek(0)
        apart = _compared(sampler, check, torch.export.load(content).module()(*check))
    write(out, content.getvalue(), "choose another FILE")
    return apart


def _prepared(
    denoiser: Denoiser, out: Path, steps: int
) -> tuple[GraphSampler, tuple[Tensor, ...], tuple[Tensor, ...]]:
    check_place(out, "choose another FILE")
    if denoiser.shape is None:
        raise PdlabError("the shape of an example is not known: give Denoiser(…, shape=(3, 32, 32))")
    sampler = GraphSampler(copy.deepcopy(denoiser).cpu().float(), steps).eval().requires_grad_(False)
    traced, check = (sampler.examples(denoiser.shape, seed) for seed in (0, 1))
    return sampler, traced, tuple(torch.cat([part, part[:2]]) for part in check)  # another B than was traced


def _free(sampler: GraphSampler) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=1)
    noise, *rest = [{0: batch} for _ in sampler.inputs]
    return (noise, tuple(rest)) if rest else (noise,)


def _compared(sampler: GraphSampler, given: tuple[Tensor, ...], found: Tensor) -> float:
    with torch.no_grad():
        apart = float((sampler(*given) - found).abs().max())
    if not apart <= TOLERANCE:
        raise PdlabError(f"the exported graph draws other images, up to {apart:.2g} apart: nothing was written")
    return apart


def onnx_runtime(what: str) -> Any:
    """The module onnxruntime, and onnxscript is there too; else PdlabError: `what` needs it."""
    try:
        importlib.import_module("onnxscript")  # what torch.onnx writes with
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise PdlabError(f"{what} needs {error.name}: pip install 'pdlab[export]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters speak of their own passes, which says nothing about the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
