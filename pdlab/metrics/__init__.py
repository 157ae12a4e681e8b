"""Metrics: features of images, distances between their distributions, and the card each figure carries."""

from pdlab.metrics.agreement import Probe, fit_probe, real_agreement, reference_probe
from pdlab.metrics.bias import Bias, sample_size_bias
from pdlab.metrics.card import Card, Kind, Row, comparable, figure_name, versions
from pdlab.metrics.features import EXTRACTORS, FeatureExtractor, extractor
from pdlab.metrics.frechet import frechet_distance, frechet_spread
from pdlab.metrics.kernel import kernel_distance, mmd2_unbiased, polynomial_kernel, rbf_kernel
from pdlab.metrics.manifold import Manifold, precision_recall
from pdlab.metrics.reference import (
    nearest_distances,
    real_floor,
    reference_card,
    reference_features,
    reference_statistics,
)
from pdlab.metrics.statistics import FeatureStatistics

__all__ = [
    "EXTRACTORS",
    "Bias",
    "Card",
    "FeatureExtractor",
    "FeatureStatistics",
    "Kind",
    "Manifold",
    "Probe",
    "Row",
    "comparable",
    "extractor",
    "figure_name",
    "fit_probe",
    "frechet_distance",
    "frechet_spread",
    "kernel_distance",
    "mmd2_unbiased",
    "nearest_distances",
    "polynomial_kernel",
    "precision_recall",
    "rbf_kernel",
    "real_agreement",
    "real_floor",
    "reference_card",
    "reference_features",
    "reference_probe",
    "reference_statistics",
    "sample_size_bias",
    "versions",
]
