"""Muon and Adam as the loop drives them: who takes which weights, the update itself, layouts, and going on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.unet import UNet, UNetConfig
from pdlab.training.optimizers import Muon, Optimizers
from pdlab.training.presets import Optimization, override, preset

SETTINGS = Optimization(updates=10, batch=4, lr=1e-3, optimizer="muon", muon_lr=0.1)
CONFIG = UNetConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    heads=2,
    embedding_channels=16,
    num_classes=3,
)


def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(CONFIG)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def gradients(network: nn.Module, seed: int = 1) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=g))


def moves(network: nn.Module, settings: Optimization, factor: float = 1.0) -> dict[str, Tensor]:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = Optimizers(network, settings)
    gradients(network)
    optimizer.step(factor)
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


def test_inner_matrices_move_by_orthogonal_steps_and_the_rest_by_adams() -> None:
    moved = moves(unet(), SETTINGS)
    plain = moves(unet(), replace(SETTINGS, optimizer="adamw"))
    others = {name for name in moved if torch.equal(moved[name], plain[name])}
    assert {"conv_in.weight", "conv_out.weight", "label.weight", "time.0.weight", "norm_out.weight"} <= others
    matrices = set(moved) - others
    assert {"down.0.0.conv1.weight", "middle.1.qkv.weight", "up.0.0.shortcut.weight"} <= matrices
    assert not [name for name in matrices if name.endswith("bias")]
    for name in matrices:
        step = moved[name].flatten(1)
        scale = SETTINGS.muon_lr * max(1, step.shape[0] / step.shape[1]) ** 0.5
        singular = torch.linalg.svdvals(step.double()) / scale
        assert singular.min() > 0.3, name  # Newton-Schulz brings them near 1, not to it
        assert singular.max() < 1.4, name


def test_a_step_is_that_of_the_gradient_matrix_in_either_memory_layout() -> None:
    contiguous, last = unet(), unet().to(memory_format=torch.channels_last)
    for (name, a), b in zip(moves(contiguous, SETTINGS).items(), moves(last, SETTINGS).values(), strict=True):
        assert (a - b).norm() < 0.1 * a.norm(), name  # Muon's iteration is computed in bf16


def test_many_matrices_at_once_move_as_in_torchs_own_one_by_one() -> None:
    shapes = [(24, 90)] * 3 + [(90, 24)] * 2 + [(16, 16), (5, 40)]
    g = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=g) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    a = Muon(ours, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for k in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=g)
        ours[0].grad = theirs[0].grad = None if k == 2 else ours[0].grad  # reached by no loss in this update
        a.step()
        b.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        assert (one - other).norm() < 0.02 * (other - start).norm()  # products in bf16


def test_the_factor_scales_both_learning_rates() -> None:
    half, whole = moves(unet(), SETTINGS, 0.5), moves(unet(), SETTINGS)
    for name in ("conv_in.weight", "down.0.0.conv1.weight"):
        torch.testing.assert_close(half[name], whole[name] / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_goes_on_from_its_state_bit_for_bit(optimizer: str) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)
    ends = []
    for interrupted in (False, True):
        network = unet().to(memory_format=torch.channels_last)
        optimizers = Optimizers(network, settings)
        for k in range(4):
            if interrupted and k == 2:
                state = {name: tensor.clone() for name, tensor in optimizers.state().items()}
                optimizers = Optimizers(network, settings)
                optimizers.restore(state)
            gradients(network, k)
            optimizers.step(1.0)
            optimizers.zero_grad()
            assert {name: tensor.shape for name, tensor in optimizers.state().items()} == optimizers.shapes()
            assert all(parameter.grad is None for parameter in network.parameters())
        ends.append(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_mlp_knows_its_ends_and_a_stranger_is_asked() -> None:
    moved = moves(MLP(MLPConfig((2,), width=8, blocks=1, embedding_channels=8)), SETTINGS)
    assert torch.linalg.svdvals(moved["blocks.0.first.weight"]).min() > 0.03
    with pytest.raises(PdlabError, match="outer_layers"):
        Optimizers(nn.Sequential(nn.Linear(2, 2)), SETTINGS)
    Optimizers(nn.Sequential(nn.Linear(2, 2)), replace(SETTINGS, optimizer="adamw"))


@pytest.mark.parametrize(
    ("change", "message"), [({"teacher.optimizer": "sgd"}, "adamw.*muon"), ({"teacher.muon_lr": "0"}, "muon_lr")]
)
def test_bad_settings_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(PdlabError, match=message):
        override(preset("digits"), change)
