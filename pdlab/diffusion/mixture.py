"""A Gaussian mixture and its closed-form denoiser: the perfect teacher.

For x ~ Σ_k w_k N(mu_k, s_k² I) the noisy z_t is a mixture too, component k being N(alpha mu_k, alpha² s_k² +
sigma²), and the ideal prediction is known exactly:

    E[x | z] = Σ_k r_k(z) (mu_k + alpha s_k² / (alpha² s_k² + sigma²) · (z − alpha mu_k))

with r_k the posterior probability of component k. It is the network that infinite training would give.
"""

import math

import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule


class GaussianMixture(nn.Module):
    """Isotropic Gaussian mixture in D dimensions.

    Args:
        means: `[K, D]`.
        stds: `[K]`, standard deviation of each component (0 gives points).
        weights: `[K]`, positive; normalised; default equal.
        classes: `[K]` int64, the class of each component, 0 … C − 1; None for no classes.

    As a module it is the network `(z [B, D], logsnr [B], labels) -> E[x | z] [B, D]`, i.e. an x-output. With
    classes it is E[x | z, label], the posterior taken within the class; label C, no class, takes all components.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor
    log_member: Tensor

    def __init__(
        self, means: Tensor, stds: Tensor, weights: Tensor | None = None, classes: Tensor | None = None
    ) -> None:
        super().__init__()
        classes = torch.zeros(len(means), dtype=torch.int64) if classes is None else classes
        self.num_classes = int(classes.max()) + 1 if bool(classes.any()) else 0
        member = classes == torch.arange(self.num_classes)[:, None]  # [C, K]; the last row is no class
        everything = torch.ones(1, len(means), dtype=torch.bool)
        self.register_buffer("log_member", torch.log(torch.cat([member, everything]).double()))
        weights = torch.ones(len(means)) if weights is None else weights
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`[n, D]` draws."""
        return self.labelled(n, generator)[0]

    def labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """`[n, D]` draws and their classes, int64 `[n]`; None for a mixture without classes."""
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=self.means.device)
        labels = self.log_member[:-1, k].argmax(0) if self.num_classes else None
        return self.means[k] + self.stds[k, None] * noise.to(self.means), labels

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x | z, label] `[B, D]` at log-SNR `logsnr` `[B]` (±∞ allowed), in z's dtype."""
        log_r, component_x = self._components(z, logsnr)
        if labels is not None:
            log_r = log_r + self.log_member[labels].to(z.dtype)
        return (torch.softmax(log_r, dim=1)[..., None] * component_x).sum(1)

    def log_classes(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """log p(z_t, class) `[B, C + 1]` for every class, and log p(z_t) last; at logsnr = ∞ of the data."""
        log_r = self._components(z, logsnr)[0] - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(log_r[:, None] + self.log_member.to(z.dtype), dim=2)

    def _components(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Of every component: log p(z_t, k) but for a constant `[B, K]`, and E[x | z, k] `[B, K, D]`."""
        means, stds = self.means.to(z.dtype), self.stds.to(z.dtype)
        alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
        variance = (alpha * stds) ** 2 + sigma**2  # [B, K]
        offset = z[:, None] - alpha[..., None] * means  # [B, K, D]
        log_r = self.log_weights.to(z.dtype) - offset.square().sum(-1) / (2 * variance)
        component_x = means + (alpha * stds**2 / variance)[..., None] * offset
        return log_r - 0.5 * z.shape[1] * torch.log(variance), component_x

    def denoiser(self, schedule: CosineSchedule | None = None) -> Denoiser:
        """The closed-form denoiser under `schedule`."""
        classes = self.num_classes
        return Denoiser(self, "x", schedule, bounded=False, num_classes=classes, null_class=classes > 0)
