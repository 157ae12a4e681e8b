"""The paper's three loss weightings, each both as a weight w(logsnr) and as the MSE that it equals.

The loss is w(logsnr) ‖x − x̂‖². Since z is given, errors of x, eps and v are one error seen three ways,
eps − êps = −(alpha/sigma)(x − x̂) and v − v̂ = −(x − x̂)/sigma, and therefore (section 4)

    SNR            w = alpha²/sigma²           = eps-MSE
    truncated SNR  w = max(alpha²/sigma², 1)   = max(x-MSE, eps-MSE)
    SNR+1          w = 1 + alpha²/sigma²       = v-MSE

Training uses the MSE form, which has no large factor times small difference. All sums are means over the
elements of an example, so losses do not depend on the image size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlab.diffusion.prediction import Prediction


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each example: `[B, …]`, `[B, …]` -> `[B]`."""
    return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Weighting:
    """A loss weighting: `weight(logsnr) [B] -> [B]` and the equal `loss(target, prediction) -> [B]`."""

    name: str
    weight: Callable[[Tensor], Tensor]
    loss: Callable[[Prediction, Prediction], Tensor]


WEIGHTINGS: dict[str, Weighting] = {
    w.name: w
    for w in (
        Weighting("snr", torch.exp, lambda target, p: mse(target.eps, p.eps)),
        Weighting(
            "truncated",
            lambda logsnr: torch.exp(logsnr).clamp(min=1),
            lambda target, p: torch.maximum(mse(target.x, p.x), mse(target.eps, p.eps)),
        ),
        Weighting("snr+1", lambda logsnr: 1 + torch.exp(logsnr), lambda target, p: mse(target.v, p.v)),
    )
}
