"""Models in, samplers out: networks that were trained elsewhere as denoisers, students for other programs.

Every Gaussian diffusion is z_t = alpha x + sigma eps up to a scale and another clock. What is the same in all of
them is the log-SNR, so an adapter is asked for (z, logsnr) as any network here is, finds the state y and the time
that its network knows them by, and turns the answer into x, eps or v:

    EDM (Karras et al. 2022)            y = x + s eps = z / alpha                      s = exp(−logsnr / 2)
    flow matching (Lipman et al. 2023)  y = (1 − τ) x + τ eps = z / (alpha + sigma)    τ = sigmoid(−logsnr / 2)
    discrete betas (Ho et al. 2020)     y = z                                          step k of their table

The adapted network is trained on like any other: its students are of the same kind, and `pdlab.load(path,
network=…)` takes `denoiser.network` of an adapter made in the same way. A pipeline of diffusers is a registered
network (`pipelines`). `graph` writes samplers as graphs, `step` one step of them for browsers, and
`export_diffusers` folders that diffusers loads.
"""

from collections.abc import Callable

from torch import Tensor, nn

from pdlab.errors import PdlabError


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self._function(*arguments)


def as_module(network: nn.Module | Callable[..., Tensor]) -> nn.Module:
    """`network` itself, or a function as a module without weights. PdlabError for something else."""
    if isinstance(network, nn.Module):
        return network
    if not callable(network):
        raise PdlabError(f"give a network or a function, not {type(network).__name__}")
    return _Call(network)
