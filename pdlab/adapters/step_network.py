"""A network of ours as diffusers' pipelines call one: by the integer timesteps of a scheduler.

An export carries this file, with those of the networks written into it (`portable`): it needs torch and diffusers.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from pdlab.networks.registry import NETWORKS


class StepNetwork(ModelMixin, ConfigMixin):
    """`network(sample, timestep[, class_labels][, guidance]).sample`, in the place of a UNet2DModel.

    Args:
        settings: the kind of network, and its own.
        logsnr: what the network is told at each timestep; None is −inf, no signal at all.
        sample_size: height and width of an image.
        in_channels: its channels.

    A network that answers x and eps, in twice the channels, gives v = alpha eps − sigma x.
    """

    @register_to_config
    def __init__(
        self, settings: dict[str, Any], logsnr: list[float | None], sample_size: list[int], in_channels: int
    ) -> None:
        super().__init__()
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        make, config = NETWORKS[str(given.pop("kind"))]
        assert config is not None
        self.network = make(config(**given))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The raw answer for noisy images `[B, C, H, W]` at a timestep, one for all or `[B]`."""
        table = [-torch.inf if value is None else value for value in self.config.logsnr]
        at = torch.as_tensor(timestep, device=sample.device)
        logsnr = torch.tensor(table, device=sample.device)[at].expand(sample.shape[0])
        raw = self.network(sample, logsnr, *(given for given in (class_labels, guidance) if given is not None))
        if raw.shape[1] == 2 * sample.shape[1]:
            x, eps = raw.chunk(2, dim=1)
            alpha, sigma = (torch.sigmoid(side * logsnr).sqrt().to(raw.dtype) for side in (1, -1))
            raw = alpha[:, None, None, None] * eps - sigma[:, None, None, None] * x
        return UNet2DOutput(sample=raw) if return_dict else (raw,)
