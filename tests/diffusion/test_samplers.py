"""Samplers against diffusers' schedulers, against the exact ODE, and against their own second forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import (
    SAMPLERS,
    ancestral,
    ancestral_step,
    ddim,
    ddim_step,
    ddim_step_angle,
    dpm_solver,
    heun,
    nfe,
    sample,
)
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError
from tests.diffusion.test_mixture import mixture

UNBOUNDED = CosineSchedule(-math.inf, math.inf)


class Dummy(nn.Module):
    """A seeded smooth nonlinear function of z and the noise level."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.mix = torch.randn(3, 3, generator=generator, dtype=torch.float64) / 2
        self.calls = 0

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        level = per_example(torch.atan(torch.exp(-logsnr / 2)), z)
        return torch.tanh(torch.einsum("ij,bjhw->bihw", self.mix.to(z.dtype), z)) + 0.3 * torch.sin(3 * level)


def dummy(output: str = "v", schedule: CosineSchedule = UNBOUNDED) -> Denoiser:
    return Denoiser(Dummy(), output, schedule)


def noise(n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(6), dtype=dtype)


T = 64  # diffusers' discrete times; k stands for t = (k + 1)/T


def diffusers_betas() -> list[float]:
    t = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = torch.cos(math.pi / 2 * t) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()


def run_diffusers(scheduler, denoiser: Denoiser, z: Tensor, steps: int, **step_options) -> Tensor:
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        raw = denoiser.network(z, denoiser.schedule.logsnr((k.double() + 1) / T).expand(len(z)))
        z = scheduler.step(raw, k, z, **step_options).prev_sample
    return z


@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("output", ["v", "x"])
def test_ddim_equals_diffusers(output: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=T,
        trained_betas=diffusers_betas(),
        prediction_type={"v": "v_prediction", "x": "sample"}[output],
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=True,
    )
    # float64 tables: diffusers keeps them in float32, and alpha = 0 exactly needs more than its cumprod gives
    t = (torch.arange(T, dtype=torch.float64) + 1) / T
    scheduler.alphas_cumprod = torch.cos(math.pi / 2 * t) ** 2
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    theirs = run_diffusers(scheduler, dummy(output), noise(), steps, use_clipped_model_output=True)
    torch.testing.assert_close(sample(dummy(output), noise(), steps), theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("nu", "variance"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_ancestral_step_equals_diffusers(nu: float, variance: str) -> None:
    """Every step of diffusers' DDPM from k to k - 1, given the noise it drew."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        trained_betas=diffusers_betas(),
        prediction_type="v_prediction",
        variance_type=variance,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(T)
    t = (torch.arange(T, dtype=torch.float64) + 1) / T
    scheduler.alphas_cumprod = torch.cos(math.pi / 2 * t) ** 2
    denoiser = dummy()
    for k in range(T - 2, 0, -1):  # not t = 1, where diffusers divides by alpha = 0
        z = noise() * (1 + k / T)
        t_k, s_k = torch.tensor([(k + 1) / T, k / T], dtype=torch.float64)
        p = denoiser(z, float(t_k))
        theirs = scheduler.step(p.v, k, z, generator=torch.Generator().manual_seed(k)).prev_sample
        drawn = torch.randn(z.shape, generator=torch.Generator().manual_seed(k), dtype=z.dtype)
        ours = ancestral_step(UNBOUNDED, z, t_k, s_k, p.x, drawn, nu)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_ancestral_variance_interpolates_geometrically() -> None:
    t, s = torch.tensor([0.6, 0.4], dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    std = {nu: ancestral_step(UNBOUNDED, zero, t, s, zero, one, nu) for nu in (0.0, 0.3, 1.0)}
    assert std[0.0] < std[0.3] < std[1.0]
    torch.testing.assert_close(std[0.3], std[0.0] ** 0.7 * std[1.0] ** 0.3)


def test_ancestral_marginals_stay_on_the_forward_process() -> None:
    """With the true x and the lower variance, a step from z_t ~ q(z_t|x) is distributed as q(z_s|x)."""
    t, s, x = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(0.8)
    generator = torch.Generator().manual_seed(0)
    eps, fresh = torch.randn(2, 400_000, generator=generator)
    z = UNBOUNDED.alpha(t) * x + UNBOUNDED.sigma(t) * eps
    z_s = ancestral_step(UNBOUNDED, z, t, s, x, fresh, 0.0)
    assert abs(float(z_s.mean() - UNBOUNDED.alpha(s) * x)) < 5e-3
    assert abs(float(z_s.std() - UNBOUNDED.sigma(s))) < 5e-3


@pytest.mark.parametrize("schedule", [UNBOUNDED, CosineSchedule()])
def test_ancestral_is_finite_from_pure_noise_to_data(schedule: CosineSchedule) -> None:
    for nu in (0.0, 0.5, 1.0):
        steps = list(ancestral(dummy("v", schedule), noise(), 5, nu=nu, generator=torch.Generator().manual_seed(0)))
        assert all(torch.isfinite(step.z).all() for step in steps)
        assert torch.equal(steps[-1].z, steps[-1].prediction.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [UNBOUNDED, CosineSchedule()])
def test_ddim_step_is_a_rotation(schedule: CosineSchedule, dtype: torch.dtype) -> None:
    denoiser, z = dummy("v", schedule), noise(dtype=dtype)
    for i in range(64, 0, -1):
        t, s = torch.tensor([i / 64, (i - 1) / 64], dtype=dtype)
        p = denoiser(z, float(t))
        tolerance = 2e-6 if dtype is torch.float32 else 1e-13
        a, b = ddim_step(schedule, z, t, s, p), ddim_step_angle(schedule, z, t, s, p)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        z = a


def error_of(sampler: Callable, steps: int) -> float:
    """Distance to the exact solution of the mixture's ODE, from the same noise."""
    m = mixture()
    z = torch.randn(256, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    exact = _exact(m.denoiser(UNBOUNDED), z)
    *_, last = sampler(m.denoiser(UNBOUNDED), z, steps)
    return float((last.z - exact).norm(dim=1).mean())


_CACHE: dict[str, Tensor] = {}


def _exact(denoiser: Denoiser, z: Tensor) -> Tensor:
    """Classic Runge-Kutta on dz/dphi = v: another method, in another variable, than any sampler here."""
    if "exact" not in _CACHE:
        n, y = 300, z
        h = -1 / n
        for k in range(n - 1):
            t = 1 + k * h
            f = lambda y, t: UNBOUNDED.phi_span * denoiser(y, t).v  # noqa: E731
            k1 = f(y, t)
            k2 = f(y + h / 2 * k1, t + h / 2)
            k3 = f(y + h / 2 * k2, t + h / 2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3, t + h))
        _CACHE["exact"] = denoiser(y, 1 / n).x
    return _CACHE["exact"]


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2)])
def test_order_of_convergence(sampler: Callable, order: int) -> None:
    coarse, fine = error_of(sampler, 32), error_of(sampler, 128)
    measured = math.log(coarse / fine, 4)
    assert order - 0.2 < measured < order + 0.3, (coarse, fine)


def test_higher_order_wins_at_equal_steps() -> None:
    assert error_of(dpm_solver, 32) < error_of(ddim, 32) / 3
    assert error_of(heun, 32) < error_of(ddim, 32) / 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract_of_every_sampler(name: str) -> None:
    denoiser = dummy()
    options = {"generator": torch.Generator().manual_seed(0)} if name == "ancestral" else {}
    steps = list(SAMPLERS[name](denoiser, noise(), 4, **options))
    assert [step.t for step in steps] == [0.75, 0.5, 0.25, 0.0]
    assert denoiser.network.calls == nfe(name, 4)
    assert torch.equal(steps[-1].z, steps[-1].prediction.x)
    assert steps[-1].z.abs().max() <= 1  # images are clipped unless told otherwise
    unclipped = list(SAMPLERS[name](dummy(), 3 * noise(), 4, clip=False, **options))
    assert unclipped[-1].z.abs().max() > 1


def test_labels_reach_the_network() -> None:
    class Labelled(nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            return z * 0 + per_example(labels.to(z.dtype), z)

    labels = torch.tensor([0, 1, -1, 0])
    out = sample(Denoiser(Labelled(), "x", num_classes=10), noise(), 3, labels=labels)
    torch.testing.assert_close(out[:, 0, 0, 0], labels.double())


def test_step_counts() -> None:
    denoiser = dummy()
    with pytest.raises(PdlabError, match="how many steps"):
        sample(denoiser, noise())
    with pytest.raises(PdlabError, match="choose one of ddim"):
        sample(denoiser, noise(), 4, "euler")
    denoiser.steps = 4
    torch.testing.assert_close(sample(denoiser, noise()), sample(denoiser, noise(), 4))
    with pytest.warns(UserWarning, match="distilled for 4 steps"):
        sample(denoiser, noise(), 8)


def test_dpm_solver_equals_diffusers() -> None:
    """On a schedule with alpha > 0 at t = 1, where diffusers' half log-SNR must be finite."""
    diffusers = pytest.importorskip("diffusers")
    schedule = CosineSchedule(-9.0, math.inf)
    alpha_bar = schedule.alpha(torch.arange(T + 1, dtype=torch.float64) / T) ** 2
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T,
        trained_betas=(1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    denoiser = dummy("v", schedule)
    theirs = run_diffusers(scheduler, denoiser, noise(), 16)
    ours = sample(denoiser, noise(), 16, "dpm-solver++", clip=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # their tables are float32
