"""Precision and recall of generated images (Kynkäänniemi et al. 2019): fidelity and variety, told apart.

A set's manifold is the union of the balls about its features that reach to their K-th nearest neighbour. Precision
is the share of samples on the manifold of real images, recall the share of real images on that of the samples.
Both depend on how many there are on either side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlab.errors import PdlabError

K, MOST = 3, 10_000  # the paper's neighbour; more than MOST features a side add seconds and no insight

_BLOCK = 1024  # rows of a distance matrix at a time: 40 MiB against MOST


@dataclass(frozen=True)
class Manifold:
    """Features `[n, dim]` less `centre` `[dim]`, and the squared radius `[n]` of the ball about each; float32."""

    features: Tensor
    radii: Tensor
    centre: Tensor

    @classmethod
    def of(cls, features: Tensor, centre: Tensor | None = None) -> "Manifold":
        """The manifold of `features` `[n, dim]`; distances do not depend on `centre`, but their rounding does.

        Raises PdlabError for no more than K features.
        """
        if len(features) <= K:
            raise PdlabError(f"too few samples: a manifold needs at least {K + 1}, not {len(features)}")
        centre = features.double().mean(0) if centre is None else centre
        features = _centred(features, centre)
        # The nearest to each is itself.
        radii = [part.topk(K + 1, largest=False).values[:, K] for part in _distances(features, features)]
        return cls(features, torch.cat(radii), centre)

    def holds(self, features: Tensor) -> float:
        """The share in [0, 1] of `features` `[m, dim]` that lie in one of the balls."""
        parts = _distances(_centred(features, self.centre), self.features)
        return float(torch.cat([(part <= self.radii).any(1) for part in parts]).double().mean())


def precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Precision and recall in [0, 1] of the features of `samples` `[m, dim]` against `real` `[n, dim]`."""
    manifold = Manifold.of(real)
    return manifold.holds(samples), Manifold.of(samples, manifold.centre).holds(real)


def _centred(features: Tensor, centre: Tensor) -> Tensor:
    return (features.double() - centre).float()


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Squared Euclidean distances `[m, n]`, in blocks of rows: |a|^2 + |b|^2 − 2 a·b."""
    squares = b.square().sum(1)
    for part in a.split(_BLOCK):
        yield torch.addmm(part.square().sum(1)[:, None] + squares, part, b.T, alpha=-2).clamp(min=0)
