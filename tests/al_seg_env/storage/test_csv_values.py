import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_seg_env.storage import parse_float, parse_int

NOT_NUMBERS = [
    "3_1",
    " 31",
    "31 ",
    "31\n",
    "+31",
    "",
    "-",
    "٣١",
    "0x1f",
    "3,1",
    "true",
    "None",
    None,
    ["31"],
    31,
    "--3",
]


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "031", "3.0", "1e3", "1" * 19, "nan"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="steps is .*; expected a whole number"):
        parse_int(text, "steps")


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "00.5", ".5", "5.", "1_0.5", "nan", "inf", "-inf", "1e999", "1e"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(ValueError, match="return is .*; expected a finite number"):
        parse_float(text, "return")


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_whole_numbers_come_back(number):
    assert parse_int(str(number), "n") == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_as_python_numpy_and_json_write_them(number):
    for text in (str(number), json.dumps(number), str(np.float64(number))):
        assert parse_float(text, "n") == number
