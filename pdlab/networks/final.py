"""The last layer of a network, at full precision whatever the layers before it run in.

Of output x at a log-SNR of 20 an error is divided by sigma = 4.5e-5 to become one of eps: rounded to bf16 (2⁻⁹),
or to TF32 (2⁻¹²), even a perfect x has a loss that hides what there is to learn.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(h: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context without autocast on the device of `h`."""
    # The meta device, which counts FLOPs, has none.
    return contextlib.nullcontext() if h.device.type == "meta" else torch.autocast(h.device.type, enabled=False)


class FinalConv2d(nn.Conv2d):
    """A 3×3 convolution with padding 1 to a few channels, `[B, C, H, W]` -> `[B, out, H, W]`, never in TF32.

    cuDNN computes float32 convolutions in TF32 unless the whole process forbids it; products of matrices it leaves
    alone. So, but on the CPU, all nine taps are one product, and then shifted and added:
    y(p) = bias + Σ_k (W_k h)(p + k), for k in {−1, 0, 1}².
    """

    bias: Tensor  # it always has one

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """See the class."""
        return super().forward(h) if h.device.type == "cpu" else self.by_product(h)

    def by_product(self, h: Tensor) -> Tensor:
        """The convolution without a convolution."""
        height, width = h.shape[2:]
        taps = h.permute(0, 2, 3, 1) @ self.weight.permute(1, 2, 3, 0).flatten(1)  # [B, H, W, 9 · out]
        taps = F.pad(taps.unflatten(3, (3, 3, -1)), (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
        shifted = [taps[:, i : i + height, j : j + width, i, j] for i in range(3) for j in range(3)]
        return (torch.stack(shifted).sum(0) + self.bias).permute(0, 3, 1, 2)
