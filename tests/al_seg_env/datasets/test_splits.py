import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env.datasets import ArrayData, Splits
from al_seg_env.datasets.splits import SPLITS, resolve_splits

SIZES = {"state": 3, "train": 6, "reward": 4, "eval": 5, "test": None}


class CountingData(ArrayData):
    """Images with a random share of each class; remembers whose mask was read."""

    def __init__(self, n, seed=0, num_classes=4):
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet([0.4] * num_classes, size=n)
        masks = [rng.choice(num_classes, size=(6, 6), p=p).astype(np.uint8) for p in shares]
        images = [np.zeros((6, 6, 3), np.uint8)] * n
        super().__init__(images, masks, [f"class {c}" for c in range(num_classes)], [f"n{i}" for i in range(n)])
        self.read = []

    def mask(self, index):
        self.read.append(index)
        return super().mask(index)


def partitioned(n=30):
    data = CountingData(n)
    data.partitions = {"train": tuple(range(n // 3, n)), "val": tuple(range(n // 3))}
    return data


def parts(splits):
    return {name: getattr(splits, name) for name in SPLITS}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    numbers=st.lists(st.integers(1, 5), min_size=5, max_size=5),
    rest=st.sampled_from([None, *SPLITS]),
)
def test_draw_is_disjoint_of_the_right_sizes_and_repeatable(seed, numbers, rest):
    data = CountingData(25 if rest is None else 27)
    sizes = {name: None if name == rest else n for name, n in zip(SPLITS, numbers, strict=True)}
    splits = Splits.draw(data, seed, sizes=sizes)
    assert splits == Splits.draw(data, seed, sizes=dict(reversed(list(sizes.items()))))
    ids = [i for part in parts(splits).values() for i in part]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(range(len(data.names)))
    assert all(len(part) == sizes[name] for name, part in parts(splits).items() if name != rest)
    assert all(list(part) == sorted(part) for part in parts(splits).values())
    if rest is not None:
        assert len(ids) == len(data.names)
    assert set(data.read) == set(splits.state) | set(splits.train)  # no other mask is needed


def test_seeds_differ_and_global_state_is_untouched():
    data = CountingData(30)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert len({Splits.draw(data, seed, sizes=SIZES) for seed in range(5)}) == 5
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_sources():
    data = partitioned()
    sources = {"state": "train", "train": "train", "eval": "train", "reward": "val"}
    splits = Splits.draw(
        data, 0, sizes={"state": 2, "train": 5, "eval": None, "reward": 4, "test": None}, sources=sources
    )
    in_train = set(data.partitions["train"])
    assert set(splits.state) | set(splits.train) | set(splits.eval) == in_train
    assert set(splits.reward) < set(data.partitions["val"])
    assert set(splits.test) == set(data.partitions["val"]) - set(splits.reward)


def test_partitions_are_served_before_all_images():
    data = partitioned()
    for seed in range(5):  # reward needs all of val, whoever is drawn first
        splits = Splits.draw(
            data, seed, sizes={"state": 5, "train": 10, "reward": 10, "eval": 5}, sources={"reward": "val"}
        )
        assert set(splits.reward) == set(data.partitions["val"])


def divergence(data, splits):
    def shares(ids):
        labels = np.concatenate([data.mask(i).reshape(-1) for i in ids])
        counts = np.bincount(labels, minlength=4) + 1e-3
        return counts / counts.sum()

    p, q = shares(splits.train), shares(splits.state)
    return float((p * np.log(p / q)).sum())


def test_state_is_like_train():
    drawn, random = [], []
    for seed in range(10):
        data = CountingData(30, seed)
        splits = Splits.draw(data, seed, sizes={"state": 4, "train": 20, "reward": 2})
        drawn.append(divergence(data, splits))
        group = np.random.default_rng(seed).permutation([*splits.state, *splits.train])
        random.append(divergence(data, Splits(tuple(group[:4]), tuple(group[4:]), (100,), ())))
    assert np.mean(drawn) < 0.2 * np.mean(random)


def test_state_of_two_images_worked_by_hand():
    # Of two images of each kind, state and train are alike only if state has one of each.
    masks = [np.full((2, 2), label, np.uint8) for label in (0, 1, 1, 0, 1)]
    data = ArrayData([np.zeros((2, 2, 3), np.uint8)] * 5, masks, ["a", "b"])
    data.partitions = {"train": (0, 1, 2, 3), "val": (4,)}
    sources = {"state": "train", "train": "train", "reward": "val"}
    for seed in range(10):
        splits = Splits.draw(data, seed, sizes={"state": 2, "train": None, "reward": 1}, sources=sources)
        assert sorted(masks[i][0, 0] for i in splits.state) == [0, 1]


def test_masks_without_labels_can_be_drawn():
    masks = [np.full((2, 2), 255, np.uint8)] * 6
    data = ArrayData([np.zeros((2, 2, 3), np.uint8)] * 6, masks, ["a", "b"])
    assert len(Splits.draw(data, 0, sizes={"state": 1, "train": 2, "reward": 3}).state) == 1


def test_without_train_no_mask_is_read():
    data = CountingData(9)
    splits = Splits.draw(data, 0, sizes={"state": 2, "reward": 3, "eval": None})
    assert [len(part) for part in parts(splits).values()] == [2, 0, 3, 4, 0]
    assert data.read == []


@pytest.mark.parametrize(
    ("sizes", "sources", "message"),
    [
        (
            {"state": 3, "train": 6, "reward": 40},
            {},
            "reward: 40 images are requested, but 21 are left of all",
        ),
        ({"state": 2, "train": 2, "reward": 12}, {"reward": "val"}, "but 10 are left of partition 'val'"),
        ({"state": 20, "train": 12, "reward": 1}, {}, r"state\+train: 32 images .* but 30 .*: splits={\"train\": ...}"),
        ({"state": None, "train": 29, "reward": 2}, {}, "state=None and train=29 .* 28 images"),
        ({"state": 29, "train": None, "reward": 2}, {}, "state=29 and train=None .* 28 images"),
        ({"state": 0, "train": 2, "reward": 2}, {}, "expected at least 1 for state"),
        ({"state": 1, "reward": 2}, {}, "train and eval are both empty"),
        ({"state": 1, "train": None, "reward": 2, "eval": None}, {}, "only one split .* all images"),
        ({"state": 1, "train": 1, "reward": 2}, {"train": "val"}, "must share a source, got None and 'val'"),
        ({"state": 1, "train": 1, "reward": 2}, {"reward": "vl"}, r"no partition 'vl'.*'train', 'val'"),
        ({"state": 1, "train": 1, "rewards": 2}, {}, "unknown names .rewards."),
        ({"state": 1, "train": 1.5, "reward": 2}, {}, "train .* is 1.5; expected a whole number of at least 0"),
        ({"state": 1, "train": 1, "reward": -2}, {}, "reward .* is -2; expected a whole number"),
        (
            {"state": 1, "train": 1, "reward": 2},
            {"reward": 3},
            "the source of reward is 3; expected the name of a partition",
        ),
        ({"state": 1, "train": 1, "reward": 2}, {"reward": ""}, r"no partition ''.*'train', 'val'"),
    ],
)
def test_requests_that_cannot_be_met(sizes, sources, message):
    with pytest.raises(ValueError, match=message):
        Splits.draw(partitioned(), 0, sizes=sizes, sources=sources)


def test_splits_are_validated():
    with pytest.raises(ValueError, match=r"state and train share \[2, 3\]; train and test share \[4\]"):
        Splits((1, 2, 3), (3, 2, 4), (5,), (6,), (4,))
    with pytest.raises(ValueError, match=r"eval holds \[6\] more than once"):
        Splits((1,), (2,), (3,), (6, 6))
    with pytest.raises(ValueError, match="state must hold"):
        Splits((), (2,), (), (6,))
    for wrong in ((1.0,), (True,), (-1,), "ab"):
        with pytest.raises(ValueError, match="train is .*; expected"):
            Splits((0,), wrong, (3,), (6,))
    splits = Splits([np.int64(0)], range(1, 3), np.array([3]), (4,))
    assert splits == Splits((0,), (1, 2), (3,), (4,))
    assert all(type(i) is int for part in parts(splits).values() for i in part)
    assert hash(splits) == hash(Splits((0,), (1, 2), (3,), (4,)))


def test_save_and_load_by_name(tmp_path):
    data = CountingData(30)
    splits = Splits.draw(data, 0, sizes=SIZES)
    path = tmp_path / "new" / "splits.json"
    splits.save(path, data)
    splits.save(str(path), data)
    assert [p.name for p in path.parent.iterdir()] == ["splits.json"]  # no temporary file stays
    assert Splits.load(str(path), data) == splits
    data.names = tuple(reversed(data.names))
    assert Splits.load(path, data).state == tuple(29 - i for i in splits.state)
    with pytest.raises(ValueError, match=r"the splits have the indices \[\d+.* but the data only 4 images"):
        splits.save(path, CountingData(4))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    data, path = CountingData(30), tmp_path / "splits.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Splits.draw(data, 0, sizes=SIZES).save(path, data)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("eval"), r"lacks the splits \['eval'\]"),
        (lambda c: c.update(rewards=[]), r"unknown keys \['rewards'\]"),
        (lambda c: c.update(version=2), "has the version 2; this release reads 1"),
        (lambda c: c.update(format="x"), "not a file of splits"),
        (lambda c: c.update(test=["n1", 3]), "test is not a list of names"),
        (lambda c: c.update(test=["x", "y"]), "names 2 images that the data do not have: x; y"),
        (
            lambda c: c.update(test=["n5"], state=["n5"], eval=["n6", "n6"]),
            r"n5 \(state, test\); n6 \(eval\)",
        ),
        (lambda c: c.update(state=[]), "state must hold"),
    ],
)
def test_bad_files(tmp_path, change, message):
    content = {"format": "al-seg-env splits", "version": 1}
    content |= {"state": ["n0"], "train": ["n1"], "reward": ["n2"], "eval": ["n3"], "test": []}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    Splits.load(path, CountingData(9))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Splits.load(path, CountingData(9))
    assert "s.json" in str(caught.value)


def test_a_file_that_is_not_json(tmp_path):
    path = tmp_path / "s.json"
    for content in (b"{", b"\xff\xfe\x00", b"[]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"s\.json"):
            Splits.load(path, CountingData(9))
    with pytest.raises(OSError, match="nowhere"):
        Splits.load(tmp_path / "nowhere.json", CountingData(9))


# Splits from plain values


def test_a_mapping_draws_from_partitions():
    data, sizes = partitioned(), {"state": 2, "train": 5, "reward": 4, "eval": None, "test": 3}
    splits = resolve_splits(data, {"seed": 3, "test": {"from": "val", "size": 7}, "reward": {"size": 6}}, sizes, {})
    assert set(splits.test) < set(data.partitions["val"])
    assert [len(part) for part in parts(splits).values()] == [2, 5, 6, 10, 7]
    whole = resolve_splits(data, {"test": {"from": "val"}}, sizes, {})
    assert set(whole.test) == set(data.partitions["val"])
    sources = dict.fromkeys(SPLITS, "train")
    rest = resolve_splits(data, {"test": {"from": "val"}, "reward": {"from": "val", "size": 4}}, sizes, {})
    assert set(rest.test) | set(rest.reward) == set(data.partitions["val"])
    back = resolve_splits(data, {"test": {"from": None, "size": 12}}, sizes, sources)
    assert len(back.test) == 12
    assert set(back.test) & set(data.partitions["val"])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": {"form": "val"}}, "splits: test is {'form': 'val'}; expected a number of images, None, or"),
        ({"test": {"from": [1]}}, r"splits: test is {'from': \[1\]}; expected a number"),
        ({"test": {}}, "splits: test is {}; expected a number"),
        ({"test": {"from": "vall"}}, r"no partition 'vall'; they have \['train', 'val'\]"),
        ({"test": {"from": "val", "size": 11}}, "test: 11 images are requested, but 10 are left of partition 'val'"),
        ({"test": {"from": "val", "size": -1}}, "test .* is -1; expected a whole number of at least 0"),
        ({"tests": 3}, "unknown names 'tests'"),
        ({"train": {"from": "val", "size": 3}}, "state and train must share a source, got None and 'val'"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"seed": {"from": "val"}}, "seed is {'from': 'val'}; expected a whole number"),
        (-1, "splits is -1; expected a whole number of at least 0"),
        (1.5, "splits is 1.5; expected a seed, a file, a name or a mapping"),
        (True, "splits is True; expected a seed"),
        (None, "splits is None; expected a seed"),
        ([1, 2], r"splits is \[1, 2\]; expected a seed"),
        ("ralis_", "splits 'ralis_' is neither a file nor one of the published splits"),
    ],
)
def test_plain_values_that_mean_no_splits(splits, message):
    sizes = {"state": 2, "train": 5, "reward": 4, "eval": None, "test": 3}
    with pytest.raises(ValueError, match=message):
        resolve_splits(partitioned(), splits, sizes, {})


def test_partitions_that_are_not_followed_are_told_of(caplog):
    data, sizes = partitioned(), {"state": 2, "train": 5, "reward": 4, "eval": None}
    resolve_splits(data, 0, sizes, {})
    assert caplog.records[-1].name == "al_seg_env"
    assert "partitions ['train', 'val'] are not followed" in caplog.text
    assert '{"test": {"from": \'val\'}}' in caplog.text
    caplog.clear()
    resolve_splits(data, 0, sizes, dict.fromkeys(SPLITS, "train"))
    assert "the images of the data's partitions ['val'] are in no split" in caplog.text
    caplog.clear()
    resolve_splits(data, 0, sizes, {**dict.fromkeys(SPLITS, "train"), "reward": "val"})
    resolve_splits(CountingData(30), 0, sizes, {})
    assert not caplog.records


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 40), max_size=3),
    st.dictionaries(
        st.sampled_from(["from", "size", "seed"]),
        st.one_of(st.none(), st.integers(-2, 40), st.sampled_from(["train", "val", ""]), st.floats()),
        max_size=2,
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    splits=st.one_of(ANYTHING, st.dictionaries(st.sampled_from([*SPLITS, "seed", "other", 3]), ANYTHING, max_size=4))
)
def test_any_plain_value_is_splits_or_a_value_error(splits):
    sizes = {"state": 2, "train": 5, "reward": 4, "eval": None, "test": 3}
    try:
        drawn = resolve_splits(partitioned(), splits, sizes, {})
    except ValueError:
        return
    ids = [i for part in parts(drawn).values() for i in part]
    assert len(set(ids)) == len(ids)
    assert drawn.state  # D_R may be empty, for reward=None


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(SPLITS), ANYTHING), ANYTHING)
def test_any_sizes_and_seed_are_drawn_or_a_value_error(sizes, seed):
    try:
        drawn = Splits.draw(partitioned(), seed, sizes=sizes)
    except ValueError:
        return
    assert drawn.state
    assert all(size is None or len(getattr(drawn, name)) == size for name, size in sizes.items())


class PartlyLabelled(CountingData):
    labelled = (3, 4, 8, 9, 10)


def test_reward_train_and_test_are_drawn_from_labelled_images():
    data = PartlyLabelled(40)
    for seed in range(20):
        splits = Splits.draw(data, seed, sizes={"state": 3, "reward": 2, "test": 2, "eval": None})
        assert set(splits.reward + splits.test) <= set(data.labelled)
        assert len(splits.eval) == 33
        splits = Splits.draw(data, seed, sizes={"state": 1, "train": 2, "reward": 2, "eval": None})
        assert set(splits.reward + splits.state + splits.train) == set(data.labelled)
    with pytest.raises(ValueError, match="reward: 6 images are requested, but 5 are left of the labelled ones of all"):
        Splits.draw(data, 0, sizes={"state": 1, "reward": 6, "eval": None})
