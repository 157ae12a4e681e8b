"""Each weighting of the error of x equals its MSE, for every output, at every noise level."""

import pytest
import torch

from pdlab.diffusion.prediction import OUTPUTS
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.diffusion.weighting import WEIGHTINGS, mse
from tests.diffusion.test_prediction import raw_of, truth


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weight_times_x_mse_is_the_loss(name: str, output: str) -> None:
    z, alpha, sigma, target = truth()
    raw = raw_of(output, target)
    noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(2), dtype=raw.dtype)
    prediction = OUTPUTS[output](z, alpha, sigma, raw + 0.1 * noise)
    logsnr = 2 * torch.log(alpha / sigma).flatten()
    weighting = WEIGHTINGS[name]
    loss = weighting.loss(target, prediction)
    assert loss.shape == (len(z),)
    torch.testing.assert_close(weighting.weight(logsnr) * mse(target.x, prediction.x), loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_float32_agrees_with_float64_for_v(name: str) -> None:
    """In the precision that users run, up to a log-SNR of 20, where SNR is 5e8."""
    generator = torch.Generator().manual_seed(3)
    x, eps, error = torch.randn(3, 8, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    losses = []
    for dtype in (torch.float64, torch.float32):
        schedule = CosineSchedule()
        alpha, sigma = (per_example(f(t.to(dtype)), x) for f in (schedule.alpha, schedule.sigma))
        z, v = alpha * x.to(dtype) + sigma * eps.to(dtype), alpha * eps.to(dtype) - sigma * x.to(dtype)
        target = OUTPUTS["v"](z, alpha, sigma, v)
        losses.append(WEIGHTINGS[name].loss(target, OUTPUTS["v"](z, alpha, sigma, v + 0.1 * error.to(dtype))))
    torch.testing.assert_close(losses[1].double(), losses[0], rtol=2e-4, atol=1e-12)


def test_weights_are_the_papers() -> None:
    snr = torch.tensor([0.25, 1.0, 4.0])
    expected = {"snr": [0.25, 1.0, 4.0], "truncated": [1.0, 1.0, 4.0], "snr+1": [1.25, 2.0, 5.0]}
    for name, values in expected.items():
        torch.testing.assert_close(WEIGHTINGS[name].weight(snr.log()), torch.tensor(values))
