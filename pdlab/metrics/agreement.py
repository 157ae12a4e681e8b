"""Class agreement: for how many samples a linear probe on the features sees the class that was asked for."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError
from pdlab.metrics.features import FeatureExtractor
from pdlab.metrics.reference import Progress, cache_path, keep, kept, reference_features

L2, ITERATIONS = 1e-2, 100


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features: `weight` `[classes, dim]` and `bias` `[classes]`, float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """The class `[n]` seen in each of `features` `[n, dim]`."""
        return F.linear(features.float(), self.weight, self.bias).argmax(1)

    def agreement(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """The share in [0, 1] of `features` `[n, dim]` that are seen as `labels` `[n]`, and its standard error."""
        share = float((self(features) == labels.to(features.device)).double().mean())
        return share, standard_error(share, len(features))


def standard_error(share: float, n: int) -> float:
    """The binomial standard error of a share of `n`: sqrt(p (1 − p) / n)."""
    return math.sqrt(share * (1 - share) / n)


def fit_probe(features: Tensor, labels: Tensor, num_classes: int) -> Probe:
    """Softmax regression of `labels` `[N]` on `features` `[N, dim]`, each standardised to mean 0 and deviation 1,

        min over W, b of  mean_i CE(W f_i + b, label_i) + L2/2 |W|^2,

    which is convex: full-batch L-BFGS from 0, nothing random. The standardisation is folded into the result.
    """
    features = features.detach().float()
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    features = (features - mean).div_(std)
    # `[classes, dim]`: the gradient of the other layout is many times slower on a CPU
    weight = torch.zeros(num_classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + L2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    scaled = weight.detach() / std
    return Probe(scaled, bias.detach() - scaled @ mean)


def reference_probe(source: ImageSource, extractor: FeatureExtractor, progress: Progress | None = None) -> Probe:
    """The probe of the source's images and labels, from the cache when it is there (see `reference_features`).

    Raises PdlabError for images without classes.
    """
    labels = _labels(source)
    path = cache_path(f"probe-{L2:g}-{ITERATIONS}", source, extractor)
    if found := kept(path, "weight", "bias"):
        return Probe(*found)
    probe = fit_probe(reference_features(source, extractor, progress=progress), labels, source.num_classes)
    keep(path, weight=probe.weight, bias=probe.bias)
    return probe


def real_agreement(
    source: ImageSource, extractor: FeatureExtractor, held_out: ImageSource | None = None
) -> dict[str, Any]:
    """The agreement that real images reach: {"value": the probe's accuracy, "n": on how many, "how": on which}.

    They are those of `held_out`; without any, every fifth of `source`, for a probe fitted to the others.
    """
    if held_out is not None and held_out.labels is not None:
        probe, features, labels = (
            reference_probe(source, extractor),
            reference_features(held_out, extractor),
            _labels(held_out),
        )
        how = f"the probe's accuracy on {len(labels)} held-out images ({held_out.name} {held_out.split})"
    else:
        features, labels = reference_features(source, extractor), _labels(source)
        fifth = torch.arange(len(labels)) % 5 == 0
        probe = fit_probe(features[~fifth], labels[~fifth], source.num_classes)
        features, labels = features[fifth], labels[fifth]
        how = "accuracy on every fifth image of a probe fitted to the others, as no images are held out"
    return {"value": probe.agreement(features, labels)[0], "n": len(labels), "how": how}


def _labels(source: ImageSource) -> Tensor:
    if source.labels is None:
        raise PdlabError(f"{source.name} has no classes: class agreement cannot be measured against it")
    return source.labels.cpu()
