"""ONNX models: rewired graphs run in onnxruntime alone and compute what the expanded ones do."""

from __future__ import annotations

import contextlib
import os
import sys

import numpy as np
import onnx
import pytest
import torch
from helpers import coded_tables
from helpers.checkpoints import assert_corrupt, assert_refused, contents, loaded_by, run, start, succeed
from helpers.onnx_models import (
    GATHER,
    HIDDEN,
    IDS,
    NAME,
    OTHER,
    D,
    V,
    low_rank,
    model,
    outputs,
    outside,
    saved,
    weights,
)
from helpers.quick import quick
from helpers.refusals import refused
from helpers.registry import EVERY, target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import Description, part_name
from embcompress.checkpoint.onnx import OnnxFile
from embcompress.checkpoint.onnx import graph_layout as layout
from embcompress.checkpoint.onnx.building import NODES_KEY, kept_text
from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import BY_TORCH_NAME as BY_NUMPY
from embcompress.linalg import trelliscode as linalg
from embcompress.methods import method_for
from embcompress.methods.pq import graph as trellis
from embcompress.tables import locate

PASSED = [helper.make_node("Identity", [NAME], ["same"], "pass")]
TURN = helper.make_node("Transpose", [NAME], ["turned"], "turn", perm=[1, 0])


def there_and_back(path, method="svd", folder=None, **options):
    """The compressed model and the expanded one."""
    folder = folder or path.parent
    small = embcompress.factorize(
        path, output=folder / "small.onnx", method=method, **{**target(method), **options}
    ).output
    return small, embcompress.expand(small, output=folder / "dense.onnx").output


def assert_same(small, dense, atol=1e-5, **inputs):
    """Both run in plain onnxruntime and compute the same."""
    for one, other in zip(outputs(small, **inputs), outputs(dense, **inputs), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), atol=atol, rtol=1e-5)


def assert_restored(dense, source):
    """The graph is the source's, node by node, and everything but the table is unchanged."""
    one, other = onnx.load(dense), onnx.load(source)
    for field in ("node", "input", "output", "value_info"):
        assert list(getattr(one.graph, field)) == list(getattr(other.graph, field))
    assert not one.metadata_props
    found, wanted = weights(dense), weights(source)
    assert [*found] == [*wanted]
    assert {n for n in found if found[n] != wanted[n]} == {NAME}


# ---- lookups


SHAPES = {
    "matrix": IDS,
    "line": IDS[0],
    "one": IDS[:1, :1].reshape(()),
    "none": IDS[:, :0],
    "from the end": -1 - IDS,
    "cube": IDS.reshape(3, 7, 1),
}


@pytest.mark.parametrize(
    ("method", "ids"),
    quick(
        {f"{method}, {kind}": (method, ids) for method in EVERY for kind, ids in SHAPES.items()},
        *(f"{method}, matrix" for method in EVERY),
        *(f"{method}, {kind}" for method in ("svd", "screen+int4") for kind in SHAPES),
    ),
)
def test_a_lookup_gives_the_rows_of_the_expanded_table(tmp_path, method, ids):
    """For ids of any rank, negative ones included; nothing of embcompress is needed to run it."""
    small, dense = there_and_back(saved(tmp_path / "m.onnx", model(inputs={"ids": ids})), method)
    assert_same(small, dense, ids=ids)
    assert_restored(dense, tmp_path / "m.onnx")
    assert not outputs(small, ids=np.zeros_like(ids))[0].any() or method != "svd"


@pytest.mark.parametrize("columns", [1, 2, 7, 9, 16, 33])
@pytest.mark.parametrize("method", ["int8", "int4", "int3"])
def test_integers_are_unpacked_whatever_their_number(tmp_path, method, columns):
    """Numbers may straddle bytes, and the last byte may be padded."""
    values = low_rank(60, columns)
    path = saved(tmp_path / "m.onnx", model(values=values))
    result = run("factorize", path, "--method", method, "--ratio", 0.01, "-o", tmp_path / "small.onnx")
    if result.exit_code:
        assert result.exit_code == 4, "so few columns leave nothing to gain"
        return
    dense = embcompress.expand(tmp_path / "small.onnx", output=tmp_path / "dense.onnx").output
    assert_same(tmp_path / "small.onnx", dense, ids=IDS % 60)


SAMPLES = coded_tables.samples(71, 21)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("opset", quick([11, 12, 13, 17, 21], "11", "13", "21"))
def test_every_kind_of_parts_is_decoded(tmp_path, kind, opset):
    """The graph computes what NumPy decodes, whatever bits and classes a method chooses."""
    coded = SAMPLES[kind]
    path = saved(tmp_path / "m.onnx", model(values=np.zeros_like(coded.table), opset=opset))
    parts = tuple(
        NewTensor(
            part_name(NAME, suffix), BY_NUMPY[part.dtype.name], part.shape, NAME, lambda p=part: iter([p])
        )
        for suffix, part in coded.parts.items()
    )
    described = Description("0", {"source": "0" * 64}, (coded.record(NAME),))
    with OnnxFile.open(path) as opened:
        edit = Edit(frozenset({NAME}), parts, graphs={NAME: method_for(coded.method).graph})
        opened.check_edit(edit)
        size = opened.size_after(edit, described)
        opened.write(tmp_path / "s.onnx", edit, described)
    assert (tmp_path / "s.onnx").stat().st_size <= size
    ids = np.concatenate([np.arange(71), np.arange(-71, 0)])[None]
    (found,) = outputs(tmp_path / "s.onnx", ids=ids)
    np.testing.assert_allclose(found[0], coded.table[ids[0]], atol=1e-5, rtol=1e-5)
    assert_same(tmp_path / "s.onnx", embcompress.expand(tmp_path / "s.onnx").output, ids=ids)


def test_the_layout_of_trellis_codes_is_that_of_the_coder():
    """The graph reads each field where the coder writes it, in each class."""
    classes = [coded_tables.PLAIN, coded_tables.WARM, coded_tables.HOT, (16,) * 9, (0, 2, 0, 14) + (0,) * 5]
    ours = trellis.BitPlaces(np.array(classes), None)
    starts = linalg.book_starts([linalg.code_of(np.array(rates) / 2) for rates in classes])
    for kind, rates in enumerate(classes):
        order = sorted((j for j in range(len(rates)) if rates[j]), key=lambda j: -rates[j])
        theirs = linalg.TrellisCode(linalg.MEMORY, tuple(rates[j] / 2 for j in order))
        np.testing.assert_array_equal(ours.subsets, theirs.subsets)
        assert ours.row_bytes[kind] == theirs.row_bytes
        np.testing.assert_array_equal(ours.windows[kind, order], theirs.windows)
        for rate, places in theirs.runs:
            second = (np.arange(places.stop - places.start) % 2) * (rate < 1)
            assert (ours.books[kind, order[places]] == starts[kind][rate] + second).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_factors_of_another_type_are_converted(tmp_path, dtype):
    """The outputs keep their type, and the product is that of the stored factors."""
    turned = helper.make_node("MatMul", ["hidden", "turned"], ["scores"])
    given = {"ids": IDS, "hidden": HIDDEN}
    path = saved(tmp_path / "m.onnx", model([GATHER, TURN, turned], ["rows", "scores"], inputs=given))
    small, dense = there_and_back(path, dtype=dtype)
    assert_same(small, dense, ids=IDS, hidden=HIDDEN)


@pytest.mark.parametrize("method", quick(EVERY, "svd", "int3", "pq", "screen+svd"))
def test_a_table_of_half_precision(tmp_path, method):
    """Tables in float16 give rows in float16."""
    path = saved(tmp_path / "m.onnx", model(values=low_rank().astype(np.float16)))
    small, dense = there_and_back(path, method, **({} if method == "svd" else {"ratio": 0.3}))
    assert_same(small, dense, ids=IDS, atol=2e-2)


def test_numbers_that_stand_one_by_one(tmp_path):
    """The library's make_tensor stores floats in a list, whose bytes are the same."""
    made = model()
    made.graph.initializer[0].CopyFrom(
        helper.make_tensor(NAME, TensorProto.FLOAT, [V, D], low_rank().ravel().tolist())
    )
    made.graph.initializer.append(helper.make_tensor("sizes", TensorProto.INT64, [2], [3, 4]))
    small, dense = there_and_back(saved(tmp_path / "m.onnx", made))
    assert_same(small, dense, ids=IDS)
    assert weights(dense)["sizes"] == weights(tmp_path / "m.onnx")["sizes"]


def test_an_old_model_lists_its_weights_among_its_inputs(tmp_path):
    """Before IR version 4 the checker requires this; expanding restores it."""
    path = saved(tmp_path / "m.onnx", model(opset=9, ir=3))
    small, dense = there_and_back(path)
    assert {v.name for v in onnx.load(small).graph.input} == {
        *("ids", "other", "embedding.0.weight", "embedding.1.weight")
    }
    assert_same(small, dense, ids=IDS)
    assert {v.name for v in onnx.load(dense).graph.input} == {"ids", "other", NAME}


def test_the_opset_is_kept_or_the_model_refused(tmp_path):
    """Codes need operators that opset 10 lacks; graphs are not converted."""
    path = saved(tmp_path / "m.onnx", model(opset=10, ir=5))
    assert_refused(
        tmp_path, "factorize", path, "--ratio", 0.5, "--method", "int4", code=2, says="has opset 10"
    )
    small, dense = there_and_back(path)
    assert [entry.version for entry in onnx.load(small).opset_import] == [10]
    assert_same(small, dense, ids=IDS)


# ---- heads


HEADS = {
    "turned": [TURN, helper.make_node("MatMul", ["hidden", "turned"], ["scores"])],
    "turned, twice used": [
        TURN,
        helper.make_node("MatMul", ["hidden", "turned"], ["first"]),
        helper.make_node("MatMul", ["hidden", "turned"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["scores"]),
    ],
    "turned by default": [
        helper.make_node("Transpose", [NAME], ["turned"]),
        helper.make_node("Gemm", ["flat", "turned"], ["scores"], "head"),
    ],
    "gemm": [helper.make_node("Gemm", ["flat", NAME, "bias"], ["scores"], alpha=0.5, beta=2.0, transB=1)],
    "gemm of a turned input": [helper.make_node("Gemm", ["upright", NAME], ["scores"], transA=1, transB=1)],
    "soft lookup": [helper.make_node("MatMul", ["chances", NAME], ["scores"])],
    "soft gemm": [helper.make_node("Gemm", ["chances", NAME], ["scores"], alpha=3.0)],
}
INPUTS = {
    "hidden": HIDDEN,
    "flat": HIDDEN[0],
    "upright": np.ascontiguousarray(HIDDEN[0].T),
    "chances": np.eye(4, V, 2, np.float32) + 1e-3,
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_goes_through_the_factors(tmp_path, head):
    """A product with the table becomes products with the two factors, which is less work."""
    nodes = HEADS[head]
    given = {name: value for name, value in INPUTS.items() if any(name in n.input for n in nodes)}
    more = {"bias": np.linspace(0, 1, V, dtype=np.float32)}
    made = model([GATHER, *nodes], ["rows", "scores"], more=more, inputs={"ids": IDS, **given})
    path = saved(tmp_path / "m.onnx", made)
    small, dense = there_and_back(path)
    assert NAME not in weights(small)
    assert_same(small, dense, atol=1e-4, ids=IDS, **INPUTS)
    assert_restored(dense, path)


@pytest.mark.parametrize("method", quick([m for m in EVERY if m != "svd"], "int4", "screen", "screen+svd"))
def test_a_head_has_no_form_for_codes(tmp_path, method):
    """The refusal comes before the work, and names the methods that have one."""
    given = {"ids": IDS, "hidden": HIDDEN}
    made = model([GATHER, *HEADS["turned"]], ["rows", "scores"], inputs=given)
    path = saved(tmp_path / "m.onnx", made)
    options = ("--ratio", 0.5, "--method", method)
    assert_refused(tmp_path, "factorize", path, *options, code=2, says="choose --method svd")


def test_a_copy_of_the_table_is_a_tie(tmp_path):
    """A head with equal values is dropped with the table, and restored under its name."""
    head = [
        helper.make_node("Transpose", ["lm_head.weight"], ["turned"]),
        helper.make_node("MatMul", ["rows", "turned"], ["scores"]),
    ]
    made = model([GATHER, *head], ["scores"], more={"lm_head.weight": low_rank()})
    small, dense = there_and_back(saved(tmp_path / "m.onnx", made))
    assert {*weights(small)} == {"embedding.0.weight", "embedding.1.weight", "other"}
    assert_same(small, dense, ids=IDS, atol=1e-4)
    assert weights(dense)["lm_head.weight"] == weights(dense)[NAME]
    assert list(onnx.load(dense).graph.node) == list(made.graph.node)


def test_a_transposed_copy_is_told(tmp_path):
    """Some exporters fold the transpose of a tied head, which is then another matrix."""
    head = helper.make_node("MatMul", ["rows", "folded"], ["scores"])
    made = model([GATHER, head], ["scores"], more={"folded": np.ascontiguousarray(low_rank().T)})
    result = embcompress.factorize(saved(tmp_path / "m.onnx", made), rank=6, output=tmp_path / "s.onnx")
    assert any("folded is embedding.weight transposed" in note for note in result.notes)
    outputs(tmp_path / "s.onnx", ids=IDS)


HALF = int(TensorProto.FLOAT16)
CHAINS = {
    "one name more": [
        helper.make_node("Identity", ["E"], ["F"]),
        helper.make_node("Gather", ["F", "ids"], ["rows"]),
    ],
    "another type": [
        helper.make_node("Cast", ["E"], ["F"], to=HALF),
        helper.make_node("Gather", ["F", "ids"], ["half"]),
        helper.make_node("Cast", ["half"], ["rows"], to=int(TensorProto.FLOAT)),
    ],
    "ids of another type and shape": [
        helper.make_node("Cast", ["ids"], ["small ids"], to=int(TensorProto.INT32)),
        helper.make_node("Reshape", ["small ids", "shape"], ["flat ids"]),
        helper.make_node("Gather", ["E", "flat ids"], ["rows"]),
    ],
}
TAILS = {
    "none": [helper.make_node("Neg", ["rows"], ["scores"])],
    "turned under another name": [
        helper.make_node("Identity", ["E"], ["head"]),
        helper.make_node("Identity", ["head"], ["same head"]),
        helper.make_node("Transpose", ["same head"], ["turned"], perm=[1, 0]),
        helper.make_node("Identity", ["turned"], ["same turned"]),
        helper.make_node("MatMul", ["rows", "same turned"], ["scores"]),
    ],
    "turned in another type": [
        helper.make_node("Cast", ["rows"], ["half rows"], to=HALF),
        helper.make_node("Transpose", ["E"], ["turned"]),
        helper.make_node("Cast", ["turned"], ["half turned"], to=HALF),
        helper.make_node("MatMul", ["half rows", "half turned"], ["half scores"]),
        helper.make_node("Cast", ["half scores"], ["scores"], to=int(TensorProto.FLOAT)),
    ],
    "multiplied in another type": [
        helper.make_node("Cast", ["E"], ["half head"], to=HALF),
        helper.make_node("Cast", ["rows"], ["half rows"], to=HALF),
        helper.make_node("Reshape", ["half rows", "flat"], ["half flat"]),
        helper.make_node("Gemm", ["half flat", "half head"], ["half scores"], transB=1),
        helper.make_node("Cast", ["half scores"], ["scores"], to=int(TensorProto.FLOAT)),
    ],
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("chain", CHAINS)
def test_nodes_between_a_table_and_its_uses_are_seen_through(tmp_path, chain, tail):
    """The table has no telling name and is found all the same; expanding puts every node back."""
    more = {"E": low_rank(), "shape": np.array([-1, 7]), "flat": np.array([-1, D])}
    made = model([*CHAINS[chain], *TAILS[tail]], ["scores"], more=more, values=np.eye(2, dtype=np.float32))
    del made.graph.initializer[0]
    path = saved(tmp_path / "m.onnx", made)
    small, dense = there_and_back(path, rank=6)
    assert {*weights(small)} == {"E.0.weight", "E.1.weight", "other", "shape", "flat"}
    assert_same(small, dense, ids=IDS, atol=0.1 if "half" in str(made.graph.node) else 1e-4)
    assert list(onnx.load(dense).graph.node) == list(made.graph.node)
    wanted = outputs(path, ids=IDS)[0]
    (exact,) = outputs(embcompress.factorize(path, rank=D - 2, output=tmp_path / "x.onnx").output, ids=IDS)
    np.testing.assert_allclose(exact, wanted, atol=0.02 * np.abs(wanted).max())


def lookups(**tables):
    """A model that looks up each table by ids of this name; of the input itself, or computed ones."""
    made = {
        "positions": [helper.make_node("Range", ["zero", "length", "one"], ["positions"])],
        "shifted": [helper.make_node("Add", ["ids", "one"], ["shifted"])],
        "counted": [
            helper.make_node("Cast", ["ids"], ["wide"], to=int(TensorProto.DOUBLE)),
            helper.make_node("CumSum", ["wide", "one"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["counted"], to=int(TensorProto.INT64)),
        ],
    }
    used = dict.fromkeys(ids for ids, _ in tables.values())
    nodes = [node for ids in used for node in made.get(ids, ())]
    nodes += [helper.make_node("Gather", [name, ids], [f"of {name}"]) for name, (ids, _) in tables.items()]
    more = {name: low_rank(rows, 16) for name, (_, rows) in tables.items()}
    more |= {name: np.array(value) for name, value in (("zero", 0), ("one", 1), ("length", 7))}
    given = {name: IDS for name in ("ids", *(ids for ids in used if ids not in made))}
    found = model(
        nodes, [f"of {name}" for name in tables], more=more, inputs=given, values=np.eye(2, dtype="f4")
    )
    del found.graph.initializer[0]
    return found


@pytest.mark.parametrize(
    ("tables", "chosen", "every"),
    [
        ({"arg0_1": ("ids", 99), "arg1_1": ("positions", 900)}, "arg0_1", {"arg0_1"}),
        ({"onnx::Gather_12": ("shifted", 99), "g": ("counted", 900)}, "onnx::Gather_12", {"onnx::Gather_12"}),
        ({"g": ("position_ids", 900), "h": ("token_type_ids", 50), "E": ("ids", 99)}, "E", {"E"}),
        ({"lm_head.weight": ("ids", 99), "E": ("positions", 900)}, "lm_head.weight", {"lm_head.weight"}),
        ({"E": ("ids", 900), "F": ("ids", 99)}, "E", {"E", "F"}),
        ({"E": ("ids", 900), "token_emb": ("ids", 99)}, "token_emb", {"E", "token_emb"}),
        ({"position_embeddings.weight": ("ids", 900), "E": ("ids", 99)}, "E", {"E"}),
        ({"E": ("counted", 99)}, "E", {"E"}),
    ],
)
def test_a_table_is_known_by_the_ids_that_look_it_up(tmp_path, tables, chosen, every):
    """Ids that the model is given are tokens, unless their name says otherwise; others come last."""
    path = saved(tmp_path / "m.onnx", lookups(**tables))
    with open_checkpoint(path) as opened:
        assert [table.name for table in locate(opened)] == [chosen]
        assert {table.name for table in locate(opened, every=True)} == every


@pytest.mark.parametrize("form", ["raw", "numbers", "beside", "old"])
def test_a_table_in_a_constant_is_found_and_replaced(tmp_path, form):
    """It becomes an initializer; the other constants stay nodes, wherever their data are."""
    values = low_rank()
    tensor = numpy_helper.from_array(values, "v")
    if form == "numbers":
        tensor = helper.make_tensor("v", TensorProto.FLOAT, [V, D], values.ravel().tolist())
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(OTHER[0])),
        helper.make_node("Constant", [], ["/Constant_output_0"], value=tensor),
        helper.make_node("Gather", ["/Constant_output_0", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "scale"], ["scaled"]),
    ]
    old = {"opset": 9, "ir": 3} if form == "old" else {}
    made = model(nodes, ["scaled"], values=np.eye(2, dtype=np.float32), **old)
    path = saved(tmp_path / "m.onnx", made)
    if form == "beside":
        options = {"save_as_external_data": True, "location": "w", "size_threshold": 0}
        onnx.save(made, path, **options, convert_attribute=True)
    out = tmp_path / "out"
    out.mkdir()
    small, dense = there_and_back(path, folder=out)
    assert {*weights(small)} == {NAME, "other", "/Constant_output_0.0.weight", "/Constant_output_0.1.weight"}
    assert [node.op_type for node in onnx.load(dense).graph.node] == ["Constant", "Gather", "Mul"]
    assert_same(small, dense, ids=IDS)
    np.testing.assert_array_equal(outputs(path, ids=IDS)[0], values[IDS] * OTHER[0])
    u, falling, vt = np.linalg.svd(values, full_matrices=False)
    best = (u[:, :6] * falling[:6]) @ vt[:6]
    np.testing.assert_allclose(outputs(small, ids=IDS)[0], best[IDS] * OTHER[0], atol=1e-4)
    succeed("verify", small, "--against", path)


def test_uses_inside_branches(tmp_path):
    """A subgraph may look up a table of its outer graph."""
    found = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["a", "b", D])]
    inner = helper.make_graph([GATHER], "then", [], found)
    twice = [
        helper.make_node("Gather", [NAME, "ids"], ["once"]),
        helper.make_node("Add", ["once", "once"], ["rows"]),
    ]
    other = helper.make_graph(twice, "else", [], found)
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=inner, else_branch=other)
    given = {"ids": IDS, "flag": np.array(True)}
    path = saved(tmp_path / "m.onnx", model([choice], ["chosen"], inputs=given))
    for method in ("svd", "int4", "screen+pq"):
        folder = tmp_path / method
        folder.mkdir()
        small, dense = there_and_back(path, method, folder)
        for flag in (True, False):
            assert_same(small, dense, ids=IDS, flag=np.array(flag))
        assert_restored(dense, path)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([helper.make_node("Identity", [NAME], ["rows"], "odd")], "rows is an output of the graph"),
        ([helper.make_node("Cast", [NAME], ["rows"], "odd", to=TensorProto.INT64)], "node odd (Cast)"),
        ([*PASSED, helper.make_node("Relu", ["same"], ["rows"], "odd")], "node odd (Relu)"),
        ([GATHER, helper.make_node("Gather", [NAME, "ids"], ["s"], "odd", axis=1)], "node odd (Gather)"),
        ([GATHER, TURN, helper.make_node("Relu", ["turned"], ["s"], "odd")], "node odd (Relu)"),
        ([helper.make_node("MatMul", [NAME, "other"], ["rows"], "odd")], "node odd (MatMul)"),
        ([GATHER, helper.make_node("Gather", [NAME], ["s"], "odd")], "node odd (Gather)"),
        ([GATHER, helper.make_node("Gather", [NAME, "ids"], [], "odd")], "node odd (Gather)"),
        ([GATHER, helper.make_node("Transpose", [NAME], ["s"], "odd", perm=1)], "node odd (Transpose)"),
        ([helper.make_node("Identity", ["other"], ["rows"])], "no node uses embedding.weight"),
    ],
)
def test_other_uses_are_refused(tmp_path, nodes, says):
    """The node is named, whether the method has a form for products, for lookups alone, or wraps another."""
    path = tmp_path / "m.onnx"
    made = model()
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.save(made, path)  # the checker would not pass all of them
    for method, (option, value) in ((m, *target(m).items()) for m in ("svd", "int4", "screen+svd")):
        options = (f"--{option}", value, "--method", method)
        assert_refused(tmp_path, "factorize", path, *options, code=2, says=says)


def test_a_table_that_is_given_out_is_refused(tmp_path):
    """A table that is an output of the graph cannot be replaced."""
    made = model()
    made.graph.output.append(helper.make_tensor_value_info(NAME, TensorProto.FLOAT, [V, D]))
    path = saved(tmp_path / "m.onnx", made)
    assert_refused(tmp_path, "factorize", path, "--rank", 4, code=2, says="is an output of the graph")


# ---- data beside the model


@pytest.mark.parametrize("method", quick(EVERY, "svd", "int4", "screen+pq"))
def test_data_beside_the_model_stay_beside(tmp_path, method):
    """They are written to one file next to the output and named after it."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = outside(folder / "m.onnx", model())
    out = tmp_path / "out"
    out.mkdir()
    small, dense = there_and_back(path, method, out)
    assert sorted(p.name for p in out.iterdir()) == [
        *("dense.onnx", "dense.onnx.data", "small.onnx", "small.onnx.data")
    ]
    assert_same(small, dense, ids=IDS)
    assert_restored(dense, path)
    with open_checkpoint(small) as opened:
        assert opened.size == sum(f.stat().st_size for f in opened.weight_files)
        assert {f.name for f in opened.weight_files} == {"small.onnx", "small.onnx.data"}
        assert {*opened.description.source} == {"m.onnx", "weights.bin"}
    assert small.stat().st_size < 20_000, "the model itself is but the graph"


def test_data_of_constants_move_along(tmp_path):
    """The data of a tensor inside a node may be in a file of its own, too."""
    constant = helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(OTHER[0]))
    made = model([GATHER, constant, helper.make_node("Mul", ["rows", "scale"], ["scaled"])], ["scaled"])
    onnx.save(
        made, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    small, dense = there_and_back(tmp_path / "m.onnx", folder=out)
    assert_same(small, dense, ids=IDS)


def test_a_model_too_large_for_one_file_gets_one_beside(tmp_path, monkeypatch):
    """Protobuf ends at 2 GB: expanding may go beyond it."""
    path = saved(tmp_path / "m.onnx", model())
    small = embcompress.factorize(path, rank=4, output=tmp_path / "small.onnx").output
    monkeypatch.setattr(layout, "_ROOM", 50_000)
    dense = embcompress.expand(small, output=tmp_path / "dense.onnx").output
    assert (tmp_path / "dense.onnx.data").stat().st_size >= 4 * V * D
    assert_same(small, dense, ids=IDS)


def test_force_replaces_model_and_data(tmp_path):
    """Existing data are replaced only with --force, and the input's own never."""
    path = outside(tmp_path / "m.onnx", model())
    (tmp_path / "s.onnx.data").write_bytes(b"someone's")
    options = ("factorize", path, "--rank", 4, "-o", tmp_path / "s.onnx")
    assert_refused(tmp_path, *options, code=2, says="s.onnx.data: exists already")
    succeed(*options, "--force")
    succeed(*(o if o != 4 else 5 for o in options), "--force")
    outputs(tmp_path / "s.onnx", ids=IDS)

    clash = outside(tmp_path / "c.onnx", model(), name="b.onnx.data")
    options = ("factorize", clash, "--rank", 4, "-o", tmp_path / "b.onnx", "--force")
    assert_refused(tmp_path, *options, code=2, says="b.onnx.data: holds data of the input")


def test_a_download_cache_links_model_and_data(tmp_path):
    """Both are links into a folder of blobs, as the hub's cache has them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    outside(blobs / "m.onnx", model(), name="w.data")
    for name in ("m.onnx", "w.data"):
        (blobs / name).rename(blobs / f"sha-{name}")
        (snapshot / name).symlink_to(blobs / f"sha-{name}")
    small = embcompress.factorize(snapshot / "m.onnx", rank=4, output=tmp_path / "s.onnx").output
    assert outputs(small, ids=IDS)[0].shape == (3, 7, D)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("../secret", "leads out of the model's folder"),
        ("a/../../secret", "leads out of the model's folder"),
        ("/etc/passwd", "leads out of the model's folder"),
        ("C:\\secret", "leads out of the model's folder"),
        ("..\\secret", "leads out of the model's folder"),
        ("", "leads out of the model's folder"),
        ("w\x1b[2J", "leads out of the model's folder"),
        ("link", "leads out of the model's folder"),
        ("absent", "is not a file there"),
        (".", "leads out of the model's folder"),
        ("pipe", "is not a file there"),
    ],
)
def test_data_outside_the_folder_are_refused(tmp_path, place, says):
    """They are refused by the path's text, by links, and by the kind of file; nothing is opened."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * V * D))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    made = model()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    onnx.save(made, folder / "m.onnx")
    (folder / "pipe").unlink()  # a snapshot of the folder would wait for a writer
    if place == "pipe":
        (folder / "pipe").mkdir()
    assert_corrupt(folder / "m.onnx", says=says)


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "-1"), ("offset", "9"), ("length", "12"), ("length", "x"), ("offset", "9" * 5000)],
)
def test_data_that_do_not_fit_are_refused(tmp_path, key, value):
    """Offsets and lengths are compared with the file and with the shape before anything is read."""
    path = outside(tmp_path / "m.onnx", model(), name="w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[: 4 * V * D])
    made = onnx.load(path, load_external_data=False)
    tensor = made.graph.initializer[0]
    kept = {e.key: e.value for e in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in kept.items():
        tensor.external_data.add(key=name, value=text)
    del made.graph.initializer[1:]
    onnx.save(made, path)
    assert_corrupt(path, says="m.onnx: ")


# ---- hostile and broken


def test_a_shape_beyond_memory_is_refused(tmp_path):
    """Sizes are compared before memory is asked for."""
    made = model()
    made.graph.initializer[0].dims[0] = 1 << 40
    onnx.save(made, tmp_path / "m.onnx")
    assert_corrupt(tmp_path / "m.onnx", says="bytes, 64,000 are stored")


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    """It is refused at whatever byte it is cut off."""
    whole = saved(tmp_path / "whole.onnx", model()).read_bytes()
    path = tmp_path / "m.onnx"
    for length in (*range(0, 40, 3), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(embcompress.InputError):
            embcompress.report(path)
    path.write_bytes(whole[:-100])
    assert_corrupt(path, says="cut off or corrupt")


WHOLE = model([GATHER, TURN, helper.make_node("MatMul", ["rows", "turned"], ["scores"])], ["scores"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("small", [pytest.param(False, marks=pytest.mark.slow), True])
def test_any_damage_is_an_error_or_harmless(tmp_path, small, data):
    """Whatever bytes are changed, errors are our own."""
    path = tmp_path / "m.onnx"
    if not path.exists():
        saved(path, WHOLE)
        embcompress.factorize(path, rank=4, output=tmp_path / "s.onnx")
    blob = bytearray((tmp_path / ("s.onnx" if small else "m.onnx")).read_bytes())
    places = st.one_of(st.integers(0, 400), st.integers(len(blob) - 5000, len(blob) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        blob[place] = data.draw(st.integers(0, 255))
    (tmp_path / "bad.onnx").write_bytes(blob)
    commands = [
        embcompress.report,
        lambda p: embcompress.factorize(p, rank=2, output=tmp_path / "o", force=True),
    ]
    if small:
        commands.append(lambda p: embcompress.expand(p, output=tmp_path / "o", force=True))
    for command in commands:
        with contextlib.suppress(embcompress.EmbcompressError):
            command(tmp_path / "bad.onnx")


def test_a_graph_that_was_changed_is_not_expanded(tmp_path):
    """Nodes that another tool has renamed or removed cannot be restored."""
    small = embcompress.factorize(
        saved(tmp_path / "m.onnx", model()), rank=4, output=tmp_path / "s.onnx"
    ).output
    made = onnx.load(small)
    for node in made.graph.node:
        node.name = f"new {node.name}"
    onnx.save(made, small)
    assert_refused(tmp_path, "expand", small, code=3, says="have been changed since")
    assert succeed("report", small).exit_code == 0


def test_kept_nodes_of_other_kinds_are_refused(tmp_path):
    """Metadata may restore only lookups and products, and no data."""
    small = embcompress.factorize(
        saved(tmp_path / "m.onnx", model()), rank=4, output=tmp_path / "s.onnx"
    ).output
    tensor = TensorProto(dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    odd = helper.make_node("Constant", [], ["rows"], value=tensor)
    lookup = helper.make_node("Gather", [NAME, "ids"], ["rows"], odd=tensor)
    for text in (kept_text([odd]), kept_text([lookup]), "{}", "[", '["no base64"]', "[7]"):
        made = onnx.load(small)
        (entry,) = (entry for entry in made.metadata_props if entry.key == NODES_KEY)
        entry.value = text
        onnx.save(made, small)
        assert_refused(tmp_path, "expand", small, code=3, says=NODES_KEY)


def test_names_of_the_graph_are_not_taken_twice(tmp_path):
    """A value that is named like a part would be defined twice."""
    nodes = [helper.make_node("Gather", [NAME, "ids"], ["embedding.0.weight"])]
    path = saved(tmp_path / "m.onnx", model(nodes, ["embedding.0.weight"]))
    assert_refused(
        tmp_path, "factorize", path, "--rank", 4, code=2, says="is named embedding.0.weight already"
    )


def test_a_file_that_is_no_model(tmp_path):
    """A file named .onnx that is something else is refused with what it is."""
    for content, says in (
        (b"", "holds no graph"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"<html>not found</html>", "corrupt"),
    ):
        (tmp_path / "m.onnx").write_bytes(content)
        assert_corrupt(tmp_path / "m.onnx", says=says)


def test_models_that_train_themselves_are_refused(tmp_path):
    """Their training graphs use the weights too."""
    made = model()
    made.training_info.add()
    onnx.save(made, tmp_path / "m.onnx")
    assert_refused(tmp_path, "factorize", tmp_path / "m.onnx", "--rank", 4, code=2, says="training steps")


# ---- commands


def test_commands_work_on_onnx(tmp_path):
    """report, factorize, report --against and expand, as on other formats; size, notes and metadata stay."""
    made = model()
    made.metadata_props.add(key="author", value="someone")
    path = saved(tmp_path / "m.onnx", made)
    assert "onnx" in succeed("report", path).stdout
    succeed("factorize", path, "--ratio", 0.5, "-o", tmp_path / "small.onnx")
    assert "measured" in succeed("report", tmp_path / "small.onnx", "--against", path).stdout
    succeed("expand", tmp_path / "small.onnx")
    for name in ("small.onnx", "small-dense.onnx"):
        entries = {entry.key: entry.value for entry in onnx.load(tmp_path / name).metadata_props}
        assert entries["author"] == "someone"
    assert {*entries} == {"author"}


def test_an_output_is_known_by_its_first_bytes(tmp_path):
    """Without the suffix too, as the output may have any name."""
    path = saved(tmp_path / "m.onnx", model())
    succeed("factorize", path, "--rank", 4, "-o", tmp_path / "small")
    with open_checkpoint(tmp_path / "small") as opened:
        assert opened.format == "onnx"
    assert_refused(
        tmp_path, "factorize", path, "--rank", 4, "-o", tmp_path / "s.pt", code=2, says="means torch"
    )


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    """One line, not a traceback."""
    path = saved(tmp_path / "m.onnx", model())
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert_refused(tmp_path, "report", path, code=2, says="embcompress[onnx]")


def test_onnx_is_imported_for_onnx_alone(minilm):
    """Other formats do not pay for it, and ONNX does not pay for torch."""
    run_cli = "from embcompress.cli import cli\ntry: cli(sys.argv[1:])\nexcept SystemExit: pass\n"
    assert not loaded_by(run_cli, "report", minilm) & {"onnx", "google", "onnxruntime"}


def test_factorizing_a_model_does_not_import_torch(tmp_path):
    """onnx parses the graph, and nothing runs it."""
    path = saved(tmp_path / "m.onnx", model())
    run_cli = "from embcompress.cli import cli\ntry: cli(sys.argv[1:])\nexcept SystemExit: pass\n"
    loaded = loaded_by(run_cli, "factorize", path, "--rank", 4, "-o", tmp_path / "s.onnx")
    assert not loaded & {"torch", "onnxruntime"}
    assert (tmp_path / "s.onnx").exists()


def test_a_module_cannot_take_its_weights(tmp_path):
    """Loading is for checkpoints of PyTorch; an ONNX model runs by itself."""
    small = embcompress.factorize(saved(tmp_path / "m.onnx", model()), rank=4).output
    module = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(V, D)})
    with refused(embcompress.UsageError, "onnxruntime"):
        embcompress.load(module, small)


def test_a_killed_run_leaves_no_model(tmp_path):
    """No file next to the input looks finished."""
    path = outside(tmp_path / "m.onnx", model(values=low_rank(20_000, 64)))
    before = contents(tmp_path)
    process = start("factorize", path, "--rank", 8, "-o", tmp_path / "s.onnx")
    process.kill()
    process.communicate()
    left = {name: value for name, value in contents(tmp_path).items() if not name.startswith(".s.onnx")}
    assert left == before


# ---- what exporters write


class Encoder(torch.nn.Module):
    """Embeddings, positions, one attention layer and a tied head, with the names of BERT."""

    def __init__(self):
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(V, D, padding_idx=0)
        self.position_embeddings = torch.nn.Embedding(16, D)
        self.layer = torch.nn.TransformerEncoderLayer(D, 4, 64, batch_first=True, dropout=0.0)
        self.decoder = torch.nn.Linear(D, V)
        self.decoder.weight = self.word_embeddings.weight

    def forward(self, ids):
        places = torch.arange(ids.shape[1])
        return self.decoder(self.layer(self.word_embeddings(ids) + self.position_embeddings(places)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_a_model_that_torch_exported(tmp_path, dynamo):
    """With either exporter: the transposed head is a node, or a matrix of its own."""
    torch.manual_seed(0)
    module = Encoder().eval()
    ids = torch.from_numpy(IDS)
    axes = {"dynamic_shapes": ({0: "b"},)} if dynamo else {"dynamic_axes": {"ids": {0: "b"}}}
    path = tmp_path / "m.onnx"
    torch.onnx.export(
        module, (ids,), path, dynamo=dynamo, input_names=["ids"], output_names=["scores"],
        external_data=False, verbose=False, **axes,
    )  # fmt: skip
    (found,) = (t.name for t in onnx.load(path).graph.initializer if list(t.dims) == [V, D])
    small, dense = there_and_back(path, keys=found, rank=8)
    assert_same(small, dense, atol=1e-4, ids=IDS)
    assert list(onnx.load(dense).graph.node) == list(onnx.load(path).graph.node)
    np.testing.assert_allclose(
        outputs(path, ids=IDS)[0], module(ids).detach().numpy(), atol=1e-4, err_msg="the export itself"
    )
