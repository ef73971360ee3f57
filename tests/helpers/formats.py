"""A small model written in every format."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def model(dtype=torch.float32, rows=120, columns=24, seed=0):
    """A state dict with a tied head and tensors of several types beside the table."""
    generator = torch.Generator().manual_seed(seed)
    table = (torch.randn(rows, columns, generator=generator) * torch.logspace(0, -1, columns)).to(dtype)
    table[0] = 0
    return {
        "embedding.weight": table,
        "fc.weight": torch.randn(4, columns, generator=generator),
        "fc.bias": torch.randn(4, generator=generator).half(),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "lm_head.weight": table,
    }


class Safetensors:
    """How the tests write and read a .safetensors file, with the format's own library."""

    suffix = ".safetensors"

    @staticmethod
    def save(path, tensors):
        save_file({n: t.clone() for n, t in tensors.items()}, path, metadata={"format": "pt"})

    load = staticmethod(load_file)


class TorchZip:
    """The same with torch.save, whose files can share memory between names."""

    suffix = ".pt"

    @staticmethod
    def save(path, tensors):
        torch.save(tensors, path)

    @staticmethod
    def load(path):
        return torch.load(path, weights_only=True)


class TorchLegacy(TorchZip):
    """The format from before torch 1.6."""

    @staticmethod
    def save(path, tensors):
        torch.save(tensors, path, _use_new_zipfile_serialization=False)


class Directory:
    """A Hugging Face directory with the table in the second of two shards."""

    suffix = ""

    @staticmethod
    def save(path, tensors):
        path.mkdir()
        names = sorted(tensors, reverse=True)
        shards = {
            "model-00001-of-00002.safetensors": names[:2],
            "model-00002-of-00002.safetensors": names[2:],
        }
        for shard, part in shards.items():
            Safetensors.save(path / shard, {n: tensors[n] for n in part})
        weight_map = {n: shard for shard, part in shards.items() for n in part}
        size = sum(t.nbytes for t in tensors.values())
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
        )
        (path / "config.json").write_text(json.dumps({"vocab_size": 120, "model_type": "none"}))
        (path / "tokenizer.json").write_text("{}")

    @staticmethod
    def load(path):
        index = json.loads((path / "model.safetensors.index.json").read_text())
        shards = {s: load_file(path / s) for s in set(index["weight_map"].values())}
        return {n: shards[s][n] for n, s in index["weight_map"].items()}


class Onnx:
    """A model that looks tokens up and, with a head, multiplies by its transpose; the rest is unused."""

    suffix = ".onnx"

    @classmethod
    def save(cls, path, tensors):
        onnx.save(cls.graph(tensors), path)

    @staticmethod
    def graph(tensors):
        held = [numpy_helper.from_array(Onnx.array(tensor), name) for name, tensor in tensors.items()]
        kind = {t.name: t.data_type for t in held}["embedding.weight"]
        last = "y" if "lm_head.weight" in tensors else "x"
        nodes = [
            helper.make_node("Gather", ["embedding.weight", "ids"], ["x"], "look up"),
            helper.make_node("Transpose", ["lm_head.weight"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["y"], "head"),
        ]
        ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"])
        out = helper.make_tensor_value_info(last, kind, ["batch", "length", None])
        graph = helper.make_graph(nodes if last == "y" else nodes[:1], "tiny", [ids], [out], held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    @staticmethod
    def array(tensor):
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    @staticmethod
    def load(path):
        onnx.checker.check_model(path, full_check=True)
        arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        return {
            name: torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
            if array.dtype == ml_dtypes.bfloat16
            else torch.from_numpy(array.copy())
            for name, array in arrays.items()
        }


WRITERS = {
    "safetensors": [Safetensors],
    "torch": [TorchZip, TorchLegacy],
    "onnx": [Onnx],
    "directory": [Directory],
}
