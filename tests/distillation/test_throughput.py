"""The throughput that is reported is what the clock says, and its FLOPs those of the cost."""

import dataclasses
import time

import pytest

from pdlab.distillation import throughput as module
from pdlab.distillation.throughput import matrix_rate, throughput
from pdlab.training.cost import size
from pdlab.training.machine import Machine
from pdlab.training.presets import preset


def test_images_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """With updates of a known duration: 10 ms in training, 20 ms in distillation."""

    def step(seconds: float):
        return lambda *_: lambda updates: time.sleep(updates * seconds)

    monkeypatch.setattr(module, "training_step", step(0.01))
    monkeypatch.setattr(module, "distillation_step", step(0.02))
    settings = preset("digits")
    one, two = throughput(settings, Machine("cpu", "fp32"), 50, rate=1e9, seconds=0.3)
    flops = size(settings.network, settings.output).flops
    assert (one.step, two.step) == ("training", "distillation")
    assert (one.flops_per_image, two.flops_per_image) == (3 * flops, 5 * flops)
    assert one.images_per_second == pytest.approx(50 / 0.01, rel=0.2)
    assert two.images_per_second == pytest.approx(50 / 0.02, rel=0.2)
    assert one.share == pytest.approx(one.images_per_second * 3 * flops / 1e9)


def test_the_real_steps_run() -> None:
    settings = preset("digits")
    network = dataclasses.replace(settings.network, width=16, blocks=1)
    found = throughput(dataclasses.replace(settings, network=network), Machine("cpu", "fp32"), 8, 1e9, 0.01)
    assert all(entry.images_per_second > 0 for entry in found)


def test_a_matrix_product_has_a_rate() -> None:
    assert 1e8 < matrix_rate(Machine("cpu", "fp32")) < 1e16
