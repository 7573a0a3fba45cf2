"""Slow references, written with plain loops over pixels and regions and SciPy, that tests compare with."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

SMOOTHING = 1e-3


def slow_boxes(image_size, region_size):
    """Return ``(top, bottom, left, right)`` of each region, row by row; the last ones may be smaller."""
    height, width = image_size
    boxes = []
    for top in range(0, height, region_size[0]):
        for left in range(0, width, region_size[1]):
            boxes.append((top, min(top + region_size[0], height), left, min(left + region_size[1], width)))
    return boxes


def slow_entropy(logits):
    """Entropy per pixel of logits ``(C, H, W)``."""
    p = softmax(np.asarray(logits, np.float64), axis=0)
    return entropy(p, axis=0)


def slow_pool(region, bins, mode):
    """Adaptive pooling of ``(h, w)`` to ``bins * bins`` values, one cell after another."""
    reduce = {"min": np.min, "avg": np.mean, "max": np.max}[mode]
    height, width = region.shape
    cells = []
    for i in range(bins):
        for j in range(bins):
            rows = slice(math.floor(i * height / bins), math.ceil((i + 1) * height / bins))
            columns = slice(math.floor(j * width / bins), math.ceil((j + 1) * width / bins))
            cells.append(reduce(region[rows, columns]))
    return np.array(cells)


def slow_counts(labels, num_classes):
    """Count the pixels of each class, one pixel after another."""
    counts = np.zeros(num_classes, np.int64)
    for label in np.asarray(labels).reshape(-1).tolist():
        if label < num_classes:
            counts[label] += 1
    return counts


def slow_shares(counts):
    """Return counts as shares; zeros where there is nothing."""
    return counts / counts.sum() if counts.sum() else np.zeros(len(counts))


def slow_divergence(p, q):
    """Return ``KL(p || q)`` of two distributions, smoothed like the library's."""
    mix = [(np.asarray(d, np.float64) + SMOOTHING) / (1 + SMOOTHING * len(d)) for d in (p, q)]
    return max(0.0, float((mix[0] * np.log(mix[0] / mix[1])).sum()))


def slow_histogram(candidates, reference, bins, edges="fixed", own=False):
    """Normalised histograms of divergences, one pair after another."""
    classes = len(candidates[0])
    result = np.zeros((len(candidates), bins))
    bound = slow_divergence(np.eye(classes)[0], np.eye(classes)[1])
    for i, p in enumerate(candidates):
        divergences = [slow_divergence(p, q) for j, q in enumerate(reference) if not (own and i == j)]
        if not divergences:
            continue
        low, high = (0.0, bound) if edges == "fixed" else (min(divergences), max(divergences))
        for divergence in divergences:
            position = 0 if high - low < 1e-12 else int((divergence - low) / (high - low) * bins)
            result[i, min(position, bins - 1)] += 1 / len(divergences)
    return result


def slow_features(logits, region_size, bins=8):
    """Return features ``(R, C + 3 * bins * bins)`` and class shares ``(R, C)`` of one image ``(C, H, W)``."""
    logits = np.asarray(logits)
    predicted, uncertainty = logits.argmax(axis=0), slow_entropy(logits)
    features, distributions = [], []
    for top, bottom, left, right in slow_boxes(logits.shape[1:], region_size):
        window = slice(top, bottom), slice(left, right)
        share = slow_shares(slow_counts(predicted[window], len(logits)))
        pooled = [slow_pool(uncertainty[window], bins, mode) for mode in ("min", "avg", "max")]
        features.append(np.concatenate([share, *pooled]))
        distributions.append(share)
    return np.array(features), np.array(distributions)
