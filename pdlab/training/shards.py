"""A training step divided among the cores of a CPU: every thread takes a part of the batch."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor


class Shards:
    """The gradients of a mean loss over `count` equal parts of a batch, each computed in a thread of its own.

    Within the context the process's torch threads are divided among them, and restored after. The parts are
    summed in their order, so equal seeds give equal bits for equal `count` and threads.
    """

    def __init__(self, count: int, parameters: Sequence[Tensor]) -> None:
        self.count, self.parameters = count, parameters

    def __enter__(self) -> "Shards":
        self._threads = torch.get_num_threads()
        each = max(1, self._threads // self.count)
        # PyTorch keeps the number of threads for each calling thread: every worker sets its own.
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(each,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def backward(self, loss: Callable[[int], Tensor]) -> Tensor:
        """Set the parameters' gradients to those of the mean of `loss(0) … loss(count - 1)`; returns that mean."""

        def work(part: int) -> tuple[Tensor, tuple[Tensor, ...]]:
            value = loss(part)
            return value.detach(), torch.autograd.grad(value, self.parameters)

        losses, gradients = zip(*self._pool.map(work, range(self.count)), strict=True)
        # Like backward(), and unlike grad(): in the parameter's own memory layout, which fused optimizers rely on.
        mean = [
            torch.empty_like(parameter).copy_(g) for parameter, g in zip(self.parameters, gradients[0], strict=True)
        ]
        for other in gradients[1:]:
            torch._foreach_add_(mean, other)
        torch._foreach_div_(mean, self.count)
        for parameter, gradient in zip(self.parameters, mean, strict=True):
            parameter.grad = gradient
        return torch.stack(losses).mean()
