"""Checkpoints: a denoiser on disk, in a folder of two files that is written whole or not at all.

    NAME/model.safetensors    the weights, float32 (or float16 in the zoo)
    NAME/model.json           everything else, with the sha256 of the weights

The folder is filled under a temporary name, flushed to disk and renamed, and never changed afterwards. Nothing
is pickled. The sha256 of the weights is the checkpoint's name in reports and lineage.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pdlab import __version__
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import output_channels
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.files import open_up
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.unet import UNet, UNetConfig

FORMAT = 1
_NETWORKS: dict[str, tuple[type, type]] = {"mlp": (MLP, MLPConfig), "unet": (UNet, UNetConfig)}


@dataclass
class Checkpoint:
    """A denoiser with what is known about it.

    `info` is free JSON (preset, data, training, lineage); `sha256` names the weights, `path` is where they lie.
    """

    denoiser: Denoiser
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, `(C, H, W)` or `(D,)`."""
        return data_shape(self.denoiser.network.config)  # type: ignore[arg-type]

    @property
    def classes(self) -> list[str]:
        """The names of its classes in the order of their numbers, which stand in where none are known."""
        number = self.denoiser.num_classes
        names = self.info.get("data", {}).get("classes", [])
        return list(names) if len(names) == number else [str(k) for k in range(number)]

    def class_numbers(self, wanted: Sequence[str | int] | None) -> list[int] | None:
        """The numbers of classes given by name or number; None stays None. PdlabError lists those there are."""
        if wanted is None:
            return None
        if not self.denoiser.num_classes:
            raise PdlabError("this model was trained without classes: leave them out")
        known = self.classes
        numbers = {str(k): k for k in range(len(known))} | {name: k for k, name in enumerate(known)}
        for name in wanted:
            if str(name) not in numbers:
                raise PdlabError(
                    f"there is no class {name}: there are {', '.join(known)}, or 0 to {len(known) - 1}"
                )
        if not wanted:
            raise PdlabError(f"no class was given: there are {', '.join(known)}")
        return [numbers[str(name)] for name in wanted]


def data_shape(config: UNetConfig | MLPConfig) -> tuple[int, ...]:
    """The shape of one example that a network of `config` takes."""
    if isinstance(config, MLPConfig):
        return config.shape
    return (config.in_channels, config.image_size, config.image_size)


def build_network(config: UNetConfig | MLPConfig, output: str, dropout: float = 0.0) -> nn.Module:
    """The network of `config`, with the output channels that `output` needs, initialised at random."""
    if isinstance(config, MLPConfig):
        return MLP(dataclasses.replace(config, out_multiple=output_channels(output, 1), dropout=dropout))
    channels = output_channels(output, config.in_channels)
    return UNet(dataclasses.replace(config, out_channels=channels, dropout=dropout))


def conditioning(config: UNetConfig | MLPConfig) -> dict[str, Any]:
    """What a `Denoiser` must know of the condition that a network of `config` takes."""
    names = ("num_classes", "null_class", "guidance_max")
    return {name: getattr(config, name) for name in names}


def save(path: Path, denoiser: Denoiser, info: dict[str, Any], weights: dict[str, Tensor] | None = None) -> str:
    """Write `denoiser` (with `weights` instead of its own, e.g. the EMA) as a new folder `path`.

    Returns the sha256 of the weights. Raises PdlabError when it cannot be written; nothing is left then.
    """
    kind = next(name for name, (network, _) in _NETWORKS.items() if isinstance(denoiser.network, network))
    schedule = denoiser.schedule
    header = {
        "network": {"kind": kind, **dataclasses.asdict(denoiser.network.config)},  # type: ignore[call-overload]
        "output": denoiser.output,
        "schedule": {
            "logsnr_min": _finite(schedule.logsnr_min),
            "logsnr_max": _finite(schedule.logsnr_max),
        },
        "bounded": denoiser.bounded,
        "steps": denoiser.steps,
        "info": info,
    }
    return write_folder(path, "model", weights or denoiser.network.state_dict(), header)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, checking its hash; weights become float32.

    Raises PdlabError, one line, for a missing, damaged or foreign checkpoint, and names a good neighbour.
    """
    path = Path(path)
    try:
        return _load(path)
    except PdlabError as error:
        good = [other for other in checkpoints_in(path.parent) if other != path and _is_good(other)]
        hint = f"; the newest good checkpoint beside it is {good[-1]}" if good else ""
        raise PdlabError(f"{error}{hint}") from None


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders in `folder`, oldest first."""
    found = [file.parent for file in folder.glob("*/model.json") if not file.parent.name.startswith(".")]
    return sorted(found, key=lambda p: ((p / "model.json").stat().st_mtime_ns, p.name))


def write_folder(path: Path, stem: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Write `path/stem.safetensors` and `path/stem.json` as a new folder, atomically; returns the sha256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        weights = temporary / f"{stem}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
        open_up(weights)
        digest = file_sha256(weights)
        body = {"format": FORMAT, "pdlab": __version__, "sha256": digest, **header}
        (temporary / f"{stem}.json").write_text(json.dumps(body, indent=2) + "\n")
        for file in temporary.iterdir():
            _flush(file)
        temporary.rename(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PdlabError(
            f"could not write {path}: {_reason(error)}; free some space or choose another --run, then give the "
            "same command again: what was there before is unchanged"
        ) from error
    return digest


def read_folder(path: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_folder` wrote, verifying the hash. Raises PdlabError if anything is amiss."""
    try:
        header = json.loads((path / f"{stem}.json").read_text())
        if not isinstance(header, dict) or header.get("format") != FORMAT or "sha256" not in header:
            raise PdlabError(f"{path} is not a checkpoint that this version of pdlab reads (format {FORMAT})")
        weights = path / f"{stem}.safetensors"
        if file_sha256(weights) != header["sha256"]:
            raise PdlabError(f"{weights} is damaged: its sha256 is not the one in {stem}.json")
        return load_file(weights), header
    except FileNotFoundError as error:
        raise PdlabError(f"{path} is not a checkpoint: it has no {Path(error.filename).name}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise PdlabError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from None


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load(path: Path) -> Checkpoint:
    if not path.exists():
        raise PdlabError(f"there is no checkpoint {path}")
    if path.is_dir() and not (path / "model.json").exists() and (found := checkpoints_in(path)):
        names = ", ".join(str(other) for other in found)
        raise PdlabError(f"{path} is a run with several checkpoints: name one of {names}")
    tensors, header = read_folder(path, "model")
    try:
        settings = dict(header["network"])
        network_type, config_type = _NETWORKS[settings.pop("kind")]
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        config = config_type(**settings)
        network = network_type(config)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        schedule = CosineSchedule(
            _infinite(header["schedule"]["logsnr_min"], -math.inf),
            _infinite(header["schedule"]["logsnr_max"], math.inf),
        )
        denoiser = Denoiser(
            network,
            header["output"],
            schedule,
            bounded=header["bounded"],
            steps=header["steps"],
            **conditioning(config),
        )
        return Checkpoint(denoiser.eval(), header["info"], header["sha256"], path)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PdlabError(f"{path}/model.json does not describe these weights: {_reason(error)}") from None


def _is_good(path: Path) -> bool:
    try:
        read_folder(path, "model")
    except PdlabError:
        return False
    return True


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _infinite(value: float | None, infinity: float) -> float:
    return infinity if value is None else value


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
