"""What a batch is scored on. The loop knows only `objective(denoiser, x, labels, generator) -> loss [B]`."""

from collections.abc import Callable

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction
from pdlab.diffusion.schedule import diffuse, per_example
from pdlab.diffusion.weighting import WEIGHTINGS

Objective = Callable[[Denoiser, Tensor, Tensor | None, torch.Generator], Tensor]


def stratified_times(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`[n]` times, each U(0, 1], one in every n-th of the interval: less variance, no bias.

    1 − rand excludes 0, where eps is undetermined, and includes 1.
    """
    offset = torch.rand(1, generator=generator, device=device)
    ranks = torch.arange(n, device=device)
    return 1 - ((ranks + offset) / n).remainder(1)


def independent_times(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`[n]` times, each U(0, 1] whatever the others are, as the paper's authors draw them."""
    return 1 - torch.rand(n, generator=generator, device=device)


#: How the times of a batch are drawn, by the names that `Optimization.times` has.
TIMES = {"stratified": stratified_times, "independent": independent_times}


class DiffusionObjective:
    """The teacher's: denoise z_t at continuous t ~ U(0, 1] (algorithm 1); forward passes an example: 1.

    A share `label_drop` of the labels says "no class", so that guidance has something to be guided away from.
    """

    teacher_forwards = 0

    def __init__(self, weighting: str, label_drop: float = 0.0, times: str = "stratified") -> None:
        self.weighting, self.label_drop, self.times = WEIGHTINGS[weighting], label_drop, TIMES[times]

    def __call__(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Losses `[B]` for data `x` `[B, …]`."""
        t = self.times(len(x), generator, x.device)
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        alpha, sigma = per_example(denoiser.schedule.alpha(t), x), per_example(denoiser.schedule.sigma(t), x)
        target = Prediction(x, eps, alpha * eps - sigma * x)
        if labels is not None and self.label_drop:
            dropped = torch.rand(len(x), generator=generator, device=x.device) < self.label_drop
            labels = torch.where(dropped, denoiser.num_classes, labels)
        return self.weighting.loss(target, denoiser(diffuse(denoiser.schedule, x, t, eps), t, labels))
