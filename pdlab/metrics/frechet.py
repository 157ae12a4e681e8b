"""The Fréchet distance between two sets of features."""

import torch
from torch import Tensor

from pdlab.errors import PdlabError
from pdlab.metrics.statistics import FeatureStatistics, non_negative


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, allow_singular: bool = False) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the Gaussians with the moments of `a` and `b`,

        |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2),

    where tr (A B)^(1/2) is the sum of the square roots of the eigenvalues of the symmetric B^(1/2) A B^(1/2). Of a
    reference `b` that is measured against again and again the root is taken once.

    Raises PdlabError if one side has no more samples than dimensions: its covariance is singular then, and
    the figure says more about n than about the images. `allow_singular` lifts that, for showing just this.
    """
    if a.dim != b.dim:
        raise PdlabError(f"features of {a.dim} and of {b.dim} dimensions cannot be compared")
    least = min(a.n, b.n)
    if least <= a.dim and not allow_singular:
        raise PdlabError(f"too few samples: n = {least}, need more than {a.dim}, the dimension of the features")
    product = b.root @ a.cov @ b.root
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.cov.trace() + b.cov.trace() - 2 * non_negative(values).sqrt().sum())


def frechet_spread(features: Tensor, reference: FeatureStatistics, groups: int = 5) -> float:
    """The standard error of `frechet_distance` of samples' `features` `[n, dim]`, by a delete-a-group jackknife:

        sqrt((g - 1) / g sum_i (d_i - mean d)^2),    d_i the distance without the i-th of g equal groups.

    It is the spread over other draws of n samples; the bias that a small n has is not in it. Raises PdlabError
    for fewer samples than groups.
    """
    if not 2 <= groups <= len(features):
        raise PdlabError(f"too few samples: {len(features)} do not make {groups} groups")
    parts = [FeatureStatistics.of(part) for part in features.tensor_split(groups)]
    distances = []
    for left_out in range(groups):
        rest = FeatureStatistics()
        for k, part in enumerate(parts):
            if k != left_out:
                rest.merge(part)
        distances.append(frechet_distance(rest, reference, allow_singular=True))
    d = torch.tensor(distances, dtype=torch.float64)
    return float(((groups - 1) / groups * (d - d.mean()).square().sum()).sqrt())
