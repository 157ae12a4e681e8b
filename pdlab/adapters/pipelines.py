"""Pipelines of diffusers: a network and the discrete betas of its scheduler, as a registered network.

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
from typing_extensions import Self

from pdlab import schema
from pdlab.adapters.discrete import PREDICTS, Discrete, schedule_of
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.files import read_bytes
from pdlab.networks.registry import Condition, conditioning, register_network

#: How a checkpoint of diffusers is named on the command line, before its folder.
PREFIX = "diffusers:"
MOST_TIMESTEPS = 100_000
#: The networks that are known, the folder of a pipeline that each is in, and what they are told beside the step.
NETWORKS_OF = {
    "UNet2DModel": ("unet", "class_labels"),
    "UNet2DConditionModel": ("unet", "encoder_hidden_states"),
    "DiTTransformer2DModel": ("transformer", "class_labels"),
}
_SCHEDULER = Path("scheduler") / "scheduler_config.json"
Settings = Annotated[str, Field(max_length=1 << 16)]  # JSON


@dataclass(frozen=True)
class PipelineConfig:
    """`unet` (or transformer) and `scheduler` are diffusers' settings, as JSON; the rest as `Denoiser` has it."""

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
    """`network(z [B, C, H, W], logsnr [B][, labels]) -> raw`, one of `NETWORKS_OF` between its schedule's steps.

    A UNet2DConditionModel is told the states of a text, `[B, tokens, width]`, in place of labels.

    Raises PdlabError where diffusers is missing, or for settings that are none of its.
    """

    def __init__(self, config: PipelineConfig) -> None:
        try:
            settings = json.loads(config.unet)
            unet = getattr(library(), _kind(settings, "the network")).from_config(settings)
        except PdlabError:
            raise
        except Exception as error:  # whatever diffusers raises for settings that it does not like
            raise PdlabError(f"diffusers makes no network of these settings: {first_line(error)}") from None
        super().__init__(_Answer(unet, config), table_of(config.scheduler))
        self.config = config


class _Answer(nn.Module):
    def __init__(self, unet: nn.Module, config: PipelineConfig) -> None:
        super().__init__()
        self.unet, self._channels = unet, config.shape[0]
        self._told_as = NETWORKS_OF[_kind(json.loads(config.unet), "the network")][1]

    def forward(self, z: Tensor, k: Tensor, labels: Tensor | None = None) -> Tensor:
        answer: Tensor = self.unet(z, k, **{self._told_as: labels}).sample
        return answer[:, : self._channels]  # what may follow is a variance, which no sampler here asks for

    def train(self, mode: bool = True) -> Self:
        """In evaluation mode it stays: a student is taught what its teacher says, without dropout of any kind."""
        return super().train(False)


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
    """The denoiser of a diffusers pipeline in `folder`: its `unet` or `transformer`, and its `scheduler`.

    The network is one of `NETWORKS_OF`. A UNet2DConditionModel is told a condition, the `tokens` states of a text;
    a transformer has a class for none already. Nothing is downloaded, and weights are read from safetensors alone.
    `null_class` says that the last of a U-Net's classes stands for none. `bounded` defaults to whether the pipeline
    has no autoencoder: of latents see `pdlab.from_autoencoder`. Raises PdlabError where diffusers is missing, for a
    folder that holds something else, or for a schedule that is not of discrete betas.
    """
    place = Path(folder)
    alone = (place / "config.json").is_file()  # as older pipelines are, whose parts have no folders
    part = "." if alone else "transformer" if (place / "transformer").is_dir() else "unet"
    files = Path(part) / "config.json", Path(_SCHEDULER.name) if alone else _SCHEDULER
    unet, scheduler = (_settings(place, file) for file in files)
    kind = _kind(unet, f"{place}/{part}")
    if "beta_schedule" not in scheduler:
        raise PdlabError(f"the scheduler of {place} is not of discrete betas: see from_edm and from_flow")
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise PdlabError(f"the scheduler of {place} predicts {predicts!r:.60}: known are {', '.join(PREDICTS)}")
    channels, side = unet.get("in_channels", 3), unet.get("sample_size")
    answers = unet.get("out_channels") or channels
    if answers not in (channels, 2 * channels):
        raise PdlabError(f"{place}/{part} answers {answers} channels for {channels}: not known here")
    for told in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.get(told) is not None:
            raise PdlabError(f"{place}/{part} has {told} {unet[told]!r:.60}: it is told what is not known here")
    if side is None:
        raise PdlabError(
            f"{place}/{part} does not say the side of its images: put sample_size into its config.json"
        )
    sides = tuple(side) if isinstance(side, list) else (side, side)
    classes = int(unet.get("num_class_embeds") or 0)
    if kind == "DiTTransformer2DModel":
        classes, null_class = int(unet.get("num_embeds_ada_norm") or 1000) + 1, True
    if null_class and classes < 2:
        raise PdlabError(f"{place}/{part} has no classes: leave null_class out")
    condition = (tokens, _width(place, unet)) if kind == "UNet2DConditionModel" else ()
    if condition and classes:
        raise PdlabError(f"{place}/{part} is told classes beside its condition: not known here")
    first, second = (json.dumps(part, sort_keys=True) for part in (unet, scheduler))
    config = PipelineConfig(first, second, (channels, *sides), classes - null_class, null_class, condition)
    network = Pipeline(config)
    if not any((place / part).glob("*.safetensors")):
        raise PdlabError(
            f"{place}/{part} has no safetensors, and pickled weights are not read: save it again with "
            "pipeline.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        trained = getattr(library(), kind).from_pretrained(
            place / part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise PdlabError(f"{place}/{part} is not read by diffusers: {first_line(error)}") from None
    network.network = _Answer(trained.float(), config)
    schedule = schedule_of(table_of(config.scheduler))
    if bounded is None:
        bounded = not any((place / coder).is_dir() for coder in ("vae", "vqvae"))
    return Denoiser(network.eval(), PREDICTS[predicts], schedule, bounded=bounded, **conditioning(config))


def _kind(settings: Any, what: str) -> str:
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    if name not in NETWORKS_OF:
        raise PdlabError(f"{what} is a {name!r:.60} of diffusers: known are {', '.join(NETWORKS_OF)}")
    return str(name)


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
