"""JSON beyond what orjson takes: large numbers, deep nesting."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsml_cli.schema.json_codec import MAX_DEPTH, MAX_INTEGER_DIGITS, dumps, loads, loads_exactly

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # nested data on a busy machine
@given(json_values)
def test_exact_round_trip(value):
    assert loads_exactly(dumps(value)) == value
    assert loads_exactly(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize("integer", [2**63, 2**64, -(10**300), 10**400, -(10 ** (MAX_INTEGER_DIGITS - 1))])
def test_large_integers_are_kept(integer):
    assert loads_exactly(dumps({"n": [integer]})) == {"n": [integer]}
    value = loads(dumps({"n": [integer]}))["n"][0]
    assert value == integer or value == pytest.approx(float(integer))


@pytest.mark.parametrize("depth", [250, 254, 255, 256, MAX_DEPTH])
def test_nesting_up_to_the_limit_is_read_and_written(depth):
    body = b"[" * depth + b"]" * depth
    assert dumps(loads(body)) == dumps(loads_exactly(body)) == body


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 960, *range(990, 1030), 100_000])
def test_deeper_nesting_is_refused_at_any_depth_of_the_stack(depth):
    for load in (loads, loads_exactly):
        with pytest.raises(ValueError, match="nested more than 500 deep"):
            load(b'{"a":' * depth + b"1" + b"}" * depth)


def test_brackets_in_strings_and_beside_each_other_are_no_nesting():
    assert loads(b'{"a": "' + b'[{\\"' * 2_000 + b'"}') == {"a": '[{"' * 2_000}
    assert loads(b"[" + b"[]," * 2_000 + b"[]]") == [[]] * 2_001


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"a": 1e400}', "the number 1e400 is beyond the range of floats"),
        (b'{"a": [-1E+999]}', "the number -1E\\+999 is beyond"),
        (b'{"a": ' + b"1" * 400 + b".5}", "beyond the range of floats"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "a number of 5,000 digits, and 4,300 is the most"),
        (b'{"a": ' + b"1" * 400 + b', "b": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"1" * 400 + b', "b": NaN}', "NaN and Infinity are no JSON numbers"),
        (b'{"a": ' + b"1" * 400 + b', "b": "\xe4"}', "not UTF-8 text"),
        (b'{"a": ' + b"1" * 400 + b', "b": }', "not JSON: "),
    ],
)
def test_unusable_json_is_explained(body, sentence):
    with pytest.raises(ValueError, match=sentence):
        loads(body)


def test_numpy_and_large_integers_are_written_together():
    assert json.loads(dumps({"a": np.float32(0.5), "b": np.arange(3), "c": 10**30})) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": 10**30,
    }


def test_string_that_is_never_closed_takes_linear_time():
    """The number makes the exact parser look at it, the brackets make it count them."""
    body = b'{"a": ' + b"1" * 400 + b', "b": "' + b"[" * 600 + b'\\"' * 300_000
    begin = time.process_time()
    with pytest.raises(ValueError, match="not JSON"):
        loads(body)
    assert time.process_time() - begin < 20  # minutes, if it grew with the square of the length
