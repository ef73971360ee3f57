"""ONNX models. The package ``onnx`` parses the graph, which is rewired; other weights are copied unread."""

from embcompress.checkpoint.onnx.file import OnnxFile

__all__ = ["OnnxFile"]
