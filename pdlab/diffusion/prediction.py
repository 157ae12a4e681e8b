"""x, eps and v: three names for one prediction, and how to turn each into the others.

With z = alpha x + sigma eps and alpha² + sigma² = 1 (section 4 and appendix D of the paper):

    v = alpha eps − sigma x        x = alpha z − sigma v        eps = sigma z + alpha v

In the plane of x and eps, v is the derivative of z with respect to the angle phi = arctan(sigma / alpha).

`alpha` and `sigma` are scalars or broadcast against `z` (`[B, 1, 1, 1]`); all results have the shape of `z`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pdlab.errors import PdlabError


class Prediction(NamedTuple):
    """What a denoiser says about z_t, each field `[B, …]`: the data, the noise, and the velocity."""

    x: Tensor
    eps: Tensor
    v: Tensor


def from_x(z: Tensor, alpha: Tensor, sigma: Tensor, x: Tensor) -> Prediction:
    """eps = (z − alpha x) / sigma; needs sigma > 0 (every t > 0), gives nan where sigma = 0."""
    eps = (z - alpha * x) / sigma
    return Prediction(x, eps, alpha * eps - sigma * x)


def from_eps(z: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor) -> Prediction:
    """x = (z − sigma eps) / alpha. Raises PdlabError where alpha = 0: there z is pure noise."""
    if bool((alpha == 0).any()):
        raise PdlabError(
            "eps-prediction is undefined where alpha = 0: z is pure noise there and x = (z − sigma eps)/alpha "
            "divides zero by zero; use output x, v or both, or a schedule with a finite logsnr_min"
        )
    x = (z - sigma * eps) / alpha
    return Prediction(x, eps, alpha * eps - sigma * x)


def from_v(z: Tensor, alpha: Tensor, sigma: Tensor, v: Tensor) -> Prediction:
    """x = alpha z − sigma v, eps = sigma z + alpha v: never divides."""
    return Prediction(alpha * z - sigma * v, sigma * z + alpha * v, v)


def from_both(z: Tensor, alpha: Tensor, sigma: Tensor, raw: Tensor) -> Prediction:
    """Reconcile a network that outputs (x̃, ẽps), stacked on dim 1 of `raw` `[B, 2C, …]`.

    The paper weights the two estimates of x by how well each is conditioned,
    x = sigma² x̃ + alpha (z − sigma ẽps); that is the v-prediction v = alpha ẽps − sigma x̃, so nothing divides.
    """
    x, eps = raw.chunk(2, dim=1)
    return from_v(z, alpha, sigma, alpha * eps - sigma * x)


#: What a network's raw output means. "both" needs a network with twice the channels.
OUTPUTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Prediction]] = {
    "x": from_x,
    "eps": from_eps,
    "v": from_v,
    "both": from_both,
}


def output_channels(output: str, channels: int) -> int:
    """Channels that a network needs for `output` on data of `channels` channels."""
    return 2 * channels if output == "both" else channels


def clip_x(z: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Prediction:
    """Clip x to [−1, 1] and recompute eps and v from it, as the paper samples (never while distilling)."""
    return from_x(z, alpha, sigma, torch.clamp(prediction.x, -1, 1))
