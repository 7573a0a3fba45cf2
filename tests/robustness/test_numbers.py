"""The figures of the public path, with a real network, against scikit-learn, SciPy and definitions written out here.

What is compared with is computed from a copy of the network in double precision, one image, pixel or region after
another: it shares no code with the library.
"""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from fakes import SPLITS, make, numbered_data, tiny_network
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix, jaccard_score

from al_seg_env import BALD, Entropy, EnvConfig, RegionSelectionEnv, Splits, TorchLearner
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.fitting import evaluate

CLASSES = 3
REGION = (8, 10)  # 4 x 4 of them in an image
TWO_IN_D_R = Splits(state=(0, 1), train=(2, 3, 4), reward=(5, 6), eval=(7,), test=(8,))


class Recording(TorchLearner):
    """Remembers the last logits drawn under dropout for each image, which is known by its first channel."""

    drawn: dict[int, list[np.ndarray]] = {}

    def sample(self, images, count, rng):
        numbers = images[:, 0, 0, 0].tolist()
        self.drawn = {**self.drawn, **{number: [] for number in numbers}}
        for logits in super().sample(images, count, rng):
            for number, of_image in zip(numbers, logits, strict=True):
                self.drawn[number].append(of_image.double().numpy())
            yield logits


def real_env(data, splits=SPLITS, scores=(), learning_rate=0.05, **options):
    """An environment with a small real network, whose weights and BatchNorm statistics are no longer those of birth."""
    learner = Recording(
        tiny_network(), CLASSES, learning_rate=learning_rate, batch_size=2, device="cpu", precision="float32"
    )
    settings = {"region_size": REGION, "crop_size": (16, 20), "regions_per_step": 3, "pool_size": 4, "budget": 12}
    return RegionSelectionEnv(data, splits, learner, config=EnvConfig(**{**settings, **options}), scores=scores)


def images_in_double(env, numbers):
    """Normalise images by hand and repeat their edges up to a multiple of the output stride."""
    learner, (height, width) = env.learner, env.data.image_size
    mean, std = (np.asarray(v, np.float64) for v in STATISTICS[type(learner.network).__name__])
    stride = STRIDE[type(learner.network).__name__]
    x = np.stack([(env.data.image(n) / 255.0 - mean) / std for n in numbers]).transpose(0, 3, 1, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)), mode="edge")
    return torch.from_numpy(padded)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = {"TinyNetwork": IMAGENET, "FPN": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
STRIDE = {"TinyNetwork": 1, "FPN": 32}


@torch.no_grad()
def slow_logits(env, number):
    """Logits ``(C, H, W)`` of one image by the network as it is now."""
    network = copy.deepcopy(env.learner.network).double().eval()
    height, width = env.data.image_size
    return network(images_in_double(env, [number]))[0, :, :height, :width].numpy()


def cityscapes_iou(truth, predicted, num_classes):
    """IoU per class as the Cityscapes benchmark defines it, in percent; ``None`` where the truth lacks the class.

    TP, FP and FN are counted over the whole split. Void pixels count as neither, whatever is predicted there.
    """
    ious = []
    for c in range(num_classes):
        tp = fp = fn = 0
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if t == 255:
                continue
            tp += t == c and p == c
            fp += t != c and p == c
            fn += t == c and p != c
        ious.append(100 * tp / (tp + fp + fn) if tp + fn else None)
    return ious


def assert_figures(miou, class_iou, env, images):
    """Check a mean IoU and IoUs per class (``None`` for an absent class) against both references."""
    n_classes = len(env.data.classes)
    truth = np.stack([env.data.mask(number) for number in images])
    predicted = np.stack([slow_logits(env, number).argmax(axis=0) for number in images])
    ious = cityscapes_iou(truth, predicted, n_classes)
    assert [iou is None for iou in class_iou] == [iou is None for iou in ious]
    present = [c for c in range(n_classes) if ious[c] is not None]
    assert [class_iou[c] for c in present] == pytest.approx([ious[c] for c in present], abs=1e-9)
    assert miou == pytest.approx(np.mean([ious[c] for c in present]), abs=1e-9)
    known = truth != 255
    confusion = confusion_matrix(truth[known], predicted[known], labels=range(n_classes))
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    assert miou == pytest.approx(100 * (confusion.diagonal()[present] / union[present]).mean(), abs=1e-9)
    jaccard = jaccard_score(truth[known], predicted[known], labels=present, average="macro", zero_division=0)
    assert miou == pytest.approx(100 * jaccard, abs=1e-9)


def from_info(info):
    return info["miou"], [None if iou == -1 else iou for iou in info["class_iou"].tolist()]


# ---- mean IoU


@pytest.mark.parametrize("absent", [None, 0, 2])
def test_miou_is_that_of_cityscapes_at_every_step_and_on_every_split(absent):
    data = numbered_data(void=0.2)
    for number in range(9):
        mask = data.mask(number)
        mask[mask == absent] = 255 if number % 2 else 1  # absent from the truth, yet predicted
    env = real_env(data, TWO_IN_D_R)
    _, info = env.reset(seed=0)
    assert_figures(*from_info(info), env, TWO_IN_D_R.reward)
    mious, terminated = [info["miou"]], False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.zeros(3, np.int64))
        assert_figures(*from_info(info), env, TWO_IN_D_R.reward)
        assert reward == pytest.approx(info["miou"] - mious[-1], abs=1e-9)
        mious.append(info["miou"])
    assert len(set(mious)) == len(mious)
    for images in (TWO_IN_D_R.reward, TWO_IN_D_R.test, range(9)):
        evaluation = evaluate(env.learner, Frames.shared(data), images)
        assert_figures(evaluation.miou, evaluation.class_iou, env, images)


def test_a_class_in_one_image_of_the_split_is_counted_over_the_whole_split():
    """Neither averaged per image, nor omitted where an image lacks it."""
    data = numbered_data(void=0.1)
    data.mask(5)[data.mask(5) == 2] = 0
    env = real_env(data, TWO_IN_D_R)
    _, info = env.reset(seed=0)
    assert_figures(*from_info(info), env, TWO_IN_D_R.reward)
    per_image = [evaluate(env.learner, Frames.shared(data), [number]).miou for number in TWO_IN_D_R.reward]
    assert abs(info["miou"] - np.mean(per_image)) > 0.1


def test_a_registered_environment_has_the_same_figures():
    """With a network of segmentation-models-pytorch, images that it must pad, and BatchNorm folded away."""
    env = make(learning_rate=0.01).unwrapped
    _, info = env.reset(seed=1)
    assert_figures(*from_info(info), env, env.splits.reward)
    for _ in range(2):
        *_, info = env.step(np.zeros(3, np.int64))
        assert_figures(*from_info(info), env, env.splits.reward)
    assert -1 in info["class_iou"]
    evaluation = evaluate(env.learner, env.frames, env.splits.eval)
    assert_figures(evaluation.miou, evaluation.class_iou, env, env.splits.eval)


# ---- features, similarity and scores


def crop_of(region, array):
    """Cut a region out of ``(..., 32, 40)`` by its number: 16 in an image, row by row."""
    row, column = divmod(region % 16, 4)
    return array[..., row * 8 : row * 8 + 8, column * 10 : column * 10 + 10]


def pixel_entropies(logits):
    return entropy(softmax(logits, axis=0), axis=0)  # (C, h, w) to (h, w)


def class_shares(labels):
    """Share of each class among the pixels that have one."""
    counts = [int((labels == c).sum()) for c in range(CLASSES)]
    return np.array(counts) / sum(counts)


def divergence(p, q):
    """``KL(p || q)`` in nats, a thousandth of every class mixed in."""
    p, q = ((d + 1e-3) / (1 + 1e-3 * CLASSES) for d in (p, q))
    return rel_entr(p, q).sum()


def histogram(p, others, bins=32):
    largest = divergence(np.eye(CLASSES)[0], np.eye(CLASSES)[1])
    found, _ = np.histogram([divergence(p, q) for q in others], bins=bins, range=(0, largest * (1 + 1e-12)))
    return found / max(1, len(others))


def slow_candidates(env):
    """Return what to expect of the candidates, key by key, ``(K, N, ...)``; without BALD."""
    logits = {number: slow_logits(env, number) for number in env.splits.train}
    regions = [int(region) for pool in env.pools for region in pool]
    crops = [crop_of(region, logits[region // 16]) for region in regions]
    entropies = [pixel_entropies(crop) for crop in crops]
    predicted = [class_shares(crop.argmax(axis=0)) for crop in crops]
    truth = [crop_of(region, env.data.mask(region // 16)) for region in env.labels.labelled]
    labelled = [class_shares(mask) for mask in truth if (mask != 255).any()]
    similarity = [
        np.concatenate([histogram(p, labelled), histogram(p, predicted[:i] + predicted[i + 1 :])])
        for i, p in enumerate(predicted)
    ]
    expected = {
        "candidates": [np.concatenate([p, *pooled(e)]) for p, e in zip(predicted, entropies, strict=True)],
        "similarity": similarity,
        "score_entropy": [e.sum() for e in entropies],
    }
    return {key: np.reshape(rows, (3, 4, *np.shape(rows)[1:])) for key, rows in expected.items()}


def pooled(entropies):
    """Min, mean and max over the cells of an 8 x 8 grid; neighbours share a column where 10 isn't divided by 8."""
    cells = [entropies[i : i + 1, j * 10 // 8 : -(-(j + 1) * 10 // 8)] for i, j in product(range(8), range(8))]
    return [[reduce(cell) for cell in cells] for reduce in (np.min, np.mean, np.max)]


def slow_bald(samples):
    """Mutual information summed over the pixels of T samples of logits, each ``(C, h, w)``."""
    p = np.array([softmax(logits, axis=0) for logits in samples])  # (T, C, h, w)
    return (entropy(p.mean(axis=0), axis=0) - np.mean([entropy(one, axis=0) for one in p], axis=0)).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_observations_are_those_of_scipy_at_every_step(seed):
    data = numbered_data(void=0.3, seed=seed)
    for number in range(9):
        data.mask(number)[:16, :20] = 255  # whole regions without a label
    env = real_env(data, scores=(Entropy(), BALD(5)))
    observation, _ = env.reset(seed=seed)
    for _ in range(4):
        for key, values in slow_candidates(env).items():
            np.testing.assert_allclose(observation[key], values, rtol=1e-5, atol=1e-5, err_msg=key)
        for k, n in np.ndindex(3, 4):
            region = int(env.pools[k][n])
            samples = [crop_of(region, logits) for logits in env.learner.drawn[region // 16]]
            assert len(samples) == 5
            assert observation["score_bald"][k, n] == pytest.approx(slow_bald(samples), rel=1e-4, abs=1e-4)
        for number, rows in zip(env.splits.state, np.split(observation["state"], 2), strict=True):
            logits = slow_logits(env, number)
            for region, row in enumerate(rows):
                crop = crop_of(region, logits)
                expected = np.concatenate([class_shares(crop.argmax(axis=0)), *pooled(pixel_entropies(crop))])
                np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)
        observation, _, terminated, _, _ = env.step(np.arange(3))
    assert terminated
    assert (env.labels.class_counts.sum(axis=1) == 0).any()


@torch.no_grad()
def all_dropouts(env, number):
    """Logits of an image under each of the 256 ways to drop some of the network's 8 channels, equally likely."""
    network = copy.deepcopy(env.learner.network).double().eval()
    channels = network.body(images_in_double(env, [number]))
    return [
        network.head(channels * 2 * torch.tensor(kept).view(1, 8, 1, 1))[0].numpy()
        for kept in product([0, 1], repeat=8)
    ]


def test_bald_converges_to_the_mutual_information_over_all_dropout_masks():
    env = real_env(numbered_data(), scores=(BALD(500),))
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        for k, n in ((0, 0), (1, 3), (2, 1)):
            region = int(env.pools[k][n])
            expected = slow_bald([crop_of(region, logits) for logits in all_dropouts(env, region // 16)])
            assert observation["score_bald"][k, n] == pytest.approx(expected, rel=0.08)
            assert expected > 1
        observation, *_ = env.step(np.zeros(3, np.int64))
