"""Latents: an encoder and a decoder around the data, and what the encoder makes of a data set, made once.

A latent model is a diffusion model of other data: its ladder runs on latents as on anything, and what it draws is
decoded. Nothing else knows of it:

    codec = pdlab.from_autoencoder("folder/vae")                  or Codec(encode, decode), any two functions
    latents = codec.latents(images, cache="runs/latents")
    students = pdlab.distill(teacher, latents, "runs/mine", first=64)
    codec.images(pdlab.sample(students[4], 16))                   [16, 3, H, W] in [-1, 1]
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from typing_extensions import TypedDict

from pdlab import console, memory, schema
from pdlab.adapters.pipelines import first_line, library
from pdlab.data.cache import cache_dir
from pdlab.data.source import HeldSource, ImageSource, to_float
from pdlab.errors import PdlabError
from pdlab.tensors import read_tensors, write_folder

_FITTED = 1000  # images that shift and scale are measured on


@dataclass(eq=False)
class LatentSource(HeldSource):
    """What an encoder made of images: float32 [N, C, H, W] of any size, see `Codec`.

    They are never mirrored: an encoder does not answer a mirrored image with the mirrored latent. Give it both.
    """

    latents: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "latents"
    split: str = "train"
    conditions: Tensor | None = None
    shape: tuple[int, ...] = field(init=False)
    num_classes: int = field(init=False)
    bounded: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.latents.dtype != torch.float32 or self.latents.ndim < 2 or len(self.latents) == 0:
            raise ValueError("latents must be a non-empty float32 tensor [N, …]")
        super().__post_init__()

    @property
    def held(self) -> Tensor:
        """See HeldSource."""
        return self.latents

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` latents, float32 [n, …], and their labels (int64 [n]; conditions; or None)."""
        return self._drawn(n, generator)


class KeptLatents(TypedDict):
    """latents.json without its seal."""

    sha256: schema.Sha256
    images: schema.Sha256
    codec: schema.Sha256


@dataclass(frozen=True)
class Codec:
    """Images [B, C, H, W] in [-1, 1] to latents [B, …] and back: z = scale (`encode`(x) - shift).

    `name` is what cards call it, and `factor` how many times the side of a latent an image's is. Where `encode` and
    `decode` are modules, or belong to one, `digest` holds their weights; of other functions it holds only the name,
    so give those that differ different names.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    name: str = "one's own"
    scale: float = 1.0
    shift: float = 0.0
    factor: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is known of it."""
        sha = hashlib.sha256(repr((self.name, float(self.scale), float(self.shift))).encode())
        for function in (self.encode, self.decode):
            owner = getattr(function, "__self__", function)
            for name, tensor in owner.state_dict().items() if isinstance(owner, nn.Module) else ():
                sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def fitted(self, data: ImageSource) -> "Codec":
        """The same, shifted and scaled: the latents of the first 1,000 images have mean 0 and deviation 1."""
        raw = dataclasses.replace(self, scale=1.0, shift=0.0)._encoded(to_float(data.images[:_FITTED]))
        deviation = float(raw.std())
        if not 0 < deviation < float("inf"):
            raise PdlabError(f"the encoder answers latents with a deviation of {deviation:g}: it cannot be scaled")
        return dataclasses.replace(self, scale=1 / deviation, shift=float(raw.mean()))

    def latents(self, data: ImageSource, cache: Path | str | None = None, batch: int = 64) -> LatentSource:
        """What the encoder makes of all of `data`, with its labels or conditions.

        They are kept in the folder `cache`, and read from there the next time. Raises PdlabError for a cache of
        other images or another codec, or that is damaged, and for latents that are not finite.
        """
        if not isinstance(data, ImageSource):
            raise PdlabError(f"{data.name} are no images: there is nothing to encode")
        made = {"images": data.digest, "codec": self.digest}
        place = None if cache is None else Path(cache)
        if place is not None and place.exists():
            latents = _read(place, made, len(data))
        else:
            latents = self._all(data, batch)
            if place is not None:
                write_folder(place, "latents", {"latents": latents}, made, "choose another cache")
        return LatentSource(latents, data.labels, data.classes, f"{data.name}-latents", data.split, data.conditions)

    @torch.no_grad()
    def images(self, latents: Tensor, batch: int = 64) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], float32, of `latents` [B, …]: samples of a latent model, decoded."""
        parts = [self.decode(part / self.scale + self.shift).cpu() for part in latents.split(batch)]
        return torch.cat(parts).float().clamp(-1, 1)

    def _all(self, data: ImageSource, batch: int) -> Tensor:
        first = self._encoded(to_float(data.images[:1]))
        memory.check(4 * first.numel() * len(data), f"the latents of {len(data):,} images", "take fewer images")
        latents = torch.empty(len(data), *first.shape[1:])
        starts = range(0, len(data), batch)
        for start in track(starts, "Encoding", console=console.errors(), transient=True):
            latents[start : start + batch] = self._encoded(to_float(data.images[start : start + batch]))
        if not bool(latents.isfinite().all()):
            raise PdlabError("the encoder answers numbers that are not finite")
        return latents

    @torch.no_grad()
    def _encoded(self, x: Tensor) -> Tensor:
        latents: Any = self.encode(x)
        if not isinstance(latents, Tensor) or len(latents) != len(x) or not latents.is_floating_point():
            given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise PdlabError(f"encode(images {list(x.shape)}) must give floats [{len(x)}, …], not {given}")
        return (latents.float().cpu() - self.shift) * self.scale


def _read(cache: Path, made: dict[str, str], n: int) -> Tensor:
    try:
        header = schema.read(cache / "latents.json", KeptLatents)
        if any(header[name] != value for name, value in made.items()):
            raise PdlabError(f"{cache} holds the latents of other images, or of another codec")
        latents = read_tensors(cache / "latents.safetensors", header["sha256"]).get("latents")
    except (PdlabError, OSError) as error:
        what = str(error) if isinstance(error, PdlabError) else f"{cache} holds no latents"
        raise PdlabError(f"{what}: choose another cache, or remove it") from None
    if latents is None or len(latents) != n or latents.dtype != torch.float32 or not bool(latents.isfinite().all()):
        raise PdlabError(f"{cache} does not hold {n:,} finite latents: remove it")
    return latents


def kept_at(data: ImageSource, codec: Codec) -> Path:
    """The folder in pdlab's cache for the latents of `data`."""
    return cache_dir() / "latents" / hashlib.sha256(f"{data.digest}{codec.digest}".encode()).hexdigest()[:32]


def from_autoencoder(model: nn.Module | Path | str) -> Codec:
    """The codec of an autoencoder of diffusers, such as the `vae` of a pipeline: an AutoencoderKL or the like.

    `model` is one, or its folder (of safetensors; nothing is downloaded). A latent is the mean that the encoder
    answers, shifted and scaled as the model's settings say. Raises PdlabError where diffusers is missing, and for a
    folder that holds something else.
    """
    if not isinstance(model, nn.Module):
        folder, made = Path(model), library().AutoencoderKL
        try:
            model = made.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise PdlabError(f"{folder} is no AutoencoderKL with safetensors: {first_line(error)}") from None
    settings: Any = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or getattr(settings, "scaling_factor", None) is None:
        raise PdlabError(f"{type(model).__name__} says no scaling_factor: give Codec(encode, decode, …)")
    return Codec(
        _Encoder(model.eval()),
        _Decoder(model),
        type(model).__name__,
        float(settings.scaling_factor),
        float(getattr(settings, "shift_factor", None) or 0.0),
        2 ** (len(settings.block_out_channels) - 1),
    )


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.model.encode(x.to(next(self.model.parameters()).device)).latent_dist.mode()  # type: ignore[operator]
        return mean


class _Decoder(_Encoder):
    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.model.decode(z.to(next(self.model.parameters()).device)).sample  # type: ignore[operator]
        return images
