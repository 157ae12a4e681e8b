"""Bits per dimension: how many a code built on a denoiser would take for the data, in two ways.

Images have 256 levels, and a density is no probability of them: z_0, the image with the little noise that the
schedule begins with (no more than log-SNR 13.3, as Kingma et al. 2021 found), stands between. For any x

    −log P(x) ≤ E_q(z_0|x) [ log q(z_0|x) − log p(z_0) − log P(x|z_0) ],  P(x_d = k | z_0) ∝ N(z_0; alpha k, sigma²)

What z_0 costs, the first two terms, is found

- by the flow: log p(z_0) along the probability-flow ODE (Song et al. 2021), dz/dphi = v(z, t) in the angle phi, on
  which d log p / dphi = −div v; its trace exactly, or by Hutchinson's estimate with signs ±1;
- by the bound: KL(q(z_1|x) ‖ N(0, 1)) + ½ ∫ SNR ‖x − x̂‖² dlogsnr, from logsnr_min to that of z_0 (Kingma et al.
  2021), which is as much for a perfect denoiser, and more for any other.

The two disagree for a trained network: its flow and its stochastic reverse process are not of one density. A
student of few steps has no density: it maps noise to images, and was trained at its own times alone.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pdlab.data.source import ImageSource, to_float
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import per_example
from pdlab.errors import PdlabError
from pdlab.metrics.card import Card, Row, versions
from pdlab.metrics.evaluate import Progress
from pdlab.metrics.reference import reference_card
from pdlab.seeds import seed_for
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.machine import Machine
from pdlab.training.teacher import check_fits

Trace = Literal["exact", "hutchinson"]
#: The log-SNR of z_0, or the schedule's largest if that is less: from level to level six standard deviations.
LOGSNR = 13.3
LEVELS = 256


@dataclass(frozen=True)
class CodeLength:
    """What z_0 costs: `nats` `[B]`, and the network evaluations an example that it took."""

    nats: Tensor
    nfe: int


def check_density(denoiser: Denoiser) -> None:
    """Raise PdlabError for a student, a network that is told a guidance, and a schedule without noise at t = 0."""
    if denoiser.steps is not None:
        raise PdlabError(
            f"a student of {denoiser.steps} steps has no density: it was trained at its own times alone; give its "
            "teacher"
        )
    if denoiser.guidance_max:
        raise PdlabError("a network that is told a guidance has no density of its own: give its teacher")
    if math.isinf(denoiser.schedule.logsnr_max):
        raise PdlabError("a density needs a schedule with some noise at t = 0, a finite logsnr_max")


def begin(denoiser: Denoiser) -> Tensor:
    """The time of z_0, a float64 scalar: 0, or later where the schedule begins above `LOGSNR`."""
    schedule = denoiser.schedule
    return schedule.time(torch.tensor(min(LOGSNR, schedule.logsnr_max), dtype=torch.float64)).clamp(min=0)


def by_flow(
    denoiser: Denoiser,
    x: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    *,
    trace: Trace = "hutchinson",
    generator: torch.Generator | None = None,
    tolerance: float = 1e-5,
) -> CodeLength:
    """log q(z_0|x) − log p(z_0), for z_0 = alpha x + sigma `eps`, with p the density of the probability flow.

    Args:
        denoiser: any; its z is float64 if x is.
        x, eps: data and standard normal noise `[B, …]`.
        trace: of the Jacobian of v, "exact" (as many derivatives as dimensions) or "hutchinson" (one), whose signs
            `generator` (on the CPU) draws.
        tolerance: absolute and relative, of the fifth-order Runge–Kutta method that chooses its own steps.
    """
    from scipy.integrate import solve_ivp

    n, shape = len(x), x.shape
    schedule, t_0 = denoiser.schedule, begin(denoiser)
    alpha, sigma = schedule.alpha(t_0), schedule.sigma(t_0)
    z_0 = alpha * x.double() + sigma * eps.double()
    signs = torch.randint(0, 2, shape, generator=generator).to(x) * 2 - 1
    calls = 0

    def slope(t: float, state: object) -> object:
        nonlocal calls
        calls += 1
        z = torch.as_tensor(state, dtype=torch.float64)[:-n].view(shape).to(x)
        v, divergence = _divergence(denoiser, z, t, labels, signs if trace == "hutchinson" else None)
        return (schedule.phi_span * torch.cat([v.double().flatten().cpu(), divergence.double().cpu()])).numpy()

    start = torch.cat([z_0.flatten().cpu(), torch.zeros(n, dtype=torch.float64)])
    found = solve_ivp(slope, (float(t_0), 1.0), start.numpy(), rtol=tolerance, atol=tolerance)
    if not found.success:
        raise PdlabError(f"the probability flow cannot be followed: {found.message}")
    end = torch.from_numpy(found.y[:, -1])
    log_p = _log_normal(end[:-n].view(n, -1)) + end[-n:]
    log_q = _log_normal(eps.double().flatten(1).cpu()) - eps[0].numel() * torch.log(sigma)
    return CodeLength(log_q - log_p, calls)


def by_bound(
    denoiser: Denoiser,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 64,
    generator: torch.Generator | None = None,
) -> CodeLength:
    """KL(q(z_1|x) ‖ N(0, 1)) + ½ ∫ SNR ‖x − x̂(z_t)‖² dlogsnr for data x `[B, …]`, in expectation over the noise.

    Of the range of log-SNR each of the `draws` has its own part, in which it is drawn by `generator` (on the CPU).
    """
    schedule, t_0 = denoiser.schedule, begin(denoiser)
    least, most = schedule.logsnr_min, float(schedule.logsnr(t_0))
    if math.isinf(least):
        raise PdlabError("the bound needs a finite logsnr_min: its network is asked at every log-SNR")
    alpha, sigma = (of(torch.ones((), dtype=torch.float64)) for of in (schedule.alpha, schedule.sigma))
    size = x[0].numel()
    squares = x.double().square().flatten(1).sum(1).cpu()
    nats = 0.5 * (alpha**2 * squares + size * (sigma**2 - 1 - 2 * torch.log(sigma)))
    for k in range(draws):
        place = (k + torch.rand(len(x), generator=generator, dtype=torch.float64)) / draws
        logsnr = least + (most - least) * place
        eps = torch.randn(x.shape, generator=generator).to(x)
        t = schedule.time(logsnr).to(x)
        z = per_example(schedule.alpha(t), x) * x + per_example(schedule.sigma(t), x) * eps
        with torch.no_grad():
            apart = (x - denoiser(z, t, labels).x).double().square().flatten(1).sum(1).cpu()
        lost = torch.exp(logsnr) * apart - _known(logsnr) * (eps.double().square().flatten(1).sum(1).cpu() - size)
        nats = nats + 0.5 * (most - least) / draws * lost
    return CodeLength(nats, draws)


def level_cost(denoiser: Denoiser, x: Tensor, eps: Tensor, levels: int = LEVELS) -> Tensor:
    """−log P(x | z_0) `[B]`, nats, of images x `[B, …]` with `levels` levels from −1 to 1; z_0 is by `eps`."""
    t_0 = begin(denoiser)
    alpha, sigma = denoiser.schedule.alpha(t_0).to(x.device), denoiser.schedule.sigma(t_0).to(x.device)
    grid = alpha * torch.linspace(-1, 1, levels, dtype=torch.float64, device=x.device)
    total = torch.zeros(len(x), dtype=torch.float64)
    for k in range(len(x)):  # a row at a time: `levels` numbers a pixel
        z_0 = alpha * x[k].double().flatten() + sigma * eps[k].double().flatten()
        log_p = torch.log_softmax(-((z_0[:, None] - grid) ** 2) / (2 * sigma**2), 1)
        index = ((x[k].double().flatten() + 1) * (levels - 1) / 2).round().long()
        total[k] = -log_p.gather(1, index[:, None]).sum()
    return total


def measure_density(
    checkpoint: Checkpoint,
    images: ImageSource,
    n: int,
    machine: Machine,
    *,
    seed: int = 0,
    trace: Trace = "hutchinson",
    draws: int = 64,
    batch: int = 50,
    progress: Progress | None = None,
) -> list[Row]:
    """Bits per dimension of the first `n` of `images`, each of its own class, by the flow and by the bound.

    The spread is the standard error over images. Products are in float32, whatever the network is trained in.
    Raises PdlabError as `check_density`, and for fewer images than `n`, or such as the network does not take.
    """
    denoiser = machine.place(checkpoint.denoiser).eval()
    check_density(denoiser)
    check_fits(
        images, checkpoint.shape, denoiser.num_classes, denoiser.condition, str(checkpoint.path or "the model")
    )
    if not 1 < n <= len(images):
        raise PdlabError(f"{images.name} {images.split} has {len(images):,} images: take --n from 2 to that")
    generator = torch.Generator().manual_seed(seed_for(seed, "density"))
    nats: dict[str, list[Tensor]] = {"flow": [], "bound": []}
    calls = {"flow": 0, "bound": draws}
    for start in range(0, n, batch):
        rows = slice(start, min(n, start + batch))
        x = to_float(images.images[rows]).to(machine.device)
        told = images.labels if denoiser.num_classes else images.conditions if denoiser.condition else None
        labels = None if told is None else told[rows].to(machine.device)
        eps = torch.randn(x.shape, generator=generator).to(x)
        levels = level_cost(denoiser, x, eps)
        flow = by_flow(denoiser, x, eps, labels, trace=trace, generator=generator)
        bound = by_bound(denoiser, x, labels, draws=draws, generator=generator)
        nats["flow"].append(flow.nats + levels)
        nats["bound"].append(bound.nats + levels)
        calls["flow"] = max(calls["flow"], flow.nfe)
        if progress is not None:
            progress(rows.stop, n)
    start_at = float(denoiser.schedule.logsnr(begin(denoiser)))
    how: dict[str, dict[str, Any]] = {
        "flow": {"name": "probability flow, Runge–Kutta 5(4)", "tolerance": 1e-5, "trace": trace},
        "bound": {"name": "variational bound", "draws": draws},
    }
    found = []
    for name, parts in nats.items():
        bits = torch.cat(parts) / (torch.Size(checkpoint.shape).numel() * math.log(2))
        card = Card(
            metric=f"bits/dim-{name}",
            n=n,
            reference=reference_card(images, n),
            extractor={"name": "none"},
            rounding=f"{LEVELS} levels, through z_0 at log-SNR {start_at:.1f}",
            sampler=how[name],
            steps=0,
            nfe=calls[name],
            guidance=0.0,
            classes=list(checkpoint.classes) if denoiser.num_classes else None,
            clip=False,
            seed=seed,
            ema=bool(checkpoint.info.get("ema")),
            checkpoint=checkpoint.sha256 or None,
            precision="fp32",
            device=machine.describe(),
            versions=versions(),
            real=None,
        )
        model = str(checkpoint.info.get("model", "teacher"))
        found.append(Row(model, 0, card.metric, float(bits.mean()), card, float(bits.std() / math.sqrt(n))))
    return found


def _divergence(
    denoiser: Denoiser, z: Tensor, t: float, labels: Tensor | None, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """v `[B, …]` at `z` and its divergence `[B]`, estimated with `signs` where they are given."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        v = denoiser(z, t, labels).v
        if signs is not None:
            (product,) = torch.autograd.grad(v, z, signs)
            return v.detach(), (product * signs).flatten(1).sum(1)
        flat, total = v.flatten(1), torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for d in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, d].sum(), z, retain_graph=True)
            total += row.flatten(1)[:, d]
    return v.detach(), total


def _known(logsnr: Tensor) -> Tensor:
    """What share of ‖eps‖² is in SNR ‖x − x̂‖²: with little noise all, as for data of deviation 0.05.

    Its mean is known, so that only the rest is left to chance; the share is right if the data are Gaussian, and
    whatever it is, the mean stays.
    """
    return torch.sigmoid(logsnr + 2 * math.log(0.05)) ** 2


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, 1) of rows."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
