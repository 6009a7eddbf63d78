"""Bytes that are no tensor; what is one, tests/property has."""

from __future__ import annotations

import pytest

from cmt.bank.tensor_bytes import tensor_from_bytes


def test_bytes_that_do_not_fill_a_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected 8 bytes for float32 \[2\], got 7"):
        tensor_from_bytes(b"1234567", [2], "float32")
    with pytest.raises(ValueError, match=r"expected a dtype of .*, got 'int8'"):
        tensor_from_bytes(b"", [0], "int8")
