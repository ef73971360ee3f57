"""Two factors of scaled integers in an ONNX graph."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, F32, MOST_BITS, scaled_integers
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.methods.base import Method
from embcompress.methods.parts import REMAKE


class IntegerFactorsGraph(TableGraph):
    """Unpacked and scaled rows of the left factor times the right factor."""

    opset = CODES_OPSET

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather and unpack rows of the left factor, and multiply them by the unpacked right factor.

        Raises:
            InputError: the stored numbers of bits are not 1 to 8.
        """
        found = stored.content("0.bits")
        left, right = (MOST_BITS, MOST_BITS) if found is None else (int(bits) for bits in found[0])
        if not (1 <= left <= 8 and 1 <= right <= 8):
            raise InputError(f"factors of {left} and {right} bits, limit 1 to 8", remedy=REMAKE)
        rank = stored.parts["1.codes"].shape[0]
        rows = scaled_integers(group, "0", ids, stored, rank, left)
        factor = scaled_integers(group, "1", None, stored, stored.shape[1], right)
        return group.add("MatMul", rows, factor), F32


def table_graph(_: Method) -> TableGraph:
    """Return how a graph looks up rows of two factors in integers."""
    return IntegerFactorsGraph()
