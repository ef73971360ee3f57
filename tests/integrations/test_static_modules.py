"""Static models of sentence-transformers and model2vec: SentenceTransformer reads and writes compressed ones.

Row 91 of BAD_INPUTS.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.checkpoints import succeed
from helpers.refusals import refused
from helpers.static_models import (
    KINDS,
    V,
    encoded,
    means,
    save_static,
    texts,
    unwrap_static_modules,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.rows import rows_of
from embcompress.methods import METHODS

st = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.usefixtures("registered")
TEXTS = texts()


METHODS_OF = {kind: ("svd", "int8", "pq") for kind in KINDS}
METHODS_OF["static"] = tuple(name for name in METHODS if METHODS[name].has_module)
"""The methods that are tried on each kind of model: all of them on one."""
CASES = [(kind, method) for kind in KINDS for method in METHODS_OF[kind]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each kind, a folder with a model in ``original``, and the row of each of its tokens."""
    folders = {kind: tmp_path_factory.mktemp(kind.replace(" ", "_")) for kind in KINDS}
    return {kind: (folder, save_static(folder / "original", kind)) for kind, folder in folders.items()}


def compressed(folder, method, name="small"):
    """The model, compressed so that embcompress must load it."""
    layout = ("--layout", "embcompress") if METHODS[method].is_factors else ()
    target = ("--rank", 9) if METHODS[method].is_factors else ("--ratio", 0.6)
    place = folder / f"{name}-{method}"
    succeed("factorize", folder / "original", "--method", method, *target, *layout, "-o", place, "--force")
    return place


def decoded(folder):
    """The table of a compressed directory as ``expand`` writes it, by its name."""
    succeed("expand", folder, "-o", folder.with_name("dense"), "--force")
    with open_checkpoint(folder.with_name("dense")) as dense:
        (name,) = (n for n in dense.tensors if n in ("embedding.weight", "embeddings", "emb_layer.weight"))
        return name, rows_of(dense, name).read(0, dense.tensors[name].shape[0])


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_vectors_are_those_of_the_expanded_table(models, kind, method):
    """For every method: computed by NumPy from the tokens' rows."""
    folder, rows = models[kind]
    small = compressed(folder, method)
    _, table = decoded(small)
    with open_checkpoint(folder / "original") as original:
        extra = {
            n: original.torch_state([n])[n].numpy() for n in original.tensors if n in ("mapping", "weights")
        }
    table = table[extra["mapping"]] if "mapping" in extra else table
    table = table * extra["weights"][:, None] if "weights" in extra else table
    found = encoded(small, TEXTS)
    np.testing.assert_allclose(found, means(table, TEXTS), atol=2e-6)
    assert np.abs(found - means(rows, TEXTS)).max() > 1e-4  # it is not the original that was read
    memory = st.SentenceTransformer(str(small), device="cpu").state_dict()
    assert sum(value.nbytes for value in memory.values()) < 0.9 * rows.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_again_is_the_same(models, kind, tmp_path):
    """``save`` writes the stored parts, the record, and what model2vec stores besides."""
    small = compressed(models[kind][0], "pq")
    st.SentenceTransformer(str(small), device="cpu").save(str(tmp_path / "again"), create_model_card=False)
    old, new = (load_file(path / "model.safetensors") for path in (small, tmp_path / "again"))
    guard = {name for name, value in old.items() if value.shape == (0,)}
    assert {*new} == {*old} - guard
    assert all(np.array_equal(old[name], new[name]) for name in new)
    np.testing.assert_array_equal(encoded(tmp_path / "again", TEXTS), encoded(small, TEXTS))
    records = []
    for folder in (small, tmp_path / "again"):
        with open_checkpoint(folder) as written:
            records += written.description.tables
    assert records[0] == records[1]


def test_training_changes_the_factors_and_is_recorded(tmp_path):
    """A compressed table trains, and what is saved says so."""
    save_static(tmp_path / "original")
    small = compressed(tmp_path, "svd")
    model = st.SentenceTransformer(str(small), device="cpu")
    before = encoded(small, TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save(str(tmp_path / "tuned"), create_model_card=False)
    np.testing.assert_allclose(encoded(tmp_path / "tuned", TEXTS), before * 1.5**2, rtol=1e-5, atol=1e-7)
    with safe_open(tmp_path / "tuned/model.safetensors", "np") as file:
        record = json.loads(file.metadata()["embcompress"])
    assert record["tables"][0]["trained"]
    assert (
        "after training" in succeed("verify", tmp_path / "tuned", "--against", tmp_path / "original").stdout
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dense_models_load_and_save_as_before(kind, tmp_path):
    """What is not compressed goes to the library as it came."""
    rows = save_static(tmp_path / "original", kind)
    model = st.SentenceTransformer(str(tmp_path / "original"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), means(rows, TEXTS), atol=1e-6)
    model.save(str(tmp_path / "again"), create_model_card=False)
    np.testing.assert_allclose(encoded(tmp_path / "again", TEXTS), means(rows, TEXTS), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_embcompress_the_library_refuses_a_coded_table(kind, tmp_path, request):
    """And it does not load anything else in its place."""
    save_static(tmp_path / "original", kind)
    small = compressed(tmp_path, "int8")
    unwrap_static_modules()
    request.addfinalizer(embcompress.register)
    with pytest.raises((KeyError, AssertionError, IndexError)):
        st.SentenceTransformer(str(small), device="cpu")


def test_a_pytorch_file_of_weights_is_read_too(tmp_path):
    """sentence-transformers wrote pytorch_model.bin before it had safetensors."""
    save_static(tmp_path / "original", "words")
    weights = load_file(tmp_path / "original/model.safetensors")
    (tmp_path / "original/model.safetensors").unlink()
    torch.save({n: torch.from_numpy(v) for n, v in weights.items()}, tmp_path / "original/pytorch_model.bin")
    small = compressed(tmp_path, "int8")
    assert (small / "pytorch_model.bin").exists()
    np.testing.assert_allclose(encoded(small, TEXTS), means(decoded(small)[1], TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mapping": np.full(V, 60, np.int32)}, "60"),
        ({"mapping": np.full(V, -1, np.int32)}, "60"),
        ({"mapping": np.zeros(V, np.float32)}, "mapping"),
        ({"mapping": np.zeros((V, 2), np.int32)}, f"[{V}, 2]"),
        ({"weights": np.ones(3, np.float32)}, f"[3] {V}"),
    ],
)
def test_row_91_lists_of_model2vec_that_do_not_fit_are_refused(change, says, tmp_path):
    """One line, before anything is looked up."""
    save_static(tmp_path / "original", "quantized vocabulary")
    small = compressed(tmp_path, "int8")
    with safe_open(small / "model.safetensors", "np") as file:
        metadata = file.metadata()
    save_file({**load_file(small / "model.safetensors"), **change}, small / "model.safetensors", metadata)
    with refused(embcompress.errors.InputError, says):
        st.SentenceTransformer(str(small), device="cpu")


def test_row_91_parts_that_were_changed_are_refused(tmp_path):
    """The checks are those of every other loader."""
    save_static(tmp_path / "original")
    small = compressed(tmp_path, "int8")
    with safe_open(small / "model.safetensors", "np") as file:
        metadata = file.metadata()
    parts = load_file(small / "model.safetensors")
    parts["embedding.0.codes"] = parts["embedding.0.codes"][:-1]
    save_file(parts, small / "model.safetensors", metadata)
    with refused(embcompress.errors.InputError, "embedding"):
        st.SentenceTransformer(str(small), device="cpu")
