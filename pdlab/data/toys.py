"""2-D toy distributions: small functions of randomness, mean about 0, variance about 1 per coordinate.

"Variance 1" is the mean over the two coordinates, E|p|² / 2 = 1, so that one scale fits both and no shape is
distorted. They live where their generator lives.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Generator, Tensor

from pdlab.data.source import Source

# Part of every toy's digest: raise it when a formula below changes, so that old checkpoints are told apart.
VERSION = 1


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device)


def _choice(k: int, n: int, generator: Generator) -> Tensor:
    return torch.randint(k, (n,), generator=generator, device=generator.device)


def _noise(n: int, generator: Generator, std: float) -> Tensor:
    return std * torch.randn((n, 2), generator=generator, device=generator.device)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def gaussians(n: int, generator: Generator) -> Tensor:
    """Eight Gaussians of standard deviation s = 0.1 on a ring: E|p|²/2 = r²/2 + s² = 1."""
    std = 0.1
    angle = _choice(8, n, generator) * (math.pi / 4)
    return _polar(math.sqrt(2 * (1 - std**2)), angle) + _noise(n, generator, std)


def rings(n: int, generator: Generator) -> Tensor:
    """Two circles about the origin, radii r and 2r, equally likely: E|p|²/2 = 5r²/4 + s² = 1."""
    std = 0.05
    radius = math.sqrt(0.8 * (1 - std**2)) * (1 + _choice(2, n, generator))
    return _polar(radius, 2 * math.pi * _uniform(n, generator)) + _noise(n, generator, std)


def moons(n: int, generator: Generator) -> Tensor:
    """Two half circles that reach into one another, one being the other turned by 180 degrees.

    For a ~ U[0, π] and c = (1/2, 1/4): p = ±((cos a, sin a) - c), E|p|²/2 = 1/2 + |c|²/2 - 1/(2π).
    """
    std = 0.05
    arc = _polar(1.0, math.pi * _uniform(n, generator)) - torch.tensor([0.5, 0.25], device=generator.device)
    sign = 1 - 2 * _choice(2, n, generator)
    scale = math.sqrt((1 - std**2) / (0.5 + 0.3125 / 2 - 0.5 / math.pi))
    return scale * sign[:, None] * arc + _noise(n, generator, std)


def checkerboard(n: int, generator: Generator) -> Tensor:
    """The eight dark fields of a 4 x 4 board on [-√3, √3]², uniform: each coordinate is U[-√3, √3]."""
    column = _choice(4, n, generator)
    row = 2 * _choice(2, n, generator) + column % 2
    board = torch.stack([column + _uniform(n, generator), row + _uniform(n, generator)], dim=1)
    return (board - 2) * (math.sqrt(3) / 2)


def spiral(n: int, generator: Generator) -> Tensor:
    """Two arms of one and a half turns: radius R√u at angle 3π√u, u ~ U[0, 1]: E|p|²/2 = R²/4 + s² = 1."""
    std = 0.05
    along = _uniform(n, generator).sqrt()
    angle = 3 * math.pi * along + math.pi * _choice(2, n, generator)
    return _polar(2 * math.sqrt(1 - std**2) * along, angle) + _noise(n, generator, std)


TOYS: dict[str, Callable[[int, Generator], Tensor]] = {
    toy.__name__: toy for toy in (checkerboard, gaussians, moons, rings, spiral)
}


@dataclass(eq=False)
class ToySource(Source):
    """A toy distribution by its name in `TOYS`: points [n, 2], never the same twice, without labels.

    Every draw is fresh, so its splits do not differ.
    """

    name: str
    split: str = "train"
    shape: tuple[int, ...] = field(init=False, default=(2,))
    num_classes: int = field(init=False, default=0)
    bounded: bool = field(init=False, default=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the definition: the toy's name and the version of these formulas."""
        return hashlib.sha256(f"pdlab toy {self.name} version {VERSION}".encode()).hexdigest()

    def to(self, device: torch.device | str) -> "ToySource":
        """Itself: a toy holds no tensor; points are made where the generator lives."""
        return self

    def draw(self, n: int, generator: Generator, flip: bool = False) -> tuple[Tensor, None]:
        """`n` points, float32 [n, 2], and None for the labels. `flip` has no effect."""
        return TOYS[self.name](n, generator), None
