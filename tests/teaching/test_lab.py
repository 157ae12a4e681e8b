"""The lab's unbroken recipe is the library's method; each broken one departs from it where it says."""

import pytest
import torch

from pdlab.diffusion.samplers import ddim_step, sample
from pdlab.distillation.rounds import Ladder
from pdlab.teaching import lab
from pdlab.training.machine import Machine
from pdlab.training.presets import Optimization

SETTINGS = Optimization(updates=4, batch=32, lr=1e-3, anneal=True)


def source() -> lab.MixtureSource:
    return lab.MixtureSource(lab.mixture())


def test_mixture_has_unit_scale() -> None:
    x = lab.mixture().sample(100_000, torch.Generator().manual_seed(0))
    assert 0.85 < float(x.var(0).mean()) < 1.15


def test_the_mixture_of_classes_has_unit_scale_and_labelled_draws() -> None:
    classes = lab.MixtureSource(lab.mixture_of_classes())
    x, labels = classes.draw(100_000, torch.Generator().manual_seed(0))
    assert classes.num_classes == 3
    assert 0.85 < float(x.var(0).mean()) < 1.15
    assert labels is not None
    assert torch.bincount(labels).min() > 32_000
    assert (source().num_classes, source().draw(1, torch.Generator())[1]) == (0, None)


def test_a_new_guided_student_takes_a_class_and_a_weight() -> None:
    student = lab.new_guided_student(3, 4.0)
    assert (student.num_classes, student.null_class, student.guidance_max) == (3, False, 4.0)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert student(z, 0.5, torch.tensor([0, 1, 2, 0]), torch.tensor([0.0, 1, 2, 4])).x.shape == (4, 2)
    again = lab.new_guided_student(3, 4.0).network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in student.network.state_dict().items())


def test_swapped_visits_the_end_first() -> None:
    teacher, z = lab.mixture().denoiser(), torch.randn(4, 2, dtype=torch.float64)
    t, mid, end = (torch.tensor(v, dtype=torch.float64) for v in (0.75, 0.625, 0.5))
    at_end = ddim_step(teacher.schedule, z, t, end, teacher(z, t))
    back = ddim_step(teacher.schedule, at_end, end, mid, teacher(at_end, end))
    ratio = teacher.schedule.sigma(end) / teacher.schedule.sigma(t)
    by_hand = (back - ratio * z) / (teacher.schedule.alpha(end) - ratio * teacher.schedule.alpha(t))
    objective = lab.SwappedObjective(teacher, 4, "truncated")
    got = objective.target(z, [time.expand(4) for time in (t, mid, end)], None, None)
    torch.testing.assert_close(got.x, by_hand)


def test_off_the_grid_times_are_anywhere_and_end_at_zero() -> None:
    objective = lab.OffGridObjective(lab.mixture().denoiser(), 4, "truncated")
    start, mid, end = objective.times(1000, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert len(start.unique()) == 1000
    torch.testing.assert_close(end, (start - 0.25).clamp(min=0))
    torch.testing.assert_close(mid, (start + end) / 2)


def test_the_unbroken_recipe_is_the_library_s_ladder() -> None:
    teacher = lab.train_teacher(updates=5)
    ours = lab.distil(lab.Recipe(), teacher, source(), SETTINGS, first=4)
    rounds = Ladder(teacher, source(), Machine("cpu", "fp32"))
    for steps, updates in ((2, 8), (1, 8)):
        rounds.descend(steps, Optimization(updates=updates, batch=32, lr=1e-3, anneal=True))
        for a, b in zip(ours[steps].network.parameters(), rounds.student.network.parameters(), strict=True):
            assert torch.equal(a, b)
        rounds.promote()


@pytest.mark.parametrize("name", lab.RECIPES)
def test_every_recipe_gives_a_last_student_of_its_own(name: str) -> None:
    recipe = lab.RECIPES[name]
    teacher = lab.train_teacher(recipe.output, updates=5)
    students = lab.distil(recipe, teacher, source(), SETTINGS, first=4)
    assert list(students) == ([1] if recipe.jump else [2, 1])
    z = torch.randn(16, 2, generator=torch.Generator().manual_seed(2))
    made = sample(students[1], z)
    assert torch.isfinite(made).all()
    if recipe != lab.Recipe():
        plain = lab.distil(lab.Recipe(), lab.train_teacher(updates=5), source(), SETTINGS, first=4)
        assert not torch.equal(made, sample(plain[1], z))
