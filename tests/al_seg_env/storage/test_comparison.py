import copy

from hypothesis import given
from hypothesis import strategies as st

from al_seg_env.storage import differences

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
TREES = st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3)


def test_by_hand():
    stored = {"seed": 0, "fit": {"rate": 0.1, "crop": [3, 4]}, "old": "x"}
    present = {"seed": 1, "fit": {"rate": 0.2, "crop": [3, 4]}, "new": {"a": 1}}
    assert differences(stored, present) == [
        "seed is 0 there, 1 here",
        "fit.rate is 0.1 there, 0.2 here",
        "old is 'x' there, missing here",
        "new is missing there, {'a': 1} here",
    ]
    assert differences(stored, present, {"seed", "fit.rate", "old"}) == ["new is missing there, {'a': 1} here"]
    assert differences(stored, present, {"fit", "old", "new"}) == ["seed is 0 there, 1 here"]
    assert differences({"fit": {"a": 1}}, {"fit": 1}) == ["fit is {'a': 1} there, 1 here"]
    assert differences({"a": 1}, {"a": 2}, there="for the agent", here="now") == ["a is 1 for the agent, 2 now"]


def test_a_missing_entry_equals_none():
    assert differences({"a": None}, {}) == []
    assert differences({}, {"a": None}) == []
    assert differences({"a": None}, {"a": 0}) == ["a is None there, 0 here"]
    assert differences({}, {"a": 0}) == ["a is missing there, 0 here"]


def test_long_values_are_shortened():
    (shown,) = differences({"a": list(range(10_000)), "b": 1}, {"a": "y" * 10_000, "b": 1})
    assert shown.startswith("a is [0, 1, 2, ")
    assert len(shown) < 500


@given(TREES)
def test_equal_trees_do_not_differ(tree):
    assert differences(tree, copy.deepcopy(tree)) == []


@given(TREES, TREES)
def test_a_difference_has_two_sides_and_can_be_ignored(stored, present):
    found = differences(stored, present)
    keys = {message.split(" is ")[0] for message in found}
    assert {message.split(" is ")[0] for message in differences(present, stored)} == keys
    assert len(keys) == len(found)
    assert differences(stored, present, keys) == []
