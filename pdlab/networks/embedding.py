"""The noise level as a network sees it: an angle, then sines and cosines of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdlab.errors import PdlabError


def noise_angle(logsnr: Tensor) -> Tensor:
    """Map a log-SNR λ to u = arctan(e^{-λ/2}) / (π/2), in [0, 1]: 0 is data, 1 is noise.

    For the unbounded cosine schedule u is the time t itself. `logsnr` is `[B]` and may be ±inf;
    the result is `[B]` in float32 (float64 for float64), whatever autocast says.
    """
    if logsnr.dtype != torch.float64:
        logsnr = logsnr.float()
    return torch.atan(torch.exp(-0.5 * logsnr)) * (2 / math.pi)


def time_embedding(logsnr: Tensor, channels: int) -> Tensor:
    """Embed log-SNRs `[B]` (±inf allowed) as sines and cosines, `[B, channels]`.

    With u = `noise_angle(logsnr)` and half = channels / 2 frequencies f_k = 10000^{-k/(half - 1)},
    the embedding is (sin 1000 u f_k, cos 1000 u f_k). It is float32 (float64 for float64) always:
    half precision cannot tell neighbouring steps apart at 1000 u. `PdlabError` unless `channels` is
    even and at least 4.
    """
    if channels < 4 or channels % 2:
        raise PdlabError(f"a time embedding has an even number of channels, at least 4; got {channels}")
    u = noise_angle(logsnr)
    half = channels // 2
    k = torch.arange(half, device=u.device, dtype=u.dtype)
    phase = 1000 * u[:, None] * torch.exp(k * (-math.log(10000) / (half - 1)))
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def guidance_embedding(guidance: Tensor, channels: int) -> Tensor:
    """Embed guidance weights `[B]` as sines and cosines, `[B, channels]`, in float32 (float64 for float64).

    Frequencies rise geometrically from 1/4 to 8 radians a unit of weight: weights of 0 to 10 are told apart from
    one another, and a weight from one 0.1 larger (Meng et al. 2023 give w to the student as Fourier features).
    """
    if guidance.dtype != torch.float64:
        guidance = guidance.float()
    half = channels // 2
    k = torch.arange(half, device=guidance.device, dtype=guidance.dtype)
    phase = guidance[:, None] * torch.exp(math.log(0.25) + k * (math.log(32) / max(half - 1, 1)))
    return torch.cat([phase.sin(), phase.cos()], dim=1)
