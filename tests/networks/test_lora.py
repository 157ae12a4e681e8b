"""An adapter: as its base at first, W + B A when merged, with peft and without; and what it leaves alone."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pdlab.errors import PdlabError
from pdlab.networks import lora
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.registry import build
from pdlab.networks.unet import UNetConfig
from pdlab.schema import MOST_RANK
from pdlab.tensors import shapes_of

UNET = UNetConfig(image_size=8, channels=16, multipliers=(1, 2), blocks=1, attention=(4,), embedding_channels=16)
MLP = MLPConfig((2, 4, 4), width=32, blocks=2, embedding_channels=16)


def network(config: UNetConfig | MLPConfig) -> nn.Module:
    """One whose every weight says something."""
    torch.manual_seed(0)
    made = build(config, "v").eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.1)
    return made


def moved(adapter: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    for p in adapter.values():
        p.data += 0.1 * torch.randn(p.shape)
    return adapter


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        z = torch.randn(3, *network.config.shape, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
        return network(z, torch.tensor([-3.0, 0.0, 4.0]))


@pytest.mark.parametrize("config", [UNET, MLP], ids=["unet", "mlp"])
def test_it_starts_as_its_base_and_merged_is_what_peft_trains(config: UNetConfig | MLPConfig) -> None:
    base = network(config)
    live = copy.deepcopy(base)
    adapter = lora.inject(live, 4)
    assert torch.equal(answer(live), answer(base))
    moved(adapter)
    assert (answer(live) - answer(base)).abs().max() > 0.01
    merged = copy.deepcopy(base)
    lora.merge(merged, adapter)
    torch.testing.assert_close(answer(merged), answer(live), rtol=1e-4, atol=1e-5)
    for layer in live.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    for name in lora.layers(base, 4):
        peft, ours = live.get_parameter(f"{name}.base_layer.weight"), merged.get_parameter(f"{name}.weight")
        torch.testing.assert_close(ours, peft, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", [UNET, MLP], ids=["unet", "mlp"])
def test_its_tensors_are_what_learns_and_a_few_percent_of_a_wide_network(config: UNetConfig | MLPConfig) -> None:
    live = network(config)
    names = lora.tensors_of(live, 3)
    adapter = lora.inject(live, 3)
    assert shapes_of(adapter) == names
    assert {id(p) for p in live.parameters() if p.requires_grad} == {id(p) for p in adapter.values()}
    with torch.device("meta"):
        wide = build(MLPConfig((1, 8, 8), width=512), "v")
    share = sum(shape.numel() for shape in lora.tensors_of(wide, 4).values()) / sum(
        p.numel() for p in wide.parameters()
    )
    assert 0.01 < share < 0.04


def test_at_full_rank_it_is_any_network() -> None:
    """And at any greater, no larger: W' − W = U S V."""
    base, other = network(MLP), network(MLP)
    for p in other.parameters():
        nn.init.normal_(p, std=0.2)
    tensors = {name: other.get_parameter(name) for name in lora.tensors_of(base, 1) if ".lora_" not in name}
    for name in lora.layers(base, MOST_RANK):
        weights = (made.get_parameter(f"{name}.weight") for made in (other, base))
        u, s, v = torch.linalg.svd(torch.sub(*weights).detach(), full_matrices=False)
        tensors |= {f"{name}.lora_A.weight": nn.Parameter(v), f"{name}.lora_B.weight": nn.Parameter(u * s)}
    assert shapes_of(tensors) == lora.tensors_of(base, MOST_RANK) == lora.tensors_of(base, 32)
    lora.merge(base, tensors)
    torch.testing.assert_close(answer(base), answer(other), rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """Layers that an adapter must leave alone, and two that it need not, one with a name that ends as another's."""

    def __init__(self) -> None:
        super().__init__()

        class Twice(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        self.out = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"out": nn.Conv2d(4, 6, 3, stride=2, bias=False)})
        self.derived = Twice(4, 4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.one, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 2)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.table = nn.Embedding(5, 4)


def test_layers_that_are_more_than_a_matrix_stay() -> None:
    odd = Odd()
    assert lora.layers(odd, 5) == {"out": 4, "inner.out": 5}
    before = {name: p.clone() for name, p in odd.named_parameters()}
    adapter = lora.inject(copy.deepcopy(odd), 5)
    lora.merge(odd, moved(adapter))
    after = dict(odd.named_parameters())
    assert {name for name, p in before.items() if not torch.equal(p, after[name])} == {
        *(name for name, p in before.items() if p.ndim < 2),
        *("out.weight", "inner.out.weight"),
    }


def test_what_was_frozen_stays_frozen() -> None:
    live = network(MLP)
    live.blocks[0].requires_grad_(False)  # type: ignore[index]
    adapter = lora.inject(live, 2)
    frozen = {name for name, p in adapter.items() if not p.requires_grad}
    assert frozen == {name for name in adapter if name.startswith("blocks.0.")}
    assert {"blocks.0.first.lora_A.weight", "blocks.0.first.bias"} <= frozen


@pytest.mark.parametrize("rank", [0, -1, 10**9, 2.5, "8", None, MOST_RANK + 1])
def test_ranks_that_are_none(rank: object) -> None:
    with pytest.raises(PdlabError, match="lora must be a rank from 1 to 4096, not "):
        lora.inject(network(MLP), rank)  # type: ignore[arg-type]


def test_a_network_without_such_a_layer() -> None:
    with pytest.raises(PdlabError, match="LayerNorm has no linear or convolution layer to adapt"):
        lora.check(nn.LayerNorm(3), 2)


def test_the_seed_draws_it() -> None:
    one, again, other = (lora.inject(network(MLP), 4, seed)["first.lora_A.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
