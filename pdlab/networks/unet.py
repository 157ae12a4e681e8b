"""The paper's U-Net: residual blocks that resample, scale-shift conditioning on the noise level."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pdlab import schema
from pdlab.errors import PdlabError
from pdlab.networks.embedding import guidance_embedding, time_embedding
from pdlab.networks.final import FinalConv2d, full_precision
from pdlab.networks.registry import register_network


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`; plain values, so that it can be written to JSON and read back.

    `out_multiple` is 2 for output "both". The resolution is `image_size / patch` at the first level and halves
    from one level to the next; level i has `channels * multipliers[i]` channels and `blocks` residual blocks on
    the way down (one more on the way up). `attention` lists the resolutions with self-attention, which the middle
    always has, with `heads` heads or, where `head_dim` is given instead, heads of that size. A norm has 32 groups,
    or fewer so that each has at least `group_size` channels: PyTorch's CPU kernel is many times slower in
    channels_last below 16. With `patch` p > 1 the network works on p×p pixels as channels (space to depth): for
    small machines; the paper's networks have 1. The first `image_levels` levels all read the image and add to the
    output, level i in patches of p·2^i: so a network can grow outwards from a smaller one, which stays within it
    (see `grow`). `averaged` counts how often growing doubled the patch instead. Means of 2^k × 2^k pixels have a
    log-SNR higher by k·2 log 2: the noise level is told as that of the innermost image. `time_channels` is the size
    of its embedding (None: `channels`).

    `num_classes` is 0 for an unconditional network. With `null_class` label `num_classes` says "no class";
    with `guidance_max` > 0 the network also takes a guidance weight in [0, guidance_max]. `PdlabError` for a
    shape that cannot be built.
    """

    image_size: schema.Size = 32
    in_channels: schema.Size = 3
    out_multiple: Annotated[int, Field(ge=1, le=2)] = 1
    channels: schema.Size = 256
    multipliers: Annotated[tuple[schema.Size, ...], Field(min_length=1, max_length=16)] = (1, 1, 1)
    blocks: schema.Blocks = 3
    attention: Annotated[tuple[schema.Size, ...], Field(max_length=16)] = (8, 16)
    heads: schema.Size | None = 1
    head_dim: schema.Size | None = None
    embedding_channels: schema.Size = 1024
    group_size: schema.Size = 1
    patch: schema.Size = 1
    image_levels: schema.Size = 1
    averaged: Annotated[int, Field(ge=0, le=16)] = 0
    time_channels: schema.Embedding | None = None
    dropout: schema.Share = 0.0
    num_classes: schema.Classes = 0
    null_class: bool = False
    guidance_max: schema.NotNegative = 0.0

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):  # JSON gives lists; equal shapes should compare equal
            object.__setattr__(self, name, tuple(getattr(self, name)))
        schema.check(self)
        if self.time_channels is None and (self.channels < 4 or self.channels % 2):
            raise PdlabError(
                f"channels must be even and at least 4, not {self.channels}, or time_channels be given"
            )
        if self.null_class and not self.num_classes:
            raise PdlabError("null_class needs num_classes of at least 1: an unconditional network has no classes")
        if self.guidance_max and not self.num_classes:
            raise PdlabError("guidance_max needs num_classes of at least 1: guidance is towards a class")
        if self.image_size % (self.patch * 2 ** (len(self.multipliers) - 1)):
            patches = f" in patches of {self.patch}" if self.patch > 1 else ""
            raise PdlabError(
                f"image_size {self.image_size}{patches} does not halve to {len(self.multipliers)} levels: "
                "give another image_size, or one multiplier for each level"
            )
        if self.image_levels > len(self.multipliers):
            raise PdlabError(
                f"image_levels {self.image_levels} is more than the {len(self.multipliers)} levels there are"
            )
        unused = sorted(set(self.attention) - set(self.resolutions))
        if unused:
            raise PdlabError(
                f"attention at {unused} is never reached: choose among the resolutions {list(self.resolutions)}"
            )
        if (self.heads is None) == (self.head_dim is None):
            raise PdlabError("give one of heads and head_dim, and null for the other")
        for resolution, width in zip(self.resolutions, self.widths, strict=True):
            attends = resolution in self.attention or resolution == self.resolutions[-1]
            if attends and width % (self.heads or self.head_dim or 1):
                raise PdlabError(
                    f"{width} channels at resolution {resolution} do not divide by "
                    + (f"heads = {self.heads}" if self.heads else f"head_dim = {self.head_dim}")
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.in_channels, self.image_size, self.image_size)

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.out_multiple * self.in_channels

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolution of each level."""
        return tuple(self.image_size // self.patch // 2**i for i in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)


def _norm(channels: int, group_size: int) -> nn.GroupNorm:
    most = min(32, max(channels // group_size, 1))
    return nn.GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps=1e-6)


def _swish(h: Tensor) -> Tensor:
    return F.silu(h, inplace=not torch.is_grad_enabled())  # every h here is fresh from a norm


class ResidualBlock(nn.Module):
    """x `[B, C, H, W]` and an activated embedding `[B, E]` -> `[B, out, H', W']`; H' = H/2, H or 2H."""

    def __init__(
        self, channels: int, out: int, embedding: int, group_size: int, dropout: float, resample: str = ""
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = _norm(channels, group_size)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * out)
        self.norm2 = _norm(out, group_size)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Give x + conv2(dropout(swish(norm2(conv1(swish(norm1(x)))) (1 + scale) + shift)))."""
        h = _swish(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self.conv1(h)
        scale, shift = self.condition(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.conv2(self.dropout(_swish(h)))
        return self.shortcut(x) + h


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type == "cpu" and q.shape[2] <= 64:  # so few tokens are half the work without the fused kernel
        return torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(2, 3), dim=3) @ v
    return F.scaled_dot_product_attention(q, k, v)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of x `[B, C, H, W]`, added to x."""

    def __init__(self, channels: int, heads: int, group_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels, group_size)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Give x + out(softmax(q k^T / sqrt(d)) v)."""
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]: a view where x is channels_last
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = _attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])


def _rescaled(z: Tensor, logsnr: Tensor, halvings: int) -> Tensor:
    """z scaled so that means of its 2^halvings × 2^halvings pixels have alpha² + sigma² = 1 again."""
    if not halvings:
        return z
    variance = torch.sigmoid(logsnr) + torch.sigmoid(-logsnr) / 4**halvings
    return z * variance.rsqrt()[:, None, None, None].to(z.dtype)


def _output(norm: nn.GroupNorm, conv: FinalConv2d, h: Tensor, patch: int) -> Tensor:
    """conv(swish(norm(h))) as an image, in the dtype of the weights also under autocast."""
    with full_precision(h):
        return F.pixel_shuffle(conv(_swish(norm(h.to(conv.weight.dtype)))), patch)


class InnerImage(nn.Module):
    """Where an inner level reads the image beside the features of the level around it, and writes its own part."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        self.patch, self.halvings = config.patch * 2**level, config.averaged + level
        width = config.widths[level]
        self.around = nn.Conv2d(config.widths[level - 1], width, 1)
        self.conv_in = nn.Conv2d(config.in_channels * self.patch**2, width, 3, padding=1)
        self.norm_out = _norm(width, config.group_size)
        self.conv_out = FinalConv2d(width, config.out_channels * self.patch**2)

    def enter(self, h: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
        """Features `[B, C', H, W]` of the level around, and the image, as this level's `[B, C, H, W]`."""
        return self.around(h) + self.conv_in(_to_depth(_rescaled(z, logsnr, self.halvings), self.patch))

    def leave(self, h: Tensor) -> Tensor:
        """This level's part of the output, `[B, out_channels, image_size, image_size]`."""
        return _output(self.norm_out, self.conv_out, h, self.patch)


@register_network("unet", UNetConfig)
class UNet(nn.Module):
    """The network of a diffusion model of images.

    `forward(z, logsnr, labels=None, guidance=None)`: z `[B, in_channels, image_size, image_size]`, logsnr `[B]`
    (±inf allowed), labels int64 `[B]` in [0, num_classes) (or num_classes: none, with `null_class`) if the
    network is class-conditional, guidance `[B]` if it takes one; the result is `[B, out_channels, image_size,
    image_size]` in z's dtype, whatever the dtype of the weights; under autocast the last norm and convolution, and
    what follows, are in that of the weights. It is zero before training. Fastest with
    `network.to(memory_format=torch.channels_last)`. `PdlabError` if labels or guidance are missing, or given to
    a network that takes none, or if z has another shape.
    """

    #: Layers that meet the image, the noise level or the condition: no inner matrices (see `training.optimizers`).
    outer_layers = ("conv_in", "conv_out", "inner", "time", "label", "guidance")

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        e, widths = config.embedding_channels, config.widths

        def residual(channels: int, out: int, resample: str = "") -> ResidualBlock:
            return ResidualBlock(channels, out, e, config.group_size, config.dropout, resample)

        def attention(width: int, resolution: int | None = None) -> list[AttentionBlock]:
            if resolution is not None and resolution not in config.attention:
                return []
            return [AttentionBlock(width, config.heads or width // (config.head_dim or width), config.group_size)]

        c = self._time_channels = config.time_channels or config.channels
        self.time = nn.Sequential(nn.Linear(c, e), nn.SiLU(), nn.Linear(e, e))
        self.label = nn.Embedding(config.num_classes + config.null_class, e) if config.num_classes else None
        self.guidance = nn.Sequential(nn.Linear(c, e), nn.SiLU(), nn.Linear(e, e)) if config.guidance_max else None
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        # Every stage is one residual block with what follows it; every stage of `down` leaves a skip.
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inner = [InnerImage(config, level) for level in range(1, config.image_levels)]
        self.inner = nn.ModuleList(inner)
        width, skips = widths[0], [widths[0]]
        for i, (out, resolution) in enumerate(zip(widths, config.resolutions, strict=True)):
            for _ in range(config.blocks):
                self.down.append(nn.ModuleList([residual(width, out), *attention(out, resolution)]))
                width = out
                skips.append(width)
            if i < len(widths) - 1:
                self.down.append(nn.ModuleList([residual(width, width, "down")]))
                width = widths[i + 1] if i + 1 < config.image_levels else width
                skips.append(width)
        self.middle.extend([residual(width, width), *attention(width), residual(width, width)])
        for i, (out, resolution) in reversed(list(enumerate(zip(widths, config.resolutions, strict=True)))):
            for j in range(config.blocks + 1):
                stage = [residual(width + skips.pop(), out), *attention(out, resolution)]
                width = out
                if j == config.blocks and i > 0:
                    stage.append(residual(width, width, "up"))
                self.up.append(nn.ModuleList(stage))
        self.norm_out = _norm(width, config.group_size)
        self.conv_out = FinalConv2d(width, config.out_channels * config.patch**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights with variance 1/fan_in, biases 0; the last layer of every branch starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):  # a dense layer over one-hot labels
                nn.init.normal_(module.weight, std=module.num_embeddings**-0.5)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.out.weight)
            elif isinstance(module, InnerImage):
                nn.init.zeros_(module.conv_out.weight)
        if self.guidance is not None:  # until it is trained, the network answers as without guidance
            nn.init.zeros_(self.guidance[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv_out.weight)

    def forward(
        self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """Give the raw output for noisy images z at log-SNRs logsnr."""
        if tuple(z.shape[1:]) != self.config.shape:
            raise PdlabError(f"this network takes images of shape {self.config.shape}; got {tuple(z.shape[1:])}")
        if (self.label is None) != (labels is None):
            wanted = "takes no labels" if self.label is None else "is class-conditional: give labels"
            raise PdlabError(f"this network {wanted}")
        if (self.guidance is None) != (guidance is None):
            wanted = "takes no guidance" if self.guidance is None else "takes guidance: give a weight an image"
            raise PdlabError(f"this network {wanted}")
        dtype = self.conv_in.weight.dtype
        innermost = logsnr + 2 * math.log(2) * (self.config.averaged + self.config.image_levels - 1)
        embedding = self.time(time_embedding(innermost, self._time_channels).to(dtype))
        if self.label is not None:
            embedding = embedding + self.label(labels)
        if self.guidance is not None and guidance is not None:
            features = guidance_embedding(guidance, self._time_channels)
            embedding = embedding + self.guidance(features.to(dtype))
        embedding = F.silu(embedding)

        image = z.to(dtype)
        h = self.conv_in(_to_depth(_rescaled(image, logsnr, self.config.averaged), self.config.patch))
        skips, inner = [h], [port for port in self.inner if isinstance(port, InnerImage)]
        entered = iter(inner)
        for stage in self.down:
            h = _run(stage.children(), h, embedding)
            if _resamples(stage, "down") and (port := next(entered, None)) is not None:
                h = port.enter(h, image, logsnr)
            skips.append(h)
        h = _run(self.middle.children(), h, embedding)
        level, out = len(self.config.multipliers) - 1, None
        for stage in self.up:
            blocks, rises = list(stage.children()), _resamples(stage, "up")
            h = _run(blocks[:-1] if rises else blocks, torch.cat([h, skips.pop()], dim=1), embedding)
            if rises:
                if level < self.config.image_levels:
                    part = inner[level - 1].leave(h)
                    out = part if out is None else out + part
                h, level = _run(blocks[-1:], h, embedding), level - 1
        part = _output(self.norm_out, self.conv_out, h, self.config.patch)
        return (part if out is None else out + part).to(z.dtype)


def _to_depth(z: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return z
    return F.pixel_unshuffle(z, patch).contiguous(memory_format=torch.channels_last)


def _run(blocks: Iterable[nn.Module], h: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks:
        h = block(h, embedding) if isinstance(block, ResidualBlock) else block(h)
    return h


def _resamples(stage: nn.Module, how: str) -> bool:
    return getattr(list(stage.children())[-1], "resample", "") == how
