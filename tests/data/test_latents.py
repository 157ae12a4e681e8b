"""Latents: made once, refused where they are another's, and a ladder that runs on them like on anything."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pdlab
from pdlab.data import load
from pdlab.data.latents import Codec, LatentSource
from pdlab.data.source import ImageSource, to_float
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.checkpoint import Checkpoint, read_header
from tests.made import pipeline as saved
from tests.made import unet

ROTATION = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(3)))[0]


def images(n: int = 40) -> ImageSource:
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSource(pixels, torch.arange(n) % 2, ("even", "odd"), "noise")


def encode(x: Tensor) -> Tensor:
    return (x.flatten(1) @ ROTATION).view(-1, 12, 2, 2)


def decode(z: Tensor) -> Tensor:
    return (z.flatten(1) @ ROTATION.T).view(-1, 3, 4, 4)


def test_latents_are_what_the_encoder_answers_and_decode_to_the_images() -> None:
    data, codec = images(), Codec(encode, decode, scale=0.5, shift=0.25)
    made = codec.latents(data, batch=7)
    assert (made.latents - (encode(to_float(data.images)) - 0.25) * 0.5).abs().max() < 1e-6
    assert (made.name, made.bounded, made.shape, made.classes) == ("noise-latents", False, (12, 2, 2), data.classes)
    assert torch.equal(made.labels, data.labels)
    assert (codec.images(made.latents, batch=9) - to_float(data.images)).abs().max() < 1e-5
    x, labels = made.draw(16, torch.Generator().manual_seed(0), flip=True)
    rows = torch.randint(40, (16,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, made.latents[rows])  # never mirrored
    assert torch.equal(labels, made.labels[rows])


def test_fitted_latents_have_mean_0_and_deviation_1() -> None:
    codec = Codec(lambda x: 7 * encode(x) + 3, decode).fitted(images())
    latents = codec.latents(images()).latents
    assert abs(float(latents.mean())) < 1e-4
    assert float(latents.std()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(pdlab.PdlabError, match="deviation of 0"):
        Codec(lambda x: torch.zeros(len(x), 2), decode).fitted(images())


def test_the_cache_spares_the_encoder_and_holds_one_codec_s_latents_of_one_data_set(tmp_path: Path) -> None:
    calls = []

    def counting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return encode(x)

    codec, cache = Codec(counting, decode), tmp_path / "deep" / "latents"
    first = codec.latents(images(), cache)
    assert sum(calls) == 41  # one to see the shape
    again = codec.latents(images(), cache)
    assert sum(calls) == 41
    assert torch.equal(again.latents, first.latents)
    assert again.digest == first.digest
    for other, data in ((codec, images(39)), (Codec(counting, decode, scale=2), images())):
        with pytest.raises(pdlab.PdlabError, match="of other images, or of another codec: choose another cache"):
            other.latents(data, cache)
    file = cache / "latents.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(pdlab.PdlabError, match="sha256") as refused:
        codec.latents(images(), cache)
    assert "\n" not in str(refused.value)
    with pytest.raises(pdlab.PdlabError, match="choose another cache"):
        codec.latents(images(), tmp_path)


def test_the_weights_of_a_codec_are_part_of_what_it_is() -> None:
    layer = nn.Linear(2, 2)
    before = Codec(layer, layer).digest
    assert before == Codec(layer, layer).digest
    with torch.no_grad():
        layer.bias += 1
    assert before != Codec(layer, layer).digest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[:1], r"must give floats \[40, …\], not \[1, 3, 4, 4\]"),
        (lambda x: None, "not NoneType"),
        (lambda x: x / 0, "not finite"),
    ],
)
def test_an_encoder_that_answers_something_else(wrong, message: str, tmp_path: Path) -> None:
    with pytest.raises(pdlab.PdlabError, match=message):
        Codec(lambda x: wrong(x) if len(x) > 1 else x, decode).latents(images(), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


class Net(nn.Module):
    """x̂ of latents [B, 12, 2, 2] of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.layer = nn.Embedding(2, 8), nn.Linear(48 + 1 + 8, 48)

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.cat([z.flatten(1), logsnr[:, None] / 10, self.label(labels)], 1)
        return self.layer(inputs).view_as(z)


def test_a_ladder_runs_on_latents_and_its_samples_are_decoded(tmp_path: Path) -> None:
    data, codec = images(80), Codec(encode, decode, name="rotation")
    latents = codec.latents(data)
    torch.manual_seed(0)
    model = pdlab.Denoiser(Net(), output="x", num_classes=2)
    teacher = pdlab.train(model, latents, tmp_path / "run", updates=30, lr=3e-2, batch=40, quiet=True)
    assert not teacher.denoiser.bounded  # latents are not images: no sampler clips them
    students = pdlab.distill(teacher, latents, tmp_path / "run", first=4, updates=5, quiet=True)
    assert list(students) == [2, 1]
    drawn = codec.images(pdlab.sample(students[2], 6))
    assert drawn.shape == (6, 3, 4, 4)
    assert float(drawn.abs().max()) <= 1
    rows = pdlab.evaluate(students[2], data, n=60, features="pixels", decode=codec.images)
    found = {row.kind: row for row in rows}
    assert found["frechet"].card.sampler == {"name": "ddim", "decoder": "rotation"}
    assert found["frechet"].card.clip is False
    info = read_header(students[1].path)["info"]
    assert info["data"]["name"] == "noise-latents"
    with pytest.raises(pdlab.PdlabError, match="no images"):
        pdlab.evaluate(students[2], latents, n=60, features="pixels")


def test_an_autoencoder_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.7,
        shift_factor=0.1,
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    codec = pdlab.from_autoencoder(tmp_path / "vae")
    data = ImageSource(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8))
    latents = codec.latents(data, tmp_path / "cache").latents
    with torch.no_grad():
        expected = (vae.encode(to_float(data.images)).latent_dist.mean - 0.1) * 0.7
        images = vae.decode(expected / 0.7 + 0.1).sample.clamp(-1, 1)
    assert (latents - expected).abs().max() < 1e-5
    assert (codec.images(latents) - images).abs().max() < 1e-4
    assert codec.digest == pdlab.from_autoencoder(vae).digest
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(pdlab.PdlabError, match="is no AutoencoderKL with safetensors"):
            pdlab.from_autoencoder(folder)
    with pytest.raises(pdlab.PdlabError, match="give Codec"):
        pdlab.from_autoencoder(nn.Linear(1, 1))


class Autoencoder(nn.Module):
    """Digits [B, 1, 8, 8] as [B, 2, 4, 4] and back."""

    def __init__(self) -> None:
        super().__init__()
        self.coder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 2, 3, stride=2, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(2, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 4, 3, padding=1), nn.PixelShuffle(2)
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.coder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


@pytest.mark.slow
def test_a_ladder_on_the_latents_of_an_autoencoder_that_is_trained_here(tmp_path: Path) -> None:
    """One step of the distilled model is nearer to the digits than four of DDIM; README has longer training's."""
    digits = load("digits")
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x = to_float(digits.images)
    for _ in range(300):
        batch = x[torch.randint(len(x), (128,))]
        optimizer.zero_grad()
        (model.decode(model.encode(batch)) - batch).square().mean().backward()
        optimizer.step()
    codec = Codec(model.encode, model.decode, "tiny").fitted(digits)
    latents = codec.latents(digits, tmp_path / "latents")
    denoiser = pdlab.Denoiser(MLP(MLPConfig((2, 4, 4), width=128, blocks=2)), output="x")
    how = {"device": "cpu", "precision": "fp32", "quiet": True}
    teacher = pdlab.train(denoiser, latents, tmp_path / "run", updates=500, lr=1e-3, **how)
    students = pdlab.distill(teacher, latents, tmp_path / "run", first=16, updates=100, **how)

    def distance(model: Checkpoint, steps: int) -> float:
        rows = pdlab.evaluate(model, digits, steps, n=1000, features="pixels", decode=codec.images, device="cpu")
        return next(row.value for row in rows if row.kind == "frechet")

    assert distance(students[1], 1) < distance(teacher, 4)
    assert distance(students[1], 1) < 1.5 * distance(teacher, 16)


def test_latents_must_be_floats() -> None:
    with pytest.raises(ValueError, match="float32"):
        LatentSource(torch.zeros(2, 3, dtype=torch.uint8))


@pytest.mark.slow
def test_a_latent_pipeline_goes_down_to_one_step_by_the_command_line(tmp_path: Path, pdlab) -> None:
    """A pipeline with an autoencoder: photos are encoded once, students draw latents, --decode makes images."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    pipeline = tmp_path / "pipeline"
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        sample_size=16,
        **blocks,
    ).save_pretrained(pipeline / "vae")
    saved(pipeline, unet(in_channels=2, out_channels=2), beta_schedule="scaled_linear")
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for k in range(9):
        Image.fromarray(torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8).numpy()).save(photos / f"{k}.png")
    short = ("--batch", 4, "--updates", 2, "--set", "guide.updates=3", "--set", "guide.batch=4")
    order = ("distill", f"diffusers:{pipeline}", "--run", run, "--from", 4, "--data", photos, *short)
    assert pdlab(*order).code == 0
    assert pdlab(*order).code == 0
    student, grid = run / "student-0001", tmp_path / "grid.png"
    refused = pdlab("sample", student, "--out", grid)
    assert refused.code == 2
    assert "latents: give --decode FOLDER" in refused.err
    assert not grid.exists()
    drawn = pdlab("sample", student, "--decode", pipeline / "vae", "--n", 4, "--out", grid)
    assert drawn.code == 0, drawn.err
    with Image.open(grid) as picture:
        assert picture.width >= 2 * 16
    assert pdlab("sample", student, "--n", 4, "--out", tmp_path / "latents.npz").code == 0
    assert np.load(tmp_path / "latents.npz")["arr_0"].shape == (4, 2, 8, 8)
    assert pdlab("sample", "cifar10:1", "--decode", pipeline / "vae", "--n", 1, "--out", grid).code == 2
