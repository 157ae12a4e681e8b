"""What training costs, in network evaluations and FLOPs: the paper claims that distilling costs no more."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import build_network, data_shape
from pdlab.training.presets import Optimization


@lru_cache
def forward_flops(config: UNetConfig | MLPConfig, output: str) -> int:
    """FLOPs (2 per multiply-add) of one forward pass of one example; counted on the meta device."""
    with torch.device("meta"):
        network = build_network(config, output)
        z, logsnr = torch.zeros(1, *data_shape(config)), torch.zeros(1)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(z, logsnr, labels)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """Cost of a stage: examples seen, network evaluations (a backward counts as two forwards in FLOPs), time."""

    images: int
    forward_evaluations: int
    backward_evaluations: int
    flops: float
    seconds: float

    @staticmethod
    def of(settings: Optimization, flops: int, teacher_forwards: int, seconds: float) -> "Cost":
        """Cost of `settings.updates` updates; `teacher_forwards` an example: 0 for a teacher, 2 for a round."""
        images = settings.updates * settings.batch
        forward = images * (1 + teacher_forwards)
        return Cost(images, forward, images, float(flops) * (forward + 2 * images), seconds)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.images + other.images,
            self.forward_evaluations + other.forward_evaluations,
            self.backward_evaluations + other.backward_evaluations,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )
