"""A table that several names of a PyTorch file share: all follow, or the run is refused before it writes."""

from __future__ import annotations

import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcompress
from embcompress.errors import InputError, UsageError

ROWS, WIDTH, RANK = 300, 16, 4
FACTOR_BYTES = 4 * RANK * (ROWS + WIDTH)


class Coder(nn.Module):
    """An encoder or decoder around an embedding that another one may hold as well."""

    def __init__(self, embedding: nn.Module, outputs: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.out = nn.Linear(WIDTH, outputs)


def translator() -> dict[str, object]:
    """What a script saves that trains two modules with an optimizer each, as seq2seq tutorials do."""
    torch.manual_seed(0)
    embedding = nn.Embedding(ROWS, WIDTH)
    encoder, decoder = Coder(embedding, 2), Coder(embedding, 40)
    saved: dict[str, object] = {"iteration": 4000, "words": {"hello": 3}}
    for name, module in (("en", encoder), ("de", decoder)):
        optimizer = torch.optim.Adam(module.parameters())
        module.out(module.embedding(torch.arange(5))).sum().backward()
        optimizer.step()
        saved |= {name: module.state_dict(), f"{name}_opt": optimizer.state_dict()}
    return saved | {"embedding": embedding.state_dict()}


def loaded(path):
    return torch.load(path, weights_only=True)


def stored_bytes(path):
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist() if "/data/" in info.filename)


def unique_bytes(*states):
    return sum({t.data_ptr(): t.nbytes for state in states for t in state.values()}.values())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_state_dict_that_shares_the_table_gets_its_parts(tmp_path, legacy):
    before = translator()
    torch.save(before, tmp_path / "run.pt", _use_new_zipfile_serialization=not legacy)
    result = embcompress.factorize(tmp_path / "run.pt", rank=RANK, output=tmp_path / "small.pt")
    assert any("en" in note and "embedding" in note for note in result.notes)
    assert not any("same names" in note and "'embedding'" in note for note in result.notes)
    after = loaded(tmp_path / "small.pt")
    for name, outputs in (("en", 2), ("de", 40)):
        assert [*after[name]] == ["embedding.0.weight", "embedding.1.weight", "out.weight", "out.bias"]
        factors = nn.Sequential(nn.Embedding(ROWS, RANK), nn.Linear(RANK, WIDTH, bias=False))
        Coder(factors, outputs).load_state_dict(after[name], strict=True)
        assert torch.equal(after[name]["out.weight"], before[name]["out.weight"])
        assert after[name]["embedding.0.weight"].data_ptr() == after["de"]["embedding.0.weight"].data_ptr()
    assert [*after["embedding"]] == ["weight.0.weight", "weight.1.weight"]
    moments = 2 * (2 * (4 * WIDTH * 42 + 4 * 42) + 4 * 4)  # exp_avg and exp_avg_sq of out, and steps
    used = unique_bytes(after["en"], after["de"], after["embedding"])
    assert stored_bytes(tmp_path / "small.pt") - used < moments, "nothing else is stored"
    assert embcompress.verify(tmp_path / "small.pt", against=tmp_path / "run.pt").is_right


def test_expanding_gives_every_state_dict_its_names_back(tmp_path):
    before = translator()
    torch.save(before, tmp_path / "run.pt")
    embcompress.factorize(tmp_path / "run.pt", rank=RANK, output=tmp_path / "small.pt")
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    small, dense = loaded(tmp_path / "small.pt")["en"], loaded(tmp_path / "dense.pt")
    product = small["embedding.0.weight"] @ small["embedding.1.weight"].T
    for name in ("en", "de", "embedding"):
        assert [*dense[name]] == [*before[name]]
        assert dense[name]._metadata == before[name]._metadata
        table = dense[name]["weight" if name == "embedding" else "embedding.weight"]
        assert torch.allclose(table, product, atol=1e-6)
        assert table.data_ptr() == dense["de"]["embedding.weight"].data_ptr()
    assert stored_bytes(tmp_path / "dense.pt") < stored_bytes(tmp_path / "run.pt")


@pytest.mark.parametrize("method", ["int8", "pq"])
def test_names_of_a_state_dict_that_differ_only_by_weight_come_back(tmp_path, method):
    """``tok`` and ``tok.weight`` have parts of the same names."""
    table = torch.randn(ROWS, WIDTH)
    saved = {"model": {"emb.weight": table, "w": torch.ones(99)}, "b": {"tok": table, "tok.weight": table}}
    torch.save(saved, tmp_path / "m.pt")
    embcompress.factorize(tmp_path / "m.pt", ratio=0.5, method=method, output=tmp_path / "small.pt")
    assert {name.split(".")[0] for name in loaded(tmp_path / "small.pt")["b"]} == {"tok"}
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    dense = loaded(tmp_path / "dense.pt")
    assert [*dense["b"]] == ["tok", "tok.weight"]
    assert {t.data_ptr() for t in dense["b"].values()} == {dense["model"]["emb.weight"].data_ptr()}


def test_a_state_dict_follows_a_copy_of_the_table(tmp_path):
    """A head that is stored again, and shared: its table is gone, so both names get the parts."""
    table = torch.randn(ROWS, WIDTH)
    head = table.clone()
    saved = {"model": {"emb.weight": table, "lm_head.weight": head}, "head": {"weight": head}}
    torch.save(saved, tmp_path / "m.pt")
    embcompress.factorize(tmp_path / "m.pt", rank=RANK, output=tmp_path / "small.pt")
    small = loaded(tmp_path / "small.pt")
    assert [*small["head"]] == ["weight.0.weight", "weight.1.weight"]
    assert stored_bytes(tmp_path / "small.pt") == FACTOR_BYTES
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    assert [*loaded(tmp_path / "dense.pt")["head"]] == ["weight"]


def test_the_report_predicts_the_size_that_is_written(tmp_path):
    """Moments that are lost and tables that are shared do not count."""
    torch.save(translator(), tmp_path / "run.pt")
    (table,) = embcompress.report(tmp_path / "run.pt").tables
    assert table.obstacle is None
    for option in table.options[:2]:
        written = embcompress.factorize(
            tmp_path / "run.pt", rank=option.rank, output=tmp_path / f"{option.rank}.pt"
        ).size_after
        assert abs(option.model_bytes - written) < 256


def test_the_compressed_state_dict_is_found_though_another_is_larger_now(tmp_path):
    torch.manual_seed(0)
    saved = {
        "generator": {"embedding.weight": torch.randn(ROWS, WIDTH)},
        "critic": {"conv.weight": torch.randn(50, 50)},
    }
    torch.save(saved, tmp_path / "gan.pt")
    embcompress.factorize(tmp_path / "gan.pt", rank=RANK, output=tmp_path / "small.pt")
    assert embcompress.verify(tmp_path / "small.pt", against=tmp_path / "gan.pt").is_right


KEEPERS = {
    "transposed": ("model.head_t", lambda model, table: {"model": {**model, "head_t": table.T}}),
    "flat": ("model.flat", lambda model, table: {"model": {**model, "flat": table.reshape(-1)}}),
    "list": ("weights.1", lambda model, table: {"model": model, "weights": [torch.ones(1), table]}),
    "storage": ("raw", lambda model, table: {"model": model, "raw": table._typed_storage()}),
    "key": ("state.…", lambda model, table: {"model": model, "state": {nn.Parameter(table): 1}}),
    "no name": ("best.7", lambda model, table: {"model": model, "best": {7: table}}),
}
"""What keeps the bytes of a table: its path in the file, and the file."""


@pytest.mark.parametrize("keeper", KEEPERS)
def test_row_83_what_keeps_the_bytes_of_a_table_and_cannot_follow_is_refused(tmp_path, keeper):
    path, holder = KEEPERS[keeper]
    table = torch.randn(ROWS, WIDTH)
    model = {"embedding.weight": table, "out.weight": torch.ones(3, 3)}
    torch.save(holder(model, table), tmp_path / "m.pt")
    (table_report,) = embcompress.report(tmp_path / "m.pt", keys=["embedding.weight"]).tables
    assert path in table_report.obstacle
    for dry_run in (True, False):
        with refused(UsageError, path, "embedding.weight", ".clone()"):
            embcompress.factorize(tmp_path / "m.pt", rank=RANK, output=tmp_path / "o.pt", dry_run=dry_run)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    copied = holder(model, table.clone())  # the remedy
    torch.save(copied, tmp_path / "m.pt")
    result = embcompress.factorize(tmp_path / "m.pt", rank=RANK, output=tmp_path / "o.pt")
    assert result.size_after < result.size_before


def test_row_84_a_name_that_is_taken_in_a_state_dict_that_shares_the_table_is_refused(tmp_path):
    table = torch.randn(ROWS, WIDTH)
    saved = {"model": {"emb.weight": table}, "b": {"emb.weight": table, "emb.1.weight": torch.ones(2)}}
    torch.save(saved, tmp_path / "m.pt")
    with refused(UsageError, "emb.weight", "emb.1.weight"):
        embcompress.factorize(tmp_path / "m.pt", rank=RANK, output=tmp_path / "o.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"embedding.weight": "x"}', '{"embedding.weight": [3]}', '{"a\\u001b": []}', 7, "[" * 9999],
)
def test_row_85_broken_names_of_shared_tables_are_refused(tmp_path, text):
    torch.save(translator(), tmp_path / "run.pt")
    embcompress.factorize(tmp_path / "run.pt", rank=RANK, output=tmp_path / "small.pt")
    broken = loaded(tmp_path / "small.pt")
    broken["en"]._metadata["embcompress_shared"] = text
    torch.save(broken, tmp_path / "broken.pt")
    with refused(InputError, "broken.pt"):
        embcompress.expand(tmp_path / "broken.pt", output=tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()


def shared_model(place, ties, kept):
    """A state dict whose table has a storage of its own or is a view of a larger one."""
    big = torch.randn(3 * ROWS * WIDTH)
    table, neighbour = {
        "own": lambda: (torch.randn(ROWS, WIDTH), torch.randn(7, 3)),
        "flat": lambda: (big[33 : 33 + ROWS * WIDTH].view(ROWS, WIDTH), big[-21:].view(7, 3)),
        "rows": lambda: (big.view(-1, WIDTH)[5 : 5 + ROWS], big.view(-1, WIDTH)[1:4]),
        "columns": lambda: (big[: 2 * ROWS * WIDTH].view(ROWS, 2 * WIDTH)[:, :WIDTH], torch.randn(7, 3)),
    }[place]()
    model = {"before.weight": neighbour, "embedding.weight": table, "out.weight": torch.randn(40, WIDTH)}
    model |= {"head.weight": table} if ties == "alias" else {}
    model |= {"head.weight": table.clone()} if ties == "copy" else {}
    return model | {"none": {}, "pad": {"pad": table[:1]}, "half": {"half": table[ROWS // 2 :]}}[kept]


def stepped(optimizer_class, model):
    """The state of an optimizer over the parameters of ``model`` after a step."""
    names = ("before.weight", "embedding.weight", "out.weight")
    parameters = [nn.Parameter(model[name].clone()) for name in names]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizer_class(parameters, lr=0.1)
    optimizer.step()
    return optimizer.state_dict()


NAMES = st.lists(
    st.sampled_from(["weight", "embedding.weight", "tok", "tok.weight"]), unique=True, min_size=1
)


@settings(max_examples=25, deadline=None)
@given(
    place=st.sampled_from(["own", "flat", "rows", "columns"]),
    ties=st.sampled_from(["none", "alias", "copy"]),
    kept=st.sampled_from(["none", "pad", "half"]),
    shares=st.lists(NAMES, max_size=3),
    kind=st.sampled_from([dict, OrderedDict]),
    nested=st.booleans(),
    optimizer_class=st.sampled_from([None, torch.optim.Adam, torch.optim.SGD]),
    legacy=st.booleans(),
)
def test_the_predicted_size_is_the_written_one_whatever_shares_the_table(
    tmp_path_factory, place, ties, kept, shares, kind, nested, optimizer_class, legacy
):
    torch.manual_seed(0)
    model = kind(shared_model(place, ties, kept))
    others = [
        kind({"bias": torch.randn(3), **dict.fromkeys(names, model["embedding.weight"])}) for names in shares
    ]
    saved = {"model": model, "epoch": 3}
    saved |= {"parts": others} if nested else {f"p{i}": other for i, other in enumerate(others)}
    if optimizer_class is not None:
        saved["optimizer"] = stepped(optimizer_class, model)
    folder = tmp_path_factory.mktemp("sharing")
    torch.save(saved, folder / "m.pt", _use_new_zipfile_serialization=not legacy)

    def states(file):
        found = loaded(file)
        return [found["model"], *(found["parts"] if nested else (found[f"p{i}"] for i in range(len(others))))]

    options = {"rank": RANK, "keys": "embedding.weight"}
    predicted = embcompress.factorize(folder / "m.pt", dry_run=True, **options).size_after
    result = embcompress.factorize(folder / "m.pt", output=folder / "s.pt", **options)
    assert result.size_after == (folder / "s.pt").stat().st_size <= predicted <= result.size_after + 48 + 64
    small, *_ = found = states(folder / "s.pt")
    for suffix in (".0.weight", ".1.weight"):
        parts = [value for state in found for name, value in state.items() if name.endswith(suffix)]
        assert {value.data_ptr() for value in parts} == {small[f"embedding{suffix}"].data_ptr()}
        assert len(parts) == (ties != "none") + 1 + sum(len({*map(embedding_of, s)}) for s in shares)
    carried = [name for name in model if name not in ("embedding.weight", "head.weight")]
    assert all(torch.equal(small[name], model[name]) for name in carried)
    moments = loaded(folder / "s.pt").get("optimizer", {"state": {}})["state"].values()
    needed = FACTOR_BYTES + sum(t.nbytes for moment in moments for t in moment.values())
    needed += sum(model[name].nbytes for name in carried) + sum(other["bias"].nbytes for other in others)
    if place != "columns" or kept == "none":
        cut = 2 * 16 * len(carried)  # bytes that stay so that no element is cut
        assert needed <= stored_bytes(folder / "s.pt") <= needed + cut, "nothing of the table is left"
    assert embcompress.verify(folder / "s.pt", against=folder / "m.pt").is_right
    embcompress.expand(folder / "s.pt", output=folder / "d.pt")
    for before, after in zip([model, *others], states(folder / "d.pt"), strict=True):
        assert before.keys() == after.keys()


def embedding_of(name):
    """What the names of parts begin with."""
    return name.removesuffix(".weight")
