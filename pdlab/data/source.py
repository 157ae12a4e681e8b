"""What a data set is to the rest of pdlab: one object that draws batches, on the device, without a DataLoader."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor


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
        bounded: True when values lie in [-1, 1] (images), so that a sampler may clip.
    """

    name: str
    split: str
    shape: tuple[int, ...]
    num_classes: int
    bounded: bool

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content: equal digests mean equal data, wherever they were read from."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Source":
        """The same source on `device`."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` independent examples (float32 [n, *shape]) and their labels (int64 [n], or None).

        `generator` lives on the source's device and is the only randomness: equal states give equal draws.
        With `flip`, each image is mirrored left to right with probability 1/2; points are never flipped.
        """
        raise NotImplementedError


@dataclass(eq=False)
class ImageSource(Source):
    """Images held as one uint8 tensor [N, C, H, W] on the device; drawn uniformly, with replacement.

    `labels` is int64 [N] or None; `classes` names them in the order of their numbers.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    split: str = "train"
    shape: tuple[int, ...] = field(init=False)
    num_classes: int = field(init=False)
    bounded: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError("images must be a non-empty uint8 tensor [N, C, H, W]")
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ValueError("labels must be [N], one for each image")
        self.shape = tuple(self.images.shape[1:])
        self.num_classes = len(self.classes) if self.labels is not None else 0

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of shape and bytes of the images, then of the labels where there are any."""
        sha = hashlib.sha256()
        for tensor in (self.images, self.labels):
            if tensor is not None:
                sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    def to(self, device: torch.device | str) -> "ImageSource":
        """The same images and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        moved = replace(self, images=self.images.to(device), labels=labels)
        if "digest" in self.__dict__:  # moving changes no byte, so nothing is hashed twice
            moved.__dict__["digest"] = self.digest
        return moved

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` images, float32 [n, C, H, W] in [-1, 1], and their labels (int64 [n], or None)."""
        device = self.images.device
        index = torch.randint(len(self), (n,), generator=generator, device=device)
        images = self.images[index]
        if flip:
            mirrored = torch.rand((n, 1, 1, 1), generator=generator, device=device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return to_float(images), None if self.labels is None else self.labels[index]
