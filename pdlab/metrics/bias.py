"""What the number of samples alone does to a distance: two sets of one model's samples, truly at distance 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pdlab.metrics.frechet import frechet_distance
from pdlab.metrics.kernel import kernel_distance
from pdlab.metrics.statistics import FeatureStatistics

SIZES = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Bias:
    """Distances between two sets of `n` features of dimension `dim`.

    `frechet` exceeds 0 by its bias; `kernel` (KID's, the mean over subsets of n/2) has none, and scatters about 0
    with the deviation `spread` between subsets.
    """

    n: int
    dim: int
    frechet: float
    kernel: float
    spread: float


def sample_size_bias(features: Tensor, sizes: Sequence[int] = SIZES) -> Iterator[Bias]:
    """Distances between the even and the odd rows of `features` `[N, dim]`, n against n, for n ≤ N/2 in `sizes`.

    Which n rows are taken does not depend on N, so a longer set adds points and changes none.
    """
    ours, theirs = features[0::2], features[1::2]
    for n in sizes:
        if n <= len(theirs):
            a, b = ours[:n], theirs[:n]
            frechet = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b), allow_singular=True)
            kernel, spread = kernel_distance(a, b, subsets=20, subset_size=max(2, n // 2))
            yield Bias(n, features.shape[1], frechet, kernel, spread)
