"""Networks of other conventions: each is proved on a mixture whose answer in that convention is derived here."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import pdlab
from pdlab.adapters.export_diffusers import export_diffusers
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from tests.made import pipeline as saved
from tests.made import unet

MEANS = torch.tensor([[0.8, -0.3, 0.1], [-0.5, 0.6, 0.4], [0.1, -0.7, -0.9]], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.35, 0.1], dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 1])
LOGSNRS = torch.tensor([-8.0, -3.0, 0.0, 2.5, 6.0], dtype=torch.float64)


def posterior(y: Tensor, scale: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """E[x | y] for y = scale x + noise eps, by Bayes' rule with the densities of torch.distributions."""
    total = torch.sqrt(scale[:, None] ** 2 * STDS**2 + noise[:, None] ** 2)  # [B, K]
    density = torch.distributions.Normal(scale[:, None, None] * MEANS, total[..., None])
    log_r = density.log_prob(y[:, None]).sum(-1)
    if labels is not None:
        log_r = log_r.masked_fill((labels[:, None] != CLASSES) & (labels[:, None] != 2), -math.inf)
    gain = scale[:, None] * STDS**2 / total**2
    x = MEANS + gain[..., None] * (y[:, None] - scale[:, None, None] * MEANS)
    return (log_r.softmax(1)[..., None] * x).sum(1)


def edm_network(y: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
    return posterior(y, torch.ones_like(s), s, labels)


def raw_edm_network(inner: Tensor, noise: Tensor) -> Tensor:
    """F of EDM's preconditioning, solved for from D (Karras et al. 2022, equation 7)."""
    s, d = torch.exp(4 * noise)[:, None], 0.5
    y = inner * torch.sqrt(s**2 + d**2)
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / torch.sqrt(s**2 + d**2)
    return (edm_network(y, s[:, 0]) - c_skip * y) / c_out


def flow_network(y: Tensor, tau: Tensor, labels: Tensor | None = None) -> Tensor:
    x = posterior(y, 1 - tau, tau, labels)
    return (y - (1 - tau)[:, None] * x) / tau[:, None] - x  # eps − x


def reversed_flow_network(y: Tensor, time: Tensor) -> Tensor:
    return -flow_network(y, 1 - time / 1000)


KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def discrete_network(predicts: str):
    def network(z: Tensor, k: Tensor, labels: Tensor | None = None) -> Tensor:
        logsnr = torch.logit(KEPT)
        angle = torch.atan(torch.exp(-logsnr / 2))
        low = k.floor().long().clamp(max=998)
        at = angle[low] + (k - low) * (angle[low + 1] - angle[low])
        alpha, sigma = at.cos(), at.sin()
        x = posterior(z, alpha, sigma, labels)
        eps = (z - alpha[:, None] * x) / sigma[:, None]
        v = alpha[:, None] * eps - sigma[:, None] * x
        return {"epsilon": eps, "sample": x, "v_prediction": v}[predicts]

    return network


ADAPTED = {
    "edm": lambda: pdlab.from_edm(edm_network, bounded=False),
    "edm, raw": lambda: pdlab.from_edm(raw_edm_network, sigma_data=0.5, bounded=False),
    "flow": lambda: pdlab.from_flow(flow_network, bounded=False),
    "flow, data at 1": lambda: pdlab.from_flow(reversed_flow_network, data_at=1, time_scale=1000, bounded=False),
    "epsilon": lambda: pdlab.from_discrete(discrete_network("epsilon"), KEPT, "epsilon", bounded=False),
    "sample": lambda: pdlab.from_discrete(discrete_network("sample"), KEPT, "sample", bounded=False),
    "v_prediction": lambda: pdlab.from_discrete(
        discrete_network("v_prediction"), KEPT, "v_prediction", bounded=False
    ),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_the_adapter_says_what_the_exact_denoiser_says(name: str) -> None:
    adapted, exact = ADAPTED[name](), GaussianMixture(MEANS, STDS)
    generator = torch.Generator().manual_seed(0)
    for logsnr in LOGSNRS:
        z = torch.randn(16, 3, generator=generator, dtype=torch.float64)
        t = adapted.schedule.time(logsnr)
        found = adapted(z, t).x
        assert (found - exact(z, logsnr.expand(16))).abs().max() < 1e-9, float(logsnr)
        single = adapted(z.float(), t.float()).x
        assert (single - found).abs().max() < 2e-3 * math.exp(max(0.0, -float(logsnr)) / 2), float(logsnr)


@pytest.mark.parametrize("name", ADAPTED)
def test_ddim_through_it_converges_to_the_exact_flow(name: str) -> None:
    """The flow's end is taken from 2,048 steps of the exact denoiser; DDIM is of first order."""
    adapted = ADAPTED[name]()
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = sample(GaussianMixture(MEANS, STDS).denoiser(adapted.schedule), z, 2048)
    errors = [float((sample(adapted, z, n) - fine).abs().max()) for n in (32, 128, 512)]
    assert errors[2] < 0.3 * errors[1] < 0.09 * errors[0], errors


@pytest.mark.parametrize(
    ("make", "network"), [(pdlab.from_edm, edm_network), (pdlab.from_flow, flow_network)], ids=["edm", "flow"]
)
def test_classes_and_guidance_reach_the_network(make, network) -> None:
    adapted = make(network, num_classes=2, null_class=True, bounded=False)
    exact = GaussianMixture(MEANS, STDS, classes=CLASSES)
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels, logsnr = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor(0.5, dtype=torch.float64)
    t = adapted.schedule.time(logsnr)
    expected = exact(z, logsnr.expand(6), labels)
    assert (adapted(z, t, labels).x - expected).abs().max() < 1e-9
    guided = 3 * expected - 2 * exact(z, logsnr.expand(6), torch.full((6,), 2))
    assert (adapted(z, t, labels, 2.0).x - guided).abs().max() < 1e-9


def test_the_ends_of_the_schedules() -> None:
    edm = pdlab.from_edm(edm_network)
    assert edm.schedule.logsnr_min == pytest.approx(-2 * math.log(80))
    assert edm.schedule.logsnr_max == pytest.approx(-2 * math.log(0.002))
    discrete = pdlab.from_discrete(discrete_network("sample"), KEPT, "sample")
    step = discrete.network.step
    ends = torch.tensor([discrete.schedule.logsnr_max, discrete.schedule.logsnr_min], dtype=torch.float64)
    assert step(ends).tolist() == pytest.approx([0, 999], abs=1e-6)
    assert step(torch.tensor([30.0, -30.0])).tolist() == [0, 999]
    assert step(torch.logit(KEPT)[[1, 500, 998]]).tolist() == pytest.approx([1, 500, 998], abs=1e-6)


def test_a_schedule_that_ends_without_signal() -> None:
    none = torch.cat([KEPT, torch.zeros(1, dtype=torch.float64)])
    with pytest.raises(pdlab.PdlabError, match=r"output eps cannot be used with logsnr_min = -inf"):
        pdlab.from_discrete(discrete_network("epsilon"), none)
    adapted = pdlab.from_discrete(lambda z, k: torch.zeros_like(z), none, "v_prediction", shape=(1, 2, 2))
    assert adapted.schedule.logsnr_min == -math.inf
    assert adapted.network.step(torch.tensor([-math.inf])).tolist() == [1000]
    assert pdlab.sample(adapted, 2, 4).isfinite().all()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small noise-predicting pipeline with classes, as diffusers saves it."""
    return saved(tmp_path_factory.mktemp("pipeline"), unet(num_class_embeds=3), beta_schedule="scaled_linear")


def test_a_pipeline_of_diffusers_answers_as_in_diffusers(pipeline: Path) -> None:
    import diffusers

    adapted = pdlab.from_diffusers(pipeline, null_class=True)
    assert (adapted.output, adapted.num_classes, adapted.null_class, adapted.shape) == ("eps", 2, True, (3, 8, 8))
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline / "scheduler", clip_sample=False)
    scheduler.set_timesteps(1000)
    z, labels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    adapted.eval()
    with torch.no_grad():
        for k in (0, 400, 900):
            theirs = scheduler.step(unet(z, k, class_labels=labels).sample, k, z).pred_original_sample
            logsnr = torch.logit(scheduler.alphas_cumprod[k].double())
            ours = adapted(z, adapted.schedule.time(logsnr), labels).x
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), k


def test_a_transformer_of_diffusers_answers_as_in_diffusers(tmp_path: Path) -> None:
    """A DiT has a class for none of its own, answers a variance beside the noise, and drops labels in training."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        out_channels=6,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=4,
        norm_num_groups=1,
    ).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    transformer.save_pretrained(tmp_path / "transformer")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    adapted = pdlab.from_diffusers(tmp_path)
    assert (adapted.output, adapted.num_classes, adapted.null_class, adapted.shape) == ("eps", 4, True, (3, 8, 8))
    z, labels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 4])
    t = adapted.schedule.time(torch.logit(diffusers.DDIMScheduler().alphas_cumprod[300].double()))
    adapted.train()
    with torch.no_grad():
        theirs = transformer(z, torch.full((3,), 300), class_labels=labels).sample[:, :3]
        assert (adapted(z, t, labels).eps - theirs).abs().max() < 1e-4
        assert torch.equal(adapted(z, t, labels).eps, adapted(z, t, labels).eps)
    pdlab.save(tmp_path / "kept", adapted)
    again = pdlab.load(tmp_path / "kept").denoiser  # the places of its patches are computed, and in no file
    with torch.no_grad():
        assert torch.equal(again(z, t, labels).eps, adapted(z, t, labels).eps)
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    students = pdlab.distill(
        adapted, images, tmp_path / "run", first=4, updates=2, batch=4, labels=torch.arange(8) % 4, quiet=True
    )
    assert pdlab.sample(pdlab.load(students[1].path), 2).shape == (2, 3, 8, 8)
    with pytest.raises(pdlab.PdlabError, match="DiTTransformer2DModel cannot be told the times of a student"):
        export_diffusers(students[1].denoiser, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "unet" / "config.json").unlink(), "has no unet/config.json"),
        (lambda place: next((place / "unet").glob("*.safetensors")).rename(place / "unet" / "a.bin"), "pickled"),
        (
            lambda place: next((place / "unet").glob("*.safetensors")).write_bytes(b"x" * 99),
            "is not read by diffusers",
        ),
        (lambda place: (place / "scheduler" / "scheduler_config.json").write_text("{}"), "not of discrete betas"),
        (lambda place: (place / "scheduler" / "scheduler_config.json").write_text("{"), "scheduler"),
    ],
)
def test_a_folder_that_is_no_such_pipeline(pipeline: Path, tmp_path: Path, harm, message: str) -> None:
    place = tmp_path / "copy"
    shutil.copytree(pipeline, place)
    harm(place)
    with pytest.raises(pdlab.PdlabError, match=message) as refused:
        pdlab.from_diffusers(place)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pdlab.from_edm(edm_network, sigma_min=2, sigma_max=1), "sigma_min 2 must be above 0 and below"),
        (lambda: pdlab.from_flow(flow_network, data_at=2), "0 or 1, not 2"),
        (lambda: pdlab.from_flow(3), "a network or a function, not int"),
        (lambda: pdlab.from_discrete(edm_network, KEPT, "eps"), "choose one of epsilon, sample, v_prediction"),
        (lambda: pdlab.from_discrete(edm_network, KEPT.flip(0)), "alphas_cumprod must fall"),
        (lambda: pdlab.from_discrete(edm_network, [0.5]), "2 steps or more"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(pdlab.PdlabError, match=message):
        make()


@pytest.mark.slow
def test_a_pipeline_goes_down_to_one_step_by_the_command_line(pipeline: Path, tmp_path: Path, pdlab) -> None:
    """The noise-predicting network becomes a v network, is halved, sampled, and found again by its files alone."""
    photos = tmp_path / "photos"
    for k in range(24):
        (photos / str(k % 3)).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(photos / str(k % 3) / f"{k}.png")
    run, short = (
        tmp_path / "run",
        ("--batch", 4, "--updates", 2, "--set", "guide.updates=3", "--set", "guide.batch=4"),
    )
    order = ("distill", f"diffusers:{pipeline}", "--run", run, "--from", 4, "--data", photos, *short)
    assert pdlab(*order).code == 0
    assert [path.name for path in sorted(run.iterdir()) if (path / "model.json").exists()] == [
        "converted",
        "student-0001",
        "student-0002",
        "teacher",
    ]
    again = pdlab(*order)
    assert again.code == 0
    drawn = pdlab("sample", run / "student-0002", "--class", "1", "--n", 4, "--out", tmp_path / "grid.png")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "grid.png").exists()
    nothing = tmp_path / "nothing"
    bad = pdlab("distill", f"diffusers:{pipeline}", "--run", nothing, "--from", 6, "--data", photos)
    assert bad.code == 2
    assert not nothing.exists()
    other = pdlab("distill", f"diffusers:{tmp_path}", "--run", run, "--from", 4, "--data", photos)
    assert other.code == 2
    assert "has no unet/config.json" in other.err
