"""The one training loop: a teacher and a halving round differ only in objective and settings."""

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.seeds import seed_for
from pdlab.training.checkpoint import Change
from pdlab.training.ema import EMA
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.objective import Objective, parts
from pdlab.training.optimizers import Optimizers
from pdlab.training.presets import Optimization
from pdlab.training.run import Run

#: What may differ from what a run was begun with: none of it makes another network, or of other data.
CHANGEABLE = ("lr", "muon_lr", "warmup", "clip", "micro_batch")
_GENTLER = "give the command again with --change and a lower lr or clip, a longer warmup, or --precision fp32"


class Stopped(Exception):
    """The user stopped the run; its state is on disk and the same command goes on from it."""


@dataclass(frozen=True)
class Upkeep:
    """What a long run does beside its updates; none of it changes the bits of a run in which all goes well.

    Attributes:
        save_every: seconds between two states; None: 60, and more where saving would take over 2 % of the time.
        skip_bad: so many updates of a stage, at most, are passed over because their loss was not finite.
        change: let the run go on with other values of `CHANGEABLE`, another precision, or other updates of a
            teacher than it was begun with.
        measure: figures of the weights on the way, by name: called with a copy of the denoiser, which has the
            moving average if there is one.
        measure_every: so many updates between two measurements; 0: none.
    """

    save_every: float | None = None
    skip_bad: int = 0
    change: bool = False
    measure: Callable[[Denoiser], dict[str, float]] | None = None
    measure_every: int = 0


@dataclass(frozen=True)
class Trained:
    """What a stage gave: the weights to keep (EMA if there was one), and how long it took in all sessions.

    `changes` and `skipped` are what became of the settings and which updates were passed over, as checkpoints
    record them.
    """

    weights: dict[str, Tensor]
    seconds: float
    loss: float
    changes: list[Change] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)


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
    upkeep: Upkeep = Upkeep(),
    live: Denoiser | None = None,
    dropout: bool = True,
    snapshot: Callable[[int, Trained], None] | None = None,
    snapshot_every: int = 0,
    keep_end: bool = False,
) -> Trained:
    """Train `denoiser` in place on `source`, both on the machine's device, and return the weights to keep.

    Args:
        objective: whose losses' mean is minimised.
        settings: updates, batch, learning rate and so on.
        stage: names the random streams, the states and the lines of the log.
        run: where to keep states and resume from; None keeps nothing.
        live: `denoiser` with its network wrapped by `machine.for_training`; made here if not given.
        dropout: train in training mode; otherwise in evaluation mode, in which a network is as it will be used.
        snapshot: called on the way, every `snapshot_every` updates but the last, with their number and what
            training would end as then.
        keep_end: also keep the state it ends in, from which more updates can go on.

    Update k draws its batch, times, noise and dropout from a stream named by (seed, stage, k), so a resumed
    run repeats an uninterrupted one bit for bit on the CPU. It would meet a loss that is not finite again and
    again: the run goes back to its last state, and on without that update, as often as `upkeep` allows.

    Raises PdlabError at a loss that is not finite, and not passed over; Stopped on Ctrl-C or SIGTERM after saving
    the state.
    """
    log = log or Log(quiet=True)
    network = denoiser.network.train(dropout)
    live = live or trainable(denoiser, machine)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = Optimizers(network, settings)
    ema = EMA(parameters, settings.ema, settings.ema_warmup) if settings.ema else None
    state = _State(network, optimizer, ema)
    past = state.restore(run, stage, log)
    k = past["updates"]
    if k > settings.updates:
        raise PdlabError(f"the state of {stage} is after update {k} of {settings.updates}: choose another --run")
    now = {name: getattr(settings, name) for name in ("updates", *CHANGEABLE)}
    now["precision"] = machine.precision_for(network)
    changes, skipped = _taken_up(past, now, settings, log, stage), list(past["skipped"])
    if run is not None and k == 0 and upkeep.skip_bad:
        state.remember()
    generator = torch.Generator(machine.device)
    started, pace = time.monotonic() - past["seconds"], _Pace(upkeep.save_every)
    meter = _Meter(machine.device, settings.batch)
    shown: Denoiser | None = None

    def update(k: int) -> None:
        stream = seed_for(seed, stage, k)
        generator.manual_seed(stream)
        if dropout:
            torch.manual_seed(stream)  # what a network draws itself comes from here
        x, labels = source.draw(settings.batch, generator, settings.flip)
        optimizer.zero_grad()
        loss = backward(x, labels if denoiser.conditional else None)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip, foreach=True)
        optimizer.step(lr_factor(settings, k))
        if ema is not None:
            ema.update(k)
        meter.add(k, loss, norm)

    def backward(x: Tensor, labels: Tensor | None) -> Tensor:
        """Gradients of the mean loss, of at most `micro_batch` examples at a time; that loss."""
        if not 0 < settings.micro_batch < len(x):
            loss = objective(live, x, labels, generator).mean()
            machine.backward(loss)
            return loss.detach()
        total = torch.zeros((), device=x.device)
        for part in parts(objective.draw(live, x, labels, generator), settings.micro_batch):
            loss = objective.loss(live, part).sum() / len(x)
            machine.backward(loss)
            total += loss.detach()
        return total

    def keep(k: int) -> None:
        _check_finite(parameters, k, stage)
        if run is not None:
            header = {
                "seconds": time.monotonic() - started,
                "settings": now,
                "changes": changes,
                "skipped": skipped,
            }
            with pace.saving():
                run.save_state(stage, k, state.tensors(), header)
            state.forget()

    def ended() -> Trained:
        weights = ema.shadow if ema is not None else {name: p.detach() for name, p in parameters.items()}
        weights = {**network.state_dict(), **weights}
        return Trained(weights, time.monotonic() - started, meter.loss, list(changes), sorted(skipped))

    def without(bad: int) -> int:
        """Go back to the last state, to pass over update `bad`; the number of updates done there."""
        what = f"the loss is not finite at update {bad + 1} of {stage}"
        if run is None:
            raise PdlabError(f"{what}, and nothing is kept: take a lower lr or clip, a longer warmup, or fp32")
        if len(skipped) >= upkeep.skip_bad:
            remedy = f"to pass over it add --skip-bad {len(skipped) + 1}; or {_GENTLER}"
            raise PdlabError(f"{what} (the last good state is in {run.path / 'progress'}): {remedy}")
        log.say(f"{what}: going back, and on without it")
        skipped.append(bad + 1)
        return int(state.restore(run, stage, log)["updates"])

    if run is not None:
        run.begin()
    with machine.own_randomness(), _stop_requested() as stop:
        while k < settings.updates:
            if k + 1 in skipped:
                _check_finite(parameters, k, stage)  # else it is not this update that is bad
                log.note(stage, k + 1, f"update {k + 1} of {stage} is passed over: its loss was not finite")
            else:
                update(k)
            k += 1
            drawn = snapshot is not None and snapshot_every and k % snapshot_every == 0 and k < settings.updates
            measured = upkeep.measure is not None and upkeep.measure_every and k % upkeep.measure_every == 0
            due = pace.is_due()
            if not (due or stop.is_set() or drawn or measured or meter.is_due() or k == settings.updates):
                continue
            # Everything that makes the CPU wait for the device happens from here on.
            if (bad := meter.bad()) is not None:
                k = without(bad)
                meter.restart()
                continue
            values = meter.read()
            if values:
                status = f"loss {values['loss']:.4g}  {values['images_per_second']:.0f} images/s"
                log.advance(stage, k, settings.updates, status)
            begun = time.monotonic()
            if drawn or measured:
                _check_finite(parameters, k, stage)
            if drawn and snapshot is not None:
                snapshot(k, ended())
            if measured and upkeep.measure is not None:
                shown = shown or copy.deepcopy(denoiser).eval()
                shown.network.load_state_dict(ended().weights)
                values |= upkeep.measure(shown)
            started += time.monotonic() - begun  # neither is training
            meter.restart()
            if values:
                log.write(stage, k, values)
            stopping = stop.is_set()  # perhaps while it was measured
            if due or stopping:
                keep(k)
            if stopping:
                raise Stopped(f"stopped after update {k} of {settings.updates} ({stage})")
        _check_finite(parameters, k, stage)
        if keep_end:
            keep(k)
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
            raise PdlabError(f"{name} is not finite after update {k} of {stage}: {_GENTLER}")


def _taken_up(
    past: dict[str, Any], now: dict[str, Any], settings: Optimization, log: Log, stage: str
) -> list[Change]:
    """The changes that the state knows of, and what differs `now` from the settings that made it."""
    first, changes = past["updates"] + 1, list(past["changes"])
    was = {name: value for name, value in past["settings"].items() if name in now and now[name] != value}
    if was:
        changes.append({"update": first, "was": was, "now": {name: now[name] for name in was}})
        what = ", ".join(f"{name} is {now[name]}, was {value}" for name, value in was.items())
        lr = settings.lr * lr_factor(settings, min(first, settings.updates) - 1)
        log.note(stage, first, f"from update {first} of {stage} on {what}; the learning rate there is {lr:.3g}")
    return changes


class _Pace:
    """When to save a state: `every` so many seconds; None: 60, as long as that takes below 2 % of the time.

    What saving takes is known from the first time on.
    """

    def __init__(self, every: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._share = (60.0, 0.02) if every is None else (every, 1.0)
        self._clock = clock
        self._started = self._saved = clock()
        self._spent = self._last = 0.0

    def is_due(self) -> bool:
        """Whether it is time for the next."""
        now = self._clock()
        if now - self._saved <= self._every:
            return False
        return self._share == 1 or self._spent + self._last <= self._share * (now - self._started)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around the saving itself."""
        begun = self._clock()
        yield
        self._saved = self._clock()
        self._last = self._saved - begun
        self._spent += self._last


class _State:
    """Weights, EMA and optimizer state as one flat dictionary of tensors."""

    def __init__(self, network: nn.Module, optimizer: Optimizers, ema: EMA | None) -> None:
        self.optimizer, self.ema = optimizer, ema
        self.weights = dict(network.state_dict())  # they share the network's memory; running statistics too
        self._initial: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Hold the initial weights, to go back to while no state is kept."""
        self._initial = {f"weights/{name}": tensor.clone() for name, tensor in self.weights.items()}
        if self.ema is not None:
            self._initial |= {f"ema/{name}": tensor.clone() for name, tensor in self.ema.shadow.items()}

    def forget(self) -> None:
        """There is a state to go back to."""
        self._initial = {}

    def tensors(self) -> dict[str, Tensor]:
        flat = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        if self.ema is not None:
            flat |= {f"ema/{name}": tensor for name, tensor in self.ema.shadow.items()}
        return flat | {f"optimizer/{path}": value for path, value in self.optimizer.state().items()}

    def shapes(self) -> dict[str, torch.Size]:
        """What `tensors` holds after the first update."""
        flat = {f"weights/{name}": tensor.shape for name, tensor in self.weights.items()}
        if self.ema is not None:
            flat |= {f"ema/{name}": tensor.shape for name, tensor in self.ema.shadow.items()}
        return flat | {f"optimizer/{path}": shape for path, shape in self.optimizer.shapes().items()}

    @torch.no_grad()
    def restore(self, run: Run | None, stage: str, log: Log) -> dict[str, Any]:
        """Take up the newest sound state; returns its header, with 0 updates if there is none."""
        tensors, header, problems = ({}, {}, []) if run is None else run.load_state(stage, self.shapes())
        for problem in problems:
            log.say(problem)
        header = {"updates": 0, "seconds": 0.0, "settings": {}, "changes": [], "skipped": [], **header}
        log.rewind(stage, header["updates"])
        if problems:
            log.say("going on from the state before" if tensors else f"{stage} has no other state: it begins anew")
        if tensors:
            log.say(f"resuming {stage} after update {header['updates']}")
        else:
            tensors = self._initial
        if not tensors:
            return header
        for part, held in (("weights", self.weights), ("ema", self.ema.shadow if self.ema is not None else {})):
            for name, tensor in held.items():
                tensor.copy_(tensors[f"{part}/{name}"])
        prefix = "optimizer/"
        self.optimizer.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return header


class _Meter:
    """Sums on the device what is read rarely: loss, gradient norm, and where a loss first was not finite."""

    def __init__(self, device: torch.device, batch: int, every: float = 1.0) -> None:
        self._device, self._batch, self._every = device, batch, every
        self.loss = math.nan
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and the time."""
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

    def bad(self) -> int | None:
        """The first update whose loss or gradient was not finite."""
        bad = int(self._bad)
        return bad if bad >= 0 else None

    def read(self) -> dict[str, float]:
        """Means since it was read last; {} where nothing was added."""
        if not self._count:
            return {}
        seconds = max(time.monotonic() - self._since, 1e-9)
        self.loss = float(self._loss) / self._count
        return {
            "loss": self.loss,
            "gradient_norm": float(self._norm) / self._count,
            "images_per_second": self._count * self._batch / seconds,
        }


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
