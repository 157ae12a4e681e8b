"""Growing: a trained network becomes a larger one that, before it is trained on, answers the same.

For images of twice the side, the mean of each 2×2 pixels of z = alpha x + sigma eps has noise of standard deviation
sigma/2: it is what the small network knows as noisy data at a log-SNR higher by 2 log 2, once scaled to
alpha² + sigma² = 1 again (Hoogeboom et al. 2023, "simple diffusion"). The grown network contains that, so for an
x network

    grown(z, logsnr) = enlarged(small(mean of 2×2 of z, rescaled; logsnr + 2 log 2))

but for rounding; enlarged repeats every pixel 2×2 times. It gets there in one of two ways: the trunk reads patches
twice as large, or a new outer level is put around it, whose way in and way out start at 0. At the same side a
network can become wider (what reads a new channel starts at 0) and learn classes (whose embeddings start at 0) or
a null class, and then answers as before exactly.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pdlab.errors import PdlabError
from pdlab.networks.unet import AttentionBlock, ResidualBlock, UNet, UNetConfig

#: What must be equal in both configurations. Width, levels, image and classes have rules of their own.
_SAME = ("in_channels", "out_multiple", "blocks", "heads", "head_dim", "embedding_channels", "guidance_max")

Segments = list[tuple[int, int]]  # (channels in the small network, in the large one), in the order they are stacked


@torch.no_grad()
def grow(small: UNet, network: UNet) -> UNet:
    """Fill `network`, freshly initialised, from `small`; returns it.

    Raises PdlabError, naming what does not fit, where `network` cannot start as `small`.
    """
    outer = _check(small.config, network.config)
    e = [(small.config.embedding_channels,) * 2]
    for a, b in zip(_linears(small.time), _linears(network.time), strict=True):
        _layer(a, b, [(a.out_features, b.out_features)], [(a.in_features, b.in_features)])
    if network.label is not None:
        network.label.weight.zero_()
        if small.label is not None:
            network.label.weight[: len(small.label.weight)] = small.label.weight
    if small.guidance is not None and network.guidance is not None:
        network.guidance.load_state_dict(small.guidance.state_dict())
    _trunk(small, network, outer, e)
    return network


def _trunk(small: UNet, network: UNet, outer: int, e: Segments) -> None:
    """The image's ways in and out, and every block; `outer` is 1 where a level was put around them."""
    first: Any = network.inner[0] if outer else network
    factor = network.config.image_size // small.config.image_size
    pairs: list[tuple[Any, Any]] = [(small, first), *zip(small.inner, network.inner[outer:], strict=True)]
    widths = list(zip(small.config.widths, network.config.widths[outer:], strict=True))
    for level, (a, b) in enumerate(pairs):
        width = [widths[level]]
        p = small.config.patch * 2**level
        _copy(b.conv_in.weight, _spread_in(a.conv_in.weight, p, factor), width, _whole(b.conv_in.weight, 1))
        _copy(b.conv_in.bias, a.conv_in.bias, width)
        _layer(a.norm_out, b.norm_out, width)
        _copy(b.conv_out.weight, _spread_out(a.conv_out.weight, p, factor), _whole(b.conv_out.weight, 0), width)
        _copy(b.conv_out.bias, _spread_out(a.conv_out.bias, p, factor), _whole(b.conv_out.bias, 0))
        if level:
            _layer(a.around, b.around, width, [widths[level - 1]])
    if outer:  # what the level around says of the image counts for nothing yet, in both directions
        inwards, outwards = first.around.parameters(), network.conv_out.parameters()
        for parameter in (*inwards, *outwards):
            nn.init.zeros_(parameter)

    skips: Segments = [widths[0]]
    h, level = widths[0], 0
    for a, b in zip(_stages(small.down), list(network.down)[outer * (small.config.blocks + 1) :], strict=True):
        out = h if a[0].resample else widths[level]
        _stage(a, b, [h], out, e)
        h = out
        if a[0].resample:
            level += 1
            h = widths[level] if level < small.config.image_levels else h
        skips.append(h)
    _stage(small.middle, network.middle, [h], h, e)
    for a, b in zip(_stages(small.up), network.up, strict=False):  # an outer level's own stages come last
        _stage(a, b, [h, skips.pop()], widths[level], e)
        h = widths[level]
        level -= getattr(a[len(a) - 1], "resample", "") == "up"


def _stage(small: nn.Module, large: nn.Module, ins: Segments, out: tuple[int, int], e: Segments) -> None:
    # The last stage of the small trunk gains a block that rises into the new outer level: left as it is.
    for a, b in zip(small.children(), large.children(), strict=False):
        if isinstance(a, ResidualBlock) and isinstance(b, ResidualBlock):
            _layer(a.norm1, b.norm1, ins)
            _layer(a.conv1, b.conv1, [out], ins)
            _layer(a.condition, b.condition, [out, out], e)
            _layer(a.norm2, b.norm2, [out])
            _layer(a.conv2, b.conv2, [out], [out])
            if isinstance(a.shortcut, nn.Conv2d):
                _layer(a.shortcut, b.shortcut, [out], ins)
        elif isinstance(a, AttentionBlock) and isinstance(b, AttentionBlock):
            _layer(a.norm, b.norm, [out])
            _layer(a.qkv, b.qkv, [out] * 3, [out])
            _layer(a.out, b.out, [out], [out])
        ins = [out]


def _layer(a: nn.Module, b: nn.Module, outs: Segments, ins: Segments | None = None) -> None:
    if isinstance(a, nn.GroupNorm) and isinstance(b, nn.GroupNorm):
        size = a.num_channels // a.num_groups
        if b.num_channels // b.num_groups != size or any(s % size for segment in outs for s in segment):
            raise PdlabError(
                f"norm groups of {size} channels become others from {a.num_channels} to {b.num_channels} channels: "
                "choose widths in whole groups (network.group_size)"
            )
    _copy(b.weight, a.weight, outs, ins)  # type: ignore[arg-type]
    if a.bias is not None:
        _copy(b.bias, a.bias, outs)  # type: ignore[arg-type]


def _copy(target: Tensor, source: Tensor, outs: Segments, ins: Segments | None = None) -> None:
    """Copy `source` into the old rows of `target`; there, what reads new channels is 0. New rows stay as drawn."""
    rows, from_rows = _index(outs, 1), _index(outs, 0)
    if ins is None:
        target[rows] = source[from_rows]
        return
    filled = torch.zeros_like(target[rows])
    filled[:, _index(ins, 1)] = source[from_rows][:, _index(ins, 0)]
    target[rows] = filled


def _index(segments: Segments, which: int) -> Tensor:
    """Where the channels that both networks have lie, in the small (0) or the large one (1)."""
    starts = [sum(s[which] for s in segments[:k]) for k in range(len(segments))]
    return torch.cat([start + torch.arange(small) for start, (small, _) in zip(starts, segments, strict=True)])


def _whole(tensor: Tensor, dim: int) -> Segments:
    return [(tensor.shape[dim],) * 2]


def _spread_in(weight: Tensor, patch: int, factor: int) -> Tensor:
    """Input weights `[W, C·p², 3, 3]` of means of factor×factor pixels, as weights of the pixels."""
    grid = weight.unflatten(1, (-1, patch, patch))
    grid = grid.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
    return grid.flatten(1, 3)


def _spread_out(tensor: Tensor, patch: int, factor: int) -> Tensor:
    """Output weights `[C·p², …]` repeated for factor×factor pixels each."""
    grid = tensor.unflatten(0, (-1, patch, patch))
    return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(0, 2)


def _stages(stages: nn.ModuleList) -> list[Any]:
    return list(stages)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _check(small: UNetConfig, large: UNetConfig) -> int:
    """1 where `large` has an outer level more, else 0; PdlabError where it cannot start as `small`."""
    problems = [
        f"{name} is {getattr(large, name)}, not {getattr(small, name)}"
        for name in _SAME
        if getattr(large, name) != getattr(small, name)
    ]
    outer, factor = len(large.multipliers) - len(small.multipliers), large.image_size / small.image_size
    if outer not in (0, 1) or factor not in (1, 2) or (outer and factor == 1):
        problems.append(
            f"images of {large.image_size} pixels in {len(large.multipliers)} levels are not those of "
            f"{small.image_size} in {len(small.multipliers)}, nor twice as large with at most a level more"
        )
    else:
        told = {
            "patch": small.patch * (2 if factor == 2 and not outer else 1),
            "averaged": small.averaged + (factor == 2 and not outer),
            "image_levels": small.image_levels + outer,
            "time_channels": small.time_channels or small.channels,
        }
        known = {name: getattr(large, name) for name in told} | {
            "time_channels": large.time_channels or large.channels
        }
        problems += [f"{name} is {known[name]}, must be {v}" for name, v in told.items() if known[name] != v]
        inner = large.widths[outer:]
        if any(b < a for a, b in zip(small.widths, inner, strict=True)):
            problems.append(f"widths {list(inner)} are below {list(small.widths)}")
        elif small.widths != inner and small.heads is not None:
            problems.append("wider attention needs head_dim instead of heads, so that there are more heads")
        if set(small.attention) ^ {r for r in large.attention if r in small.resolutions}:
            problems.append(f"attention is at {list(large.attention)}, not at {list(small.attention)}")
    if small.num_classes and large.num_classes != small.num_classes:
        problems.append(f"num_classes is {large.num_classes}, not {small.num_classes}")
    if small.null_class and not large.null_class:
        problems.append("null_class is false, not true")
    if problems:
        raise PdlabError(f"this network cannot grow from that one: {'; '.join(problems)}")
    return outer
