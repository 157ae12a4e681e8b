"""A step divided among threads: the gradients of the whole batch, the same bits every time."""

import dataclasses

import pytest
import torch
from torch import nn

from pdlab.data.source import ImageSource
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.networks.unet import UNet, UNetConfig
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Optimization
from pdlab.training.shards import Shards

CONFIG = UNetConfig(image_size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), embedding_channels=16)


@pytest.fixture
def _two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_the_mean(count: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    x = torch.randn(6, 4)
    whole = network(x).square().mean()
    expected = torch.autograd.grad(whole, network.parameters())
    with Shards(count, list(network.parameters())) as shards:
        loss = shards.backward(lambda part: network(x.chunk(count)[part]).square().mean())
    torch.testing.assert_close(loss, whole.detach())
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_gradients_lie_in_memory_as_the_parameters_do() -> None:
    """Fused optimizers walk both side by side: gradients in another order would be those of other weights."""
    torch.manual_seed(0)
    network = UNet(CONFIG).to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z, logsnr = torch.randn(4, 3, 8, 8), torch.zeros(4)
    parameters = list(network.parameters())
    assert any(not parameter.is_contiguous() for parameter in parameters)
    expected = torch.autograd.grad(network(z, logsnr).square().mean(), parameters)
    with Shards(2, parameters) as shards:
        shards.backward(lambda part: network(z.chunk(2)[part], logsnr[:2]).square().mean())
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("_two_threads")
def test_an_error_in_a_part_is_raised_and_the_threads_are_given_back() -> None:
    parameter = torch.ones(1, requires_grad=True)

    def fail(part: int) -> torch.Tensor:
        if part:
            raise ValueError("the second part")
        return parameter.sum()

    with pytest.raises(ValueError, match="second part"), Shards(2, [parameter]) as shards:
        shards.backward(fail)
    assert torch.get_num_threads() == 2


def test_small_batches_networks_without_convolutions_and_one_thread_are_not_divided() -> None:
    machine = Machine("cpu", "fp32")
    assert machine.shards(UNet(CONFIG), 256) == 1  # the tests' one thread
    torch.set_num_threads(2)
    try:
        assert machine.shards(UNet(CONFIG), 64) == 2
        assert machine.shards(UNet(CONFIG), 63) == 1
        assert machine.shards(nn.Linear(2, 2), 64) == 1
    finally:
        torch.set_num_threads(1)


def images() -> ImageSource:
    """One colour each: soon learned."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (100, 3, 1, 1), dtype=torch.uint8, generator=generator)
    return ImageSource(colours.repeat(1, 1, 8, 8))


def trained(updates: int = 3, batch: int = 65, **settings: float) -> Denoiser:
    torch.manual_seed(0)
    machine = Machine("cpu", "fp32")
    denoiser = machine.place(Denoiser(UNet(CONFIG), "v", CosineSchedule(), bounded=True))
    optimization = dataclasses.replace(Optimization(updates, batch, 3e-3), **settings)
    fit(denoiser, DiffusionObjective("truncated"), images(), optimization, machine)
    return denoiser


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_in_two_threads_repeats_itself(dropout: float) -> None:
    one, two = (trained(dropout=dropout).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_in_two_threads_learns_what_one_does() -> None:
    """The noise is drawn for each part, so the weights differ; the losses, far below the untrained, agree."""

    def loss(denoiser: Denoiser) -> float:
        generator = torch.Generator().manual_seed(1)
        x, _ = images().draw(500, generator)
        with torch.no_grad():
            return float(DiffusionObjective("truncated")(denoiser, x, None, generator).mean())

    untrained = loss(Denoiser(UNet(CONFIG), "v", CosineSchedule(), bounded=True))
    one = loss(trained(40, 64))
    torch.set_num_threads(2)
    try:
        two = loss(trained(40, 64))
    finally:
        torch.set_num_threads(1)
    assert one < 0.8 * untrained
    assert two == pytest.approx(one, rel=0.05)
