"""A Gaussian mixture and its closed-form denoiser: the perfect teacher.

For x ~ Σ_k w_k N(mu_k, s_k² I) the noisy z_t is a mixture too, component k being N(alpha mu_k, alpha² s_k² +
sigma²), and the ideal prediction is known exactly:

    E[x | z] = Σ_k r_k(z) (mu_k + alpha s_k² / (alpha² s_k² + sigma²) · (z − alpha mu_k))

with r_k the posterior probability of component k. It is the network that infinite training would give.
"""

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
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=self.means.device)
        return self.means[k] + self.stds[k, None] * noise.to(self.means)

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x | z, label] `[B, D]` at log-SNR `logsnr` `[B]` (±∞ allowed), in z's dtype."""
        means, stds = self.means.to(z.dtype), self.stds.to(z.dtype)
        alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
        variance = (alpha * stds) ** 2 + sigma**2  # [B, K]
        offset = z[:, None] - alpha[..., None] * means  # [B, K, D]
        log_r = self.log_weights.to(z.dtype) - offset.square().sum(-1) / (2 * variance)
        if labels is not None:
            log_r = log_r + self.log_member[labels].to(z.dtype)
        r = torch.softmax(log_r - 0.5 * z.shape[1] * torch.log(variance), dim=1)
        component_x = means + (alpha * stds**2 / variance)[..., None] * offset
        return (r[..., None] * component_x).sum(1)

    def denoiser(self, schedule: CosineSchedule | None = None) -> Denoiser:
        """The closed-form denoiser under `schedule`."""
        classes = self.num_classes
        return Denoiser(self, "x", schedule, bounded=False, num_classes=classes, null_class=classes > 0)
