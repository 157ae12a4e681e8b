"""The optimizers of the loop: Adam for everything, or Muon for a network's inner matrices and Adam for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdlab.errors import PdlabError
from pdlab.training.presets import Optimization


@dataclass
class _Part:
    """One optimizer, the names of its parameters, and its learning rate at factor 1."""

    optimizer: torch.optim.Optimizer
    names: list[str]
    held: list[Tensor]  # what it holds for each name: the parameter, or a matrix that shares its memory
    lr: float


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with all matrices of one shape orthogonalised at once.

    One by one, the small products of a U-Net's sixty matrices leave a GPU waiting for the CPU: an update of batch
    500 took 102 ms on an H200 where AdamW took 54. The same numbers but for the rounding of bf16. Nesterov momentum
    0.95; five Newton–Schulz steps; lr grows with sqrt(rows/columns) of tall matrices; decay is decoupled.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                for matrix in matrices:
                    if "momentum_buffer" not in self.state[matrix]:
                        self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                averages = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                updates = orthogonal(torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"])))
                if group["weight_decay"]:
                    torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_add_(matrices, updates.to(matrices[0].dtype).unbind(), alpha=-lr)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix to each of `matrices` `[k, rows, columns]`, in bf16 (Jordan et al. 2024).

    Newton–Schulz iteration with coefficients that bring every singular value to about 1 quickly, not exactly.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizers:
    """What the loop asks of an optimizer: a step at a share of the learning rate, and its state by parameter.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal one, so that all
    directions of a layer learn alike; a convolution is the matrix of its outputs by inputs × kernel. It is not
    meant for embeddings, vectors, or layers that meet the data: a network names those in `outer_layers`, for Adam.
    """

    def __init__(self, network: nn.Module, settings: Optimization) -> None:
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        inner = _inner_matrices(network) if settings.optimizer == "muon" else []
        rest = [name for name in named if name not in set(inner)]
        decay = settings.weight_decay
        adam = torch.optim.AdamW([named[n] for n in rest], lr=settings.lr, weight_decay=decay, fused=True)
        self._parts = [_Part(adam, rest, [named[n] for n in rest], settings.lr)]
        self._matrices: list[tuple[Tensor, nn.Parameter]] = []
        if inner:
            self._matrices = [(named[n], nn.Parameter(_matrix(named[n].data, named[n]))) for n in inner]
            held = [matrix for _, matrix in self._matrices]
            muon = Muon(held, lr=settings.muon_lr, weight_decay=decay)
            self._parts.append(_Part(muon, inner, list(held), settings.muon_lr))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.optimizer.zero_grad(set_to_none=True)
        for parameter, _ in self._matrices:
            parameter.grad = None

    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rates."""
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else _matrix(parameter.grad, parameter)
        for part in self._parts:
            for group in part.optimizer.param_groups:
                group["lr"] = part.lr * factor
            part.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything to go on from, as `KEY/PARAMETER`: zeros for a parameter that no loss has reached yet."""
        there = {
            f"{key}/{name}": value
            for part in self._parts
            for name, held in zip(part.names, part.held, strict=True)
            for key, value in part.optimizer.state[held].items()
        }
        return {path: there[path] if path in there else torch.zeros(shape) for path, shape in self.shapes().items()}

    def shapes(self) -> dict[str, torch.Size]:
        """What `state` holds after the first step: Adam's two moments and number of steps, Muon's momentum."""
        kept: dict[str, torch.Size] = {}
        for part in self._parts:
            adam = isinstance(part.optimizer, torch.optim.AdamW)
            for name, held in zip(part.names, part.held, strict=True):
                keys = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
                kept |= {f"{key}/{name}": held.shape for key in keys}
                if adam:
                    kept[f"step/{name}"] = torch.Size()
        return kept

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        known: dict[str, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            key, name = path.split("/")
            known.setdefault(name, {})[key] = value
        for part in self._parts:
            for name, held in zip(part.names, part.held, strict=True):
                part.optimizer.state[held] = {key: _like(v, held) for key, v in known.get(name, {}).items()}


def _inner_matrices(network: nn.Module) -> list[str]:
    """Names of the weights of linear and convolution layers that do not meet data, time, class or guidance."""
    outer = getattr(network, "outer_layers", None)
    if outer is None:
        raise PdlabError(
            f"optimizer muon must know which layers of {type(network).__name__} meet the data: give it an "
            'attribute outer_layers with their names, or use optimizer "adamw"'
        )
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    weights = [f"{name}.weight" for name in layers if name.split(".")[0] not in outer]
    return [name for name in weights if network.get_parameter(name).requires_grad]


def _matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`parameter` `[out, in, …]`, or its gradient, as a matrix in the order of the parameter's memory."""
    if parameter.ndim == 4 and not parameter.is_contiguous():  # channels_last
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)


def _like(tensor: Tensor, held: Tensor) -> Tensor:
    return torch.empty_like(held).copy_(tensor) if tensor.shape == held.shape else tensor.to(held.device)
