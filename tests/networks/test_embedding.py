"""The noise level's angle and its sinusoidal embedding."""

import math

import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.networks.embedding import guidance_embedding, noise_angle, time_embedding

INF = math.inf


def test_the_angle_is_the_time_of_the_cosine_schedule():
    t = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    logsnr = -2 * torch.log(torch.tan(t * math.pi / 2))
    torch.testing.assert_close(noise_angle(logsnr), t, rtol=1e-12, atol=0)
    torch.testing.assert_close(noise_angle(logsnr.float()), t.float(), rtol=1e-6, atol=0)


def test_the_angle_reaches_its_ends_and_never_decreases_with_noise():
    logsnr = torch.tensor([INF, 1e4, 200.0, 20.0, 0.0, -20.0, -200.0, -1e4, -INF])
    u = noise_angle(logsnr)
    assert u[0] == 0
    assert u[4] == 0.5
    torch.testing.assert_close(u[-1], torch.tensor(1.0), rtol=0, atol=2e-7)
    assert (u.diff() >= 0).all()
    assert (u[:-3].diff() > 0).sum() >= 4


def test_the_embedding_is_sines_then_cosines_of_a_thousand_angles():
    logsnr = torch.tensor([3.0, -1.5], dtype=torch.float64)
    u = [math.atan(math.exp(-x / 2)) / (math.pi / 2) for x in logsnr.tolist()]
    frequencies = [10000 ** (-k / 3) for k in range(4)]
    expected = [[f(1000 * a * w) for f in (math.sin, math.cos) for w in frequencies] for a in u]
    torch.testing.assert_close(time_embedding(logsnr, 8), torch.tensor(expected, dtype=torch.float64))


def test_half_precision_and_autocast_leave_the_embedding_in_float32():
    logsnr = torch.tensor([0.37, -9.0]).bfloat16()
    expected = time_embedding(logsnr.double(), 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        actual = time_embedding(logsnr, 16)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


def test_infinite_logsnr_embeds_to_finite_values():
    assert time_embedding(torch.tensor([INF, -INF]), 32).isfinite().all()


@pytest.mark.parametrize("channels", [0, 2, 7])
def test_a_bad_number_of_channels_is_refused(channels):
    with pytest.raises(PdlabError, match="even"):
        time_embedding(torch.zeros(1), channels)


def test_guidance_weights_are_told_apart():
    w = torch.arange(0, 10, 0.1)
    embedded = guidance_embedding(w, 32)
    assert embedded.shape == (100, 32)
    assert embedded.dtype == torch.float32
    distance = torch.cdist(embedded.double(), embedded.double())
    assert (distance + 10 * torch.eye(100)).min() > 0.1
    frequencies = torch.linspace(math.log(0.25), math.log(8), 16, dtype=torch.float64).exp()
    expected = torch.sin(0.7 * frequencies)
    torch.testing.assert_close(guidance_embedding(torch.tensor([0.7]).double(), 32)[0, :16], expected)
