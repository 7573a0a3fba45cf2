"""Pure tensor functions from logits to per-region features: no I/O, no randomness, no device moves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from al_seg_env.types import Size

CACHED = 2**20  # roughly how many numbers stay in a processor's cache from one operation to the next

KL_SMOOTHING = 1e-3
"""Share added to every class before a KL divergence, so that a class that is absent from one side costs a
finite amount: about ``log(1000)`` = 6.9 nats at most."""


def grid_shape(image_size: Size, region_size: Size) -> Size:
    """Return ``(rows, columns)`` of the grid of regions; where the sides do not divide evenly, round up.

    >>> grid_shape((5, 4), (2, 2))
    (3, 2)
    """
    return -(-image_size[0] // region_size[0]), -(-image_size[1] // region_size[1])


def class_map(logits: Tensor) -> Tensor:
    """Return the most probable class of every pixel; of equals, the first, as ``argmax`` does.

    Args:
        logits: ``(B, C, ...)`` floating point, C at most 255.

    Returns:
        ``(B, ...)`` uint8.

    >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [1.0, 0.0]]])  # (1, 3, 2): two pixels of three classes
    >>> class_map(logits)
    tensor([[1, 0]], dtype=torch.uint8)
    """
    return torch.cat([_first_best(z) for z in _in_cache(logits)])


def entropy_map(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of the class distribution at every pixel, in nats (section 3.1).

    Args:
        logits: ``(B, C, ...)`` floating point.

    Returns:
        ``(B, ...)`` in ``[0, log C]``.

    At an undecided pixel of two classes the entropy is log 2; at a rather certain one it is lower:

    >>> probabilities = torch.tensor([[[0.5, 0.9], [0.5, 0.1]]])  # (1, 2, 2): two pixels of two classes
    >>> entropy_map(probabilities.log())
    tensor([[0.6931, 0.3251]])
    """
    return torch.cat([_entropy(*_exponentials(_below_best(z))) for z in _in_cache(logits)])


def bald_map(samples: Iterable[Tensor]) -> Tensor:
    """Return the mutual information between prediction and weights at every pixel (BALD; section 4.2).

    ``H(mean_t p_t) - mean_t H(p_t)``. The sums are accumulated, so memory does not grow with the number of samples.

    Args:
        samples: T tensors of logits ``(B, C, ...)``, each with its own dropout masks.

    Returns:
        ``(B, ...)`` in ``[0, log C]`` nats.

    Raises:
        ValueError: If there are no samples.

    At the first pixel the samples contradict each other; at the second, both are equally undecided:

    >>> first = torch.tensor([[[100.0, 0.0], [0.0, 0.0]]])
    >>> second = torch.tensor([[[0.0, 0.0], [100.0, 0.0]]])
    >>> bald_map([first, second]).round(decimals=4)
    tensor([[0.6931, 0.0000]])
    """
    count = 0
    mean = expected_entropy = torch.empty(0)
    for logits in samples:
        if not count:
            mean, expected_entropy = logits.new_zeros(logits.shape), logits.new_zeros(logits[:, 0].shape)
        size = max(1, CACHED // logits[0].numel())
        for z, p, h in zip(logits.split(size), mean.split(size), expected_entropy.split(size), strict=True):
            d, e, s = _exponentials(_below_best(z))
            p.addcmul_(e, s.reciprocal()[:, None])
            h += _entropy(d, e, s)
        count += 1
    if not count:
        raise ValueError("BALD needs at least one sample of logits, got none")
    mean /= count
    entropy = -(mean.clamp(min=torch.finfo(mean.dtype).tiny).log_().mul_(mean)).sum(dim=1)
    return (entropy - expected_entropy / count).clamp_(min=0)


def margin_map(logits: Tensor) -> Tensor:
    """Return one minus the gap between the two most probable classes, ``(B, ...)`` in ``[0, 1]``.

    Args:
        logits: ``(B, C, ...)`` with C >= 2.

    >>> margin_map(torch.tensor([[0.5, 0.3, 0.2]]).log())  # 1 - (0.5 - 0.3)
    tensor([0.8000])
    """
    return torch.cat([_margin(z) for z in _in_cache(logits)])


def _in_cache(logits: Tensor) -> tuple[Tensor, ...]:
    """Split ``(B, C, ...)`` into images, or a few if they are small, that stay in the processor's cache."""
    return logits.split(max(1, CACHED // logits[0].numel())) if len(logits) else (logits,)


def _below_best(logits: Tensor) -> Tensor:
    """Return ``d = z - max z``, contiguous, so that operations over the classes are vectorised over the pixels."""
    z = logits.contiguous()
    return z - z.amax(dim=1, keepdim=True)


def _first_best(logits: Tensor) -> Tensor:
    """Return the first class of the largest logit, ``(B, ...)`` uint8; C where that is not finite."""
    # torch's argmax over a dimension that is not the last compares number by number, but pooling of many channels that
    # lie side by side is vectorised: here each pixel is a channel, and the window holds the classes.
    count, n_classes, *size = logits.shape
    pixels = logits.reshape(count, n_classes, 1, math.prod(size)).contiguous().permute(0, 3, 1, 2)  # (B, P, C, 1)
    best, classes = F.max_pool2d(pixels, (n_classes, 1), return_indices=True)
    classes = classes.to(torch.uint8)
    if not bool(best.sum().isfinite()):  # which costs less than to look at each of them
        classes.masked_fill_(best.isfinite().logical_not_(), n_classes)
    return classes.view(count, *size)


def _exponentials(d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``d``, ``e = exp d`` and ``s = sum e``, ``(B, ...)``; the class distribution is ``e / s``."""
    e = d.exp()
    return d, e, e.sum(dim=1)


def _entropy(d: Tensor, e: Tensor, s: Tensor) -> Tensor:
    """Return the entropy ``(B, ...)`` of ``p = e / s``: ``log s - sum p d``. Overwrites ``e``."""
    return (s.log() - e.mul_(d).sum(dim=1).div_(s)).clamp_(min=0)


def _margin(logits: Tensor) -> Tensor:
    """Return ``1 - (p_1 - p_2)``, ``(B, ...)``."""
    d = _below_best(logits)
    best = d == 0
    second = d.masked_fill(best, -torch.inf).amax(dim=1).masked_fill_(best.sum(dim=1) > 1, 0)
    return 1 - (1 - second.exp()) / d.exp_().sum(dim=1)


def pool_tiles(tiles: Tensor, bins: int, mode: str) -> Tensor:
    """Pool the map of each region down to ``bins x bins`` values (section 3.1; figure A.1).

    The cells are those of torch's adaptive pooling: they cover the region, and overlap by a pixel where ``bins``
    does not divide a side.

    Args:
        tiles: Maps of n regions, ``(n, h, w)``.
        bins: Values per side.
        mode: ``"min"``, ``"avg"`` or ``"max"``.

    Returns:
        ``(n, bins * bins)``.

    Raises:
        ValueError: If the mode is unknown.

    >>> tile = torch.arange(16.0).view(1, 4, 4)
    >>> pool_tiles(tile, bins=2, mode="min")
    tensor([[ 0.,  2.,  8., 10.]])
    >>> pool_tiles(tile, bins=2, mode="avg")
    tensor([[ 2.5000,  4.5000, 10.5000, 12.5000]])
    >>> pool_tiles(tile, bins=2, mode="max")
    tensor([[ 5.,  7., 13., 15.]])
    """
    if mode == "avg":
        return F.adaptive_avg_pool2d(tiles[:, None], bins).flatten(1)
    if mode == "max":
        return F.adaptive_max_pool2d(tiles[:, None], bins).flatten(1)
    if mode == "min":
        return -F.adaptive_max_pool2d(-tiles[:, None], bins).flatten(1)
    raise ValueError(f"pooling mode {mode!r} is unknown; use 'min', 'avg' or 'max'")


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class in each region; labels of ``num_classes`` and above are not counted.

    Args:
        labels: Integer labels of n regions, ``(n, ...)``.
        num_classes: C.

    Returns:
        ``(n, C)`` int64.

    >>> class_counts(torch.tensor([[0, 0, 1], [2, 255, 1]], dtype=torch.uint8), num_classes=3)
    tensor([[2, 1, 0],
            [0, 1, 1]])
    """
    count, bins = len(labels), num_classes + 1
    first = torch.arange(0, count * bins, bins, device=labels.device)
    flat = labels.flatten(1).clamp(max=num_classes) + first[:, None]
    return torch.bincount(flat.flatten(), minlength=count * bins).view(count, bins)[:, :num_classes]


def shares(counts: Tensor) -> Tensor:
    """Normalise counts ``(..., C)`` to shares, float32; a row of zeros stays zero.

    >>> shares(torch.tensor([[3, 1], [0, 0]]))
    tensor([[0.7500, 0.2500],
            [0.0000, 0.0000]])
    """
    return counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)


def smooth(distribution: Tensor, smoothing: float = KL_SMOOTHING) -> Tensor:
    """Add ``smoothing`` to the share of every class of ``(..., C)`` distributions, and normalise again.

    >>> smooth(torch.tensor([1.0, 0.0]), smoothing=0.5)
    tensor([0.7500, 0.2500])
    """
    return (distribution + smoothing) / (1 + smoothing * distribution.shape[-1])


def kl_divergences(p: Tensor, q: Tensor) -> Tensor:
    """Return ``KL(p_i || q_j)`` for all pairs, in nats, as one matrix product.

    ``sum_c p log p - P log Q^T``. Both sides must be positive; see :func:`smooth`.

    Args:
        p: ``(M, C)``.
        q: ``(R, C)``.

    Returns:
        ``(M, R)``, at least 0.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    >>> kl_divergences(p, q).round(decimals=4)
    tensor([[0.0000, 0.1438]])
    """
    return torch.addmm((p * p.log()).sum(dim=1, keepdim=True), p, q.log().T, alpha=-1).clamp_(min=0)


def kl_upper_bound(num_classes: int, smoothing: float = KL_SMOOTHING) -> float:
    """Return the largest KL divergence between two smoothed distributions: those of two different pure classes.

    >>> round(kl_upper_bound(2), 3)  # log(1001) / 1.002
    6.895
    """
    pure = smooth(torch.eye(max(num_classes, 2), dtype=torch.float64), smoothing)[:2]
    return float(kl_divergences(pure, pure)[0, 1]) if num_classes > 1 else 1.0


def kl_histogram(
    candidates: Tensor,
    reference: Tensor,
    bins: int,
    *,
    edges: str = "fixed",
    own: bool = False,
    block: int = 2**20,
) -> Tensor:
    """Return each candidate's normalised histogram of KL divergences to a reference set (section 3.1).

    Args:
        candidates: ``(M, C)`` class shares.
        reference: ``(R, C)`` class shares of the labelled or the unlabelled regions.
        bins: Number of bins.
        edges: ``"fixed"`` bins of equal width over all possible divergences, so that equal histograms mean
            equal distances; ``"row"`` bins between each candidate's own smallest and largest divergence, as
            in the authors' released code.
        own: The reference is the candidates themselves, and each candidate is excluded from its own histogram.
        block: Divergences held in memory at once; does not change the result.

    Returns:
        ``(M, bins)`` float32; rows sum to 1, or are 0 where there is nothing to compare with.

    Raises:
        ValueError: If ``edges`` is unknown.

    Of three labelled regions, one has the candidate's class and two have another:

    >>> road, car = [1.0, 0.0], [0.0, 1.0]
    >>> kl_histogram(torch.tensor([road]), torch.tensor([road, car, car]), bins=2)
    tensor([[0.3333, 0.6667]])
    >>> pools = torch.tensor([road, car, car])
    >>> kl_histogram(pools, pools, bins=2, own=True)  # each candidate against the two others
    tensor([[0.0000, 1.0000],
            [0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    p, q = smooth(candidates.double()), smooth(reference.double())
    n_reference = len(q) - int(own)
    histogram = torch.zeros(len(p), bins, dtype=torch.float64, device=p.device)
    if n_reference < 1 or not len(p):
        return histogram.float()
    negative_entropy, log_q = (p * p.log()).sum(dim=1, keepdim=True), q.log().T
    rows = max(1, block // len(q))
    first_bins = torch.arange(0, rows * bins, bins, dtype=torch.int32, device=p.device)[:, None]
    for start in range(0, len(p), rows):
        chunk = slice(start, start + rows)
        divergence = torch.addmm(negative_entropy[chunk], p[chunk], log_q, alpha=-1).clamp_(min=0)
        its_own = divergence.diagonal(offset=start) if own else None
        bin_of = _bin_indices(divergence, its_own, bins, edges, candidates.shape[1]).add_(first_bins[: len(divergence)])
        counts = torch.bincount(bin_of.flatten(), minlength=len(divergence) * bins).view(-1, bins)
        counts[:, 0] -= int(own)
        histogram[chunk] = counts / n_reference
    return histogram.float()


def _bin_indices(divergence: Tensor, its_own: Tensor | None, bins: int, edges: str, num_classes: int) -> Tensor:
    """Return the bin of each divergence, ``(M, R)`` int32 in ``[0, bins)``. Overwrites them.

    ``its_own``, a view of each row's divergence from itself, goes to bin 0, and does not count for the edges.
    """
    if edges == "fixed":
        scaled = divergence.mul_(bins / kl_upper_bound(num_classes))
        if its_own is not None:
            its_own.fill_(0)  # as it is, up to rounding
    elif edges == "row":
        if its_own is not None:
            its_own.fill_(torch.inf)
        low = divergence.amin(dim=1, keepdim=True)
        if its_own is not None:
            its_own.copy_(low[:, 0])
        high = divergence.amax(dim=1, keepdim=True)
        scaled = divergence.sub_(low).mul_(bins / (high - low).clamp(min=1e-12))
    else:
        raise ValueError(f"histogram edges {edges!r} are unknown; use 'fixed' or 'row'")
    return scaled.clamp_(max=bins - 1).to(torch.int32)
