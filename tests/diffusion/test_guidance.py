"""Classifier-free guidance: its formula, in one call, in every sampler; a mixture with classes has it exactly."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.prediction import OUTPUTS
from pdlab.diffusion.samplers import SAMPLERS, sample
from pdlab.errors import PdlabError

CLASSES = torch.tensor([0, 1, 0, 2])


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.2], [0.1, -1.0], [0.6, 0.9]]).double()
    stds, weights = torch.tensor([0.2, 0.1, 0.3, 0.2]).double(), torch.tensor([0.4, 0.2, 0.3, 0.1]).double()
    return GaussianMixture(means, stds, weights, CLASSES)


def noise(n: int = 6) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Conditional(nn.Module):
    """Any network with three classes and none; counts its calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.calls: list[int] = []
        torch.manual_seed(0)
        self.mix = nn.Linear(2, channels).double()
        self.label = nn.Embedding(4, channels).double()

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        self.calls.append(len(z))
        return torch.tanh(self.mix(z) + self.label(labels) + logsnr[:, None] / 10)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_class_of_a_mixture_is_the_mixture_of_its_components(label: int) -> None:
    m, mine = mixture(), label == CLASSES
    alone = GaussianMixture(m.means[mine], m.stds[mine], m.log_weights.exp()[mine])
    z, logsnr = noise(), torch.tensor([-20.0, -3, 0, 1, 5, 20]).double()
    got = m(z, logsnr, torch.full((6,), label))
    torch.testing.assert_close(got, alone(z, logsnr))


def test_no_class_of_a_mixture_is_all_of_it() -> None:
    m = mixture()
    z, logsnr = noise(), torch.tensor([-20.0, -3, 0, 1, 5, 20]).double()
    torch.testing.assert_close(m(z, logsnr, torch.full((6,), 3)), m(z, logsnr))
    denoiser = m.denoiser()
    torch.testing.assert_close(denoiser(z, 0.4).x, denoiser(z, 0.4, torch.full((6,), 3)).x)


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name != "eps"])
def test_guidance_is_the_formula_with_a_weight_for_each_example(output: str) -> None:
    network = Conditional(4 if output == "both" else 2)
    denoiser = Denoiser(network, output, num_classes=3, null_class=True)
    z, labels, none = noise(), torch.tensor([0, 1, 2, 0, 1, 2]), torch.full((6,), 3)
    w = torch.tensor([0.0, 0.5, 1, 2, 4, -1]).double()
    conditional, unconditional = denoiser(z, 0.3, labels), denoiser(z, 0.3, none)
    network.calls.clear()
    guided = denoiser(z, 0.3, labels, w)
    assert network.calls == [12]  # both halves in one call
    for name in ("x", "eps", "v"):
        c, u = getattr(conditional, name), getattr(unconditional, name)
        expected = (1 + w[:, None]) * c - w[:, None] * u
        torch.testing.assert_close(getattr(guided, name), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(denoiser(z, 0.3, labels, 0.0).x, conditional.x)
    assert network.calls[1:] == [6]  # without guidance nothing is computed twice


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_guides(sampler: str) -> None:
    """The same as sampling a network that is the guided one already."""
    inner = mixture()

    class Guided(nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            return 2.5 * inner(z, logsnr, labels) - 1.5 * inner(z, logsnr)

    options = {"generator": torch.Generator().manual_seed(1)} if sampler == "ancestral" else {}
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    got = sample(inner.denoiser(), noise(), 5, sampler, labels=labels, guidance=1.5, **options)
    options = {"generator": torch.Generator().manual_seed(1)} if sampler == "ancestral" else {}
    expected = sample(
        Denoiser(Guided(), "x", bounded=False, num_classes=3), noise(), 5, sampler, labels=labels, **options
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_network_that_takes_the_weight_is_told_it_and_evaluated_once() -> None:
    told: list[Tensor] = []

    class Told(nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
            told.append(guidance)
            return z

    denoiser = Denoiser(Told(), "x", num_classes=3, guidance_max=4.0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    denoiser(noise(), 0.5, labels)
    denoiser(noise(), 0.5, labels, 2.0)
    w = torch.rand(6).double()
    denoiser(noise(), 0.5, labels, w)
    assert torch.equal(torch.stack(told), torch.stack([torch.zeros(6), torch.full((6,), 2.0), w]).double())


@pytest.mark.parametrize(
    ("make", "guidance", "message"),
    [
        (lambda: Denoiser(nn.Identity(), "x", num_classes=3, guidance_max=4.0), 4.5, r"4\.5 is outside.*\[0, 4\]"),
        (lambda: Denoiser(nn.Identity(), "x", num_classes=3, guidance_max=4.0), -1.0, r"-1 is outside.*\[0, 4\]"),
        (lambda: Denoiser(nn.Identity(), "x", num_classes=3, guidance_max=4.0), math.nan, "nan is outside"),
        (lambda: Denoiser(nn.Identity(), "x", num_classes=3), 1.0, "null class"),
        (lambda: Denoiser(nn.Identity(), "x"), torch.tensor([0.0, 1.0]), "null class"),
        (lambda: mixture().denoiser(), math.inf, "finite"),
        (lambda: mixture().denoiser(), math.nan, "finite"),
    ],
)
def test_a_weight_that_a_model_cannot_be_given_is_refused(
    make: Callable[[], Denoiser], guidance: float | Tensor, message: str
) -> None:
    with pytest.raises(PdlabError, match=message):
        sample(make(), noise(2), 3, labels=torch.tensor([0, 1]), guidance=guidance)
