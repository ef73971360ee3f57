"""Small ONNX models for tests, made with the format's own library, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from helpers.checkpoints import table
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

V, D = 500, 32
NAME = "embedding.weight"
IDS = np.random.default_rng(5).integers(0, V, (3, 7))
HIDDEN = np.random.default_rng(6).standard_normal((3, 7, D)).astype(np.float32)

GATHER = helper.make_node("Gather", [NAME, "ids"], ["rows"], "look up")
OTHER = np.random.default_rng(7).standard_normal((D, D)).astype(np.float32)


def low_rank(rows: int = V, columns: int = D) -> NDArray[np.float32]:
    """A table with a falling spectrum and a padding row."""
    found = table(rows, columns, seed=3)
    found[0] = 0
    return found


def model(
    nodes: Sequence[NodeProto] = (GATHER,),
    outputs: Sequence[str] = ("rows",),
    *,
    values: NDArray | None = None,
    more: Mapping[str, NDArray] | None = None,
    opset: int = 17,
    ir: int = 8,
    inputs: Mapping[str, NDArray] | None = None,
) -> onnx.ModelProto:
    """A model of a table, further initializers and nodes, for inputs of these types and ranks."""
    held = {NAME: low_rank() if values is None else values, "other": OTHER, **(more or {})}
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    given = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(value.dtype),
            [f"{name}{axis}" for axis in range(value.ndim)],
        )
        for name, value in ({"ids": IDS} if inputs is None else inputs).items()
    ]
    if ir < 4:
        given += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    kind = tensors[0].data_type
    found = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "tiny", given, found, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    for value, found in zip(graph.output, onnx.shape_inference.infer_shapes(made).graph.output, strict=True):
        if found.type.tensor_type.HasField("shape"):
            made.graph.output[[*outputs].index(value.name)].CopyFrom(found)
    return made


def saved(path: Path, made: onnx.ModelProto) -> Path:
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    return path


def outside(path: Path, made: onnx.ModelProto, name: str = "weights.bin", threshold: int = 0) -> Path:
    """The same with its data in a file beside."""
    onnx.save(made, path, save_as_external_data=True, location=name, size_threshold=threshold)
    return path


def outputs(path: Path, **inputs: NDArray) -> list[NDArray]:
    """What onnxruntime alone computes, after the checker has passed the model."""
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in inputs.items() if name in wanted})


def weights(path: Path) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each initializer."""
    found = onnx.load(path).graph.initializer
    return {t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in found}
