"""Modules of the user's own as classifiers, and the table that training starts from."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.classifying import (
    D,
    V,
    factorized,
    fresh,
    low_rank,
    record,
    refused,
    saved,
    scores,
    separable,
    trained,
    words,
)
from helpers.refusals import refused as refused_with
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers import CLASSIFIERS
from embcompress.classifiers.building import build, own_architecture, own_module, start_table, token_embedding
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.storage import save_new
from embcompress.data.vectors import WordVectors
from embcompress.errors import InputError, UsageError
from embcompress.training.records import Recipe


@pytest.fixture(autouse=True)
def seeded():
    """Modules of the user's own take their first weights from torch's own generator."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=CLASSIFIERS)
def kind(request):
    return record(request.param)


class TestStart:
    """The table before training."""

    def vectors(self, *tokens, width=D):
        return WordVectors(tokens, np.arange(1, 1 + len(tokens) * width, dtype=np.float32).reshape(-1, width))

    def test_noise_is_small_and_padding_and_unknown_are_zero(self, kind):
        """Not torch's standard deviation of 1, for noise has no low rank; none where nothing is learned."""
        kind = replace(kind, tokenizer=words(2000))
        model = build(kind)
        assert start_table(model, kind, None) == 0
        table = model.embedding.weight.detach()
        assert not table[:2].any()
        assert table[2:].std() == pytest.approx(0.01, rel=0.05)
        assert table[2:].any(dim=1).all()

    def test_vectors_go_to_their_tokens(self, kind):
        """Others stay noise, padding stays zero though the vectors hold its name."""
        model, vectors = fresh(kind), self.vectors("w3", "elsewhere", "<pad>", "w0", "<unk>")
        assert start_table(model, kind, vectors) == 3
        table = model.embedding.weight.detach().numpy()
        for row, place in ((5, 0), (2, 3), (1, 4)):
            np.testing.assert_array_equal(table[row], vectors.matrix[place])
        assert not table[0].any()
        assert 0 < np.abs(table[[3, 4, *range(6, V)]]).max() < 0.1
        assert model.embedding.weight.requires_grad

    def test_a_module_of_the_users_own_keeps_its_start(self, own):
        """Only rows that have a vector are replaced."""
        module = own_module(own, tokens=V, labels=3, padding=0)
        kind = replace(record(), architecture=own_architecture(own, module, V))
        before = module.embedding.weight.detach().clone()
        assert start_table(module, kind, None) == 0
        assert torch.equal(module.embedding.weight, before)
        assert start_table(module, kind, self.vectors("w3")) == 1
        changed = (module.embedding.weight != before).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [5]

    def test_vectors_of_another_width_are_refused(self, kind):
        """With the option that would fit."""
        with refused_with(UsageError, f"5 {D} --dimension 5"):
            start_table(fresh(kind), kind, self.vectors("w3", width=5))

    def test_vectors_of_padding_alone_fill_nothing(self, kind):
        """That some token is there does not mean that it has a row to fill."""
        assert start_table(fresh(kind), kind, self.vectors("<pad>")) == 0

    def test_vectors_cannot_fill_factors_unseen(self):
        """A module that is made with factors does not take vectors; to say that it did would be wrong."""
        kind = record()
        with pytest.raises(UsageError):
            start_table(factorized(kind), kind, self.vectors("w3"))


OWN = '''
from pathlib import Path
import torch
from torch import nn

Path({marker!r}).write_text("imported")

class Sum(nn.Module):
    def __init__(self, tokens, labels, padding):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 4, padding_idx=padding)
        self.output = nn.Linear(4, labels)
    def forward(self, tokens, lengths):
        return self.output(self.embedding(tokens).sum(dim=1) / lengths[:, None])

class Twice(Sum):
    """Two names for one layer."""
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.again = self.output

class Turned(Sum):
    """A weight that is stored column by column."""
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.output.weight = nn.Parameter(torch.randn(4, sizes["labels"]).T)

def other(tokens, labels, padding):
    return Sum(tokens, labels, padding)

def nothing(**sizes): return None
def broken(tokens, labels, padding): return 1 / 0
class Silent(Sum):
    def forward(self, tokens): return self.embedding(tokens)
class Sparse(Sum):
    def __init__(self, tokens, labels, padding):
        super().__init__(tokens, labels, padding)
        self.embedding.sparse = True
def few(tokens, labels, padding): return Sum(tokens - 1, labels, padding)
def positional(tokens): return Sum(tokens, 3, 0)
def one_score(tokens, labels, padding): return Sum(tokens, 1, padding)
def half(tokens, labels, padding): return Sum(tokens, labels, padding).bfloat16()

class no_batch(Sum):
    def forward(self, tokens, lengths):
        return super().forward(tokens, lengths)[0]
text = "no function"
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """``module:class`` of a module of the user's own in the working directory; importing it leaves a file."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "own_classifier.py").write_text(OWN.format(marker=str(folder / "marker")))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_classifier", raising=False)
    yield "own_classifier:Sum"
    sys.modules.pop("own_classifier", None)


def own_record(factory, **changes):
    module = own_module(factory, tokens=V, labels=3, padding=0)
    return replace(record(), architecture=replace(own_architecture(factory, module, V), **changes)), module


class TestOwnModules:
    """Code of the user's is run on the user's word alone."""

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_it_is_built_with_the_sizes_saved_and_opened(self, own, tmp_path, suffix):
        """As ours are, factorized too."""
        kind, module = own_record(own)
        assert token_embedding(module, V) is module.embedding
        path = tmp_path / f"own{suffix}"
        save_new(path, module.state_dict(), kind)
        opened = open_classifier(path, factory=own)
        assert torch.equal(scores(opened.model), scores(module))
        assert opened.record.architecture.factory == own
        embcompress.factorize(path, rank=2, output=tmp_path / f"small{suffix}")
        small = open_classifier(tmp_path / f"small{suffix}", factory=own)
        torch.testing.assert_close(scores(small.model), scores(low_rank(module, 2)), rtol=0, atol=1e-5)

    def test_what_only_the_file_names_is_never_imported(self, own, tmp_path):
        """Not without a factory and not with another; with the right one it is, which leaves the file."""
        model = nn.Module()
        model.embedding, model.output = nn.Embedding(V, D), nn.Linear(D, 3)
        architecture = replace(record().architecture, name="module", hidden=(), factory=own)
        path, marker = tmp_path / "own.pt", tmp_path / "user" / "marker"
        save_new(path, model.state_dict(), replace(record(), architecture=architecture))
        refused(path, UsageError, own, f"pass --model {own}")
        refused(path, UsageError, "--model os.path:join", own, factory="os.path:join")
        assert not marker.exists()
        open_classifier(path, factory=own)
        assert marker.exists()

    def test_ours_take_no_factory(self, own, tmp_path, kind):
        """A name in their record is not run either."""
        path, _ = saved(tmp_path, kind)
        refused(path, UsageError, f"--model {own}", "leave out --model", factory=own)
        named = replace(kind, architecture=replace(kind.architecture, factory=own))
        path, _ = saved(tmp_path, named, name="named")
        refused(path, InputError, f"with factory '{own}'")
        assert not (tmp_path / "user" / "marker").exists()

    def test_the_working_directory_is_searched_for_this_import_alone(self, own):
        """A file there must not stand in for a package that is imported later."""
        before = [*sys.path]
        own_module(own, tokens=V, labels=3, padding=0)
        assert sys.path == before
        with pytest.raises(UsageError):
            own_module("own_nothing:Sum", tokens=V, labels=3, padding=0)
        assert sys.path == before

    def test_it_is_trained_in_float32(self, own):
        """Whatever it is made in, and in the mode that it came in."""
        module = own_module(own.replace("Sum", "half"), tokens=V, labels=3, padding=0)
        assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
        assert module.training

    @pytest.mark.parametrize(
        ("factory", "said"),
        [
            ("own_classifier", "names no function"),
            (":Sum", "names no function"),
            ("own_classifier:", "names no function"),
            ("no_such_module:Sum", "No module named"),
            ("own_classifier:Sums", "no attribute 'Sums'"),
            ("own_classifier:text", "is not a function"),
            ("own_classifier:nothing", "made a NoneType"),
            ("own_classifier:few", f"no nn.Embedding with {V} rows"),
            ("own_classifier:broken", "ZeroDivisionError: division by zero; run it alone"),
            ("own_classifier:Silent", "TypeError"),
            ("own_classifier:Sparse", "has an embedding with sparse=True; leave it dense"),
            ("own_classifier:positional", "it is called with tokens=, labels= and padding="),
            (".own_classifier:Sum", "relative import"),
            ("own_classifier:one_score", "scores of shape [2, 1] for 2 texts and 3 labels"),
            ("own_classifier:no_batch", "scores of shape [3] for 2 texts and 3 labels"),
        ],
    )
    @pytest.mark.usefixtures("own")
    def test_what_is_no_factory_is_refused(self, factory, said):
        """The option is named with what is wrong with it."""
        with pytest.raises(UsageError) as caught:
            own_module(factory, tokens=V, labels=3, padding=0)
        assert f"{factory}: " in str(caught.value)
        assert said in str(caught.value)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("name", ["Twice", "Turned"])
    def test_any_layout_in_memory_can_be_saved(self, own, tmp_path, suffix, name):
        """Shared and transposed weights come back equal, from both formats."""
        factory = own.replace("Sum", name)
        kind, module = own_record(factory)
        trainer = trained(module, separable(12, 0), separable(9, 1), Recipe(epochs=1))
        path = tmp_path / f"own{suffix}"
        save_new(path, trainer.best_state, kind)
        module.load_state_dict(trainer.best_state)
        assert torch.equal(scores(open_classifier(path, factory=factory).model), scores(module))
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.tensors.keys() == module.state_dict().keys()
            twice = {f"again.{part}": f"output.{part}" for part in ("weight", "bias")}
            assert checkpoint.aliases == (twice if name == "Twice" else {}), "stored once"
