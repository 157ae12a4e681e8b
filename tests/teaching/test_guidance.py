"""Fidelity and variety are what they say they are; a ladder with classes is found, one without is not."""

from pathlib import Path

import pytest
import torch

from pdlab import zoo
from pdlab.diffusion.samplers import sample
from pdlab.teaching.guidance import PlaneRuler, class_spread, guided_ladder, measured_shares
from pdlab.teaching.lab import mixture_of_classes
from tests.teaching.conftest import build_with_classes


def test_the_classes_own_points_measure_as_themselves() -> None:
    points = mixture_of_classes()
    x, labels = points.labelled(30_000, torch.Generator().manual_seed(7))
    assert labels is not None
    found = PlaneRuler(points)(x, labels)
    likeliest = points.log_classes(x, torch.full((30_000,), torch.inf))[:, :-1].argmax(1)
    assert found.agreement == pytest.approx(float((likeliest == labels).double().mean()))
    assert found.spread == pytest.approx(1, abs=0.02)
    assert found.beyond == pytest.approx(0.01, abs=0.003)


def test_a_class_drawn_in_its_middle_or_far_away_is_seen() -> None:
    points = mixture_of_classes()
    ruler, labels = PlaneRuler(points), torch.arange(600) % 3
    middles = torch.stack([points.means[2 * c] for c in range(3)])
    still = ruler(middles[labels], labels)
    assert (still.agreement, still.beyond) == (1.0, 0.0)
    assert still.spread < 1e-6
    away = ruler(3 * middles[labels], labels)
    assert (away.agreement, away.beyond) == (1.0, 1.0)
    assert ruler(middles[(labels + 1) % 3], labels).agreement == 0.0


def test_class_spread_is_the_distance_from_each_classs_own_middle() -> None:
    x = torch.tensor([[0.0, 3.0], [0.0, -3.0], [10.0, 0.0], [10.0, 2.0]])
    torch.testing.assert_close(class_spread(x, torch.tensor([0, 0, 1, 1])), torch.tensor([3.0, 1.0]))


def test_a_guided_ladder_is_found_and_draws_as_the_sampler_does(classes: Path) -> None:
    ladder = guided_ladder(str(classes), most_steps=2)
    assert ladder is not None
    assert list(ladder.students) == [2, 1]
    assert ladder.classes == tuple("0123456789")
    assert (ladder.guidance_max, ladder.shape) == (2.0, (1, 8, 8))
    z, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 4])
    expected = sample(zoo.load(str(classes), 2), z, labels=labels, guidance=1.5)
    assert torch.equal(ladder.draw(2, z, labels, 1.5, 4), expected)
    expected = sample(zoo.load(str(classes)), z, 4, labels=labels, guidance=1.5)
    assert torch.equal(ladder.draw(None, z, labels, 1.5, 4), expected)


def test_a_ladder_without_classes_or_guidance_is_none(tmp_path: Path) -> None:
    ladder = guided_ladder(str(build_with_classes(tmp_path, 0.0)))
    assert ladder is None
    unconditional = [name for name in zoo.names() if not zoo.load(name).num_classes]
    assert all(guided_ladder(name) is None for name in unconditional)


def test_measured_shares_are_the_reports(classes: Path) -> None:
    lines = measured_shares(str(classes), (4, 1, 64))
    models = ("teacher", "4 steps", "1 step")
    assert set(lines) == {f"{kind}, {model}" for kind in ("agreement", "recall") for model in models}
    for name, line in lines.items():
        assert set(line) == {0.0, 1.0, 2.0}
        for w, row in line.items():
            assert (row.kind, row.card.guidance) == (name.split(",")[0], w)
            assert row.model == ("teacher" if "teacher" in name else "distilled")
            assert row.steps == {"teacher": 8, "4 steps": 4, "1 step": 1}[name.split(", ")[1]]
            assert 0 <= row.value <= 1
    unmeasured = [name for name in zoo.names() if "recall" not in zoo.manifest(name)["recipe"].get("kinds", ())]
    assert all(measured_shares(name, (4,)) == {} for name in unmeasured)
