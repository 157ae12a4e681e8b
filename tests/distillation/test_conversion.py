"""An eps network is made a v network before it is halved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import pdlab
from pdlab.data import load as load_data
from pdlab.data.source import to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.distillation.conversion import CONVERTED, ConversionObjective, converted_student
from pdlab.distillation.rounds import Ladder
from pdlab.metrics.features import extractor
from pdlab.metrics.kernel import mmd2_unbiased
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.checkpoint import read_header
from pdlab.training.machine import Machine
from pdlab.training.presets import Optimization

DIGITS = MLPConfig(shape=(1, 8, 8), width=128, blocks=2, embedding_channels=32)


class Raw(torch.nn.Module):
    """The mixture's eps or v, from its x."""

    def __init__(self, mixture: GaussianMixture, output: str) -> None:
        super().__init__()
        self.mixture, self.output = mixture, output

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
        x = self.mixture(z, logsnr)
        eps = (z - alpha * x) / sigma
        return eps if self.output == "eps" else alpha * eps - sigma * x


def test_the_loss_is_zero_where_v_says_what_eps_said() -> None:
    mixture = GaussianMixture(torch.tensor([[0.5, 0.2], [-0.4, 0.1]]).double(), torch.tensor([0.1, 0.2]).double())
    schedule = CosineSchedule(-8, 8)
    teacher = Denoiser(Raw(mixture, "eps"), "eps", schedule, bounded=False)
    student = converted_student(teacher)
    assert student.output == "v"
    objective = ConversionObjective(teacher, "snr+1")
    x = mixture.sample(64, torch.Generator().manual_seed(0))
    wrong = objective(student, x, None, torch.Generator().manual_seed(1))
    right = objective(student.around(Raw(mixture, "v")), x, None, torch.Generator().manual_seed(1))
    assert right.max() < 1e-18
    assert wrong.mean() > 0.1


def test_targets_of_bounded_data_are_clipped() -> None:
    class Far(torch.nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
            return 3 * torch.ones_like(z)

    teacher = Denoiser(Far(), "eps")
    student = Denoiser(torch.nn.Identity(), "x")

    class Nothing(torch.nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
            return torch.zeros_like(z)

    x, generator = torch.zeros(32, 1, 4, 4), torch.Generator().manual_seed(0)
    loss = ConversionObjective(teacher, "truncated")(student.around(Nothing()), x, None, generator)
    # x̂ = (z − 3 sigma) / alpha is far below −1 at the noisiest times, where the loss is the error of x.
    assert (loss - 1).abs().min() < 1e-6
    assert loss[loss > 1 + 1e-6].isfinite().all()


@pytest.mark.slow
def test_a_converted_ladder_beats_one_of_eps(tmp_path: Path) -> None:
    """A small eps teacher of digits, 16 steps to 1: kernel distance of the rungs to the data, by pixels."""
    source = load_data("digits")
    torch.manual_seed(0)
    own = pdlab.Denoiser(MLP(DIGITS), "eps", CosineSchedule(-12, 5))
    teacher = pdlab.train(own, source, tmp_path, updates=1500, batch=128, lr=2e-3, ema=0.99, quiet=True)
    how = {"updates": 150, "batch": 128, "lr": 1e-3}
    students = pdlab.distill(teacher, source, tmp_path, first=16, quiet=True, **how)
    header = read_header(tmp_path / CONVERTED)
    assert (header["output"], header["info"]["model"], header["info"]["teacher"]) == (
        "v",
        CONVERTED,
        teacher.sha256,
    )
    assert header["info"]["cost"]["forward_evaluations"] == 2 * header["info"]["cost"]["images"]
    assert read_header(students[8].path)["info"]["teacher"] == header["sha256"]

    plain = Ladder(teacher.denoiser, source, Machine("cpu", "fp32"))
    by = extractor("pixels", shape=source.shape)
    real, z = by(source.images), torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    far: dict[tuple[str, int], float] = {}
    for steps in (8, 4, 2, 1):
        plain.descend(steps, Optimization(updates=150 * (2 if steps <= 2 else 1), batch=128, lr=1e-3, anneal=True))
        plain.promote()
        for name, model in (("eps", plain.student), ("v", students[steps].denoiser)):
            far[name, steps] = float(mmd2_unbiased(by(to_uint8(sample(model, z))), real))
    assert far["v", 1] < 0.4 * far["eps", 1], far  # seen: 0.35 and 1.80
    assert far["v", 1] < 1.2 * far["v", 8], far
    again = pdlab.distill(teacher, source, tmp_path, first=16, quiet=True, **how)
    assert again[1].sha256 == students[1].sha256
