"""Low-rank adapters (Hu et al. 2021): a network as its base and a few percent of weights more.

The weight W of a linear layer or convolution, as the matrix of its outputs by inputs × kernel, becomes W + B A,
with A `[rank, in]` and B `[out, rank]`: B starts at 0, so the network starts as its base. Biases and scales of
norms, a hundredth of the weights, are trained as they are: without them the digits' student of 1 step ended 6 %
further from the data, at rank 8. All else stays: embeddings, and layers of a kind of one's own, which need not be
W x.

`peft` puts the adapters in for training. What it leaves is merged, after which a network is as fast as its base and
nobody sees what it was; so that an adapter is read and merged without `peft`, that is done here.
"""

import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdlab.errors import PdlabError, extra
from pdlab.schema import MOST_RANK
from pdlab.seeds import seed_for

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layers(network: nn.Module, rank: int) -> dict[str, int]:
    """The names of the layers that an adapter of `network` changes, and its rank in each: at most that of W.

    Those that peft adapts as what they are: not of a derived kind, nor grouped, dilated or padded by other things
    than zeros, nor with a weight that another layer has too.
    """
    users = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    return {
        name: min(rank, *_matrix(layer.weight).shape)
        for name, layer in network.named_modules()
        if type(layer) in _KINDS and _is_plain(layer) and users[id(layer.weight)] == 1
    }


def tensors_of(network: nn.Module, rank: int) -> dict[str, torch.Size]:
    """The names and shapes of the tensors of an adapter of `network`, as files have them."""
    found = {}
    for name, r in layers(network, rank).items():
        weight = network.get_parameter(f"{name}.weight")
        found[f"{name}.lora_A.weight"] = torch.Size((r, *weight.shape[1:]))
        found[f"{name}.lora_B.weight"] = torch.Size((len(weight), r, *(1,) * (weight.ndim - 2)))
    return found | {name: p.shape for name, p in network.named_parameters() if p.ndim < 2}


@torch.no_grad()
def merge(network: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Make `network`, the base, what it is with `adapter`; in place."""
    for name, tensor in adapter.items():
        layer, _, half = name.rpartition(".lora_")
        if not layer:
            network.get_parameter(name).copy_(tensor)
        elif half == "A.weight":
            weight, b = network.get_parameter(f"{layer}.weight"), adapter[f"{layer}.lora_B.weight"]
            weight.add_((_matrix(b) @ _matrix(tensor)).view(weight.shape).to(weight.device))


def check(network: nn.Module, rank: int) -> None:
    """Raise PdlabError for a rank that none is, a network without a layer to adapt, or where peft is missing."""
    if not isinstance(rank, int) or not 1 <= rank <= MOST_RANK:
        raise PdlabError(f"lora must be a rank from 1 to {MOST_RANK}, not {rank!r:.60}")
    if not layers(network, rank):
        raise PdlabError(f"{type(network).__name__} has no linear or convolution layer to adapt: leave lora out")
    with extra("lora", "an adapter (--lora)"):
        import peft  # noqa: F401


def inject(network: nn.Module, rank: int, seed: int = 0) -> dict[str, nn.Parameter]:
    """Put an adapter into `network`, in place, and freeze all else; its tensors, by the names of `tensors_of`.

    `seed` draws A. What was frozen stays so. Raises PdlabError as `check`.
    """
    check(network, rank)
    from peft import LoraConfig, inject_adapter_in_model

    ranks, names = layers(network, rank), tensors_of(network, rank)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    vectors = {name: p for name, p in network.named_parameters() if name in names}
    pattern = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # W + B A, not a multiple
        target_modules="|".join(map(re.escape, ranks)),
        rank_pattern=pattern,
        alpha_pattern=pattern,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lora", "initialization"))
        inject_adapter_in_model(config, network)
    for name in ranks:
        for half in ("lora_A", "lora_B"):
            vectors[f"{name}.{half}.weight"] = network.get_parameter(f"{name}.{half}.default.weight")
    for name, p in vectors.items():
        layer, _, half = name.rpartition(".lora_")
        p.requires_grad_((f"{layer}.weight" if layer else name) in trained)
    return {name: vectors[name] for name in names}


def _is_plain(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "weight" in layer._parameters
    return layer.groups == 1 and layer.padding_mode == "zeros" and set(layer.dilation) == {1}


def _matrix(weight: Tensor) -> Tensor:
    """A weight `[out, in, …]` as a matrix."""
    return weight.flatten(1)
