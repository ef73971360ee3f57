"""ONNX models: the graph is rewired, the weights are carried; the package ``onnx`` parses the graph."""

from embcompress.checkpoint.onnx.file import OnnxFile

__all__ = ["OnnxFile"]
