"""One step of a student as an ONNX graph without weights, for a runtime in a browser.

What the graph computes from the time alone (the embedding of the noise level, alpha, sigma) is no part of it: it
is evaluated here for every step, and given to the graph as inputs. A graphics card's sine of a phase of a thousand
radians is not ours, and one graph does for all steps. Norms are InstanceNormalization, which WebGPU runs, as the
exporter of PyTorch writes them; B is 1.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdlab.adapters.graph import GraphSampler, onnx_runtime, to_onnx
from pdlab.diffusion.prediction import clip_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import time_grid

#: Where the graph says that its weights lie.
WEIGHTS = "weights"
LEAST = 64  # values; smaller constants stay in the graph
Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class StepGraph:
    """A graph, and what it is given.

    `content` is the ONNX file: z float32 `[1, C, H, W]`, `label` int64 `[1]` and `guidance` float32 `[1]` as
    `inputs` has them, and the numbers of a step, to `image` (x̂) and `next` (z at the step's end). `weights` are its
    external data, in their order, without gaps. `times[i]` are the numbers of step i, by the names of their inputs.
    """

    content: bytes
    inputs: list[str]
    weights: list[Array]
    times: list[dict[str, Array]]

    def session(self, runtime: Any, weights: list[Array]) -> Any:
        """A session of `runtime` (onnxruntime) on `weights`, such as these after packing."""
        options = runtime.SessionOptions()
        packed = b"".join(part.tobytes() for part in weights)
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [packed], [len(packed)])
        return runtime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])

    def draw(self, session: Any, noise: Array, condition: dict[str, Any]) -> Array:
        """The image `[1, C, H, W]` of `noise`: every step in turn, as the page does."""
        z = image = noise
        for numbers in self.times:
            image, z = session.run(["image", "next"], {"z": z, **condition, **numbers})
        return image


class _Step(nn.Module):
    """`forward(z, t, s, *condition)`: x̂ at time t, and z at time s."""

    def __init__(self, sampler: GraphSampler) -> None:
        super().__init__()
        self.denoiser, self.names = sampler.denoiser, sampler.inputs[1:]

    def forward(self, z: Tensor, t: Tensor, s: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor]:
        told: dict[str, Any] = dict(zip(self.names, condition, strict=True))
        schedule = self.denoiser.schedule
        found = self.denoiser(z, t, told.get("label"), told.get("guidance"))
        if self.denoiser.bounded:
            found = clip_x(z, schedule.alpha(t), schedule.sigma(t), found)
        return found.x, ddim_step(schedule, z, t, s, found)


def step_graph(sampler: GraphSampler, shape: tuple[int, ...]) -> StepGraph:
    """The step of `sampler`, float32 on the CPU, for examples of `shape`.

    PdlabError where onnx or onnxruntime is not installed.
    """
    runtime = onnx_runtime("a graph for browsers")
    from onnx import external_data_helper, helper, numpy_helper

    grid = time_grid(sampler.steps)
    noise, *condition = (part[:1] for part in sampler.examples(shape))
    traced = (noise, torch.tensor(grid[0]), torch.tensor(grid[1] or 0.5), *condition)
    model = to_onnx(_Step(sampler).eval(), traced, ["z", "t", "s", *sampler.inputs[1:]], ["image", "next"])
    graph = model.graph

    kept = {part.name for part in graph.initializer}
    timely, numbers, pictures = {"t", "s"}, [], []
    for node in graph.node:
        taken = {name for name in node.input if name}
        if taken & timely and taken <= timely | kept:
            timely |= set(node.output)
            numbers.append(node)
        else:
            pictures.append(node)
    wanted = sorted({name for node in pictures for name in node.input} & timely)
    known = {value.name: value for value in (*graph.value_info, *graph.input)}
    given = [known[name] for name in wanted]

    clock = helper.make_model(
        helper.make_graph(numbers, "time", [known["t"], known["s"]], given, _used(graph.initializer, numbers)),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    session = runtime.InferenceSession(clock.SerializeToString(), providers=["CPUExecutionProvider"])
    times = [
        dict(
            zip(
                wanted,
                session.run(wanted, {"t": np.array(t, np.float32), "s": np.array(s, np.float32)}),
                strict=True,
            )
        )
        for t, s in itertools.pairwise(grid)
    ]

    inputs = [value for value in graph.input if value.name not in ("t", "s")]
    constants, weights, offset = [], [], 0
    for tensor in _used(graph.initializer, pictures):
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.size >= LEAST:
            external_data_helper.set_external_data(tensor, WEIGHTS, offset, value.nbytes)
            tensor.ClearField("raw_data")
            weights.append(value)
            offset += value.nbytes
        constants.append(tensor)
    for node in pictures:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    step = helper.make_model(
        helper.make_graph(pictures, "step", [*inputs, *given], graph.output, constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    return StepGraph(step.SerializeToString(), sampler.inputs, weights, times)


def _used(tensors: Any, nodes: Any) -> list[Any]:
    wanted = {name for node in nodes for name in node.input}
    return [tensor for tensor in tensors if tensor.name in wanted]
