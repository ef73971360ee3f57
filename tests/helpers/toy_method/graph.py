"""Signs times a size per row, in an ONNX graph."""

from __future__ import annotations

import numpy as np

from embcompress.checkpoint.onnx.building import TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, F32, bit_fields


class SignGraph(TableGraph):
    """Looks up rows of signs times a size."""

    opset = CODES_OPSET

    def lookup(self, group, ids, stored):
        signs = group.add("Cast", group.add("Gather", stored.part("0.signs"), ids, axis=0), to=1)
        columns = np.arange(stored.shape[1])
        signs = bit_fields(group, signs, stored.parts["0.signs"].shape[1], columns, np.ones_like(columns))
        signs = group.add("Sub", group.add("Mul", signs, group.constant(2, "F32")), group.constant(1, "F32"))
        sizes = group.add("Gather", stored.part("0.sizes"), ids, axis=0)
        return group.add("Mul", signs, group.cast(sizes, stored.parts["0.sizes"].dtype, F32)), F32


def table_graph(method):
    return SignGraph()
