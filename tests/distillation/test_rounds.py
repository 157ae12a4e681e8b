"""The ladder's arithmetic, its settings, and one real halving against the closed-form mixture."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from pdlab.distillation.rounds import Ladder, RoundObjective, check_halvable, ladder, round_settings
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective, independent_times, stratified_times
from pdlab.training.presets import Optimization


def test_ladder_halves() -> None:
    assert ladder(8192, 1) == [4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert ladder(64, 8) == [32, 16, 8]
    assert ladder(12, 3) == [6, 3]


@pytest.mark.parametrize(("first", "last"), [(48, 1), (8, 8), (4, 8), (7, 1), (8, 3), (1, 1)])
def test_step_counts_that_halving_does_not_connect(first: int, last: int) -> None:
    with pytest.raises(PdlabError, match=r"--from \d+ --to \d+"):
        ladder(first, last)


def test_the_advice_is_a_ladder() -> None:
    with pytest.raises(PdlabError) as error:
        ladder(48, 1)
    words = str(error.value).split()
    assert ladder(int(words[words.index("--from", 20) + 1]), int(words[-1]))


def test_the_papers_updates_add_up() -> None:
    """8192 to 4 takes 550 k updates, to 1 750 k (paper-facts, settings)."""
    settings = Optimization(updates=50_000, batch=128, lr=5e-5)
    count = lambda last: sum(round_settings(settings, n).updates for n in ladder(8192, last))  # noqa: E731
    assert (count(4), count(1)) == (550_000, 750_000)


def test_times_are_uniform_and_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([stratified_times(8, generator, torch.device("cpu")) for _ in range(4000)])
    assert t.min() > 0
    assert t.max() <= 1
    assert (t.sort(1).values.diff() - 1 / 8).abs().max() < 1e-6  # one in every eighth
    assert abs(float(t.mean()) - 0.5) < 0.01
    assert abs(float(t[:, 0].std()) - 1 / (8 * 12**0.5)) < 0.002


def test_independent_times_are_uniform_and_know_nothing_of_one_another() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([independent_times(8, generator, torch.device("cpu")) for _ in range(20_000)])
    assert t.min() > 0
    assert t.max() <= 1
    counts = torch.histc(t, 10, 0, 1) / t.numel()
    assert (counts - 0.1).abs().max() < 5 * (0.09 / t.numel()) ** 0.5
    assert (torch.corrcoef(t.T) - torch.eye(8)).abs().max() < 5 / len(t) ** 0.5
    eighths = (t * 8).ceil()
    assert 0 < (eighths.sort(1).values.diff() == 0).any(1).float().mean() < 1  # stratified: never


def test_i_covers_the_grid_evenly() -> None:
    seen: list[torch.Tensor] = []

    class Spy(Denoiser):
        def forward(self, z, t, labels=None, guidance=None):  # type: ignore[no-untyped-def]
            seen.append(t)
            return super().forward(z, t, labels)

    mixture = GaussianMixture(torch.tensor([[0.0, 0.0]]), torch.tensor([1.0]))
    spy = Spy(mixture, "x", bounded=False)
    objective = RoundObjective(mixture.denoiser(), 4, "truncated")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        objective(spy, torch.zeros(64, 2), None, generator)
    t = torch.cat(seen)
    assert set(t.tolist()) == {0.25, 0.5, 0.75, 1.0}
    assert [int((t == v).sum()) for v in (0.25, 0.5, 0.75, 1.0)] == [800] * 4


class MixtureSource(Source):
    """Draws from a mixture, for training."""

    name, split, shape, num_classes, bounded, digest = "mixture", "train", (2,), 0, False, "mixture"

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    def to(self, device):  # type: ignore[no-untyped-def]
        return self

    def draw(self, n, generator, flip=False):  # type: ignore[no-untyped-def]
        return self.mixture.sample(n, generator), None


@pytest.fixture(scope="module")
def halving() -> tuple[Denoiser, Denoiser, GaussianMixture]:
    """A network teacher of a mixture, and its student of 2 steps."""
    torch.set_num_threads(1)
    mixture = GaussianMixture(torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([0.25, 0.3]))
    source, machine = MixtureSource(mixture), Machine("cpu", "fp32")
    torch.manual_seed(0)
    network = MLP(MLPConfig((2,), width=64, blocks=2, embedding_channels=32))
    teacher = Denoiser(network, "v", bounded=False)
    settings = Optimization(updates=1200, batch=256, lr=2e-3, anneal=True)
    fit(teacher, DiffusionObjective("truncated"), source, settings, machine)
    rounds = Ladder(teacher, source, machine)
    rounds.descend(2, dataclasses.replace(settings, updates=600))
    return teacher, rounds.student, mixture


def test_the_students_samples_are_the_teachers_two_step_samples(
    halving: tuple[Denoiser, Denoiser, GaussianMixture],
) -> None:
    teacher, student, _ = halving
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    goal = sample(teacher, z, 4)
    error = (sample(student, z) - goal).norm(dim=1).mean()
    undistilled = (sample(teacher, z, 2) - goal).norm(dim=1).mean()
    assert error < 0.05
    assert error < undistilled / 4


def test_the_trained_teacher_is_near_the_perfect_one(
    halving: tuple[Denoiser, Denoiser, GaussianMixture],
) -> None:
    teacher, _, mixture = halving
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(2))
    perfect = sample(mixture.denoiser(), z, 16)
    assert (sample(teacher, z, 16) - perfect).norm(dim=1).mean() < 0.12


def test_a_round_starts_as_its_teacher_and_leaves_it_alone() -> None:
    mixture = GaussianMixture(torch.tensor([[0.8, 0.3]]), torch.tensor([0.25]))
    torch.manual_seed(0)
    teacher = Denoiser(MLP(MLPConfig((2,), width=16, blocks=1, dropout=0.5)), "v", bounded=False)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    rounds = Ladder(teacher, MixtureSource(mixture), Machine("cpu", "fp32"), weighting="snr+1")
    rounds.descend(4, Optimization(updates=1, batch=8, lr=1e-30))
    for (name, a), b in zip(teacher.state_dict().items(), rounds.student.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    rounds.descend(4, Optimization(updates=3, batch=8, lr=1e-2))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(torch.equal(before[k], v) for k, v in rounds.teacher.state_dict().items())
    assert rounds.student.steps == 4


def test_a_students_training_has_no_dropout_whatever_its_network_is_made_of() -> None:
    class Drops(torch.nn.Module):
        """Dropout that no module of it tells of."""

        def __init__(self, share: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.share, self.inner = share, torch.nn.Linear(2, 2)

        def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
            return torch.nn.functional.dropout(self.inner(z), self.share, self.training)

    source = MixtureSource(GaussianMixture(torch.tensor([[0.8, 0.3]]), torch.tensor([0.25])))
    made = []
    for share in (0.0, 0.9):
        rounds = Ladder(Denoiser(Drops(share), "v", bounded=False), source, Machine("cpu", "fp32"))
        rounds.descend(4, Optimization(updates=3, batch=8, lr=1e-2))
        made.append(rounds.student.state_dict())
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


def test_eps_networks_are_not_halved() -> None:
    teacher = Denoiser(MLP(MLPConfig((2,), width=16, blocks=1)), "eps", bounded=False)
    with pytest.raises(PdlabError, match="output x, v or both"):
        check_halvable(teacher)
