"""verify: whatever is changed in an output is found, and an output that is as it was written passes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from helpers.checkpoints import assert_refused, directory, run, succeed, table
from helpers.quick import quick
from helpers.refusals import refused
from helpers.registry import EVERY, METHODS
from helpers.resealing import resealed
from helpers.verifying import FORMATS, flipped, made, places, some, weight_files
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import EmbcompressError, InputError, UsageError

TABLE, LEFT = "embedding.weight", "embedding.0.weight"


def lines(path, against=None, **options):
    """What differs, one line each."""
    return [each.line for each in embcompress.verify(path, against=against, **options).differences]


def finds(path, against=None):
    """Whether verify has something to say; a checksum of the format itself may say it first."""
    try:
        return bool(lines(path, against))
    except InputError:
        return True


# ---- bits


STORED = {f"{kind}, {method}": (kind, method) for kind in FORMATS for method in EVERY}


@pytest.mark.parametrize(
    ("kind", "method"),
    quick(
        STORED,
        *(f"safetensors, {method}" for method in METHODS),
        *(f"{kind}, {method}" for kind in FORMATS for method in ("svd", "pq", "screen+int4")),
    ),
)
def test_a_bit_in_any_tensor_is_found(tmp_path, kind, method):
    """First, last and other bytes of each tensor, parts and carried ones; parts without the original too."""
    original, small = made(tmp_path, kind, method)
    assert lines(small, original) == lines(small) == []
    rng = random.Random(0)
    where = places(small)
    with open_checkpoint(small) as opened:
        parts = {*opened.description.tables[0].part_names}
        assert {name for name, info in opened.tensors.items() if info.nbytes} - {*opened.aliases} == {*where}
    assert parts < {*where}
    for name, (file, start, count) in where.items():
        for at in some(count, rng):
            with flipped(file, start + at, rng.randrange(8)):
                assert finds(small, original), f"{name}, byte {at}"
                assert name not in parts or finds(small), f"{name}, byte {at}, without the original"
    assert lines(small, original) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bit_anywhere_is_found_or_means_nothing(tmp_path, kind):
    """In headers, records, configuration and the card as well; and nothing of it ends in a traceback.

    What means nothing: fields of a zip that stand there twice or pad, bits beyond the 64 of a number in a
    graph, and the name of the base model, since directories may be renamed.
    """
    original, small = made(tmp_path, kind, "pq")
    files = [small] if small.is_file() else sorted(file for file in small.rglob("*") if file.is_file())
    parsed = onnx.load(small) if kind == "onnx" else None
    rng = random.Random(1)
    ends = np.cumsum([file.stat().st_size for file in files])
    unseen = 0
    for place in rng.sample(range(int(ends[-1])), 100):
        number = int(np.searchsorted(ends, place, "right"))
        file, at = files[number], place - int(ends[number] - files[number].stat().st_size)
        with flipped(file, at, rng.randrange(8)):
            try:
                found = bool(lines(small, original))
            except EmbcompressError as error:
                found = error.exit_code == 3
            if not found:
                unseen += 1
                same = kind == "onnx" and onnx.load(small) == parsed
                assert same or kind == "pt" or file.name == "README.md", f"{file.name}, byte {at}"
    assert unseen <= (40 if kind == "pt" else 3)


# ---- what is said


@pytest.mark.parametrize("kind", FORMATS)
def test_an_output_as_it_was_written(tmp_path, kind):
    """Exit code 0 and a short summary, as JSON with every figure, or nothing with -q."""
    original, small = made(tmp_path, kind)
    text = succeed("verify", small, "--against", original).stdout
    carried = "4 other tensors, byte for byte those of"
    for says in (f"{TABLE}\n  svd, 2 parts match their SHA-256, error", "as recorded", carried):
        assert says in text
    assert f"{small} is as it was written" in text
    told = json.loads(succeed("verify", small, "--against", original, "--json").stdout)
    (one,) = told["tables"]
    assert one["recorded_error"] == pytest.approx(one["measured_error"], rel=1e-6)
    assert (told["is_right"], told["differences"], told["tensors"]) == (True, [], 4)
    quiet = succeed("verify", small, "--against", original, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_difference_is_a_line_and_exit_code_1(tmp_path):
    """Name, what is there and what should be: on stdout, in JSON, and with -q as an error."""
    original, small = made(tmp_path, "safetensors")
    file, start, _ = places(small)["fc.weight"]
    (byte,) = file.read_bytes()[start + 3 : start + 4]
    with flipped(file, start + 3, 0):
        line = f"fc.weight: byte 3 is 0x{byte ^ 1:02x}, should be 0x{byte:02x} as in the original"
        done = run("verify", small, "--against", original)
        assert (done.exit_code, done.stdout) == (1, line + "\n")
        done = run("verify", small, "--against", original, "-q")
        assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"Error: {line}\n")
        done = run("verify", small, "--against", original, "--json")
        (told,) = json.loads(done.stdout)["differences"]
        assert (done.exit_code, told["name"]) == (1, "fc.weight")


def test_without_the_original_it_says_what_was_not_checked(tmp_path):
    _, small = made(tmp_path, "safetensors")
    done = succeed("verify", small)
    assert "note: errors and tensors that are no tables are not checked: give the original" in done.stderr
    assert "2 parts match their SHA-256\n" in done.stdout


def test_torch_is_not_imported(tmp_path):
    original, small = made(tmp_path, "pt", "pq")
    program = (
        "import sys, embcompress\n"
        f"assert embcompress.verify({str(small)!r}, against={str(original)!r}).is_right\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- the record


def changed_record(path, change):
    """A safetensors file whose record is changed by hand, tensors as they were."""
    blob = path.read_bytes()
    begin = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:begin])
    about = json.loads(header["__metadata__"]["embcompress"])
    change(about)
    header["__metadata__"]["embcompress"] = json.dumps(about)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob[begin:])


def unsealed(about):
    """As versions before the first seal wrote it."""
    del about["digest"]
    for each in about["tables"]:
        del each["digests"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda about: about["tables"][0].update(relative_error=0.25), "should be 0.25 by its record"),
        (lambda about: about["tables"][0].update(ratio=0.25), "should be 0.25 by its record"),
        (
            lambda about: about["tables"][0].update(ties=[], copies=[]),
            "ties: none by its record, should be lm_head.weight",
        ),
        (lambda about: about["tables"][0].update(dtype="F16"), f"{TABLE}: F16 by its record, should be F32"),
        (
            lambda about: about["source"].update({"model.safetensors": "a" * 64}),
            "source model.safetensors: SHA",
        ),
        (lambda about: about["tables"][0].update(rank=5), "are not those of a table [400, 24] of rank 5"),
        (
            lambda about: about["tables"][0].update(nonfinite=3),
            "0 numbers of the original are NaN or infinite",
        ),
    ],
)
def test_a_record_that_says_something_else(tmp_path, change, says):
    """Errors, ratio, ties, types and checksums are worked out again, also where no seal was broken."""
    original, small = made(tmp_path, "safetensors")
    changed_record(small, lambda about: (unsealed(about), change(about)))
    assert any(says in line for line in lines(small, original))
    changed_record(small, lambda about: about.update(digest="0" * 64))
    assert f"record in {small.name}: does not fit its own SHA-256" in lines(small, original)


def test_a_record_whose_seal_is_gone(tmp_path):
    original, small = made(tmp_path, "safetensors")
    changed_record(small, lambda about: about.pop("digest"))
    assert lines(small, original) == [f"record in {small.name}: has lost its own SHA-256"]


def test_a_record_that_is_gone(tmp_path):
    """Parts that no record explains are no dense checkpoint."""
    original, small = made(tmp_path, "safetensors")
    save_file(load_file(small), small)
    assert lines(small, original) == ["record: is missing: nothing says what the new tensors are"]
    with refused(UsageError, "compressed"):
        embcompress.verify(small)


def test_an_output_of_an_older_version(tmp_path):
    """It passes, with a note; what changes its error is found, and that a row of zeros is none any more."""
    original, small = made(tmp_path, "safetensors")
    changed_record(small, unsealed)
    found = embcompress.verify(small, against=original)
    assert found.is_right
    (note,) = found.notes
    assert "version 0.1.0" in note
    assert TABLE in note
    assert not found.tables[0].sealed
    held = {name: array.copy() for name, array in load_file(small).items()}
    held[LEFT][5] = 0
    held[LEFT][0, 2] = 1e-20
    rewrite(small, held)
    error, zero = lines(small, original)
    assert error.startswith(f"{TABLE}: relative error 0.")
    assert zero == f"{TABLE}: row 0 is not zero (1 such rows), should be zero"
    held[LEFT][7, 1] = np.nan
    rewrite(small, held)
    assert lines(small) == [f"{TABLE}: part 0.weight holds NaN or infinity in row 7"]
    assert any("NaN or infinity" in line for line in lines(small, original))


def rewrite(path, arrays):
    """A safetensors file with other contents or tensors and its old metadata."""
    blob = path.read_bytes()
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    save_file(arrays, path, metadata=metadata)


def test_a_record_of_another_version_is_not_held_to_what_this_one_writes(tmp_path):
    """What embcompress adds beside the tables may change from version to version: a note says so."""
    original, small = made(tmp_path, "directory")
    card = small / "README.md"
    card.write_text(card.read_text().replace("measured on", "as found on"))
    assert [line.split(":")[0] for line in lines(small, original)] == ["embcompress/README.md"]
    for file in weight_files(small):
        with open_checkpoint(file) as opened:
            described = opened.description
        if described is not None:
            changed_record(file, lambda about: (unsealed(about), about.update(version="0.0.9")))
    config = json.loads((small / "config.json").read_text())
    unsealed(config["quantization_config"])
    config["quantization_config"]["version"] = "0.0.9"
    (small / "config.json").write_text(json.dumps(config))
    found = embcompress.verify(small, against=original)
    assert found.is_right
    assert any("version 0.0.9: what embcompress itself added" in note for note in found.notes)


# ---- tensors and files


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held.pop("fc.bias"), "fc.bias: is missing, should be float16 [4]"),
        (lambda held: held.update(more=np.ones(2, np.int8)), "more: int8 [2], should be absent"),
        (
            lambda held: held.update({"fc.bias": held["fc.bias"].astype(np.float32)}),
            "fc.bias: float32 [4], should be float16 [4]",
        ),
        (
            lambda held: held.pop("embedding.1.weight"),
            "embedding.1.weight, a part of embedding.weight, is mis",
        ),
    ],
)
def test_tensors_that_come_and_go(tmp_path, change, says):
    original, small = made(tmp_path, "safetensors")
    held = dict(load_file(small))
    change(held)
    rewrite(small, held)
    assert any(says in line for line in lines(small, original))


def changed_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (d / "tokenizer.json").write_text("{ }"), "tokenizer.json: "),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: is missing"),
        (lambda d: (d / "more.txt").write_text("x"), "more.txt: "),
        (
            lambda d: changed_json(d / "config.json", lambda c: c.update(vocab_size=7)),
            "config.json vocab_size: 7, should be 120",
        ),
        (lambda d: changed_json(d / "config.json", lambda c: c.pop("vocab_size")), "vocab_size: is missing"),
        (
            lambda d: changed_json(d / "config.json", lambda c: c.pop("quantization_config")),
            "record in config.json: is missing",
        ),
        (
            lambda d: changed_json(
                d / "config.json", lambda c: c["quantization_config"]["tables"][0].update(bits=31)
            ),
            "record in config.json: does not fit its own SHA-256",
        ),
        (
            lambda d: changed_json(d / "model.safetensors.index.json", lambda i: i["weight_map"].popitem()),
            "model.safetensors.index.json of ",
        ),
        (
            lambda d: changed_json(d / "model.safetensors.index.json", lambda i: i["metadata"].clear()),
            "index.json metadata total_size: is missing",
        ),
        (lambda d: (d / "README.md").unlink(), "README.md: is missing"),
        (
            lambda d: (d / "README.md").write_text("# Mine\n"),
            "README.md: ",
        ),
    ],
)
def test_other_files_of_a_directory(tmp_path, change, says):
    """Tokenizer, configuration, index and card are those of the original but for what we write."""
    original, small = made(tmp_path, "directory")
    change(small)
    assert any(says in line for line in lines(small, original)), lines(small, original)


def test_a_directory_may_be_renamed_and_has_a_card_of_its_own(tmp_path):
    """The base model's name is that of the directory it once lay in; the author's words must stay."""
    original = directory(tmp_path / "model", [{TABLE: table(), "norm": np.ones(3, np.float32)}])
    (original / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nWords.\n")
    small = embcompress.factorize(original, rank=4).output
    renamed = original.rename(tmp_path / "other")
    assert lines(small, renamed) == []
    card = small / "README.md"
    assert "base_model: model" in card.read_text()
    card.write_text(card.read_text().replace("Words.", "Other words."))
    assert [line.partition(":")[0] for line in lines(small, renamed)] == ["README.md"]


def test_a_guard_that_is_gone(tmp_path):
    """Without it a stock loader would start from a random table."""
    original = directory(tmp_path / "model", [{TABLE: table(), "norm": np.ones(3, np.float32)}])
    small = embcompress.factorize(original, rank=4).output
    held = dict(load_file(small / "model.safetensors"))
    del held[TABLE]
    rewrite(small / "model.safetensors", held)
    assert lines(small, original) == [f"{TABLE}: is missing, should be float32 [0]"]


def test_ties_that_come_apart(tmp_path):
    """In a PyTorch file the head holds the memory of the table's parts."""
    original, small = made(tmp_path, "pt")
    held = torch.load(small, weights_only=True)
    held["lm_head.0.weight"] = held["lm_head.0.weight"].clone()
    torch.save(held, small)
    (line,) = lines(small, original)
    assert line == f"lm_head.0.weight: memory of its own, should be the memory of {LEFT}"


def test_all_that_stands_beside_a_state_dict(tmp_path):
    """A training checkpoint in the old format: optimizer, counters, tensors of other layouts, sharing."""
    layers = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(300, 16), "fc": torch.nn.Linear(16, 2)})
    optimizer = torch.optim.Adam(layers.parameters())
    layers["fc"](layers["embedding"](torch.arange(10))).sum().backward()
    optimizer.step()
    state = layers.state_dict()
    grid = torch.arange(24.0).reshape(4, 6)
    state["turned"], state["part"] = grid.T, grid[1:3, 2:5]
    state["sparse"] = torch.eye(3).to_sparse()
    saved = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "ema": {"fc.weight": torch.ones(2, 16)},
        "epoch": 3,
        "best": float("nan"),
        "names": ["a", ("b", 1)],
    }
    original, small = tmp_path / "model.pt", tmp_path / "small.pt"
    torch.save(saved, original, _use_new_zipfile_serialization=False)
    embcompress.factorize(original, rank=4, output=small)
    assert lines(small, original) == []
    for change, says in (
        (lambda held: held.update(epoch=4), "epoch: 4, should be 3"),
        (lambda held: held["ema"]["fc.weight"].zero_(), "ema.fc.weight: "),
        (lambda held: held["optimizer"]["param_groups"][0].update(lr=1.0), "lr: 1.0, should be 0.001"),
        (lambda held: held["optimizer"]["state"][2]["exp_avg"].zero_(), "optimizer.state.2.exp_avg: "),
        (lambda held: held["names"].append("c"), "names: list of 3, should be list of 2"),
        (lambda held: held["state_dict"].update(sparse=torch.ones(3, 3).to_sparse()), "state_dict.sparse("),
        (lambda held: held["state_dict"]["turned"].mul_(2), "turned: byte "),
        (lambda held: held["state_dict"]["part"].zero_(), "part: byte "),
        (lambda held: held["state_dict"]._metadata.update({"": {"version": 9}}), "_metadata."),
    ):
        held = torch.load(small, weights_only=True)
        change(held)
        torch.save(held, tmp_path / "changed.pt")
        found = lines(tmp_path / "changed.pt", original)
        assert any(says in line for line in found), (says, found)


def test_the_graph_of_an_onnx_model(tmp_path):
    """Our nodes and those of others, inputs, metadata, and data in a file beside."""
    original, small = made(tmp_path, "onnx", "screen+pq")
    model = onnx.load(small)
    ours = next(n for n in model.graph.node if n.op_type == "Constant")
    kept = bytes(ours.attribute[0].t.raw_data)
    ours.attribute[0].t.raw_data = bytes([kept[0] ^ 1, *kept[1:]])
    onnx.save(model, tmp_path / "changed.onnx")
    (line,) = lines(tmp_path / "changed.onnx", original)
    assert line.startswith("embcompress/0/")
    model = onnx.load(small)
    model.graph.output[0].name, model.producer_name = "other", "me"
    model.metadata_props.add(key="note", value="x")
    onnx.save(model, tmp_path / "changed.onnx")
    names = {line.partition(":")[0] for line in lines(tmp_path / "changed.onnx", original)}
    assert names == {"graph", "model", "metadata note"}
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(original), outside, save_as_external_data=True, size_threshold=0)
    embcompress.factorize(outside, method="int4", ratio=0.6, output=tmp_path / "apart.onnx")
    assert lines(tmp_path / "apart.onnx", outside) == []
    data = tmp_path / "apart.onnx.data"
    with flipped(data, data.stat().st_size - 1, 3):
        assert len(lines(tmp_path / "apart.onnx", outside)) == 1


@pytest.mark.parametrize("writer", ["safetensors", "pt"])
def test_names_that_share_memory(tmp_path, writer):
    """What save_model or torch.save stored once under several names stays so."""
    original, small = tmp_path / f"model.{writer}", tmp_path / f"small.{writer}"
    shared, dense = torch.randn(4, 4), torch.from_numpy(table())
    if writer == "pt":
        torch.save({TABLE: dense, "lm_head.weight": dense, "a": shared, "b": shared}, original)
    else:
        tied = {"lm_head.weight": TABLE, "b": "a", "format": "pt", "note": "x"}
        save_tensors({TABLE: dense, "a": shared}, original, metadata=tied)
    embcompress.factorize(original, rank=4, output=small)
    assert lines(small, original) == []
    if writer == "safetensors":
        held = {name: torch.from_numpy(array) for name, array in load_file(small).items()}
        with open_checkpoint(small) as opened:
            about = opened.description.to_json()
        notes = {"lm_head.0.weight": LEFT, "lm_head.1.weight": "embedding.1.weight", "format": "pt"}
        save_tensors(held, small, metadata={**notes, "embcompress": about})
        assert lines(small, original) == [
            "b: is missing, should be float32 [4, 4]",
            "metadata note: is missing, should be x",
        ]


# ---- other ways to an output


def test_native_forms(tmp_path):
    """A library's own form: parts have its names, the configuration is the original's but for a size."""
    from helpers.native_models import MODELS

    for name in ("deberta-v2", "opt"):
        torch.manual_seed(0)
        MODELS[name]().save_pretrained(tmp_path / name)
        small = tmp_path / f"{name}-small"
        succeed("factorize", tmp_path / name, "--rank", "6", "--layout", "native", "-o", small)
        assert lines(small, tmp_path / name) == lines(small) == []
        for file, start, count in places(small).values():
            with flipped(file, start + count // 2, 0):
                assert lines(small, tmp_path / name)
        changed_json(small / "config.json", lambda c: c.update(hidden_size=1))
        assert any(line.startswith("config.json hidden_size: 1") for line in lines(small, tmp_path / name))


def test_a_static_model_with_a_module_of_its_own(tmp_path):
    """The second module, its configuration and modules.json are files that the form adds."""
    original = tmp_path / "model"
    original.mkdir()
    save_file({TABLE: table(300, 16)}, original / "model.safetensors", metadata={"format": "pt"})
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (original / "modules.json").write_text(json.dumps(modules))
    (original / "tokenizer.json").write_text("{}")
    small = embcompress.factorize(original, rank=4, layout="native").output
    assert (small / "1_Dense" / "model.safetensors").exists()
    assert lines(small, original) == []
    for name, change in (("1_Dense/config.json", {"bias": True}), ("modules.json", {"idx": 5})):
        copy = shutil.copytree(small, tmp_path / "changed", dirs_exist_ok=True)
        changed_json(copy / name, lambda v, c=change: (v[0] if isinstance(v, list) else v).update(c))
        assert [line.partition(":")[0] for line in lines(copy, original)] == [name]


def test_what_was_trained_afterwards(tmp_path):
    """finetune takes new digests; values and errors are not compared, and a bit in a factor is found."""
    from helpers.weather import QUICK, train, weather

    texts, dense = tmp_path / "train.csv", tmp_path / "dan.pt"
    weather(texts, 60, 0)
    train(dense, texts, arch="dan")
    small, tuned = tmp_path / "small.safetensors", tmp_path / "tuned.safetensors"
    train(tmp_path / "dan.safetensors", texts, arch="dan")
    dense = tmp_path / "dan.safetensors"
    succeed("factorize", dense, "--rank", "3", "-o", small)
    succeed("finetune", small, texts, "-o", tuned, *QUICK)
    found = embcompress.verify(tuned, against=dense)
    assert found.is_right
    assert found.tensors + found.uncompared > 0
    assert not found.is_complete
    assert found.tables[0].measured_error > 0
    assert any("were trained afterwards" in note for note in found.notes)
    assert any("trained from small.safetensors" in note for note in found.notes)
    name = next(name for name in places(tuned) if name.endswith("embedding.0.weight"))
    file, start, _ = places(tuned)[name]
    with flipped(file, start, 0):
        assert [line.partition(":")[0] for line in lines(tuned, dense)] == [name]
        assert lines(tuned)


def test_a_claim_of_training_is_not_taken_from_the_file(tmp_path):
    """Errors and other values are measured all the same, and nothing else is said to be right."""
    original, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: table(), "fc.weight": table(4, 16), "fc.bias": table(1, 4)[0]}, original)
    embcompress.factorize(original, rank=4, output=small)
    held = load_file(small)
    tensors = {"fc.weight": torch.zeros(4, 16), "fc.bias": torch.from_numpy(held["fc.bias"])}
    forged = resealed(small, tmp_path / "forged.safetensors", {}, carried=tensors, trained=True)
    found = embcompress.verify(forged, against=original)
    assert (found.is_right, found.is_complete, found.tensors, found.uncompared) == (True, False, 1, 1)
    assert found.unchecked[0] == "1 other tensor with other values"
    assert found.tables[0].trained
    assert found.tables[0].measured_error == pytest.approx(found.tables[0].recorded_error, rel=1e-6)
    done = succeed("verify", forged, "--against", original)
    assert "as it was written" not in done.stdout
    assert "after training, by its record" in done.stdout
    assert "not checked: 1 other tensor with other values" in done.stdout
    assert "which cannot be checked" in done.stderr


def test_without_the_original_nothing_is_said_of_other_tensors(tmp_path):
    """They were compared with nothing, and neither was the command line."""
    original, small = made(tmp_path, "safetensors")
    succeed("factorize", original, "--rank", 6, "-o", small, "--force")
    told = json.loads(succeed("verify", small, "--json").stdout)
    assert told["unchecked"] == ["4 other tensors", "the command line in its record"]
    assert told["uncompared"] == 4
    text = succeed("verify", small).stdout
    assert "as it was written" not in text
    assert f"what was compared of {small} is as it should be" in text


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("int8", {"rank": 3}, "rank 3 by its record, should be none with int8"),
        ("int8", {"seed": 3}, "seed 3 by its record, should be none with int8"),
        ("lplr", {"seed": 3}, "seed 3 by its record, should be 0 with lplr"),
    ],
)
def test_a_rank_or_seed_that_the_method_does_not_have(tmp_path, method, fields, says):
    original, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: table(400), "fc.weight": table(4, 16)}, original)
    embcompress.factorize(original, method=method, ratio=0.6, output=small)
    forged = resealed(small, tmp_path / "forged.safetensors", {}, **fields)
    assert lines(forged) == [f"{TABLE}: {says}"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("method", ["svd", "lplr"])
def test_what_transformers_saved_again(tmp_path, method):
    """save_pretrained writes parts with digests, and records with seals."""
    import transformers as tf
    from helpers.distilling import bert

    torch.manual_seed(0)
    bert(300).save_pretrained(tmp_path / "model")
    embcompress.factorize(tmp_path / "model", method=method, ratio=0.7, output=tmp_path / "small")
    loaded = tf.AutoModel.from_pretrained(tmp_path / "small")
    loaded.save_pretrained(tmp_path / "copy")
    found = embcompress.verify(tmp_path / "copy")
    assert found.is_right, found.differences
    assert found.tables[0].sealed
    part = {"svd": "1.weight", "lplr": "1.codes"}[method]
    file, start, count = places(tmp_path / "copy")[f"embeddings.word_embeddings.{part}"]
    with flipped(file, start + count - 1, 7):
        assert lines(tmp_path / "copy")
    with torch.no_grad():
        loaded.embeddings.word_embeddings.get_parameter("1.weight").mul_(2)
    loaded.save_pretrained(tmp_path / "trained")
    assert embcompress.verify(tmp_path / "trained").is_right


# ---- weights, NaN, and requests that make no sense


def test_weighted_errors_are_measured_with_their_weights_only(tmp_path):
    """Without them a note; with others a refusal; with them the figure."""
    original, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: table(300, 16)}, original)
    counts = tmp_path / "counts.npy"
    np.save(counts, np.arange(300.0))
    embcompress.factorize(original, rank=4, weights=counts, output=small)
    found = embcompress.verify(small, against=original)
    assert found.is_right
    assert found.tables[0].measured_weighted_error is None
    assert "is not measured again" in found.notes[0]
    found = embcompress.verify(small, against=original, weights=counts)
    assert (found.is_right, found.notes) == (True, ())
    assert found.tables[0].measured_weighted_error == pytest.approx(found.tables[0].weighted_error, rel=1e-6)
    changed_record(small, lambda about: (unsealed(about), about["tables"][0].update(weighted_error=0.01)))
    assert any("weighted error" in line for line in lines(small, original, weights=counts))
    arguments = ("verify", small, "--against", original, "--weights", counts)
    assert_refused(tmp_path, *arguments, "--smoothing", "1", code=2, says="given is counts.npy, (count+1)^1")


def test_numbers_that_were_taken_for_zeros(tmp_path):
    """The error is that of the table with zeros, as recorded; the row of NaN alone stays zero."""
    dense = table(300, 16)
    dense[7] = np.nan
    dense[9, 3] = -np.inf
    original, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: dense}, original)
    embcompress.factorize(original, rank=4, nan="zero", output=small)
    assert lines(small, original) == []
    dense[8, 0] = np.nan
    save_file({TABLE: dense}, original)
    found = lines(small, original)
    assert found[0].startswith("source model.safetensors: SHA-256 ")
    assert found[1] == f"{TABLE}: 18 numbers of the original are NaN or infinite, should be 17 by its record"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model.safetensors",), "holds no compressed table"),
        (("small.safetensors", "--weights", "x.npy"), "give it with --against"),
        (("small.safetensors", "--against", "small.safetensors"), "is compressed itself"),
        (("small.safetensors", "--against", "model.pt"), "its copies are of the format torch"),
        (("small.safetensors", "--against", "other.safetensors"), f"holds no {TABLE} of shape [400, 24]"),
        (("small.safetensors", "--against", "nothing"), "does not exist"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "safetensors")
    torch.save({TABLE: torch.ones(2, 2)}, "model.pt")
    save_file({"other.weight": table()}, "other.safetensors")
    assert_refused(tmp_path, "verify", *arguments, code=2, says=says)


def test_a_file_that_is_cut_off(tmp_path):
    original, small = made(tmp_path, "safetensors")
    small.write_bytes(small.read_bytes()[:-1])
    assert_refused(tmp_path, "verify", small, "--against", original, code=3, says="")
    with refused(UsageError, "compressed"):
        embcompress.verify(original)
