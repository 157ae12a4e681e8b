"""Presets hold the paper's settings, and any field can be overridden."""

import math

import pytest

from pdlab.errors import PdlabError
from pdlab.networks.grow import grow
from pdlab.training.presets import PRESETS, Preset, from_dict, override, preset, to_dict
from pdlab.training.teacher import new_denoiser


@pytest.mark.parametrize(
    ("name", "batch", "lr", "dropout", "decay", "round_lr", "first", "output"),
    [
        ("cifar10-paper", 128, 2e-4, 0.2, 0.001, 5e-5, 8192, "x"),
        ("imagenet64", 2048, 3e-4, 0.1, 0.0, 1e-4, 1024, "both"),
        ("lsun128", 2048, 3e-4, 0.1, 0.0, 1e-4, 1024, "both"),
    ],
)
def test_the_papers_settings(
    name: str, batch: int, lr: float, dropout: float, decay: float, round_lr: float, first: int, output: str
) -> None:
    p = preset(name)
    assert (p.teacher.batch, p.teacher.lr, p.teacher.dropout, p.teacher.weight_decay) == (batch, lr, dropout, decay)
    assert (p.teacher.warmup, p.teacher.ema, p.teacher.clip, p.teacher.flip) == (1000, 0.9999, 1.0, True)
    assert (p.distill.batch, p.distill.lr, p.distill.updates) == (batch, round_lr, 50_000)
    assert (p.distill.dropout, p.distill.weight_decay, p.distill.ema, p.distill.warmup) == (0, 0, 0, 0)
    assert p.distill.anneal
    assert (p.teacher.ema_warmup, p.teacher.times, p.distill.times) == (False, "independent", "independent")
    assert p.resize == ("bilinear" if name == "lsun128" else "box")
    assert (p.first_steps, p.output, p.weighting) == (first, output, "truncated")


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"cifar10-paper", "imagenet64", "lsun128"}))
def test_small_presets_go_pdlabs_way(name: str) -> None:
    p = preset(name)
    for job in (p.teaching, p.distill, p.guide):
        assert (job.ema_warmup, job.times) == (True, "stratified")


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_json(name: str) -> None:
    assert from_dict(to_dict(preset(name))) == preset(name)
    unbounded = override(preset(name), {"logsnr_min": "-inf"})
    assert to_dict(unbounded)["logsnr_min"] is None
    assert from_dict(to_dict(unbounded)).logsnr_min == -math.inf


def test_override_reads_every_type() -> None:
    p: Preset = override(
        preset("cifar10-paper"),
        {
            "teacher.lr": "1e-3",
            "teacher.flip": "false",
            "network.multipliers": "1,2,2",
            "network.attention": "16,",
            "network.heads": "none",
            "network.head_dim": "64",
            "size": "none",
            "output": "v",
        },
    )
    assert (p.teacher.lr, p.teacher.flip, p.network.multipliers) == (1e-3, False, (1, 2, 2))
    assert (p.network.attention, p.network.head_dim, p.size, p.output) == ((16,), 64, None, "v")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher.learning_rate": "1"}, "unknown field 'teacher.learning_rate'.* lr,"),
        ({"teacher.lr": "fast"}, "does not read as float"),
        ({"teacher.lr": "nan"}, "not nan"),
        ({"teacher.lr": "-1"}, "teacher: lr must be greater than 0, not -1"),
        ({"teacher.updates": "0"}, "updates must be greater than or equal to 1"),
        ({"teacher.flip": "maybe"}, "does not read as bool"),
        ({"teacher": "1"}, "not a single field"),
        ({"output": "w"}, "unknown output 'w': choose one of x, eps, v, both"),
        ({"weighting": "min-snr"}, "unknown weighting"),
        ({"teacher.times": "sorted"}, "times must be 'stratified' or 'independent', not 'sorted'"),
        ({"resize": "nearest"}, "resize must be 'box' or 'bilinear', not 'nearest'"),
        ({"precision": "fp8"}, "precision must be 'auto', 'fp32' or 'bf16', not 'fp8'"),
    ],
)
def test_bad_overrides(change: dict[str, str], message: str) -> None:
    with pytest.raises(PdlabError, match=message):
        override(preset("digits"), change)


def test_unknown_preset_lists_the_known() -> None:
    known = "digits, toy, .*cifar10-cpu, cifar10-gpu, cifar10-paper, imagenet64, lsun128"
    with pytest.raises(PdlabError, match=known):
        preset("mnist")


def test_the_cpus_teacher_grows_in_three_stages() -> None:
    names = ("cifar10-cpu-16px", "cifar10-cpu-classes", "cifar10-cpu")
    small, wide, large = (new_denoiser(preset(name), 0) for name in names)
    grow(small.network, wide.network)
    grow(wide.network, large.network)
    mebibytes = sum(2 * p.numel() for p in large.network.parameters()) / 2**20
    assert mebibytes < 11  # in float16: five rungs in a package
