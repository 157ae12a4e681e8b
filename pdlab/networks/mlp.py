"""A residual MLP for small images and 2-D points."""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pdlab import schema
from pdlab.errors import PdlabError
from pdlab.networks.embedding import guidance_embedding, time_embedding
from pdlab.networks.final import full_precision
from pdlab.networks.registry import register_network


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an `MLP`: data `shape` without the batch; `out_multiple` 2 for output "both".

    `num_classes`, `null_class` and `guidance_max` as in `UNetConfig`.
    """

    shape: Annotated[tuple[schema.Size, ...], Field(min_length=1, max_length=3)]
    out_multiple: Annotated[int, Field(ge=1, le=2)] = 1
    width: schema.Size = 256
    blocks: schema.Blocks = 3
    embedding_channels: schema.Embedding = 128
    dropout: schema.Share = 0.0
    num_classes: schema.Classes = 0
    null_class: bool = False
    guidance_max: schema.NotNegative = 0.0

    def __post_init__(self) -> None:
        schema.check(self)
        if (self.null_class or self.guidance_max) and not self.num_classes:
            raise PdlabError("null_class and guidance_max need num_classes of at least 1")


@register_network("mlp", MLPConfig)
class MLP(nn.Module):
    """`(z [B, *shape], logsnr [B], labels [B] | None, guidance [B] | None) -> [B, out_multiple · shape[0], …]`.

    Residual blocks of norm, scale and shift by the time (and class) embedding, SiLU and two linear layers; the
    second of each block and the output layer begin at zero, as in the U-Net.
    """

    #: As in the U-Net.
    outer_layers = ("first", "last", "embed", "classes", "guidance")

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        size, width, channels = prod(config.shape), config.width, config.embedding_channels
        self.embed = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))
        classes = config.num_classes + config.null_class
        self.classes = nn.Embedding(classes, channels) if config.num_classes else None
        self.guidance = (
            nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), _zero(nn.Linear(channels, channels)))
            if config.guidance_max
            else None
        )
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, channels, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.last = _zero(nn.Linear(width, config.out_multiple * size))

    def forward(
        self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """See the class."""
        embedding = time_embedding(logsnr, self.config.embedding_channels).to(self.first.weight.dtype)
        condition = self.embed(embedding)
        if self.classes is not None:
            condition = condition + self.classes(labels)
        if self.guidance is not None and guidance is not None:
            features = guidance_embedding(guidance, self.config.embedding_channels)
            condition = condition + self.guidance(features.to(self.first.weight.dtype))
        condition = nn.functional.silu(condition)
        h = self.first(z.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        with full_precision(h):
            out = self.last(nn.functional.silu(self.norm(h.to(self.last.weight.dtype))))
        return out.reshape(z.shape[0], self.config.out_multiple * z.shape[1], *z.shape[2:])


class _Block(nn.Module):
    def __init__(self, width: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(channels, 2 * width)
        self.first = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second = _zero(nn.Linear(width, width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition).chunk(2, dim=1)
        inner = nn.functional.silu(self.first(torch.addcmul(shift, self.norm(h), 1 + scale)))
        return h + self.second(self.dropout(inner))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
