import json
from dataclasses import FrozenInstanceError, replace

import pytest

from pdlab.errors import PdlabError
from pdlab.metrics import Card, Row, comparable, extractor, figure_name, versions

CARD = Card(
    metric="FD-pixels",
    n=2000,
    reference={"name": "digits", "split": "train", "size": 1797, "digest": "ab12"},
    extractor=extractor("pixels").describe(),
    rounding="uint8, to nearest",
    sampler={"name": "ddim"},
    steps=8,
    nfe=8,
    guidance=0.0,
    classes=None,
    clip=True,
    seed=0,
    ema=False,
    checkpoint="cd34",
    precision="float32",
    device="cpu",
    versions=versions(),
    real={"value": 0.1, "n": 2000, "how": "2000 draws with replacement"},
)


@pytest.mark.parametrize(
    ("kind", "label", "n", "split", "size", "name"),
    [
        ("frechet", "Inception2015", 50_000, "train", 50_000, "FID"),
        ("frechet", "Inception2015", 50_000, "train", 1_281_167, "FID"),
        ("frechet", "Inception2015", 49_999, "train", 50_000, "FD-Inception2015"),
        ("frechet", "Inception2015", 50_001, "train", 50_000, "FD-Inception2015"),
        ("frechet", "Inception2015", 50_000, "test", 50_000, "FD-Inception2015"),
        ("frechet", "Inception2015", 50_000, "train", 10_000, "FD-Inception2015"),
        ("frechet", "EffNetLite0", 50_000, "train", 50_000, "FD-EffNetLite0"),
        ("frechet", "pixels", 50_000, "train", 50_000, "FD-pixels"),
        ("kernel", "Inception2015", 50_000, "train", 50_000, "KD-Inception2015"),
    ],
)
def test_only_one_figure_is_called_fid(kind, label, n, split, size, name):
    assert figure_name(kind, label, n, split, size) == name


def test_a_figure_is_named_after_its_extractor():
    assert figure_name("frechet", extractor("pixels"), 2000, "train", 1797) == "FD-pixels"


def test_round_trip():
    row = Row("distilled", 8, "FD-pixels", 0.28, CARD)
    data = json.loads(json.dumps(row.to_dict(), allow_nan=False))
    assert Row.from_dict(data) == row
    assert Card.from_dict(data["card"]) == CARD
    assert set(data) == {"model", "steps", "metric", "value", "card", "spread"}


def test_foreign_cards_are_refused():
    data = CARD.to_dict()
    with pytest.raises(PdlabError, match="not a card: fields seed "):
        Card.from_dict({key: value for key, value in data.items() if key != "seed"})
    with pytest.raises(PdlabError, match="colour"):
        Card.from_dict({**data, "colour": "red"})
    with pytest.raises(PdlabError, match="not a row"):
        Row.from_dict({"model": "teacher"})


def test_cards_do_not_change():
    with pytest.raises(FrozenInstanceError):
        CARD.n = 3


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "KD-pixels"},
        {"n": 1000},
        {"reference": {**CARD.reference, "split": "test"}},
        {"extractor": {**CARD.extractor, "resize": "bilinear"}},
        {"rounding": "none"},
    ],
)
def test_what_must_not_share_an_axis(change):
    assert comparable(CARD, replace(CARD, **change)) == list(change)


def test_what_a_curve_may_compare():
    other = replace(
        CARD, steps=4, nfe=4, seed=3, sampler={"name": "ancestral"}, checkpoint="ef", ema=True, device="cuda"
    )
    assert comparable(CARD, other) == []


def test_versions_are_strings():
    assert {"pdlab", "python", "torch"} <= versions().keys()
    assert all(type(value) is str for value in versions().values())
