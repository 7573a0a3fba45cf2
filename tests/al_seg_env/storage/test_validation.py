"""Checks of single values: what is kept, what is refused, and the one form of the messages."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from al_seg_env.storage import validation as checks


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (checks.check_int("n", np.int64(3)), 3),
        (checks.check_number("n", np.float32(0.5), least=0, below=1), 0.5),
        (checks.check_number("n", 1, most=1), 1),
        (checks.check_seed("n", None), None),
        (checks.check_size("n", [32, np.int32(48)]), (32, 48)),
        (checks.check_choice("n", False, (True, False, None)), False),
        (checks.check_choices("n", ["b"], ("a", "b")), ("b",)),
        (checks.check_names("n", ["a"], ["a"]), ("a",)),
        (checks.check_text("n", "a"), "a"),
        (checks.check_path("n", "a"), Path("a")),
        (checks.check_device("n", "cpu"), torch.device("cpu")),
        (checks.check_arguments("n", None, print, 1), {}),
    ],
)
def test_values_are_kept_as_plain_ones(kept, expected):
    assert kept == expected
    assert type(kept) is type(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: checks.check_int("n", True), "n is True; expected a whole number of at least 0"),
        (lambda: checks.check_int("n", 2.0, 1, 5), "n is 2.0; expected a whole number from 1 to 5"),
        (lambda: checks.check_int("n", 2**63), f"n is {2**63}; expected a whole number from 0 to {2**63 - 1}"),
        (lambda: checks.check_number("n", "1"), "n is '1'; expected a finite number"),
        (
            lambda: checks.check_number("n", float("nan"), above=0, most=1),
            "n is nan; expected a finite number above 0 ",
        ),
        (lambda: checks.check_number("n", 10**400), "n is 1000.*; expected a finite number"),
        (
            lambda: checks.check_number("n", 1e39, above=0),
            r"n is 1e\+39; expected a finite number above 0 that float32 can hold \(up to 3.4e\+38\)",
        ),
        (lambda: checks.check_number("n", 0, above=0, alternative="None"), "expected a finite number above 0, or None"),
        (lambda: checks.check_size("n", [3]), r"n is \[3\]; expected \(height, width\) in pixels"),
        (lambda: checks.check_size("n", np.array(3)), r"n is array\(3\); expected \(height, width\) in pixels"),
        (lambda: checks.check_size("n", b"ab"), r"n is b'ab'; expected \(height, width\) in pixels"),
        (lambda: checks.check_size("n", "ab", "None"), r"n is 'ab'; expected \(height, width\) in pixels, or None"),
        (lambda: checks.check_choice("n", 1, (True, False)), "n is 1; expected one of True, False"),
        (lambda: checks.check_choices("n", ["a", "a"], "ab"), r"n is .*; expected a list of different ones out of 'a'"),
        (lambda: checks.check_names("n", "a", ["a"]), r"n is 'a'; expected a list of names, such as \['a'\]"),
        (lambda: checks.check_text("n", ""), "n is ''; expected a text that is not empty"),
        (lambda: checks.check_path("n", ""), "n is ''; expected the path of a file or folder"),
        (lambda: checks.check_path("n", 1), "n is 1; expected the path of a file or folder"),
        (lambda: checks.check_device("n", "gpu"), "n is 'gpu'; expected a device that torch can use here, such as"),
        (lambda: checks.check_device("n", 0.5), "n is 0.5; expected a device"),
        (lambda: checks.check_arguments("n", {"x": 1}, len, 1), "n is {'x': 1}; expected arguments of len"),
    ],
)
def test_messages_have_one_form(make, message):
    with pytest.raises(ValueError, match=f"^{message}|; {re.escape(message)}"):
        make()
