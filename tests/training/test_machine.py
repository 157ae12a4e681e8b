"""A machine stays what it is beside others, runs any network, and says in which precision."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.unet import UNet, UNetConfig
from pdlab.training.machine import Machine


class Stranger(nn.Module):
    """A network of somebody else: no configuration, and float32 tensors made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.seen: list[torch.dtype] = []

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        level = torch.sigmoid(logsnr)[:, None, None, None].expand_as(z)
        h = self.first(torch.cat([z, level], dim=1))
        self.seen.append(h.dtype)
        return self.last(torch.relu(h))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for an Ampere GPU: what a machine asks, not what runs on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def settings_of_the_process() -> list[object]:
    return [
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    ]


def test_machines_do_not_overwrite_one_another(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of_the_process()
    one, two, three = Machine("auto", "fp32"), Machine("cpu", "fp32"), Machine("cuda", "bf16")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # nor does what comes later
    Machine("cpu", "bf16")
    assert [machine.device for machine in (one, two, three)] == [
        torch.device("cuda", 1),
        torch.device("cpu"),
        torch.device("cuda", 1),
    ]
    assert [machine.precision_for(nn.Conv2d(1, 1, 1)) for machine in (one, two, three)] == ["fp32", "fp32", "bf16"]
    assert settings_of_the_process() == before


def test_two_machines_run_in_turn_in_their_own_precision() -> None:
    low, full = Machine("cpu", "bf16"), Machine("cpu", "fp32")
    network = Stranger()
    denoiser = Denoiser(network, "x")
    z, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9])
    with low.for_sampling(denoiser) as one, full.for_sampling(denoiser) as two:
        for model in (one, two, one):
            model(z, t)
    low.for_training(network)(z, t)
    full.for_training(network)(z, t)
    half, whole = torch.bfloat16, torch.float32
    assert network.seen == [half, whole, half, half, whole]


def test_convolutions_in_tf32_are_not_called_fp32(gpu: None) -> None:
    network, linear = UNet(UNetConfig(8, channels=8, multipliers=(1,), blocks=1, attention=())), nn.Linear(2, 2)
    on_gpu, on_cpu = Machine("cuda", "fp32"), Machine("cpu", "fp32")
    assert torch.backends.cudnn.allow_tf32  # as PyTorch comes
    assert on_gpu.computes_in(network) == "tf32"
    assert on_gpu.computes_in(linear) == "fp32"
    assert on_cpu.computes_in(network) == "fp32"
    assert Machine("cuda", "bf16").computes_in(network) == "bf16"
    torch.backends.cudnn.allow_tf32 = False
    assert on_gpu.computes_in(network) == "fp32"
    torch.set_float32_matmul_precision("high")
    assert on_gpu.computes_in(linear) == "tf32"
    assert on_gpu.precision_for(network) == "fp32"  # what was asked for stays


def test_a_gpu_without_tf32_computes_in_fp32(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert Machine("cuda", "fp32").computes_in(nn.Conv2d(1, 1, 1)) == "fp32"


@pytest.mark.parametrize("make", [Stranger, lambda: MLP(MLPConfig((1, 8, 8), width=16, blocks=1))])
def test_any_network_runs_in_bf16_and_answers_in_float32(make: type[nn.Module]) -> None:
    machine, network = Machine("cpu", "bf16"), make()
    nn.init.normal_(network.last.weight)  # type: ignore[arg-type, union-attr]
    z, t = torch.randn(4, 1, 8, 8), torch.linspace(0.1, 1, 4)
    denoiser = Denoiser(network, "v")
    logsnr = denoiser.schedule.logsnr(t)
    full, low = network(z, logsnr), machine.for_training(network)(z, logsnr)
    assert low.dtype is torch.float32
    assert 0 < (low - full).abs().max() < 0.3
    weights = {name: p.clone() for name, p in network.named_parameters()}
    with machine.for_sampling(denoiser) as live:
        drawn = live(z, t)
        again = live(z, t)  # from the copies of the weights that are kept
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float32  # a sampler's own product
    assert [part.dtype for part in drawn] == [torch.float32] * 3
    torch.testing.assert_close(drawn.v, low)  # training and sampling alike
    torch.testing.assert_close(again.v, drawn.v, rtol=0, atol=0)
    assert all(torch.equal(weights[name], p) and p.dtype is torch.float32 for name, p in network.named_parameters())


class Casts(TorchDispatchMode):
    """Counts the tensors of `shape` that become bf16."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.number = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.number += kwargs.get("dtype") is torch.bfloat16
        return func(*args, **kwargs)


def test_sampling_casts_the_weights_once_and_training_sees_every_change() -> None:
    machine, network = Machine("cpu", "bf16"), Stranger()
    denoiser, z = Denoiser(network, "v"), torch.randn(2, 1, 8, 8)
    with Casts(network.first.weight.shape) as casts, machine.for_sampling(denoiser) as live:
        for t in (1.0, 0.5, 0.25):
            live(z, t)
    assert casts.number == 1
    wrapped = machine.for_training(network)
    before = wrapped(z, torch.zeros(2))
    with torch.no_grad():
        network.last.weight.mul_(2)
        network.last.bias.mul_(2)
    torch.testing.assert_close(wrapped(z, torch.zeros(2)), 2 * before)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PdlabError, match="--device cpu"):
        Machine("cuda")


def test_a_compiled_network_meets_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What inputs a step makes, by views, expansions and from one another: each stride would be compiled anew."""
    met: list[tuple[tuple[int, ...], ...]] = []

    def stand_in(network: nn.Module, **options: object) -> nn.Module:
        assert options == {"dynamic": False}

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            met.append(tuple(tensor.stride() for tensor in inputs))

        network.register_forward_pre_hook(note)
        return network

    monkeypatch.setattr(torch, "compile", stand_in)
    network = UNet(UNetConfig(image_size=8, channels=8, multipliers=(1,), blocks=1, attention=(), num_classes=8))
    nn.init.normal_(network.conv_out.weight)
    live = Machine("cpu", "fp32", compile=True).for_training(network)
    z, level, labels = torch.randn(4, 3, 8, 8), torch.tensor(0.5).expand(4), torch.arange(8)[::2]
    expected = network(z, level, labels)
    ways = (z, torch.cat([z, z], dim=1)[:, :3], z.to(memory_format=torch.channels_last), z.mT.contiguous().mT)
    for given in ways:
        assert torch.allclose(live(given, level, labels), expected, atol=1e-5)
    assert len(met) == len(ways)
    assert len(set(met)) == 1
