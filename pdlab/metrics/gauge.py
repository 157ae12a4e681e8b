"""A quick distance while training goes on: few samples in few steps, to see the way, not to report."""

import importlib.util

import torch

from pdlab.data.source import ImageSource, Source, to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.metrics.card import figure_name
from pdlab.metrics.evaluate import Progress, generate
from pdlab.metrics.features import extractor
from pdlab.metrics.kernel import mmd2_unbiased
from pdlab.metrics.reference import reference_features
from pdlab.training.machine import Machine

SAMPLES, REFERENCE = 500, 1000
#: Of DDIM: a teacher's, and at most so many of a student's own.
TEACHER_STEPS, MOST_STEPS = 16, 64


class Gauge:
    """The kernel distance of 500 samples, always from the same noises, to 1,000 training images.

    It has no bias that depends on the number of samples, unlike a Fréchet distance. Its features are those of
    EfficientNet-Lite0 where that is installed, else the pixels. Every random number is from a stream of its own:
    training does not see that it was measured. Raises PdlabError for data that are not images.
    """

    def __init__(self, source: Source, machine: Machine, progress: Progress | None = None) -> None:
        if not isinstance(source, ImageSource):
            raise PdlabError(f"{source.name} is 2-D: leave --measure-every out, it measures images only")
        at_hand = importlib.util.find_spec("efficientnet_lite_pytorch") is not None
        self._extractor = extractor(
            "effnet-lite0" if at_hand else "pixels", device=machine.device, shape=source.shape
        )
        self._machine, self._shape = machine, source.shape
        self._reference = reference_features(source, self._extractor, REFERENCE, progress)
        self._name = figure_name("kernel", self._extractor, SAMPLES, source.split, len(source))

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """The distance under a name that says by what, of how many samples, and in how many steps."""
        steps = TEACHER_STEPS if denoiser.steps is None else min(denoiser.steps, MOST_STEPS)
        with self._machine.for_sampling(denoiser) as live:
            parts = generate(live, self._shape, SAMPLES, steps, batch=250)
            features = torch.cat([self._extractor(to_uint8(part)) for part in parts])
        return {f"{self._name}_n{SAMPLES}_steps{steps}": mmd2_unbiased(features, self._reference)}
