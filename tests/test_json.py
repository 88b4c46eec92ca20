"""Values come back from JSON as they went in, with their types."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_sae._saving.json import NUMPY_KINDS, decode, encode


def back(value):
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one == other and str(one) == str(other)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
scalars |= st.sampled_from(["cpu", "cuda", "cuda:1"]).map(torch.device)
scalars |= st.sampled_from(["", "a", "/a/b c", "../ü"]).map(Path)
values = st.recursive(scalars, lambda items: st.lists(items) | st.lists(items).map(tuple))


@given(values)
def test_values_come_back_with_their_types(value):
    assert same(back(value), value)


@pytest.mark.parametrize("kind", NUMPY_KINDS)
def test_numpy_numbers_and_arrays_come_back_with_their_dtypes(kind):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype=kind)
    if kind.startswith("float"):
        array[0] = np.finfo(kind).tiny, np.inf, np.nan
    elif "int" in kind:
        array[0, :2] = np.iinfo(kind).min, np.iinfo(kind).max
    result = back(array)
    assert type(result) is np.ndarray and result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)
    number = back(array[0, 0])
    assert type(number) is type(array[0, 0]) and number == array[0, 0]


def test_an_empty_array_comes_back():
    assert back(np.zeros(0, dtype=np.int16)).dtype == np.int16


def test_a_numpy_string_comes_back_as_a_string():
    assert back(np.array(["soap", "adam"])[1]) == "adam"


def test_a_random_state_goes_on_where_it_was():
    random_state = np.random.RandomState(3)
    random_state.normal(size=7)  # an odd number: half of the last pair is kept for the next call
    copy = back(random_state)
    np.testing.assert_array_equal(copy.normal(size=1000), random_state.normal(size=1000))


def test_a_random_state_of_another_generator_is_refused():
    with pytest.raises(TypeError, match="RandomState of PCG64, and a file holds those of MT19937"):
        encode(np.random.RandomState(np.random.PCG64(0)))


@pytest.mark.parametrize(
    "value",
    [object(), {"a": 1}, {1}, 1j, np.complex64(1), np.array(["a"]), b"bytes"],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match=f"is a {type(value).__name__}; a file holds"):
        encode(value)
    with pytest.raises(TypeError, match="a file holds"):
        encode([(value,)])


def test_extended_precision_is_refused():
    if np.dtype(np.longdouble).name == "float64":
        pytest.skip("long doubles are doubles on this machine")
    with pytest.raises(TypeError, match="a file holds"):
        encode(np.longdouble(1))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'complex'"):
        decode({"complex": [1, 2]})


@pytest.mark.parametrize(
    "change",
    [{"pos": 625}, {"pos": -1}, {"pos": sys.maxsize}, {"key": [1, 2, 3]}],
    ids=str,
)
def test_a_random_state_that_would_read_foreign_memory_is_refused(change):
    state = encode(np.random.RandomState(0))["RandomState"]
    with pytest.raises(ValueError, match="no Mersenne Twister"):
        decode({"RandomState": state | change})
