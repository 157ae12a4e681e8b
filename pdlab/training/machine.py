"""Device, precision and processes, asked of one object; no other file says `cuda` or `rank`."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from pdlab.errors import PdlabError, reason

M = TypeVar("M", bound=nn.Module)


class Machine:
    """The hardware a run uses, behind Hugging Face Accelerate.

    Args:
        device: "auto" (a CUDA GPU if there is one, else the CPU), "cpu" or "cuda".
        precision: "fp32", "bf16" (autocast in training, bf16 weights in sampling) or "auto": bf16 where the
            hardware multiplies it natively, for networks that gain from it (convolutions).
        compile: torch.compile the networks; None means where it pays, i.e. convolutions on a GPU.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", compile: bool | None = None) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise PdlabError(f"unknown device {device!r}: choose auto, cpu or cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise PdlabError("no CUDA GPU is available to PyTorch here: use --device cpu, or auto")
        if precision not in ("auto", "fp32", "bf16"):
            raise PdlabError(f"unknown precision {precision!r}: choose auto, fp32 or bf16")
        # Accelerate keeps one state per process: a second machine of this process may differ.
        AcceleratorState._reset_state(reset_partial_state=True)
        cpu = device == "cpu" or not torch.cuda.is_available()
        try:
            self._accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        except (ValueError, RuntimeError, KeyError, OSError) as error:  # what the environment asks for
            raise PdlabError(
                f"Accelerate cannot start ({reason(error)}): unset WORLD_SIZE, RANK and ACCELERATE_…, or set them "
                "right"
            ) from error
        self._precision = precision
        self._compile = compile

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return bool(self._accelerator.is_main_process)

    def describe(self) -> str:
        """The hardware in words, for logs and cards."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"

    def precision_for(self, network: nn.Module) -> str:
        """ "bf16" or "fp32": the precision this machine runs `network` in."""
        if self._precision != "auto":
            return self._precision
        convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())
        return "bf16" if convolutional and self._native_bf16() else "fp32"

    def place(self, module: M) -> M:
        """`module` on the device, its convolution weights channels-last."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def for_training(self, network: nn.Module) -> nn.Module:
        """A module sharing `network`'s weights that runs under this machine's autocast, compiled if it pays.

        Its output is float32 whatever the precision inside, so that targets and losses are.
        """
        wrapped = _Autocast(network, self.device.type, self.precision_for(network) == "bf16")
        return torch.compile(wrapped) if self._compiles(network) else wrapped  # type: ignore[return-value]

    @contextlib.contextmanager
    def for_sampling(self, network: nn.Module) -> Iterator[nn.Module]:
        """Within the context `network`'s weights are in this machine's sampling precision; restored after."""
        if self.precision_for(network) == "fp32":
            yield network
            return
        original = [p.data for p in network.parameters()]
        try:
            network.to(torch.bfloat16)
            yield network
        finally:
            for parameter, data in zip(network.parameters(), original, strict=True):
                parameter.data = data

    def wait(self) -> None:
        """Return when the device has done all it was asked, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar loss."""
        self._accelerator.backward(loss)

    def _compiles(self, network: nn.Module) -> bool:
        if self._compile is not None:
            return self._compile
        return self.device.type == "cuda" and any(isinstance(m, nn.Conv2d) for m in network.modules())

    def _native_bf16(self) -> bool:
        if self.device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, device_type: str, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self._autocast = (device_type, torch.bfloat16, bf16)

    def forward(self, z: Tensor, logsnr: Tensor, *condition: Tensor | None) -> Tensor:
        with torch.autocast(*self._autocast):
            out: Tensor = self.network(z, logsnr, *condition)
        return out.float()
