"""The paper's U-Net: its published sizes, its parts, and what it promises to callers."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pdlab.diffusion.prediction import output_channels
from pdlab.errors import PdlabError
from pdlab.networks.final import FinalConv2d
from pdlab.networks.unet import AttentionBlock, ResidualBlock, UNet, UNetConfig
from pdlab.training.presets import preset


def network_of(name: str) -> UNetConfig:
    """The network that a preset trains."""
    settings = preset(name)
    assert isinstance(settings.network, UNetConfig)
    return replace(settings.network, out_multiple=output_channels(settings.output, 1))


CIFAR10, IMAGENET64, LSUN128 = (network_of(name) for name in ("cifar10-paper", "imagenet64", "lsun128"))
CIFAR10_GPU = network_of("cifar10-gpu")
CIFAR10_CPU_16PX = network_of("cifar10-cpu-16px")
TINY = UNetConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    heads=2,
    embedding_channels=16,
)


def size(config: UNetConfig) -> tuple[float, float]:
    """Millions of parameters and forward GMACs of one image, without computing anything."""
    with torch.device("meta"):
        network = UNet(config)
        z = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        labels = torch.empty(1, dtype=torch.int64) if config.num_classes else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(z, torch.empty(1), labels)
    return sum(p.numel() for p in network.parameters()) / 1e6, counter.get_total_flops() / 2e9


def awake(config: UNetConfig = TINY, seed: int = 0) -> UNet:
    """A network whose zero-initialised layers are random too, so that every part matters."""
    torch.manual_seed(seed)
    network = UNet(config).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(config: UNetConfig = TINY, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, config.in_channels, config.image_size, config.image_size, generator=generator)
    return z, torch.randn(batch, generator=generator) * 4


@pytest.mark.parametrize(
    ("config", "parameters", "gmacs"),
    [(CIFAR10, 60.0, 17.9), (IMAGENET64, 295.9, 109.7), (LSUN128, 139.6, 66.8)],
    ids=["cifar10", "imagenet64", "lsun128"],
)
def test_the_papers_networks_have_their_sizes(config, parameters, gmacs):
    assert size(config) == (pytest.approx(parameters, abs=0.05), pytest.approx(gmacs, abs=0.05))


def test_the_small_networks_stay_small():
    parameters, gmacs = size(CIFAR10_GPU)
    assert 4 <= parameters <= 5
    assert gmacs <= 1
    parameters, gmacs = size(CIFAR10_CPU_16PX)
    assert parameters <= 3.5
    assert gmacs <= 0.08


def test_the_config_survives_json():
    assert UNetConfig(**json.loads(json.dumps(asdict(IMAGENET64)))) == IMAGENET64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 6, "multipliers": (1, 2, 2)}, "halve"),
        ({"multipliers": ()}, "multipliers"),
        ({"image_size": 10, "patch": 5, "attention": (1,), "multipliers": (1, 1, 1)}, "patches of 5"),
        ({"attention": (5,)}, "never reached"),
        ({"heads": None}, "heads"),
        ({"head_dim": 8}, "heads"),
        ({"heads": 3}, "divide"),
        ({"channels": 0}, "channels must"),
        ({"multipliers": (1, 0)}, "multipliers.1 must"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"num_classes": -1}, "num_classes"),
        ({"null_class": True}, "null_class needs num_classes"),
        ({"guidance_max": 2.0}, "guidance_max needs num_classes"),
        ({"guidance_max": math.inf, "num_classes": 2}, "finite"),
        ({"guidance_max": -1.0, "num_classes": 2}, "guidance_max"),
        ({"image_levels": 3}, "image_levels"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(PdlabError, match=message):
        replace(TINY, **change)


def test_the_untrained_network_gives_zero_and_its_blocks_the_identity():
    torch.manual_seed(0)
    network = UNet(TINY)
    assert torch.equal(network(*inputs()), torch.zeros(3, 3, 8, 8))
    x = torch.randn(2, 16, 4, 4)
    residual, attention, _ = network.middle
    assert torch.equal(residual(x, torch.randn(2, 16)), x)
    assert torch.equal(attention(x), x)


def test_blocks_resample_by_averages_and_by_nearest_neighbours():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    down = ResidualBlock(8, 8, 16, 1, 0.0, "down")
    up = ResidualBlock(8, 8, 16, 1, 0.0, "up")
    for block in (down, up):
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
    e = torch.zeros(2, 16)
    torch.testing.assert_close(down(x, e), x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)))
    torch.testing.assert_close(up(x, e), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_scale_and_shift_act_after_the_second_norm():
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, 16, 1, 0.0)
    torch.nn.init.dirac_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    torch.nn.init.zeros_(block.condition.weight)
    block.condition.bias.data = torch.cat([torch.full((4,), -1.0), torch.arange(4.0)])  # 1 + scale = 0
    x = torch.randn(2, 4, 4, 4)
    expected = F.silu(torch.arange(4.0))[None, :, None, None].expand_as(x)
    torch.testing.assert_close(block(x, torch.zeros(2, 16)) - x, expected)


@pytest.mark.parametrize("side", [4, 12])  # the CPU takes another path for few tokens
def test_attention_is_softmax_attention_over_pixels(side):
    torch.manual_seed(0)
    block = AttentionBlock(8, 2, 1).double()
    torch.nn.init.eye_(block.out.weight)
    torch.nn.init.zeros_(block.out.bias)
    x = torch.randn(2, 8, side, side, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x).permute(0, 2, 3, 1).reshape(2, side * side, 8)).chunk(3, dim=2)
    heads = []
    for d in (slice(0, 4), slice(4, 8)):
        weights = torch.einsum("bid,bjd->bij", q[..., d], k[..., d]).div(math.sqrt(4)).softmax(2)
        heads.append(weights @ v[..., d])
    expected = x + torch.cat(heads, 2).reshape(2, side, side, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), expected)


def test_norms_have_32_groups_or_as_many_as_the_channels_allow():
    def groups(config: UNetConfig) -> set[tuple[int, int]]:
        with torch.device("meta"):
            modules = UNet(config).modules()
        return {(m.num_channels, m.num_groups) for m in modules if isinstance(m, torch.nn.GroupNorm)}

    assert groups(CIFAR10) == {(256, 32), (512, 32)}
    assert groups(TINY) == {(8, 8), (16, 16), (24, 24), (32, 32)}
    assert all(channels == 16 * n for channels, n in groups(CIFAR10_GPU))


def test_every_parameter_is_used_and_gets_a_gradient():
    config = replace(TINY, num_classes=5)
    network = awake(config).train()
    network(*inputs(), torch.arange(3)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_output_depends_on_the_noise_level_and_is_finite_at_its_ends():
    network = awake()
    z = inputs(batch=1)[0].expand(4, -1, -1, -1)
    out = network(z, torch.tensor([math.inf, 1.0, -1.0, -math.inf]))
    assert out.isfinite().all()
    assert (out[1:] - out[:-1]).abs().mean(dim=(1, 2, 3)).min() > 1e-4


def test_patches_are_channels_of_a_smaller_image():
    """A network of patches is the plain one of 4 times the channels, between space-to-depth and back."""
    patched = awake(replace(TINY, image_size=16, patch=2))
    plain = awake(replace(TINY, in_channels=12))
    plain.load_state_dict(patched.state_dict())
    z, logsnr = inputs(patched.config)
    # channel c * 4 + 2 * i + j of the small image is pixel (i, j) of its patch
    small = torch.stack([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=2).flatten(1, 2)
    expected = plain(small, logsnr).unflatten(1, (3, 2, 2))
    out = patched(z, logsnr)
    assert out.shape == z.shape
    for i in (0, 1):
        for j in (0, 1):
            torch.testing.assert_close(out[:, :, i::2, j::2], expected[:, :, i, j], rtol=1e-5, atol=1e-5)


def test_labels_condition_the_network():
    network = awake(replace(TINY, num_classes=5))
    z, logsnr = inputs()
    one, other = network(z, logsnr, torch.tensor([0, 1, 2])), network(z, logsnr, torch.tensor([0, 1, 4]))
    torch.testing.assert_close(one[:2], other[:2])
    assert (one[2] - other[2]).abs().mean() > 1e-4
    with pytest.raises(PdlabError, match="give labels"):
        network(z, logsnr)
    with pytest.raises(PdlabError, match="no labels"):
        awake()(z, logsnr, torch.tensor([0, 1, 2]))


def test_images_of_another_shape_are_refused():
    with pytest.raises(PdlabError, match="shape"):
        UNet(TINY)(torch.zeros(1, 3, 16, 16), torch.zeros(1))


def test_dropout_acts_in_training_only_and_evaluation_repeats_itself():
    network = awake(replace(TINY, dropout=0.5))
    assert torch.equal(network(*inputs()), network(*inputs()))
    network.train()
    assert not torch.equal(network(*inputs()), network(*inputs()))


def test_with_and_without_gradients_the_output_and_the_input_are_the_same():
    network, (z, logsnr) = awake(), inputs()
    kept = z.clone()
    expected = network(z, logsnr).detach()
    with torch.inference_mode():
        assert torch.equal(network(z, logsnr), expected)
    assert torch.equal(z, kept)


def test_channels_last_and_bfloat16_change_nothing_but_rounding():
    z, logsnr = inputs()
    with torch.inference_mode():
        expected = awake()(z, logsnr)
        network = awake().to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(z, logsnr), expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(z, logsnr)
        half = network.bfloat16()(z, logsnr)
    for actual in (mixed, half):
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() < 0.03 * expected.norm()


def test_the_class_for_none_is_one_more_than_there_are():
    config = replace(TINY, num_classes=3, null_class=True)
    network, (z, logsnr) = awake(config), inputs(config)
    none = network(z, logsnr, torch.full((3,), 3))
    assert not torch.allclose(none, network(z, logsnr, torch.full((3,), 2)))
    with pytest.raises(IndexError):
        UNet(replace(TINY, num_classes=3))(z, logsnr, torch.full((3,), 3))


def test_guidance_has_no_effect_before_training_and_one_for_each_image_after():
    config = replace(TINY, num_classes=3, null_class=True, guidance_max=4.0)
    z, logsnr = inputs(config)
    labels, w = torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0, 4.0])
    torch.manual_seed(0)
    fresh = UNet(config)
    torch.nn.init.normal_(fresh.conv_out.weight)
    torch.testing.assert_close(fresh(z, logsnr, labels, w), fresh(z, logsnr, labels, 0 * w), rtol=0, atol=0)
    network = awake(config)
    changed = network(z, logsnr, labels, w) - network(z, logsnr, labels, torch.tensor([0.0, 2.0, 4.0]))
    assert changed[1].any()
    torch.testing.assert_close(changed[[0, 2]], torch.zeros(2, 3, 8, 8), rtol=0, atol=1e-6)


def test_guidance_is_asked_for_and_refused_by_name():
    config = replace(TINY, num_classes=3, null_class=True)
    z, logsnr = inputs(config)
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(PdlabError, match="takes no guidance"):
        UNet(config)(z, logsnr, labels, torch.ones(3))
    with pytest.raises(PdlabError, match="takes guidance"):
        UNet(replace(config, guidance_max=4.0))(z, logsnr, labels)


def test_the_last_convolution_is_a_product_of_matrices_where_cudnn_would_round_it():
    torch.manual_seed(0)
    conv = FinalConv2d(5, 2)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(3, 5, 6, 4, requires_grad=True)
    loss = torch.randn(3, 2, 6, 4)
    found = [torch.autograd.grad((f(x) * loss).sum(), [x, *conv.parameters()]) for f in (conv, conv.by_product)]
    torch.testing.assert_close(conv.by_product(x), conv(x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    elsewhere = FinalConv2d(5, 2).to("meta")
    with torch.profiler.profile() as profile:
        assert elsewhere(x.to("meta")).shape == (3, 2, 6, 4)
    names = {event.key for event in profile.key_averages()}
    assert "aten::matmul" in names
    assert not [name for name in names if "conv" in name]
