"""Mean and covariance of features, gathered batch by batch in float64."""

import torch
from torch import Tensor

from pdlab.errors import PdlabError


class FeatureStatistics:
    """The mean and covariance of all features given so far, as if computed on the whole at once.

    Kept are n, the mean and the scatter S = sum_i (f_i - mean)(f_i - mean)^T. Two sets are merged (Chan et al.
    1979) by

        mean = mean_a + (n_b / n) d,    S = S_a + S_b + (n_a n_b / n) d d^T,    d = mean_b - mean_a,

    which, unlike sums of squares, loses nothing when the mean is large against the deviation.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        self._root: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, chunk: int = 4096) -> "FeatureStatistics":
        """The statistics of `features` `[N, dim]`, converted to float64 `chunk` rows at a time."""
        statistics = cls()
        for part in features.split(chunk):
            statistics.update(part)
        return statistics

    @property
    def dim(self) -> int:
        """The number of features; 0 before the first update."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """`[dim]`, float64."""
        return self._mean

    @property
    def cov(self) -> Tensor:
        """`[dim, dim]`, float64, unbiased: S / (n - 1). Raises PdlabError for fewer than two samples."""
        if self.n < 2:
            raise PdlabError(f"too few samples: a covariance needs at least 2, there are {self.n}")
        return self._scatter / (self.n - 1)

    @property
    def root(self) -> Tensor:
        """`[dim, dim]`, float64: the symmetric square root of `cov`, kept until there are more samples.

        PdlabError for a covariance with negative eigenvalues, beyond rounding.
        """
        if self._root is None:
            values, vectors = torch.linalg.eigh(self.cov)
            self._root = vectors * non_negative(values).sqrt() @ vectors.T
        return self._root

    def update(self, features: Tensor) -> None:
        """Add `features` `[B, dim]`; raises PdlabError if one is not finite."""
        if features.ndim != 2:
            raise PdlabError(f"statistics are of features [B, dim]; got {list(features.shape)}")
        if len(features) == 0:
            return
        batch = FeatureStatistics()
        rows = features.detach().to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise PdlabError("the features hold NaN or infinity: look at the images they were taken of")
        batch.n = len(rows)
        batch._mean = rows.mean(0)
        rows = rows - batch._mean
        batch._scatter = rows.T @ rows
        self.merge(batch)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add all samples of `other`; raises PdlabError if its features are of another dimension."""
        if other.n == 0:
            return
        self._root = None
        if self.n == 0:
            self.n, self._mean, self._scatter = other.n, other._mean.clone(), other._scatter.clone()
            return
        if self.dim != other.dim:
            raise PdlabError(f"features of {self.dim} and of {other.dim} dimensions cannot be merged")
        n = self.n + other.n
        d = other._mean - self._mean
        self._scatter += other._scatter
        self._scatter.addr_(d, d, alpha=self.n * other.n / n)
        self._mean += d * (other.n / n)
        self.n = n

    def parts(self) -> dict[str, Tensor]:
        """What `from_parts` makes the same statistics of: n, the mean and the scatter."""
        return {"n": torch.tensor(self.n), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_parts(cls, n: Tensor, mean: Tensor, scatter: Tensor) -> "FeatureStatistics":
        """The statistics whose `parts` these are."""
        statistics = cls()
        statistics.n, statistics._mean, statistics._scatter = int(n), mean, scatter
        return statistics


def non_negative(values: Tensor, tolerance: float = 1e-10) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix, with those that rounding left below 0 set to 0."""
    if values.min() < -tolerance * values.abs().max():
        raise PdlabError("a covariance of features has negative eigenvalues: its statistics are damaged")
    return values.clamp(min=0)
