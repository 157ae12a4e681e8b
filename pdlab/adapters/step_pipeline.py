"""Images in a model's own number of DDIM steps, of classes, guided: carried by an export as `pipeline.py`."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class StepPipeline(DiffusionPipeline):
    """What diffusers' DDIMPipeline does, and with labels, guidance and the steps that the model was made for.

    Args:
        unet: a network that diffusers calls with (sample, timestep), and with class_labels where it has classes.
        scheduler: a DDIMScheduler.
        steps: how many steps are taken unless a call asks for others.
        id2label: the names of the classes.
        null_class: the label after the last class says "no class".
        guidance_max: the network is told how strongly it is guided, up to this; 0 for one that is not told.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        steps: int = 1,
        id2label: dict[str, str] | None = None,
        null_class: bool = False,
        guidance_max: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(steps=steps, id2label=id2label, null_class=null_class, guidance_max=guidance_max)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        batch_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw images.

        Args:
            class_labels: a class for all, or one an image, by number or name; None is no class, where it can be.
            batch_size: how many images (default: as many as there are labels).
            generator: makes the noise; a list has one an image.
            num_inference_steps: default: the model's own.
            guidance_scale: 1 is not guided, s is guided by weight w = s − 1 (x + w (x − x without the class)).
            latents: noise `[B, C, H, W]` in place of the generator's.
            output_type: "pil", "np" (`[B, H, W, C]` in [0, 1]) or "pt" (`[B, C, H, W]` in [0, 1]).
            return_dict: False for a tuple.

        Raises ValueError for labels, or guidance, that the model does not take.
        """
        size = self.unet.config.sample_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        labels = self._labels(class_labels)
        count = batch_size or (1 if labels is None or labels.ndim == 0 else len(labels))
        if labels is not None:
            labels = labels.to(self._execution_device).expand(count)
        weight = self._weight(guidance_scale)
        z = latents
        if z is None:
            shape = (count, self.unet.config.in_channels, *sides)
            z = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps or self.config.steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            raw = self._answer(z, t, labels, weight)
            z = self.scheduler.step(
                raw, t, z, use_clipped_model_output=self.scheduler.config.clip_sample
            ).prev_sample
        images: Any = (z / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _answer(self, z: Tensor, t: Tensor, labels: Tensor | None, weight: float) -> Tensor:
        if labels is None:
            return self.unet(z, t).sample
        if self.config.guidance_max:
            return self.unet(z, t, class_labels=labels, guidance=torch.full_like(z[:, 0, 0, 0], weight)).sample
        if not weight:
            return self.unet(z, t, class_labels=labels).sample
        none = torch.full_like(labels, len(self.config.id2label))
        twice = self.unet(torch.cat([z, z]), t, class_labels=torch.cat([labels, none])).sample
        conditional, unconditional = twice.chunk(2)
        return conditional + weight * (conditional - unconditional)

    def _labels(self, given: Any) -> Tensor | None:
        names = self.config.id2label
        if not names:
            if given is not None:
                raise ValueError("this model has no classes: leave class_labels out")
            return None
        if given is None:
            if not self.config.null_class:
                raise ValueError(f"give class_labels: there are {', '.join(names.values())}")
            return torch.tensor(len(names))
        if isinstance(given, Tensor):
            given = given.tolist()
        numbers = {str(k): int(k) for k in names} | {name: int(k) for k, name in names.items()}
        wanted = given if isinstance(given, list) else [given]
        if unknown := [label for label in wanted if str(label) not in numbers]:
            raise ValueError(f"there is no class {unknown[0]}: there are {', '.join(names.values())}")
        found = torch.tensor([numbers[str(label)] for label in wanted])
        return found if isinstance(given, list) else found[0]

    def _weight(self, guidance_scale: float) -> float:
        weight, most = guidance_scale - 1, self.config.guidance_max
        if most and not 0 <= weight <= most:
            raise ValueError(f"guidance_scale must be in [1, {1 + most:g}], not {guidance_scale:g}")
        if weight and not most and not self.config.null_class:
            raise ValueError("this model has no null class to be guided away from: leave guidance_scale out")
        return weight
