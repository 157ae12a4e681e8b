"""Samples that depend on the seed and their number alone, of the classes and the guidance asked for."""

import json

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pdlab.data import ImageSource
from pdlab.data.source import to_float
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.metrics import Row, extractor
from pdlab.metrics.evaluate import Yardstick, evaluate, generate, labels_of, rows_of, sample_features
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.machine import Machine

SHAPE = (1, 8, 8)


class Toy(nn.Module):
    """x is the mean of its class, or grey for none, moved a little by the noise; counts its rows."""

    def __init__(self, means):
        super().__init__()
        self.register_buffer("means", torch.cat([means, torch.zeros_like(means[:1])]))
        self.config = MLPConfig(shape=SHAPE)
        self.rows = 0

    def forward(self, z, logsnr, labels, w=None):
        self.rows += len(z)
        return self.means[labels] + 0.1 * torch.tanh(z)


@pytest.fixture(scope="module")
def source(digits):
    labels = torch.from_numpy(load_digits().target).long()
    return ImageSource(digits, labels, tuple(f"d{k}" for k in range(10)), "digits", "train")


def toy(source, **options):
    means = torch.stack([to_float(source.images[source.labels == k]).mean(0) for k in range(10)])
    return Denoiser(Toy(means), "x", num_classes=10, null_class=True, **options)


@pytest.fixture
def checkpoint(source):
    return Checkpoint(toy(source), {"data": {"classes": list(source.classes)}})


def test_classes_come_in_turn(source):
    denoiser = toy(source)
    assert labels_of(denoiser, 12).tolist() == [*range(10), 0, 1]
    assert labels_of(denoiser, 5, [7, 3]).tolist() == [7, 3, 7, 3, 7]
    for wrong in ([10], [-1], []):
        with pytest.raises(PdlabError, match="from 0 to 9"):
            labels_of(denoiser, 5, wrong)
    assert labels_of(Denoiser(nn.Identity(), "x"), 5) is None
    with pytest.raises(PdlabError, match="without classes"):
        labels_of(Denoiser(nn.Identity(), "x"), 5, [0])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun", "dpm-solver++"])
def test_a_sample_depends_on_the_seed_and_its_number_alone(source, sampler):
    def samples(n=1100, batch=1000, seed=3):
        options = {"nu": 1.0} if sampler == "ancestral" else None
        how = {"seed": seed, "guidance": 0.5, "batch": batch, "options": options}
        return torch.cat(list(generate(toy(source), SHAPE, n, 3, sampler, **how)))

    whole = samples()
    assert whole.shape == (1100, *SHAPE)
    for other in (samples(batch=250), samples(batch=500), samples(n=730)):
        torch.testing.assert_close(other, whole[: len(other)], rtol=0, atol=1e-6)
    assert not torch.allclose(samples(seed=4), whole, atol=1e-3)
    assert len({float(x) for x in whole.flatten(1).sum(1)}) > 1090  # no noise is drawn twice


def test_a_consumer_may_train_on_what_was_generated(source):
    (part,) = generate(toy(source), SHAPE, 4, 2)
    weight = torch.ones(1, requires_grad=True)
    (weight * part).sum().backward()
    assert weight.grad is not None


def test_what_cannot_be_drawn_is_refused_before_anything_is(source):
    plain = Denoiser(toy(source).network, "x", num_classes=10)
    with pytest.raises(PdlabError, match="no null class"):
        generate(plain, SHAPE, 4, 2, guidance=1.0)
    with pytest.raises(PdlabError, match=r"\[0, 2\]"):
        generate(toy(source, guidance_max=2.0), SHAPE, 4, 2, guidance=3.0)
    with pytest.raises(PdlabError, match="0 to 9"):
        generate(plain, SHAPE, 4, 2, classes=[11])
    assert plain.network.rows == 0


@pytest.mark.parametrize(("guidance", "guidance_max", "each"), [(0.0, 0.0, 1), (1.5, 0.0, 2), (1.5, 2.0, 1)])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_the_card_counts_the_rows_that_the_network_saw(source, guidance, guidance_max, each, sampler):
    checkpoint = Checkpoint(toy(source, guidance_max=guidance_max))
    yardstick = Yardstick(source, extractor("pixels"), 70)
    rows = evaluate(checkpoint, 4, yardstick, Machine("cpu", "fp32"), sampler=sampler, guidance=guidance)
    card = rows[0].card
    assert card.nfe == checkpoint.denoiser.network.rows / 70 == each * (7 if sampler == "heun" else 4)
    assert (card.guidance, card.classes) == (guidance, [str(k) for k in range(10)])


def test_every_kind_of_figure_has_its_card(source, checkpoint):
    held_out = ImageSource(source.images[1500:], source.labels[1500:], source.classes, "digits", "test")
    kinds = ("frechet", "kernel", "agreement", "precision", "recall")
    yardstick = Yardstick(source, extractor("pixels"), 250, held_out, kinds)
    machine, how = Machine("cpu", "fp32"), {"classes": ["d3", 5], "guidance": 0.0}
    features = sample_features(checkpoint, 4, yardstick, machine, **how)
    rows = {row.kind: row for row in rows_of(features, checkpoint, 4, yardstick, machine, **how)}
    assert tuple(rows) == kinds
    assert [row.metric for row in rows.values()] == [
        "FD-pixels", "KD-pixels", "agreement-pixels", "precision-pixels", "recall-pixels",
    ]  # fmt: skip
    assert [row.better for row in rows.values()] == ["lower", "lower", "higher", "higher", "higher"]
    for row in rows.values():
        assert row.card.classes == ["d3", "d5"]
        assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row
        assert row.card.real is not None
    assert rows["agreement"].value > 0.99  # class means look like their class
    assert rows["agreement"].card.real["value"] > 0.9
    assert rows["precision"].value > 0.5 > 0.1 > rows["recall"].value  # two means have no variety
    assert rows["precision"].card.reference["size"] == 250
    assert rows["frechet"].card.reference["size"] == 1797
    swapped = torch.arange(250) % 2
    assert yardstick.measure(features, torch.tensor([5, 3])[swapped])["agreement"][0] < 0.01
    assert "agreement" not in yardstick.measure(features)


def test_real_images_reach_what_they_should(source):
    """Held out or not; without any there is nothing to compare precision with."""
    yardstick = Yardstick(source, extractor("pixels"), 300, None, ("frechet", "agreement", "precision", "recall"))
    assert yardstick.real["precision"] is yardstick.real["recall"] is None
    rows = torch.arange(1797) % 2 == 0
    halves = [ImageSource(source.images[r], source.labels[r], source.classes, "digits", s)
              for r, s in ((rows, "train"), (~rows, "test"))]  # fmt: skip
    yardstick = Yardstick(*[halves[0], extractor("pixels"), 300, halves[1]], kinds=("precision", "recall"))
    for kind in ("precision", "recall"):
        assert 0.7 < yardstick.real[kind]["value"] < 1
        assert "digits test" in yardstick.real[kind]["how"]


def test_class_names_are_the_checkpoints():
    denoiser = Denoiser(MLP(MLPConfig(shape=SHAPE, num_classes=3)), "x", num_classes=3)
    named = Checkpoint(denoiser, {"data": {"classes": ["cat", "2", "ship"]}})
    assert named.class_numbers(["ship", "cat", 0, "2"]) == [2, 0, 0, 1]  # a name goes before a number
    assert named.class_numbers(None) is None
    with pytest.raises(PdlabError, match="no class dog: there are cat, 2, ship, or 0 to 2"):
        named.class_numbers(["cat", "dog"])
    assert Checkpoint(denoiser, {}).class_numbers(["2"]) == [2]
    with pytest.raises(PdlabError, match="there are 0, 1, 2"):
        Checkpoint(denoiser, {}).class_numbers([])
    with pytest.raises(PdlabError, match="without classes"):
        Checkpoint(Denoiser(nn.Identity(), "x"), {}).class_numbers(["cat"])
