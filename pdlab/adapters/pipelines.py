"""Pipelines of diffusers: a U-Net and the discrete betas of its scheduler, as a registered network.

The configuration keeps the settings of both as diffusers writes them, so that checkpoints of such a network, its
students among them, load wherever diffusers is installed. diffusers looks the kinds of blocks up in a list of its
own; nothing that a file names is imported.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pdlab import schema
from pdlab.adapters.discrete import PREDICTS, Discrete, schedule_of
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.files import read_bytes
from pdlab.networks.registry import Condition, conditioning, register_network

#: How a checkpoint of diffusers is named on the command line, before its folder.
PREFIX = "diffusers:"
MOST_TIMESTEPS = 100_000
_UNET, _SCHEDULER = Path("unet") / "config.json", Path("scheduler") / "scheduler_config.json"
Settings = Annotated[str, Field(max_length=1 << 16)]  # JSON


@dataclass(frozen=True)
class PipelineConfig:
    """`unet` and `scheduler` are diffusers' own settings, as JSON; the rest as `Denoiser` has it."""

    unet: Settings
    scheduler: Settings
    shape: Annotated[tuple[schema.Size, ...], Field(min_length=3, max_length=3)]
    num_classes: schema.Classes = 0
    null_class: bool = False
    condition: Condition = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "condition", tuple(self.condition))
        schema.check(self)


@register_network("diffusers", PipelineConfig)
class Pipeline(Discrete):
    """`network(z [B, C, H, W], logsnr [B][, labels]) -> raw`, a U-Net between the steps of its schedule.

    It is a UNet2DModel or, with a condition (the states of a text, `[B, tokens, width]`), a UNet2DConditionModel.

    Raises PdlabError where diffusers is missing, or for settings that are none of its.
    """

    def __init__(self, config: PipelineConfig) -> None:
        try:
            unet = _kind(bool(config.condition)).from_config(json.loads(config.unet))
        except PdlabError:
            raise
        except Exception as error:  # whatever diffusers raises for settings that it does not like
            raise PdlabError(f"diffusers makes no U-Net of these settings: {first_line(error)}") from None
        super().__init__(_Answer(unet, bool(config.condition)), table_of(config.scheduler))
        self.config = config


class _Answer(nn.Module):
    def __init__(self, unet: nn.Module, told_states: bool) -> None:
        super().__init__()
        self.unet, self.told_as = unet, "encoder_hidden_states" if told_states else "class_labels"

    def forward(self, z: Tensor, k: Tensor, labels: Tensor | None = None) -> Tensor:
        sample: Tensor = self.unet(z, k, **{self.told_as: labels}).sample
        return sample


def library() -> Any:
    """The package diffusers; PdlabError where it is missing."""
    try:
        import diffusers
    except ImportError:
        raise PdlabError("this needs diffusers: pip install 'pdlab[bench]'") from None
    return diffusers


def table_of(scheduler: str) -> Tensor:
    """alphas_cumprod `[K]` of a scheduler's settings, float64, on the CPU."""
    with torch.device("cpu"):  # also where a network is made without memory
        try:
            settings = json.loads(scheduler)
            if not 1 < int(settings.get("num_train_timesteps", 1000)) <= MOST_TIMESTEPS:
                raise ValueError(f"num_train_timesteps must be from 2 to {MOST_TIMESTEPS:,}")
            table: Tensor = library().DDPMScheduler.from_config(settings).alphas_cumprod
        except PdlabError:
            raise
        except Exception as error:  # as above
            raise PdlabError(f"diffusers makes no schedule of these settings: {first_line(error)}") from None
        return table.double()


def from_diffusers(
    folder: Path | str, *, null_class: bool = False, tokens: int = 77, bounded: bool | None = None
) -> Denoiser:
    """The denoiser of a diffusers pipeline in `folder`: its `unet` and its `scheduler`.

    The U-Net is a UNet2DModel, or a UNet2DConditionModel, which is told a condition, the `tokens` states of a text.
    Nothing is downloaded, and weights are read from safetensors alone. `null_class` says that the last of the
    network's classes stands for none. `bounded` defaults to whether the pipeline has no autoencoder: of latents see
    `pdlab.from_autoencoder`. Raises PdlabError where diffusers is missing, for a folder that holds
    something else, or for a schedule that is not of discrete betas.
    """
    place = Path(folder)
    unet, scheduler = (_settings(place, file) for file in (_UNET, _SCHEDULER))
    if "beta_schedule" not in scheduler:
        raise PdlabError(f"the scheduler of {place} is not of discrete betas: see from_edm and from_flow")
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise PdlabError(f"the scheduler of {place} predicts {predicts!r:.60}: known are {', '.join(PREDICTS)}")
    channels, side = unet.get("in_channels", 3), unet.get("sample_size")
    if unet.get("out_channels", 3) != channels:
        raise PdlabError(
            f"{place}/unet answers {unet['out_channels']} channels for {channels}: a learned variance is not taken"
        )
    for told in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.get(told) is not None:
            raise PdlabError(f"{place}/unet has {told} {unet[told]!r:.60}: it is told what is not known here")
    if side is None:
        raise PdlabError(f"{place}/unet does not say the side of its images: put sample_size into its config.json")
    sides = tuple(side) if isinstance(side, list) else (side, side)
    classes = int(unet.get("num_class_embeds") or 0)
    if null_class and classes < 2:
        raise PdlabError(f"{place}/unet has no classes: leave null_class out")
    condition = () if unet.get("_class_name") != "UNet2DConditionModel" else (tokens, _width(place, unet))
    if condition and classes:
        raise PdlabError(f"{place}/unet is told classes beside its condition: not known here")
    first, second = (json.dumps(part, sort_keys=True) for part in (unet, scheduler))
    config = PipelineConfig(first, second, (channels, *sides), classes - null_class, null_class, condition)
    network = Pipeline(config)
    if not any((place / "unet").glob("*.safetensors")):
        raise PdlabError(
            f"{place}/unet has no safetensors, and pickled weights are not read: save it again with "
            "pipeline.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        trained = _kind(bool(condition)).from_pretrained(
            place / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise PdlabError(f"{place}/unet is not read by diffusers: {first_line(error)}") from None
    network.network = _Answer(trained.float(), bool(condition))
    schedule = schedule_of(table_of(config.scheduler))
    if bounded is None:
        bounded = not any((place / part).is_dir() for part in ("vae", "vqvae"))
    return Denoiser(network.eval(), PREDICTS[predicts], schedule, bounded=bounded, **conditioning(config))


def _kind(told_states: bool) -> Any:
    return library().UNet2DConditionModel if told_states else library().UNet2DModel


def _width(place: Path, unet: dict[str, Any]) -> int:
    width = unet.get("cross_attention_dim", 1280)
    if not isinstance(width, int) or width < 1:
        raise PdlabError(f"{place}/unet has conditions of the widths {width!r:.60}: only one width is known here")
    return width


def _settings(place: Path, file: Path) -> dict[str, Any]:
    if not (place / file).is_file():
        raise PdlabError(f"{place} is no diffusers pipeline of images: it has no {file}")
    found = schema.parse(read_bytes(place / file, 1 << 16), str(place / file))
    if not isinstance(found, dict):
        raise PdlabError(f"{place / file} holds no settings")
    return found


def first_line(error: Exception) -> str:
    """What an error of another library says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
