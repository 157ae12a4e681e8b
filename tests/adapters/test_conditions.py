"""Conditions, tensors drawn with the data such as the states of a text: teacher and student are told the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pdlab
from pdlab.adapters.graph import GraphSampler, export_torch
from pdlab.data.source import ImageSource
from pdlab.distillation.rounds import RoundObjective
from pdlab.training.objective import DiffusionObjective, parts
from tests.made import pipeline as saved
from tests.made import unet


class Told(nn.Module):
    """x̂ is its condition [B, 2, 24], as an image [B, 3, 4, 4], times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        return self.weight * condition.reshape(z.shape)


def model(**more) -> pdlab.Denoiser:
    return pdlab.Denoiser(Told(), output="x", condition=(2, 24), **more)


def pixels(n: int = 60) -> Tensor:
    return torch.randint(0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def conditions(n: int = 60) -> Tensor:
    """Of `pixels`, the images themselves."""
    return (pixels(n).float() / 127.5 - 1).reshape(n, 2, 24)


def test_an_example_keeps_its_condition_in_every_objective() -> None:
    """A network that answers what it is told has no loss, unless another example's is told it."""
    source = ImageSource(pixels(), conditions=conditions())
    x, told = source.draw(16, torch.Generator().manual_seed(1), flip=False)
    assert torch.equal(x.reshape(16, 2, 24), told)
    denoiser = model()
    for objective in (DiffusionObjective("truncated"), RoundObjective(model(), 4, "truncated")):
        drawn = objective.draw(denoiser, x, told, torch.Generator().manual_seed(2))
        assert float(objective.loss(denoiser, drawn).detach().max()) < 1e-8
        assert all(float(objective.loss(denoiser, part).detach().max()) < 1e-8 for part in parts(drawn, 5))
        drawn["labels"] = told.roll(1, 0)
        if isinstance(objective, DiffusionObjective):
            assert float(objective.loss(denoiser, drawn).detach().mean()) > 0.1


def test_the_whole_way(tmp_path: Path) -> None:
    teacher = pdlab.train(
        model(), pixels(), tmp_path / "run", conditions=conditions(), updates=3, batch=8, quiet=True
    )
    students = pdlab.distill(
        teacher, pixels(), tmp_path / "run", conditions=conditions(), first=4, updates=3, batch=8, quiet=True
    )
    again = pdlab.load(students[1].path, network=Told())
    assert again.denoiser.condition == (2, 24)
    drawn = pdlab.sample(again, 7, conditions=conditions(3))
    assert (drawn.reshape(7, 2, 24) - conditions(3)[torch.arange(7) % 3]).abs().max() < 0.02
    rows = pdlab.evaluate(
        again, ImageSource(pixels(), conditions=conditions()), n=60, features="pixels", precision="fp32"
    )
    distance = next(row for row in rows if row.kind == "frechet")
    assert abs(distance.value) < 0.05  # those of the data, in turn
    assert distance.card.sampler["conditions"] == 60
    with pytest.raises(pdlab.PdlabError, match=r"data\.digest was"):
        pdlab.distill(teacher, pixels(), tmp_path / "run", conditions=-conditions(), first=4, quiet=True)


def test_a_graph_takes_the_condition() -> None:
    sampler = GraphSampler(model(shape=(3, 4, 4)), 2)
    assert sampler.inputs == ["noise", "condition"]
    noise, told = sampler.examples((3, 4, 4))
    assert torch.equal(sampler(noise, told), told.reshape(noise.shape).clamp(-1, 1))


def test_and_is_exported_with_it(tmp_path: Path) -> None:
    assert export_torch(model(shape=(3, 4, 4)), tmp_path / "a.pt2", 2) < 1e-4
    graph = torch.export.load(tmp_path / "a.pt2").module()
    told = conditions(5)
    assert torch.equal(graph(torch.randn(5, 3, 4, 4), told), told.reshape(5, 3, 4, 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: model(num_classes=2), "num_classes or condition, not both"),
        (lambda: pdlab.sample(model(shape=(3, 4, 4)), 2, 2), r"told conditions \[m, 2, 24\]: give them"),
        (
            lambda: pdlab.sample(model(shape=(3, 4, 4)), 2, 2, conditions=conditions()[:, :1]),
            r"told a condition \[2, 2, 24\] in place of labels, not \[2, 1, 24\]",
        ),
        (
            lambda: pdlab.sample(model(shape=(3, 4, 4)), 2, 2, conditions=conditions() / 0),
            "conditions that are not finite",
        ),
        (
            lambda: pdlab.sample(
                pdlab.Denoiser(nn.Identity(), "x", shape=(3, 4, 4)), 2, 2, conditions=conditions()
            ),
            "told no conditions",
        ),
        (lambda: pdlab.sample(model(shape=(3, 4, 4)), 2, 2, conditions=conditions(), guidance=1), "no null class"),
        (lambda: pdlab.train(model(), pixels(), "never", updates=1), "conditions of shape 2×24"),
        (
            lambda: pdlab.train(model(), pixels(), "never", updates=1, conditions=conditions(59)),
            r"conditions are floats \[60, …\]",
        ),
        (
            lambda: pdlab.train(
                model(), pixels(), "never", updates=1, conditions=conditions(), labels=torch.zeros(30).long()
            ),
            "labels or conditions, not both",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pdlab.PdlabError, match=message):
        wrong()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that is told a text, as diffusers saves it."""
    told = {"cross_attention_dim": 6, "attention_head_dim": 2}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    network = unet("UNet2DConditionModel", in_channels=4, out_channels=4, **told, **blocks)
    place = saved(tmp_path_factory.mktemp("text"), network, beta_schedule="scaled_linear")
    (place / "vae").mkdir()
    return place


def test_a_text_conditioned_network_of_diffusers_becomes_a_student(pipeline: Path, tmp_path: Path) -> None:
    """An eps network of latents that is told the states of 5 tokens: converted, halved, and loaded by its files."""
    import diffusers

    from pdlab.data.latents import LatentSource

    teacher = pdlab.from_diffusers(pipeline, tokens=5)
    assert (teacher.condition, teacher.bounded, teacher.shape) == ((5, 6), False, (4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    z, states = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 5, 6, generator=generator)
    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline / "scheduler")
    with torch.no_grad():
        theirs = unet(z, 500, encoder_hidden_states=states).sample
        t = teacher.schedule.time(torch.logit(scheduler.alphas_cumprod[500].double()))
        assert (teacher(z, t, states).eps - theirs).abs().max() < 1e-4
    latents = LatentSource(torch.randn(12, 4, 8, 8, generator=generator), conditions=torch.randn(12, 5, 6))
    students = pdlab.distill(teacher, latents, tmp_path / "run", first=4, updates=2, batch=4, quiet=True)
    again = pdlab.load(students[1].path)
    assert (again.denoiser.output, again.denoiser.condition, again.denoiser.bounded) == ("v", (5, 6), False)
    one, other = (pdlab.sample(again, 2, conditions=states[rows]) for rows in ([0, 1], [2, 1]))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_command_line_says_what_it_cannot_give(pipeline: Path, tmp_path: Path, pdlab) -> None:
    import pdlab as library

    library.save(tmp_path / "model", library.from_diffusers(pipeline, tokens=5))
    refused = pdlab("sample", tmp_path / "model", "--steps", 2, "--out", tmp_path / "a.npz")
    assert (refused.code, refused.err.strip().count("\n")) == (2, 0)
    assert "told conditions [m, 5, 6]: give them, from Python" in refused.err
    refused = pdlab("export", "diffusers", tmp_path / "model", tmp_path / "out", "--steps", 2)
    assert (refused.code, "use pdlab export onnx, or torch" in refused.err) == (2, True)
    assert not (tmp_path / "out").exists()
    refused = pdlab("distill", f"diffusers:{pipeline}", "--run", tmp_path / "run", "--data", tmp_path)
    assert (refused.code, refused.err.strip().count("\n")) == (2, 0)
    assert "from Python" in refused.err
    assert not (tmp_path / "run").exists()
