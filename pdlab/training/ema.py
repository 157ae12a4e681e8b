"""The exponential moving average of weights: samples are drawn from it, and the first round begins from it."""

from collections.abc import Mapping

import torch
from torch import Tensor


class EMA:
    """`shadow ← decay · shadow + (1 − decay) · weights`, all tensors in one foreach call.

    With `warmup` the decay is capped at (1 + k)/(10 + k) after k updates, so that short runs are not dragged back
    to the initial weights. The shadow is float32, `named` the parameters it follows.
    """

    def __init__(self, named: Mapping[str, Tensor], decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self._weights = list(named.values())
        self.shadow = {name: weight.detach().clone() for name, weight in named.items()}

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Take in the weights after update number `k` (counted from 0)."""
        decay = min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.shadow.values()), self._weights, 1 - decay)
