"""The plan's count of memory, against what PyTorch's allocator really gives, as its profiler tells."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pdlab.errors import PdlabError
from pdlab.networks.registry import build
from pdlab.networks.unet import UNet
from pdlab.training.plan import BATCHES, Meter, check_gpu, footprint, stages
from pdlab.training.presets import override, preset
from tests.command import refused


def shrunk():
    """The paper's CIFAR-10, of the same structure."""
    return override(preset("cifar10-paper"), {"network.channels": "16", "network.embedding_channels": "64"})


def allocated(network: UNet, n: int, bf16: bool) -> int:
    """The most bytes that a forward and backward pass holds at a time, from the allocator's own events."""
    network.zero_grad(set_to_none=True)
    inputs = torch.randn(n, *network.config.shape), torch.zeros(n)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            answer = network(*inputs)
        answer.float().square().mean().backward()
    now = peak = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_planned_is_what_is_allocated(bf16: bool, recompute: bool) -> None:
    """For another batch than the two that it was computed from."""
    planned = stages(shrunk(), bf16, gpu=False)[0].activations[recompute]
    network = build(shrunk().network, "x", 0.2).train()
    network.recompute(recompute)
    really = allocated(network, 80, bf16)
    assert planned.each * 80 + planned.fixed == pytest.approx(really, rel=0.1)


def test_a_meter_counts_what_is_held() -> None:
    meter = Meter()
    with meter:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b.sum()
    assert (meter.now, meter.peak) == (4000 + 4, 8000)
    assert float(c) == 1000


def test_memory_with_and_without_gives_one_answer() -> None:
    network = build(shrunk().network, "x").train()
    real = footprint(network, shrunk().network, bf16=False)
    assert real == stages(override(shrunk(), {"teacher.dropout": "0"}), bf16=False, gpu=False)[0].activations[0]
    assert BATCHES[0] < BATCHES[1]


def test_hours_and_batches() -> None:
    teacher, rounds = stages(shrunk(), gpu=False)
    assert (rounds.name, rounds.updates) == ("13 rounds", 15 * 50_000)  # 8192 steps; the last two twice as long
    assert rounds.flops[0] / teacher.flops[0] == pytest.approx(5 / 3)
    assert teacher.flops[1] / teacher.flops[0] == pytest.approx(4 / 3)
    assert teacher.hours(teacher.flops[0], False) == pytest.approx(teacher.updates / 3600)
    assert teacher.micro_batch(float(teacher.states), False) == 0
    assert teacher.micro_batch(1e15, True) == teacher.settings.batch
    half = teacher.states + teacher.activations[0].fixed + 10.5 * teacher.activations[0].each
    assert teacher.micro_batch(half, False) == 10


def test_a_gpu_keeps_no_less_than_a_processor() -> None:
    on_a_gpu, here = (stages(shrunk(), gpu=gpu)[0].activations[0] for gpu in (True, False))
    assert 1 <= on_a_gpu.each / here.each < 3


def test_the_command(pdlab) -> None:
    few = ("--set", "network.channels=16", "--set", "network.embedding_channels=64")
    done = pdlab("plan", "cifar10-paper", *few, "--gpu", "a100", "--gpus", 2)
    assert done.code == 0, done.err
    assert "--recompute" in done.out
    assert "Computed for 2 × a100 (80 GB)" in " ".join(done.out.split())
    refused(pdlab("plan", "cifar10-paper", "--gpu", "z9"), "unknown GPU 'z9'", "h100")
    refused(pdlab("plan", "nothing"), "nothing")
    with pytest.raises(PdlabError):
        check_gpu("")


def test_networks_that_cannot_recompute(tmp_path, pdlab) -> None:
    assert stages(preset("digits"), gpu=False)[0].activations[1] is None
    order = ("train", "digits", "--run", tmp_path / "run", "--recompute", "--updates", 1)
    refused(pdlab(*order), "only a U-Net computes its activations again")
    assert not (tmp_path / "run").exists()
