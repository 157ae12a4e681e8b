"""The one object everything downstream holds: network + parameterization + schedule -> prediction."""

import torch
from torch import Tensor, nn

from pdlab.diffusion.prediction import OUTPUTS, Prediction
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError


class Denoiser(nn.Module):
    """Called with `(z, t)`, returns a `Prediction` that knows x, eps and v.

    Args:
        network: `network(z [B, …], logsnr [B], labels [B] | None) -> raw [B, …]`, any module.
        output: what raw means: "x", "eps", "v" or "both" (x and eps, twice the channels).
        schedule: gives alpha, sigma and logsnr at t.
        bounded: the data lie in [−1, 1] (images), so samplers clip x by default.
        steps: the number of steps a distilled denoiser was made for; None for an undistilled one.

    Raises PdlabError for an eps network on a schedule that reaches alpha = 0, where eps does not determine x.
    """

    def __init__(
        self,
        network: nn.Module,
        output: str,
        schedule: CosineSchedule | None = None,
        *,
        bounded: bool = True,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise PdlabError(f"unknown output {output!r}: choose one of {', '.join(OUTPUTS)}")
        self.network = network
        self.output = output
        self.schedule = schedule or CosineSchedule()
        self.bounded = bounded
        self.steps = steps
        self.schedule.check_output(output)

    @property
    def device(self) -> torch.device:
        """Where the network's weights are (the CPU for a network without any)."""
        weight = next(self.network.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def num_classes(self) -> int:
        """Classes the network is conditioned on; 0 for an unconditional one, which gets no labels."""
        return int(getattr(getattr(self.network, "config", None), "num_classes", 0))

    def forward(self, z: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Prediction:
        """Predict from `z` `[B, …]` at times `t` (scalar or `[B]`, in (0, 1]); results in z's dtype.

        The network may hold its weights in a lower precision; alpha, sigma and the conversions are in z's.
        """
        t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        weight = next(self.network.parameters(), None)
        dtype = z.dtype if weight is None else weight.dtype
        logsnr = self.schedule.logsnr(t).expand(len(z))
        raw = self.network(z.to(dtype), logsnr, labels).to(z.dtype)
        alpha, sigma = per_example(self.schedule.alpha(t), z), per_example(self.schedule.sigma(t), z)
        return OUTPUTS[self.output](z, alpha, sigma, raw)
