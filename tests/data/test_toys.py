import math

import pytest
import torch

from pdlab.data import load, names
from pdlab.data.toys import TOYS


def points(name: str, n: int = 20_000, seed: int = 0) -> torch.Tensor:
    return load(name).draw(n, torch.Generator().manual_seed(seed))[0]


def test_the_toys_can_be_loaded_by_name() -> None:
    assert {"moons", "checkerboard", "spiral", "rings", "gaussians"} <= set(names())


@pytest.mark.parametrize("name", TOYS)
def test_centred_with_unit_variance(name: str) -> None:
    p = points(name)
    assert p.shape == (20_000, 2)
    assert p.dtype == torch.float32
    assert p.mean(0).abs().max() < 0.05
    assert p.var(0).mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("name", TOYS)
def test_depends_on_the_generator_alone(name: str) -> None:
    assert torch.equal(points(name, 100), points(name, 100))
    assert not torch.equal(points(name, 100), points(name, 100, seed=1))


@pytest.mark.parametrize("name", TOYS)
def test_is_a_source_of_unbounded_points_without_labels(name: str) -> None:
    source = load(name, "test")
    p, labels = source.to("cpu").draw(5, torch.Generator(), flip=True)
    assert labels is None
    assert p.shape == (5, *source.shape)
    assert (source.name, source.split, source.shape, source.num_classes, source.bounded) == (
        name, "test", (2,), 0, False
    )  # fmt: skip


def test_digests_tell_the_toys_apart() -> None:
    assert len({load(name).digest for name in TOYS}) == len(TOYS)
    assert load("moons").digest == load("moons", "test").digest


def test_gaussians_are_eight_on_a_ring() -> None:
    p = points("gaussians")
    sector = torch.atan2(p[:, 1], p[:, 0]).div(math.pi / 4).round().long() % 8
    assert (torch.bincount(sector, minlength=8) > 2000).all()
    centre = torch.stack([p[sector == k].mean(0) for k in range(8)])
    assert centre.norm(dim=1).std() < 0.02
    assert (p - centre[sector]).std() == pytest.approx(0.1, abs=0.01)


def test_rings_have_two_radii_one_twice_the_other() -> None:
    radius = points("rings").norm(dim=1)
    inner, outer = radius[radius < 1.3], radius[radius >= 1.3]
    assert outer.mean() / inner.mean() == pytest.approx(2.0, abs=0.02)
    assert len(inner) / len(radius) == pytest.approx(0.5, abs=0.03)


def test_checkerboard_fills_the_dark_fields_only() -> None:
    field = (points("checkerboard") / math.sqrt(3) * 2 + 2).floor().long()
    assert field.min() >= 0
    assert field.max() <= 3
    assert (field.sum(1) % 2 == 0).all()
    assert len(field.unique(dim=0)) == 8


def test_moons_are_one_another_turned_around() -> None:
    p = points("moons")
    top, bottom = p[p[:, 0].abs() < 0.2], -p[p[:, 0].abs() < 0.2]
    assert top[:, 1].sort().values.sub(bottom[:, 1].sort().values).abs().mean() < 0.1
    assert p[p[:, 1] > 0.6][:, 0].mean() < -0.5  # the upper arc lies to the left


def test_spiral_turns_outwards() -> None:
    p = points("spiral")
    radius, angle = p.norm(dim=1), torch.atan2(p[:, 1], p[:, 0])
    wound = (angle - radius / 2 * 3 * math.pi) / math.pi  # an integer on either arm
    far = radius > 0.5  # the noise turns points near the middle
    assert (wound - wound.round()).abs()[far].mean() < 0.1  # 0.25 by chance
