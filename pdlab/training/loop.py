"""The one training loop: a teacher and a halving round differ only in objective and settings."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.seeds import seed_for
from pdlab.training.ema import EMA
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.objective import Objective
from pdlab.training.optimizers import Optimizers
from pdlab.training.presets import Optimization
from pdlab.training.run import Run

_REMEDY = "lower lr, lengthen warmup, or use --precision fp32"


class Stopped(Exception):
    """The user stopped the run; its state is on disk and the same command goes on from it."""


@dataclass(frozen=True)
class Trained:
    """What a stage gave: the weights to keep (EMA if there was one), and how long it took in all sessions."""

    weights: dict[str, Tensor]
    seconds: float
    loss: float


def fit(
    denoiser: Denoiser,
    objective: Objective,
    source: Source,
    settings: Optimization,
    machine: Machine,
    *,
    stage: str = "teacher",
    seed: int = 0,
    run: Run | None = None,
    log: Log | None = None,
    save_every: float = 60.0,
    live: Denoiser | None = None,
    dropout: bool = True,
    snapshot: Callable[[int, Trained], None] | None = None,
    snapshot_every: int = 0,
) -> Trained:
    """Train `denoiser` in place on `source`, both on the machine's device, and return the weights to keep.

    Args:
        objective: `objective(denoiser, x, labels, generator) -> [B]` losses; their mean is minimised.
        settings: updates, batch, learning rate and so on.
        stage: names the random streams, the states and the lines of the log.
        run: where to keep states (every `save_every` seconds) and resume from; None keeps nothing.
        live: `denoiser` with its network wrapped by `machine.for_training`; made here if not given.
        dropout: train in training mode; otherwise in evaluation mode, in which a network is as it will be used.
        snapshot: called on the way, every `snapshot_every` updates but the last, with their number and what
            training would end as then.

    Update k draws its batch, times, noise and dropout from a stream named by (seed, stage, k), so a resumed
    run repeats an uninterrupted one bit for bit on the CPU.

    Raises PdlabError at a loss that is not finite; Stopped on Ctrl-C or SIGTERM after saving the state.
    """
    log = log or Log(quiet=True)
    network = denoiser.network.train(dropout)
    live = live or trainable(denoiser, machine)
    parameters = dict(network.named_parameters())
    optimizer = Optimizers(network, settings)
    ema = EMA(parameters, settings.ema, settings.ema_warmup) if settings.ema else None
    state = _State(parameters, optimizer, ema)
    first, before = state.restore(run, stage, log)
    if first > settings.updates:
        raise PdlabError(
            f"the state of {stage} is after update {first} of {settings.updates}: choose another --run"
        )
    generator = torch.Generator(machine.device)
    started = saved = time.monotonic()
    meter = _Meter(machine.device, settings.batch)

    def keep(k: int) -> None:
        _check_finite(parameters, k, stage)
        if run is not None:
            run.save_state(stage, k, state.tensors(), {"seconds": before + time.monotonic() - started})

    def ended() -> Trained:
        weights = ema.shadow if ema is not None else {name: p.detach() for name, p in parameters.items()}
        return Trained({**network.state_dict(), **weights}, before + time.monotonic() - started, meter.loss)

    if run is not None:
        run.begin()
    with _stop_requested() as stop:
        for k in range(first, settings.updates):
            stream = seed_for(seed, stage, k)
            generator.manual_seed(stream)
            if dropout:
                torch.manual_seed(stream)  # what a network draws itself comes from here
            x, labels = source.draw(settings.batch, generator, settings.flip)
            loss = objective(live, x, labels if denoiser.num_classes else None, generator).mean()
            optimizer.zero_grad()
            machine.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip, foreach=True)
            optimizer.step(lr_factor(settings, k))
            if ema is not None:
                ema.update(k)
            meter.add(k, loss.detach(), norm)

            if (
                snapshot is not None
                and snapshot_every
                and (k + 1) % snapshot_every == 0
                and k + 1 < settings.updates
            ):
                _check_finite(parameters, k + 1, stage)
                snapshot(k + 1, ended())
            due = time.monotonic() - saved > save_every
            if due or stop.is_set() or meter.is_due() or k + 1 == settings.updates:
                # Everything that makes the CPU wait for the device happens here.
                values = meter.read(stage, run)
                log.write(stage, k + 1, values)
                status = f"loss {values['loss']:.4g}  {values['images_per_second']:.0f} images/s"
                log.advance(stage, k + 1, settings.updates, status)
                if due or stop.is_set():
                    keep(k + 1)
                    saved = time.monotonic()
                if stop.is_set():
                    raise Stopped(f"stopped after update {k + 1} of {settings.updates} ({stage})")
    _check_finite(parameters, settings.updates, stage)
    network.eval()
    return ended()


def trainable(denoiser: Denoiser, machine: Machine) -> Denoiser:
    """`denoiser` with its network under the machine's autocast (and compiled where it pays); shares weights."""
    return denoiser.around(machine.for_training(denoiser.network))


def lr_factor(settings: Optimization, k: int) -> float:
    """The learning rate of update `k` (from 0) relative to `settings.lr`: warm-up, then constant or to zero."""
    warm = min(1.0, (k + 1) / settings.warmup) if settings.warmup else 1.0
    return warm * (1 - k / settings.updates if settings.anneal else 1.0)


def _check_finite(parameters: Mapping[str, Tensor], k: int, stage: str) -> None:
    """No state or checkpoint is written of weights that the last update ruined: its loss was still finite."""
    for name, p in parameters.items():
        if not bool(torch.isfinite(p).all()):
            raise PdlabError(f"{name} is not finite after update {k} of {stage}: {_REMEDY}")


class _State:
    """Weights, EMA and optimizer state as one flat dictionary of tensors."""

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: Optimizers, ema: EMA | None) -> None:
        self.parameters, self.optimizer, self.ema = parameters, optimizer, ema

    def tensors(self) -> dict[str, Tensor]:
        flat = {f"weights/{name}": p for name, p in self.parameters.items()}
        if self.ema is not None:
            flat |= {f"ema/{name}": p for name, p in self.ema.shadow.items()}
        return flat | {f"optimizer/{path}": value for path, value in self.optimizer.state().items()}

    def shapes(self) -> dict[str, torch.Size]:
        """What `tensors` holds after the first update."""
        flat = {f"weights/{name}": p.shape for name, p in self.parameters.items()}
        if self.ema is not None:
            flat |= {f"ema/{name}": p.shape for name, p in self.parameters.items()}
        return flat | {f"optimizer/{path}": shape for path, shape in self.optimizer.shapes().items()}

    @torch.no_grad()
    def restore(self, run: Run | None, stage: str, log: Log) -> tuple[int, float]:
        """Take up the newest sound state; returns (updates done, seconds spent)."""
        tensors, header, problems = ({}, {}, []) if run is None else run.load_state(stage, self.shapes())
        for problem in problems:
            log.say(problem)
        done = header.get("updates", 0)
        log.rewind(stage, done)
        if problems:
            log.say("going on from the state before" if tensors else f"{stage} has no other state: it begins anew")
        if not tensors:
            return 0, 0.0
        for name, p in self.parameters.items():
            p.copy_(tensors[f"weights/{name}"])
            if self.ema is not None:
                self.ema.shadow[name].copy_(tensors[f"ema/{name}"])
        prefix = "optimizer/"
        self.optimizer.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        log.say(f"resuming {stage} after update {done}")
        return done, header["seconds"]


class _Meter:
    """Sums on the device what is read rarely: loss, gradient norm, and where a loss first was not finite."""

    def __init__(self, device: torch.device, batch: int, every: float = 1.0) -> None:
        self._device, self._batch, self._every = device, batch, every
        self.loss = math.nan
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), device=self._device)
        self._norm = torch.zeros((), device=self._device)
        self._bad = torch.full((), -1, device=self._device)
        self._count, self._since = 0, time.monotonic()

    def add(self, k: int, loss: Tensor, norm: Tensor) -> None:
        self._loss += loss
        self._norm += norm
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(loss + norm), k, self._bad)
        self._count += 1

    def is_due(self) -> bool:
        return time.monotonic() - self._since >= self._every

    def read(self, stage: str, run: Run | None) -> dict[str, float]:
        bad = int(self._bad)
        if bad >= 0:
            where = f"the last good state is in {run.path / 'progress'}" if run is not None else "nothing is kept"
            raise PdlabError(f"the loss is not finite at update {bad + 1} of {stage} ({where}): {_REMEDY}")
        seconds = max(time.monotonic() - self._since, 1e-9)
        self.loss = float(self._loss) / self._count
        values = {
            "loss": self.loss,
            "gradient_norm": float(self._norm) / self._count,
            "images_per_second": self._count * self._batch / seconds,
        }
        self._reset()
        return values


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
