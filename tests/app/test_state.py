"""Whatever a browser sends, what leaves is one of the allowed values."""

import pytest

from pdlab.app import state
from pdlab.app.ladders import ShownLadder
from pdlab.app.views.bench import MOST_SEED, MOST_STEPS, Sampling
from pdlab.app.views.compare import Comparison
from pdlab.app.views.lab import MOST_POINTS, REACH, Spec, parse_points, points_text

NONSENSE = (None, "", "nan", "1e400", "-1", 10**30, float("inf"), [], {}, object(), "<script>", "8,,4", ["x"], True)


@pytest.mark.parametrize("value", NONSENSE)
def test_nonsense_becomes_something_allowed(value: object, ladder: ShownLadder) -> None:
    what = Comparison.of(ladder, dict.fromkeys(Comparison.__dataclass_fields__, value))
    assert set(what.steps) <= set(ladder.counts)
    assert 1 <= what.page <= 4
    assert 0 <= what.nu <= 1
    run = Sampling.of(ladder, dict.fromkeys(Sampling.__dataclass_fields__, value))
    assert 1 <= run.steps <= MOST_STEPS
    assert 0 <= run.seed <= MOST_SEED
    assert run.images in (1, 4, 16, 64)
    spec = Spec.of(dict.fromkeys(Spec.__dataclass_fields__, value))
    assert spec.first in (4, 8, 16, 32)


def test_a_link_and_the_controls_mean_the_same(ladder: ShownLadder) -> None:
    link = state.query("?tab=compare&compare.steps=4,1&compare.rows=heun&compare.clip=false&compare.nu=0.3&x=1")
    by_link = Comparison.of(ladder, state.given(link, "compare", list(Comparison.__dataclass_fields__)))
    by_controls = Comparison.of(ladder, {"steps": [1, 4], "rows": ["heun"], "clip": False, "nu": 0.3})
    assert by_link == by_controls
    assert by_link.steps == (4, 1)


def test_nothing_chosen_stays_nothing() -> None:
    assert state.some([], (8, 4), (8,)) == ()
    assert state.some(None, (8, 4), (8,)) == (8,)
    assert state.some(["7"], (8, 4), (8,)) == (8,)


def test_addresses_that_are_too_much_are_none() -> None:
    assert state.query("?" + "&".join(f"a{k}=1" for k in range(100))) == {}
    assert state.query(None) == {}
    assert state.query("?a=b%20c") == {"a": "b c"}


def test_points_are_read_written_and_bounded() -> None:
    points = parse_points("0.5 1; -9,9; a b; 1; nan 1")
    assert points == ((0.5, 1.0), (-REACH, REACH))
    assert parse_points(points_text(points)) == points
    assert len(parse_points("1 1;" * 1000)) == MOST_POINTS
