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

    As a module it is the network `(z [B, D], logsnr [B]) -> E[x | z] [B, D]`, i.e. an x-output.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
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
        """E[x | z] `[B, D]` at log-SNR `logsnr` `[B]` (±∞ allowed), in z's dtype."""
        means, stds = self.means.to(z.dtype), self.stds.to(z.dtype)
        alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
        variance = (alpha * stds) ** 2 + sigma**2  # [B, K]
        offset = z[:, None] - alpha[..., None] * means  # [B, K, D]
        log_r = self.log_weights.to(z.dtype) - offset.square().sum(-1) / (2 * variance)
        r = torch.softmax(log_r - 0.5 * z.shape[1] * torch.log(variance), dim=1)
        component_x = means + (alpha * stds**2 / variance)[..., None] * offset
        return (r[..., None] * component_x).sum(1)

    def denoiser(self, schedule: CosineSchedule | None = None) -> Denoiser:
        """The closed-form denoiser under `schedule`."""
        return Denoiser(self, "x", schedule, bounded=False)
