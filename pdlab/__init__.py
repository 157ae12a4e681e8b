"""pdlab: learn, run and measure progressive distillation of diffusion models (Salimans & Ho, ICLR 2022)."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pdlab.adapters.discrete import from_discrete
    from pdlab.adapters.edm import from_edm
    from pdlab.adapters.flow import from_flow
    from pdlab.adapters.pipelines import from_diffusers
    from pdlab.api import distill, evaluate, load, sample, save, train
    from pdlab.data import register_dataset
    from pdlab.data.latents import Codec, from_autoencoder
    from pdlab.diffusion.denoiser import Denoiser
    from pdlab.diffusion.samplers import register_sampler
    from pdlab.errors import PdlabError
    from pdlab.hub import from_pretrained
    from pdlab.networks.registry import register_network
    from pdlab.training.presets import register_preset

#: Where each name is; imported when it is first used, so that `import pdlab` costs nothing.
_NAMES = {
    "Codec": "pdlab.data.latents",
    "Denoiser": "pdlab.diffusion.denoiser",
    "PdlabError": "pdlab.errors",
    "distill": "pdlab.api",
    "evaluate": "pdlab.api",
    "from_autoencoder": "pdlab.data.latents",
    "from_diffusers": "pdlab.adapters.pipelines",
    "from_discrete": "pdlab.adapters.discrete",
    "from_edm": "pdlab.adapters.edm",
    "from_flow": "pdlab.adapters.flow",
    "from_pretrained": "pdlab.hub",
    "load": "pdlab.api",
    "register_dataset": "pdlab.data",
    "register_network": "pdlab.networks.registry",
    "register_preset": "pdlab.training.presets",
    "register_sampler": "pdlab.diffusion.samplers",
    "sample": "pdlab.api",
    "save": "pdlab.api",
    "train": "pdlab.api",
}

__all__ = [
    "Codec",
    "Denoiser",
    "PdlabError",
    "__version__",
    "distill",
    "evaluate",
    "from_autoencoder",
    "from_diffusers",
    "from_discrete",
    "from_edm",
    "from_flow",
    "from_pretrained",
    "load",
    "register_dataset",
    "register_network",
    "register_preset",
    "register_sampler",
    "sample",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'pdlab' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_NAMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
