"""The kernel distance (squared maximum mean discrepancy, MMD^2) between two sets of features."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pdlab.errors import PdlabError

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / d + 1)^3, the kernel of the KID: `[m, d]`, `[n, d]` -> `[m, n]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf_kernel(bandwidth: float) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)), which tells any two distributions apart."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * bandwidth**2))

    return kernel


def mmd2_unbiased(x: Tensor, y: Tensor, kernel: Kernel = polynomial_kernel) -> float:
    """The unbiased estimate of MMD^2 from samples `x` `[m, d]` and `y` `[n, d]`, in float64,

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

    Zero in expectation for equal distributions, so single values may be negative. Raises PdlabError for
    fewer than two samples on a side.
    """
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise PdlabError(f"too few samples: MMD needs at least 2 on each side, got {m} and {n}")
    if x.shape[1] != y.shape[1]:
        raise PdlabError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions cannot be compared")
    x, y = x.double(), y.double()
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def kernel_distance(
    x: Tensor,
    y: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    shrink_subsets: bool = False,
) -> tuple[float, float]:
    """The mean and the standard deviation of MMD^2 over `subsets` random subsets of features `[N, dim]`.

    Each subset is `subset_size` of `x` against as many of `y`, drawn without replacement, with the KID's
    kernel. The deviation is between subsets of these samples, not between sets of samples.

    Raises PdlabError if a side has fewer than `subset_size`; `shrink_subsets` takes the smaller side's size
    then (of that side the one subset is always drawn, and the deviation shrinks).
    """
    least = min(len(x), len(y))
    if least < subset_size and not shrink_subsets:
        raise PdlabError(f"too few samples: n = {least}, need at least {subset_size}, the size of a subset")
    if subsets < 1:
        raise PdlabError(f"the kernel distance needs at least 1 subset, not {subsets}")
    size = min(subset_size, least)
    # NumPy's RandomState, x before y: the subsets that torch-fidelity draws for the same seed
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows_x = torch.from_numpy(random.choice(len(x), size, replace=False))
        rows_y = torch.from_numpy(random.choice(len(y), size, replace=False))
        values[i] = mmd2_unbiased(x[rows_x], y[rows_y])
    return float(values.mean()), float(values.std())
