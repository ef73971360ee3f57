"""Digests of everything in an ONNX model except the data of its weights, to compare two models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.onnx.building import number_of
from embcompress.checkpoint.onnx.model import is_external, tensors_in
from embcompress.checkpoint.onnx.uses import label


def remainder_of(
    proto: onnx.ModelProto, headers: Iterable[onnx.TensorProto], metadata: Mapping[str, str]
) -> dict[str, object]:
    """Collect the metadata, and the SHA-256 of each node, of each weight's header and of everything else.

    Our own nodes are listed by name, the others are numbered. The location of tensors in files is left out.

    Args:
        proto: the model; its initializers and metadata are ignored.
        headers: its initializers without their data.
        metadata: its metadata by key.
    """
    found: dict[str, object] = {f"metadata {k}": v for k, v in metadata.items() if k != METADATA_KEY}
    found |= {f"header of {header.name}": _digest(header) for header in headers}
    model = type(proto)()
    model.CopyFrom(proto)
    del model.metadata_props[:]
    del model.graph.initializer[:]
    for tensor in tensors_in(model):
        _forget_place(tensor)
    others = 0
    for node in model.graph.node:
        if number_of(node) is None:
            found[f"node {others} {label(node)}"] = _digest(node)
            others += 1
        else:
            found[node.name] = f"before node {others}, SHA-256 {_digest(node)}"
    del model.graph.node[:]
    found["graph"] = _digest(model.graph)
    model.ClearField("graph")
    found["model"] = _digest(model)
    return found


def _digest(message: Any) -> str:
    if isinstance(message, onnx.TensorProto):
        copied = onnx.TensorProto()
        copied.CopyFrom(message)
        _forget_place(copied)
        message = copied
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()


def _forget_place(tensor: onnx.TensorProto) -> None:
    if is_external(tensor):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
