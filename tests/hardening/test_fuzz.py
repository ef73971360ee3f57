"""Generated checkpoints go in, properties come out; and the corpus of the fuzzers is read once more.

What is generated: names, shapes, element types, ties, nesting and strides of a checkpoint, the request, and
token weights. What must hold for each: a request is refused in one line that leaves everything as it was, or

* the stored parts are what the record, the report, the plan and an SVD of NumPy's in float64 say,
* every tensor that is no table is byte for byte what it was, and ``expand`` brings the product of the parts
  back under the old names,
* whatever ``--json`` prints is JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz.targets import CORPUS, TARGETS
from helpers.checkpoints import contents, entry, raw, run, write_index
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

import embcompress
from embcompress.choices import AUTO
from embcompress.dtypes import DTYPES
from embcompress.methods import METHODS

# -- the corpus ------------------------------------------------------------------------------

FOUND = [(file.parent.name, file.name) for file in sorted(CORPUS.glob("*/*"))]


REPLAY = r"""
import os, resource, sys
from pathlib import Path
from fuzz.targets import CORPUS, TARGETS

def replay(target, folder):
    if Path("/proc/self/statm").exists():
        space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    folder.mkdir()
    for file in sorted((CORPUS / target).iterdir()):
        print(f"{target}/{file.name}", flush=True)
        TARGETS[target](file.read_bytes(), folder)

for target in TARGETS:
    if not os.fork():
        replay(target, Path(sys.argv[1]) / target)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""
"""Reads the corpus of each target in 64 MB beyond Python's own, and names each file before it does."""


def test_what_fuzzers_found_is_read_or_refused_in_one_line(tmp_path):
    """Every input of the corpus is read or ends in one of our errors, in little memory, without a warning."""
    modest = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # in addresses that are set aside
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REPLAY, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **modest},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"at {done.stdout.splitlines()[-1:]}: {done.stderr}"
    assert done.stdout.split() == [f"{t}/{name}" for t in TARGETS for folder, name in FOUND if folder == t]


def test_the_corpus_is_small_and_every_target_has_one():
    """It travels with the source: no file over 2 kB, all together under 100 kB."""
    sizes = [(CORPUS / target / name).stat().st_size for target, name in FOUND]
    assert max(sizes) <= 2048
    assert sum(sizes) < 100_000
    assert {target for target, _ in FOUND} == {*TARGETS}


def test_a_size_too_long_to_be_printed_is_refused(tmp_path):
    """Python reads hexadecimal integers of any length and prints none of more than 4,300 digits."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0x{'f' * 3600}, 2)}}\n".encode()
    TARGETS["vectors_npy"](b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header, tmp_path)


# -- checkpoints -----------------------------------------------------------------------------

TORCH = {
    name: getattr(torch, kind.torch)
    for name, kind in DTYPES.items()
    if hasattr(torch, kind.torch or "-") and name not in ("C128", "F4")
}
"""Element types that both libraries know, a byte and more each."""
NEW_TYPES = {name for name in TORCH if name in ("U16", "U32", "U64") or name.startswith("F8")}
TABLE_TYPES = ("F32", "F16", "BF16", "F64")
FORMS = (
    "safetensors", "pt", "pt-nested", "pt-strided", "pt-sliced", "pt-legacy", "directory", "shards",
)  # fmt: skip

NAMES = (
    "embedding.weight", "model.embed_tokens.weight", "wte", "эмбеддинг.weight", "a b.weight", "x.0.weight",
    "😀", ".weight", "..", "weight", "-rf", "x" * 200, "[bold]x[/bold]", "a/b.weight", "%s{0}",
)  # fmt: skip
"""Names of tables; others are drawn from all of Unicode."""


@dataclass(frozen=True)
class Stored:
    """One tensor, independent of formats."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> np.ndarray:
        """The values in float64."""
        return (
            DTYPES[self.dtype]
            .decode(np.frombuffer(self.data, DTYPES[self.dtype].storage).reshape(self.shape))
            .astype(np.float64)
        )

    def tensor(self) -> torch.Tensor:
        """The same as a tensor of torch."""
        if not self.data:
            return torch.empty(self.shape, dtype=TORCH[self.dtype])
        flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        return flat.view(TORCH[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Case:
    """A checkpoint and a request."""

    form: str
    name: str
    table: Stored
    tie: str | None
    extras: dict[str, Stored]
    method: str
    target: dict[str, float]
    dtype: str | None
    split: str
    counts: tuple[float, ...] | None
    counted_in: str
    named: bool

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors by name."""
        ties = {} if self.tie is None else {self.tie: self.table}
        return {**self.extras, self.name: self.table, **ties}


def names():
    """Printable names, often odd; other tests check that unprintable ones are refused."""
    anything = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
    return st.sampled_from(NAMES) | anything.filter(str.isprintable)


@st.composite
def tables(draw):
    """Random values with a falling spectrum, then an oddity that a table may have."""
    dtype = draw(st.sampled_from(TABLE_TYPES))
    rows, columns = draw(st.integers(1, 96)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    fall = draw(st.sampled_from([1.0, 0.9, 0.5]))
    values = rng.standard_normal((rows, columns)) * fall ** np.arange(columns)
    oddity = draw(
        st.sampled_from(["none"] * 4 + ["padding", "zeros", "ones", "twins", "low", "small", "large", "nan"])
    )
    if oddity == "padding":
        values[rng.integers(rows)] = 0
    elif oddity == "zeros":
        values[:] = 0
    elif oddity == "ones":
        values[:] = 1
    elif oddity == "twins":
        values[:] = values[:1]
    elif oddity == "low":
        values = values[:, :1] @ values[:1]
    elif oddity in ("small", "large"):
        values *= (
            (1e-4 if oddity == "small" else 1e3) if dtype == "F16" else (1e-18 if oddity == "small" else 1e18)
        )
    elif oddity == "nan":
        values[rng.integers(rows), rng.integers(columns)] = rng.choice([np.nan, np.inf])
    event(f"table: {oddity}")
    kind = DTYPES[dtype]
    data = kind.encode(values.astype(np.float64 if dtype == "F64" else np.float32)).tobytes()
    return Stored(dtype, (rows, columns), data)


@st.composite
def extras(draw):
    """A tensor of any type both libraries know; empty and scalar ones too."""
    dtype = draw(st.sampled_from(sorted(TORCH)))
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 0, 3), (2, 2), (1, 2, 1, 3)]))
    nbytes = DTYPES[dtype].nbytes(math.prod(shape))
    seed = draw(st.integers(0, 255))
    data = bytes((seed + 7 * i) % 2 if dtype == "BOOL" else (seed + 7 * i) % 256 for i in range(nbytes))
    return Stored(dtype, shape, data)


def targets():
    """A request, which may be impossible."""
    share = st.floats(0.01, 0.99) | st.sampled_from([0.5, 0.9])
    return st.one_of(
        st.integers(1, 12).map(lambda n: {"rank": n}),
        share.map(lambda x: {"ratio": x}),
        share.map(lambda x: {"ratio": x}),
        share.map(lambda x: {"max_error": x}),
        share.map(lambda x: {"energy": x}),
        st.integers(0, 20_000).map(lambda n: {"max_size": n}),
    )


@st.composite
def cases(draw):
    """A checkpoint and a request."""
    table = draw(tables())
    several = draw(st.lists(names(), min_size=1, max_size=5, unique_by=str.lower))
    name, *others = several
    tie = others.pop() if others and draw(st.booleans()) else None
    number = st.integers(0, 1000).map(float) | st.floats(0, 1e6)
    counts = st.lists(number, min_size=table.shape[0], max_size=table.shape[0])
    return Case(
        form=draw(st.sampled_from(FORMS)),
        name=name,
        table=table,
        tie=tie,
        extras={other: draw(extras()) for other in others},
        method=draw(st.sampled_from(["svd"] * 4 + [*METHODS, "screen+svd", "screen+int4", AUTO])),
        target=draw(targets()),
        dtype=draw(st.sampled_from([None, None, "float32", "float16", "bfloat16", "float64"])),
        split=draw(st.sampled_from(["left", "even", "right"])),
        counts=draw(st.none() | counts.map(tuple)),
        counted_in=draw(st.sampled_from(["memory", "npy", "csv"])),
        named=draw(st.sampled_from([True, True, True, False])),
    )


# -- their files -----------------------------------------------------------------------------


def write(case, folder):
    """The checkpoint as a file or a directory in ``folder``."""
    if case.form == "safetensors":
        return safetensors(folder / "m.safetensors", case.tensors)
    if case.form.startswith("pt"):
        return torch_file(folder / "m.pt", case)
    path = folder / "m"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"vocab_size": case.table.shape[0], "model_type": "none"}))
    if case.form == "directory":
        safetensors(path / "model.safetensors", case.tensors)
        return path
    places: dict[str, str] = {}
    for i, half in enumerate((sorted(case.tensors)[::2], sorted(case.tensors)[1::2])):
        shard = f"model-{i + 1:05}-of-00002.safetensors"
        safetensors(path / shard, {name: case.tensors[name] for name in half})
        places |= dict.fromkeys(half, shard)
    write_index(path, places, {"total_size": sum(len(t.data) for t in case.tensors.values())})
    return path


def weights(case, folder):
    """The counts as an array or a file; in a CSV tokens that do not occur may be left out."""
    if case.counts is None or case.counted_in == "memory":
        return None if case.counts is None else np.array(case.counts)
    path = folder / f"counts.{case.counted_in}"
    if path.suffix == ".npy":
        np.save(path, np.array(case.counts))
    else:
        lines = [f"{token},{count!r}\n" for token, count in enumerate(case.counts) if count or token % 2]
        path.write_text("id,count\n" + "".join(lines or ["0,0\n"]))
    return path


def safetensors(path, tensors):
    """Write the format byte for byte, without a library."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = entry(tensor.dtype, tensor.shape, at, at + len(tensor.data))
        at += len(tensor.data)
    return raw(path, header, b"".join(tensor.data for tensor in tensors.values()))


def torch_file(path, case):
    """Write with torch itself; a tie shares the table's memory, whatever its layout."""
    old = case.form == "pt-legacy"  # which knows the types of its time only
    state = {n: t.tensor() for n, t in case.extras.items() if not (old and t.dtype in NEW_TYPES)}
    table = case.table.tensor()
    if case.form == "pt-strided":
        table = table.t().contiguous().t()
    elif case.form == "pt-sliced":
        wide = torch.zeros(2 * table.shape[0] + 1, table.shape[1] + 2, dtype=table.dtype)
        wide[1::2, 1:-1] = table
        table = wide[1::2, 1:-1]
    state[case.name] = table
    if case.tie is not None:
        state[case.tie] = table
    saved = {"epoch": 3, "model": state, "lists": [1, ("x", None)]} if case.form == "pt-nested" else state
    torch.save(saved, path, _use_new_zipfile_serialization=case.form != "pt-legacy")
    return path


def read(path):
    """Read name -> tensor with the libraries of the formats."""
    if path.is_dir():
        return {n: t for file in sorted(path.glob("*.safetensors")) for n, t in read(file).items()}
    if path.suffix == ".safetensors":
        found = deserialize(path.read_bytes())
        return {n: Stored(t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in found}
    saved = torch.load(path, weights_only=True)
    state = saved["model"] if isinstance(saved.get("model"), dict) else saved
    return {name: stored(tensor) for name, tensor in state.items()}


def stored(tensor):
    flat = tensor.contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    kind = next(name for name, dtype in TORCH.items() if dtype == tensor.dtype)
    return Stored(kind, tuple(tensor.shape), data)


def strictly(text):
    """Strict JSON: Python alone would accept NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# -- the properties --------------------------------------------------------------------------


def attempt(folder, work, *args, **options):
    """The result of ``work``; None if it refuses in one line and changes nothing."""
    before = contents(folder)
    try:
        return work(*args, **options)
    except (embcompress.UsageError, embcompress.InputError, embcompress.TargetError) as error:
        said, kind = str(error), type(error).__name__
    assert said
    assert said.isprintable()
    assert contents(folder) == before
    event(f"refused: {kind}")
    return None


def check(case):
    """Check all properties of one case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(case, folder)
        place = folder / ("out" if source.is_dir() else f"out{source.suffix}")
        before = read(source)
        options = {
            **case.target,
            "output": place,
            "keys": [case.name] if case.named else [],
            "method": case.method,
            "dtype": case.dtype,
            "split_scale": case.split,
            "weights": weights(case, folder),
        }
        unwritten = contents(folder)
        plan = attempt(folder, embcompress.factorize, source, **options, dry_run=True)
        assert contents(folder) == unwritten
        check_json(folder, "report", source)
        planned = check_json(folder, "factorize", source, *command_line(options), "--dry-run")
        assert (planned is None) == (plan is None) or case.counted_in == "memory"
        result = attempt(folder, embcompress.factorize, source, **options)
        if result is None:
            return
        assert plan is not None
        event(f"made: {result.tables[0].method}")
        assert contents(folder).items() >= unwritten.items()
        after = read(place)
        (table,) = result.tables
        names = {table.name, *table.ties}
        shared = {case.name, case.tie} - {None} if source.suffix == ".pt" else set()
        assert names == same_as(before, table.name) | (shared if table.name in shared else set())
        check_plan(plan, result, place, after)
        record = check_record(table, place, before, after)
        kept = before.keys() - names
        assert {n: after.get(n) for n in kept} == {n: before[n] for n in kept}
        holders = (
            names if source.suffix == ".pt" else {table.name}
        )  # of all names, where memory can be shared
        guard = {table.name} if source.is_dir() else set()
        assert after.keys() == kept | guard | {part for n in holders for part in part_names(record, n)}
        if record["method"] == "svd":
            check_product(case, table, before[table.name], after)
        check_expanded(folder, place, before, after, record)


def check_plan(plan, result, place, after):
    """The output is as planned, the table to the byte, and has the reported size on disk."""
    (planned,), (table,) = plan.tables, result.tables
    for name in ("name", "ties", "shape", "method", "rank", "stored_dtype", "bytes_after", "ratio"):
        assert getattr(planned, name) == getattr(table, name), name
    assert planned.predicted_error == table.predicted_error
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    assert result.size_after == sum(file.stat().st_size for file in files)
    assert 0 <= plan.size_after - result.size_after <= 400 * (len(after) + 4)
    strictly(json.dumps(result.to_dict()))
    strictly(json.dumps(plan.to_dict()))


def same_as(tensors, name):
    """The names of the table ``name``: its own, and those of tensors with the same values."""
    table = tensors[name]
    if len({*table.floats().ravel().tolist()}) == 1:
        return {name}
    alike = {n: t for n, t in tensors.items() if (t.dtype, t.shape) == (table.dtype, table.shape)}
    return {n for n, t in alike.items() if np.array_equal(t.floats(), table.floats())}


def check_record(table, place, before, after):
    """The record on disk describes the tensors next to it, and the report agrees."""
    record = written_record(place)["tables"][0]
    dense = before[table.name]
    parts = [after[name] for name in part_names(record, record["name"])]
    assert (record["name"], record["ties"]) == (table.name, [*table.ties])
    assert (record["dtype"], tuple(record["shape"])) == (dense.dtype, dense.shape)
    assert sum(len(part.data) for part in parts) == table.bytes_after
    assert record["ratio"] == pytest.approx(1 - table.bytes_after / len(dense.data))
    (compressed,) = embcompress.report(place).compressed
    assert (compressed.name, compressed.rank, compressed.nbytes) == (
        table.name,
        table.rank,
        table.bytes_after,
    )
    assert compressed.shape == dense.shape
    assert compressed.recorded_error == table.relative_error == record["relative_error"]
    return record


def part_names(record, name):
    """Names of the parts of a table, as the README has them."""
    return [f"{name.removesuffix('.weight')}.{suffix}" for suffix in record["parts"]]


def written_record(place):
    """The record under the key ``embcompress``, read where the README says it is."""
    if place.is_dir():
        return strictly((place / "config.json").read_text())["quantization_config"]
    if place.suffix == ".pt":
        saved = torch.load(place, weights_only=True)
        state = saved["model"] if isinstance(saved.get("model"), dict) else saved
        return strictly(state._metadata["embcompress"])
    blob = place.read_bytes()
    header = strictly(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return strictly(header["__metadata__"]["embcompress"])


def roundoff(*types):
    """The largest relative rounding among element types; nothing is computed finer than in float32."""
    return max(DTYPES["F32"].unit_roundoff, *(DTYPES[name].unit_roundoff for name in types))


def check_product(case, table, dense, after):
    """The factors are as good as NumPy's best in float64, and their error is the reported one."""
    stem = table.name.removesuffix(".weight")
    left, right = after[f"{stem}.0.weight"], after[f"{stem}.1.weight"]
    assert left.shape == (dense.shape[0], table.rank)
    assert right.shape == (dense.shape[1], table.rank)
    dense, made = dense.floats(), left.floats() @ right.floats().T
    slack = 8 * roundoff(left.dtype)
    assert relative(made, dense) == pytest.approx(table.relative_error, rel=1e-3, abs=slack)
    weights = np.ones(len(dense))
    if case.counts is not None:
        counts = np.array(case.counts)
        weights = np.sqrt((counts + 1) / (counts.max() + 1))
        assert relative(made, dense, weights) == pytest.approx(table.weighted_error, rel=1e-3, abs=slack)
    values = np.linalg.svd(dense * np.sqrt(weights)[:, None], compute_uv=False)
    norm = np.linalg.norm(values)
    best = np.linalg.norm(values[table.rank :]) / norm if norm else 0.0
    assert best * (1 - 1e-6) - slack <= relative(made, dense, weights) <= 1.02 * best + slack


def coarseness(dtype, values):
    """The relative error that multiples of a type's smallest value make; much for values next to zero."""
    norm = np.linalg.norm(values)
    return DTYPES[dtype].smallest * math.sqrt(values.size) / norm if norm else 0.0


def relative(made, dense, weights=None):
    """Relative Frobenius error, with each row's squares times its weight."""
    root = np.sqrt(np.ones(len(dense)) if weights is None else weights)[:, None]
    norm = np.linalg.norm(root * dense)
    return float(np.linalg.norm(root * (made - dense)) / norm) if norm else float(np.linalg.norm(made))


def check_expanded(folder, place, before, after, record):
    """Expanding gives the old names, the product of the parts, and the reported error."""
    dense = folder / f"dense{place.suffix}"
    check_json(folder, "expand", place, "-o", dense, made=True)
    again, name = read(dense), record["name"]
    names = {name, *record["ties"]}
    assert again.keys() == before.keys()
    assert {n: t for n, t in again.items() if n not in names} == {
        n: t for n, t in before.items() if n not in names
    }
    table = again[name]
    assert (table.dtype, table.shape) == (before[name].dtype, before[name].shape)
    assert all(again[tie] == table for tie in record["ties"])
    made, given = table.floats(), before[name].floats()
    slack = 8 * roundoff(table.dtype, record["stored_dtype"]) + coarseness(table.dtype, given)
    assert relative(made, given) == pytest.approx(record["relative_error"], rel=1e-3, abs=slack)
    assert not made[~given.any(axis=1)].any()  # padding
    if record["method"] == "svd":
        left, right = (after[part].floats() for part in part_names(record, name))
        assert np.linalg.norm(made - left @ right.T) <= slack * np.linalg.norm(left @ right.T)


def command_line(options):
    """The same request as options of the command, to which counts in memory cannot be passed."""
    given = {**options, "key": options["keys"][0] if options["keys"] else None, "keys": None}
    if isinstance(given["weights"], np.ndarray):
        given["weights"] = None
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]


def check_json(folder, *args, made=False):
    """``--json`` prints one object, which is returned, and nothing else; or a refusal is one line."""
    before = contents(folder)
    done = run(*args, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    if done.exit_code == 0:
        found = strictly(done.stdout)
        assert isinstance(found, dict)
        return found
    assert not made, done.stderr
    assert done.exit_code in (2, 3, 4)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.removesuffix("\n").isprintable()
    assert contents(folder) == before
    return None


FUZZ = settings(
    derandomize=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@given(cases())
@settings(FUZZ, max_examples=40)
def test_any_checkpoint_is_compressed_as_told_or_refused(case):
    """What is written is what was asked for, predicted and recorded, and nothing else has changed."""
    check(case)


def test_a_table_of_values_next_to_zero_comes_back(tmp_path):
    """In float16 they are rounded to multiples of 6e-8, which ``expand`` once took for damage."""
    values = np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32) * 1e-5
    table = Stored("F16", values.shape, DTYPES["F16"].encode(values).tobytes())
    source = safetensors(tmp_path / "m.safetensors", {"wte": table})
    embcompress.factorize(source, rank=4, dtype="float32", output=tmp_path / "small.safetensors")
    embcompress.expand(tmp_path / "small.safetensors", output=tmp_path / "again.safetensors")
    error = relative(read(tmp_path / "again.safetensors")["wte"].floats(), table.floats())
    (record,) = embcompress.report(tmp_path / "small.safetensors").compressed
    assert error == pytest.approx(record.recorded_error, abs=2e-3)


@pytest.mark.slow
@given(cases())
@settings(FUZZ, max_examples=600)
def test_many_checkpoints_are_compressed_as_told_or_refused(case):
    """The same with more cases."""
    check(case)
