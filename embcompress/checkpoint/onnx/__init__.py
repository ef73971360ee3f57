"""ONNX models: rewire the graph and copy the weights; the package ``onnx`` parses the graph."""

from embcompress.checkpoint.onnx.file import OnnxFile

__all__ = ["OnnxFile"]
