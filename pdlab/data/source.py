"""What a data set is to the rest of pdlab: one object that draws batches, on the device, without a DataLoader."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Self


def to_float(images: Tensor) -> Tensor:
    """Stored images uint8 [..., C, H, W] as float32 in [-1, 1]: x = u / 127.5 - 1."""
    return images.float() / 127.5 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Images [..., C, H, W] in [-1, 1], any float type, as uint8: clamped, then rounded to nearest.

    Undoes `to_float` exactly.
    """
    return x.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)


class Source:
    """A data distribution that can be drawn from.

    Attributes:
        name: what `pdlab.data.load` calls it.
        split: "train" or "test".
        shape: of one example: (C, H, W), or (2,) for points in the plane.
        num_classes: number of labels; 0 when there are none.
        condition: the shape of what stands in place of a label, such as the embedding of a text; () for nothing.
        bounded: True when values lie in [-1, 1] (images), so that a sampler may clip.
    """

    name: str
    split: str
    shape: tuple[int, ...]
    num_classes: int
    condition: tuple[int, ...] = ()
    bounded: bool

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content: equal digests mean equal data, wherever they were read from."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Source":
        """The same source on `device`."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` independent examples (float32 [n, *shape]) and their labels (int64 [n]; conditions [n, …]; or None).

        `generator` lives on the source's device and is the only randomness: equal states give equal draws.
        With `flip`, each image is mirrored left to right with probability 1/2; points are never flipped.
        """
        raise NotImplementedError


class HeldSource(Source):
    """Examples held as one tensor on the device, drawn uniformly, with replacement.

    `labels` is int64 [N] or None, and `classes` names them in the order of their numbers; or `conditions` is
    float [N, …]. Raises ValueError where they do not fit the examples.
    """

    labels: Tensor | None
    classes: tuple[str, ...]
    conditions: Tensor | None

    @property
    def held(self) -> Tensor:
        """All examples, [N, *shape], as they are kept."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        n = len(self.held)
        if self.labels is not None and self.labels.shape != (n,):
            raise ValueError("labels must be [N], one for each example")
        if self.conditions is not None:
            if self.conditions.ndim < 2 or len(self.conditions) != n or not self.conditions.is_floating_point():
                raise ValueError("conditions must be float [N, …], one for each example")
            if self.labels is not None:
                raise ValueError("give labels or conditions, not both")
            self.condition = tuple(self.conditions.shape[1:])
        self.shape = tuple(self.held.shape[1:])
        self.num_classes = len(self.classes) if self.labels is not None else 0

    def __len__(self) -> int:
        return len(self.held)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of shape and bytes of the examples, then of labels or conditions where there are any."""
        sha = hashlib.sha256()
        for tensor in (self.held, self.labels, self.conditions):
            if tensor is not None:
                sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """The same examples, with all that belongs to them, on `device`."""
        tensors = {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)}  # type: ignore[arg-type]
        moved: Self = replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})  # type: ignore[type-var]
        if "digest" in self.__dict__:  # moving changes no byte, so nothing is hashed twice
            moved.__dict__["digest"] = self.digest
        return moved

    def _drawn(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """`n` of the examples, as they are kept, and their labels or conditions."""
        index = torch.randint(len(self), (n,), generator=generator, device=self.held.device)
        told = self.labels if self.conditions is None else self.conditions
        return self.held[index], None if told is None else told[index]


@dataclass(eq=False)
class ImageSource(HeldSource):
    """Images, uint8 [N, C, H, W]; see `HeldSource` for the rest."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    split: str = "train"
    conditions: Tensor | None = None
    shape: tuple[int, ...] = field(init=False)
    num_classes: int = field(init=False)
    bounded: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError("images must be a non-empty uint8 tensor [N, C, H, W]")
        super().__post_init__()

    @property
    def held(self) -> Tensor:
        """See HeldSource."""
        return self.images

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` images, float32 [n, C, H, W] in [-1, 1], and their labels (int64 [n]; conditions; or None)."""
        images, told = self._drawn(n, generator)
        if flip:
            mirrored = torch.rand((n, 1, 1, 1), generator=generator, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return to_float(images), told
