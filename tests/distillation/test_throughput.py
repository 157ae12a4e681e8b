"""The throughput that is reported is what the clock says, and its FLOPs those of the cost."""

import dataclasses
from collections.abc import Iterator

import pytest

from pdlab import data
from pdlab.data import ImageSource
from pdlab.distillation import throughput as module
from pdlab.distillation.throughput import distillation_step, matrix_rate, throughput, training_step
from pdlab.training.cost import size
from pdlab.training.machine import Machine
from pdlab.training.presets import preset

CPU = Machine("cpu", "fp32")


class Clock:
    """Stands in for `time`: what is timed moves it on, or every look at it does by the next of `steps`."""

    def __init__(self, steps: Iterator[float] | None = None) -> None:
        self.now, self.steps = 0.0, steps

    def perf_counter(self) -> float:
        self.now += next(self.steps) if self.steps else 0
        return self.now


def test_images_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """With updates of 10 ms in training, 20 ms in distillation, after a first one of a second."""
    clock, done = Clock(), {0.01: 0, 0.02: 0}

    def step(seconds: float):
        def work(updates: int) -> None:
            clock.now += seconds * updates + (0 if done[seconds] else 1)
            done[seconds] += updates

        return lambda *_: work

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "training_step", step(0.01))
    monkeypatch.setattr(module, "distillation_step", step(0.02))
    settings = preset("digits")
    one, two = throughput(settings, CPU, 50, rate=1e9, seconds=0.3)
    flops = size(settings.network, settings.output).flops
    assert (one.step, two.step) == ("training", "distillation")
    assert (one.flops_per_image, two.flops_per_image) == (3 * flops, 5 * flops)
    assert one.images_per_second == pytest.approx(50 / 0.01)
    assert two.images_per_second == pytest.approx(50 / 0.02)
    assert one.share == pytest.approx(50 / 0.01 * 3 * flops / 1e9)
    assert done == {0.01: 4 + 4 + 30, 0.02: 4 + 4 + 15}  # as long as was asked for


@pytest.mark.parametrize("make", [training_step, distillation_step])
def test_the_steps_that_are_timed_are_so_many_updates_of_a_batch(make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = preset("digits")
    settings = dataclasses.replace(settings, network=dataclasses.replace(settings.network, width=16, blocks=1))
    draw, drawn = ImageSource.draw, []
    monkeypatch.setattr(ImageSource, "draw", lambda self, n, *how: (drawn.append(n), draw(self, n, *how))[1])
    work = make(settings, data.load("digits"), CPU, 8)
    for updates in (1, 3):
        work(updates)
    assert drawn == [8] * 4


def test_the_matrix_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    took = (3.0, 2.0, 5.0, 4.0, 6.0)
    monkeypatch.setattr(module, "time", Clock(iter([step for seconds in took for step in (1.0, seconds)])))
    assert matrix_rate(CPU) == 2 * 2048**3 / 2.0
