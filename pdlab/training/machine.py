"""Device and precision, asked of one object; no other file says `cuda`."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError

M = TypeVar("M", bound=nn.Module)


class Machine:
    """The hardware a run uses, resolved once; it changes nothing of the process, so machines stand side by side.

    Args:
        device: "auto" (a CUDA GPU if there is one, else the CPU), "cpu" or "cuda".
        precision: "fp32", "bf16" (autocast, in training and sampling alike) or "auto": bf16 where the
            hardware multiplies it natively, for networks that gain from it (convolutions).
        compile: torch.compile the networks; None means where it pays, i.e. convolutions on a GPU.

    Attributes:
        device: where tensors go.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", compile: bool | None = None) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise PdlabError(f"unknown device {device!r}: choose auto, cpu or cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise PdlabError("no CUDA GPU is available to PyTorch here: use --device cpu, or auto")
        if precision not in ("auto", "fp32", "bf16"):
            raise PdlabError(f"unknown precision {precision!r}: choose auto, fp32 or bf16")
        cpu = device == "cpu" or not torch.cuda.is_available()
        self.device = torch.device("cpu") if cpu else torch.device("cuda", torch.cuda.current_device())
        self._precision = precision
        self._compile = compile

    def describe(self) -> str:
        """The hardware in words, for logs and cards."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"

    def precision_for(self, network: nn.Module) -> str:
        """ "bf16" or "fp32": the precision this machine asks for when it runs `network`."""
        if self._precision != "auto":
            return self._precision
        return "bf16" if _convolves(network) and self._native_bf16() else "fp32"

    def computes_in(self, network: nn.Module) -> str:
        """ "bf16", "tf32" or "fp32": the lowest precision that products of `network` really have, for cards.

        What PyTorch may put in the place of float32 is a setting of the process, which this object only reads: on
        a GPU convolutions are TF32 unless `torch.backends.cudnn.allow_tf32` is False, and products of matrices
        are float32 unless `torch.set_float32_matmul_precision` says otherwise.
        """
        asked = self.precision_for(network)
        if asked == "bf16":
            return asked
        backends: Any = torch.backends  # its stubs lack `conv` and `matmul`
        if self.device.type == "cuda":
            stand_in, there = "tf32", torch.cuda.get_device_capability(self.device) >= (8, 0)
            convolution, product = backends.cudnn.conv, backends.cuda.matmul
        else:
            stand_in, there = "bf16", self._native_bf16()
            convolution, product = backends.mkldnn.conv, backends.mkldnn.matmul
        used = [product.fp32_precision] + ([convolution.fp32_precision] if _convolves(network) else [])
        return stand_in if there and stand_in in used else asked

    def place(self, module: M) -> M:
        """`module` on the device, its convolution weights channels-last."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def for_training(self, network: nn.Module) -> nn.Module:
        """A module sharing `network`'s weights that runs under this machine's autocast, compiled if it pays.

        Its output is float32 whatever the precision inside, so that targets and losses are.
        """
        wrapped = self._autocast(network)
        return _Compiled(wrapped) if self._compiles(network) else wrapped

    @contextlib.contextmanager
    def for_sampling(self, denoiser: Denoiser) -> Iterator[Denoiser]:
        """`denoiser` under this machine's autocast, as in training; within the context its weights must not change.

        Only the network is under autocast: what samplers do with its float32 output is float32.
        """
        with torch.autocast(self.device.type, enabled=False):  # the outermost one keeps the weights' bf16 copies
            yield denoiser.around(self._autocast(denoiser.network))

    def own_randomness(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the process's own random numbers may be seeded; they go on after it as before."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def wait(self) -> None:
        """Return when the device has done all it was asked, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar loss."""
        loss.backward()

    def _compiles(self, network: nn.Module) -> bool:
        if self._compile is not None:
            return self._compile
        return self.device.type == "cuda" and _convolves(network)

    def _autocast(self, network: nn.Module) -> nn.Module:
        return _Autocast(network, self.device.type, self.precision_for(network) == "bf16")

    def _native_bf16(self) -> bool:
        if self.device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _convolves(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, device_type: str, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self._autocast = (device_type, torch.bfloat16, bf16)

    def forward(self, z: Tensor, logsnr: Tensor, *condition: Tensor | None) -> Tensor:
        with torch.autocast(*self._autocast):
            out: Tensor = self.network(z, logsnr, *condition)
        return out.float()


class _Compiled(nn.Module):
    """A network compiled once for a shape: each layout that its inputs came in would be a program of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Batches of two sizes are two programs, each as fast as one of its size alone.
        self.network = torch.compile(network, dynamic=False)

    def forward(self, z: Tensor, logsnr: Tensor, *condition: Tensor | None) -> Tensor:
        layout = torch.channels_last if z.ndim == 4 else torch.contiguous_format
        told = [None if tensor is None else tensor.contiguous() for tensor in condition]
        out: Tensor = self.network(z.contiguous(memory_format=layout), logsnr.contiguous(), *told)
        return out
