"""A whole sampler as a folder that diffusers loads: a network, a DDIMScheduler, and how they are called.

The scheduler's table has the student's own times, two rows a step, so that any step count is exact: of ᾱ = alpha²,
row 2i + 1 is at t = (i + 1)/N, and row 2i halfway to it by a factor, since no single beta in float32 can say how
much the signal falls in the noisiest step. With "trailing" spacing N steps meet the odd rows; DDIM is ours where
eps is found again from the clipped x (`use_clipped_model_output`).

A student of a diffusers pipeline stays a UNet2DModel. Its times lie between those that its teacher counted, and a
scheduler counts in whole numbers: the sines and cosines that the U-Net is told time by are written into it as a
table, a "learned" time embedding. The pipeline is diffusers' own DDIMPipeline; that takes no labels, so a network
with classes has `step_pipeline`.

No class of diffusers is one of our networks: UNet2DModel lacks the inner levels that read and write the image,
blocks that resample before a scale and shift, and a way in for guidance. The folder then carries the network's code
(`portable`), which diffusers runs only where it is told to trust it.
"""

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdlab import __version__
from pdlab.adapters.discrete import PREDICTS
from pdlab.adapters.pipelines import Pipeline, library
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.errors import PdlabError
from pdlab.files import atomic_folder, check_new_folder
from pdlab.networks.registry import Own, config_of, kind_of, to_json
from pdlab.templates import markdown

#: Widest difference from our samples, in units of [−1, 1], before a folder takes its name.
TOLERANCE = 1e-5
EXAMPLES = 3
#: Signal that is kept halfway to none: a beta of float32 leaves 6e-8 or more of what there was, or nothing.
_LEAST = 1e-10
_REMEDY = "choose another DIR"
_PAGE = markdown(Path(__file__).parent).get_template("diffusers.md.j2")


def export_diffusers(denoiser: Denoiser, out: Path, steps: int, classes: Sequence[str] = ()) -> float:
    """Write the sampler of `denoiser` as the new folder `out`; returns the widest difference from ours that it saw.

    It is loaded and run before it takes its name. `classes` are the names of its classes. Raises PdlabError where
    diffusers is missing, for an eps network, one that is not of images or one's own, where `out` exists, and where
    the images differ by more than `TOLERANCE`.
    """
    diffusers = library()
    check_new_folder(out, _REMEDY)
    _check_drawn(denoiser)
    if denoiser.output == "eps":
        raise PdlabError("an eps network has no x at its noisiest time: distil it, which converts it first")
    denoiser = copy.deepcopy(denoiser).cpu().float().eval()
    logsnr, kept = _rows(denoiser, steps)
    stock = isinstance(denoiser.network, Pipeline)
    network: Any = (_stock if stock else _carried)(denoiser, logsnr)
    names = list(classes) or [str(k) for k in range(denoiser.num_classes)]
    with atomic_folder(out, _REMEDY) as folder:
        network.eval().save_pretrained(folder / "unet", safe_serialization=True)
        _scheduler(denoiser, kept).save_pretrained(folder / "scheduler")
        if not stock:
            from pdlab.adapters.portable import portable

            _put(folder / "unet" / "step_network.py", portable(kind_of(config_of(denoiser))))
        index = {
            "_class_name": "DDIMPipeline",
            "_diffusers_version": diffusers.__version__,
            "unet": ["diffusers", "UNet2DModel"] if stock else ["step_network", "StepNetwork"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        own: dict[str, Any] = {}
        if names or not stock:
            from pdlab.adapters import step_pipeline

            _put(folder / "pipeline.py", inspect.getsource(step_pipeline))
            own = {
                "steps": steps,
                "id2label": {str(k): name for k, name in enumerate(names)} or None,
                "null_class": denoiser.null_class,
                "guidance_max": denoiser.guidance_max,
            }
            index |= {"_class_name": ["pipeline", "StepPipeline"], **own}
        _put(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
        apart = _compared(denoiser, folder, type(network), steps, own)
        page = {
            "name": json.dumps(out.absolute().name),
            "stock": stock,
            "own": own,
            "names": names,
            "ends": [json.dumps(name) for name in (names[:1] + names[-1:])],
        }
        _put(
            folder / "README.md",
            _PAGE.render(page, steps=steps, apart=apart, clip=denoiser.bounded, version=__version__),
        )
    return apart


def _check_drawn(denoiser: Denoiser) -> None:
    """Raise PdlabError for what no pipeline of images draws."""
    if denoiser.condition is not None or not denoiser.bounded:
        what = "is told a condition" if denoiser.condition is not None else "draws latents"
        raise PdlabError(f"this model {what}, which these pipelines do not: use pdlab export onnx, or torch")


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _rows(denoiser: Denoiser, steps: int) -> tuple[Tensor, Tensor]:
    """The log-SNR `[2N]` that the network is told at each row, float32 as in sampling, and alpha² in float64."""
    times = torch.arange(1, steps + 1) / steps
    kept = denoiser.schedule.alpha(times.double()) ** 2
    halfway = torch.sqrt(_before(kept) * kept.clamp(min=_LEAST))
    logsnr = torch.stack([torch.logit(halfway).float(), denoiser.schedule.logsnr(times)], 1)
    return logsnr.flatten(), torch.stack([halfway, kept], 1).flatten()


def _before(kept: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])


def _scheduler(denoiser: Denoiser, kept: Tensor) -> Any:
    named = {ours: theirs for theirs, ours in PREDICTS.items()} | {"both": "v_prediction"}
    return library().DDIMScheduler(
        num_train_timesteps=len(kept),
        trained_betas=(1 - kept / _before(kept)).tolist(),
        prediction_type=named[denoiser.output],
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=denoiser.bounded,
    )


def _stock(denoiser: Denoiser, logsnr: Tensor) -> Any:
    """The UNet2DModel, told its times by a table of one row a log-SNR."""
    discrete: Any = denoiser.network
    unet = discrete.network.unet
    if type(unet).__name__ != "UNet2DModel":
        raise PdlabError(
            f"a {type(unet).__name__} cannot be told the times of a student: use pdlab export onnx, or torch"
        )
    if (kind := unet.config.time_embedding_type) != "positional":
        raise PdlabError(
            f"a UNet2DModel with a {kind} time embedding cannot be told the times of {len(logsnr) // 2} steps: use "
            "pdlab export onnx, or torch"
        )
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    settings |= {"time_embedding_type": "learned", "num_train_timesteps": len(logsnr)}
    made = library().UNet2DModel.from_config(settings)
    table = unet.time_proj(discrete.step(logsnr).float())
    made.load_state_dict(unet.state_dict() | {"time_proj.weight": table})
    return made


def _carried(denoiser: Denoiser, logsnr: Tensor) -> nn.Module:
    """One of our networks as a `StepNetwork`."""
    from pdlab.adapters.portable import FILES
    from pdlab.adapters.step_network import StepNetwork

    config = config_of(denoiser)
    what = config.name if isinstance(config, Own) else kind_of(config)
    if what not in FILES or isinstance(config, Own) or len(config.shape) != 3:
        raise PdlabError(
            f"{what} of {list(config.shape)} cannot go to diffusers, which takes networks of images of the kinds "
            f"{', '.join(FILES)} and diffusers: use pdlab export onnx, or torch"
        )
    told = [None if value == -torch.inf else value for value in logsnr.tolist()]
    made = StepNetwork(to_json(config), told, list(config.shape[1:]), config.shape[0])
    made.network.load_state_dict(denoiser.network.state_dict())
    return made


def _compared(denoiser: Denoiser, folder: Path, kind: Any, steps: int, own: dict[str, Any]) -> float:
    """How far apart the images are that the folder and `denoiser` make of one noise."""
    diffusers = library()
    unet = kind.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if own:
        from pdlab.adapters.step_pipeline import StepPipeline

        guidance = denoiser.guidance_max / 2 or float(denoiser.null_class)
        labels = torch.arange(EXAMPLES) % denoiser.num_classes if denoiser.num_classes else None
        pipeline = StepPipeline(unet, scheduler, **own)
        how: dict[str, Any] = {"class_labels": labels, "guidance_scale": 1 + guidance}
    else:
        guidance, labels = 0.0, None
        pipeline = diffusers.DDIMPipeline(unet, scheduler)
        how = {"num_inference_steps": steps, "use_clipped_model_output": denoiser.bounded}
    assert denoiser.shape is not None
    noise = torch.randn(EXAMPLES, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    ours = sample(denoiser.around(denoiser.network), noise, steps, labels=labels, guidance=guidance)
    pipeline.set_progress_bar_config(disable=True)
    same = torch.Generator().manual_seed(0)
    theirs = pipeline(batch_size=EXAMPLES, generator=same, output_type="pt", **how).images
    apart = 2 * float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max())
    if not apart <= TOLERANCE:
        raise PdlabError(f"in diffusers it draws other images, up to {apart:.2g} apart: nothing was written")
    return apart
