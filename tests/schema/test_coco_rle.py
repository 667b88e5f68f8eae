"""COCO's run-length code of masks; pycocotools is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lsml_cli.schema.coco_rle import decode_mask, encode_mask

masks = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


@given(masks)
def test_code_is_that_of_pycocotools(mask):
    from pycocotools import mask as oracle

    expected = oracle.encode(np.asfortranarray(mask))
    encoded = encode_mask(mask)
    assert (encoded["counts"], encoded["size"]) == (expected["counts"].decode(), list(expected["size"]))
    assert (decode_mask(encoded) == mask).all()


def test_large_runs_and_lists_of_numbers():
    mask = np.zeros((3000, 2000), np.uint8)
    mask[5:2500, 7:1900] = 1
    assert (decode_mask(encode_mask(mask)) == mask).all()
    assert decode_mask({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    "encoded",
    [
        {"size": [2, 2], "counts": "\n"},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "o" * 100},
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": [1.5, 2.5]},
        {"size": [2, 2], "counts": None},
        {"size": [2], "counts": [4]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {},
    ],
)
def test_what_is_no_mask_is_refused(encoded):
    with pytest.raises(ValueError, match="its mask"):
        decode_mask(encoded)
