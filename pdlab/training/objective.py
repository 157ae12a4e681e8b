"""What a batch is scored on, whole or in parts."""

import abc
from collections.abc import Iterator

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction
from pdlab.diffusion.schedule import diffuse, per_example
from pdlab.diffusion.weighting import WEIGHTINGS

Drawn = dict[str, Tensor | None]


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


class Objective(abc.ABC):
    """What a batch is scored on: `objective(denoiser, x, labels, generator) -> [B]` losses.

    It draws first and scores then, so that a batch can be scored in parts with the draws of the whole.
    """

    teacher_forwards = 0  # forward passes of a teacher, an example

    @abc.abstractmethod
    def draw(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Drawn:
        """All that is random about data `x` `[B, …]` of classes `labels` `[B]`, and these: tensors `[B, …]`."""

    @abc.abstractmethod
    def loss(self, denoiser: Denoiser, drawn: Drawn) -> Tensor:
        """Losses `[B]` of what was drawn, each of its own example alone."""

    def __call__(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Losses `[B]` for data `x` `[B, …]` of classes `labels` `[B]`."""
        return self.loss(denoiser, self.draw(denoiser, x, labels, generator))


def parts(drawn: Drawn, most: int) -> Iterator[Drawn]:
    """`drawn` in parts of at most `most` examples."""
    n = next(len(tensor) for tensor in drawn.values() if tensor is not None)
    for start in range(0, n, most):
        yield {name: None if t is None else t[start : start + most] for name, t in drawn.items()}


class DiffusionObjective(Objective):
    """The teacher's: denoise z_t at continuous t ~ U(0, 1] (algorithm 1); forward passes an example: 1.

    A share `label_drop` of the labels says "no class", so that guidance has something to be guided away from.
    """

    def __init__(self, weighting: str, label_drop: float = 0.0, times: str = "stratified") -> None:
        self.weighting, self.label_drop, self.times = WEIGHTINGS[weighting], label_drop, TIMES[times]

    def draw(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Drawn:
        """See Objective."""
        t = self.times(len(x), generator, x.device)
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        if labels is not None and self.label_drop:
            dropped = torch.rand(len(x), generator=generator, device=x.device) < self.label_drop
            labels = torch.where(dropped, denoiser.num_classes, labels)
        return {"x": x, "labels": labels, "t": t, "eps": eps}

    def target(self, denoiser: Denoiser, z: Tensor, drawn: Drawn) -> Prediction:
        """What is to be predicted at `z` `[B, …]`: the data; a teacher's prediction, where there is one."""
        x, t, eps = needed(drawn, "x", "t", "eps")
        alpha, sigma = per_example(denoiser.schedule.alpha(t), x), per_example(denoiser.schedule.sigma(t), x)
        return Prediction(x, eps, alpha * eps - sigma * x)

    def loss(self, denoiser: Denoiser, drawn: Drawn) -> Tensor:
        """See Objective."""
        x, t, eps = needed(drawn, "x", "t", "eps")
        z = diffuse(denoiser.schedule, x, t, eps)
        return self.weighting.loss(self.target(denoiser, z, drawn), denoiser(z, t, drawn["labels"], drawn.get("w")))


def needed(drawn: Drawn, *names: str) -> list[Tensor]:
    """Those of `drawn` that are always there."""
    found = [drawn[name] for name in names]
    assert all(tensor is not None for tensor in found)
    return found  # type: ignore[return-value]
