"""Native forms: real transformers classes load the output without embcompress, and are right."""

from __future__ import annotations

import copy
import importlib
import json
import sys

import numpy as np
import pytest
import torch
import transformers as tf
from click.testing import CliRunner
from helpers.native_models import MODELS, OPT_SIZES, PURE, SIZES, V
from helpers.refusals import refused
from helpers.resealing import parts_of, resealed
from helpers.static_models import unwrap_static_modules
from safetensors.torch import load_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.cli import cli
from embcompress.methods.svd.method import MIRROR
from embcompress.native import NATIVE_FORMS

R = 6
IDS = torch.tensor([[2, 17, 3, 44, 99, 5], [2, 8, 7, 61, 1, 1]])


def output(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))[0]


def made(name, folder, **options):
    torch.manual_seed(3)
    model = MODELS[name]()
    with torch.no_grad():  # trained tables are far from the tiny values of initialization
        model.get_input_embeddings().weight.normal_()
    model.save_pretrained(folder / "original", **options)
    return model


def run(*words, code=0):
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert done.exit_code == code, done.output + done.stderr
    return done


def with_low_rank(model, rank):
    """The dense model with the truncated SVD of its table, computed in float64 by NumPy."""
    copied = copy.deepcopy(model)
    weight = copied.get_input_embeddings().weight
    u, s, vt = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(u[:, :rank] * s[:rank] @ vt[:rank]))
    return copied


def stock(folder):
    """The class that config.json names, as transformers alone loads it."""
    kind = getattr(tf, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model


@pytest.mark.parametrize("layout", [None, "native"])
@pytest.mark.parametrize("name", MODELS)
def test_stock_library_computes_with_the_low_rank_table(name, layout, tmp_path):
    """Without being asked, since it is exact; and the dense model's outputs are others."""
    model = made(name, tmp_path)
    asked = () if layout is None else ("--layout", layout)
    done = run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small", "--json", *asked)
    small = stock(tmp_path / "small")
    torch.testing.assert_close(output(small), output(with_low_rank(model, R)), atol=1e-5, rtol=1e-4)
    assert (output(small) - output(model)).abs().max() > 1e-3
    assert json.loads(done.stdout)["tables"][0]["layout"] == "native"
    assert "quantization_config" not in json.loads((tmp_path / "small/config.json").read_text())


def test_no_embcompress_is_needed(tmp_path, monkeypatch):
    """Where the package cannot be imported, transformers loads the output all the same."""
    made("deberta-v2", tmp_path)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    for name in [name for name in sys.modules if name.partition(".")[0] == "embcompress"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        importlib.import_module("embcompress.checkpoint")
    model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert model.deberta.embeddings.embed_proj.weight.shape == (24, R)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "6KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("name", MODELS)
def test_expand_gives_the_dense_model_back(name, options, tmp_path):
    """Names, shapes, configuration and outputs are those of the original with the low-rank table."""
    model = made(name, tmp_path, **options)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    run("expand", tmp_path / "small", "-o", tmp_path / "dense")
    torch.testing.assert_close(
        output(stock(tmp_path / "dense")), output(with_low_rank(model, R)), atol=1e-5, rtol=1e-4
    )
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("original", "dense"))
    assert after == before
    with open_checkpoint(tmp_path / "original") as one, open_checkpoint(tmp_path / "dense") as other:
        assert {n: t.shape for n, t in one.tensors.items()} == {n: t.shape for n, t in other.tensors.items()}


def test_all_else_is_carried_byte_for_byte(tmp_path):
    """Only the table's tensors differ."""
    made("deberta-v2", tmp_path)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("original", "small"))
    added = after.keys() - before.keys()
    assert added == {"deberta.embeddings.embed_proj.weight"}
    assert not before.keys() - after.keys()
    differing = {n for n in before if not torch.equal(before[n], after[n])}
    assert differing == {"deberta.embeddings.word_embeddings.weight"}


def test_ratio_counts_both_projections(tmp_path):
    """OPT stores the right factor twice; the ratio asked for is still reached, and barely."""
    made("opt", tmp_path)
    done = run("factorize", tmp_path / "original", "--ratio", "0.6", "-o", tmp_path / "small", "--json")
    (table,) = json.loads(done.stdout)["tables"]
    tensors = load_file(tmp_path / "small/model.safetensors")
    stored = sum(
        tensors[f"model.decoder.{n}.weight"].nbytes for n in ("embed_tokens", "project_in", "project_out")
    )
    assert stored == table["bytes_after"]
    assert table["ratio"] >= 0.6
    assert 1 - stored * (table["rank"] + 1) / table["rank"] / (V * 24 * 4) < 0.6
    assert torch.equal(
        tensors["model.decoder.project_in.weight"].T, tensors["model.decoder.project_out.weight"]
    )


@pytest.mark.parametrize("name", MODELS)
def test_max_size_holds_for_native_forms(name, tmp_path):
    """The projections are part of the size that is promised."""
    made(name, tmp_path)
    size = (tmp_path / "original/model.safetensors").stat().st_size
    limit = size - 5000
    run("factorize", tmp_path / "original", "--max-size", limit, "-o", tmp_path / "small")
    assert limit - 700 < (tmp_path / "small/model.safetensors").stat().st_size <= limit
    stock(tmp_path / "small")


INEXACT = {
    "positions": (
        lambda: tf.DebertaV2Model(tf.DebertaV2Config(**SIZES, **{**PURE, "position_biased_input": True})),
        "positions are added",
    ),
    "types": (
        lambda: tf.DebertaV2Model(tf.DebertaV2Config(**SIZES, **{**PURE, "type_vocab_size": 2})),
        "types are added",
    ),
    "head": (
        lambda: tf.DebertaV2ForMaskedLM(tf.DebertaV2Config(**SIZES, **PURE)),
        "head over the vocabulary",
    ),
    "projected": (
        lambda: tf.DebertaV2Model(tf.DebertaV2Config(**SIZES, **PURE, embedding_size=12)),
        "a projection already",
    ),
    "opt-body": (lambda: tf.OPTModel(tf.OPTConfig(**OPT_SIZES)), "would be projected"),
    "opt-classifier": (
        lambda: tf.OPTForSequenceClassification(tf.OPTConfig(**OPT_SIZES)),
        "would be projected",
    ),
    "opt-untied": (
        lambda: tf.OPTForCausalLM(tf.OPTConfig(**OPT_SIZES, tie_word_embeddings=False)),
        "not tied",
    ),
    "opt-projected": (
        lambda: tf.OPTForCausalLM(tf.OPTConfig(**{**OPT_SIZES, "word_embed_proj_dim": 16})),
        "projections already",
    ),
    "bert": (lambda: tf.BertModel(tf.BertConfig(**SIZES)), "no form for factors"),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_would_not_be_exact_is_refused_and_otherwise_stored_for_embcompress(name, tmp_path):
    """--layout native says why; without it the output is that of embcompress, and says why too."""
    build, reason = INEXACT[name]
    torch.manual_seed(1)
    model = build()
    model.save_pretrained(tmp_path / "original")
    words = ("factorize", tmp_path / "original", "--rank", "4", "-o", tmp_path / "small")
    if name == "opt-untied":
        words = (*words, "--key", "model.decoder.embed_tokens.weight")
    refused = run(*words, "--layout", "native", code=2)
    assert reason in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "small").exists()
    done = run(*words)
    assert (reason in done.stderr) == (name != "bert")
    names = load_file(tmp_path / "small/model.safetensors").keys()
    assert any(n.endswith(".1.weight") for n in names)
    assert not any("embed_proj" in n and n.endswith(".1.weight") for n in names)


@pytest.mark.parametrize("layout", ["embcompress", "sequential"])
def test_other_layouts_are_to_be_had_of_models_with_a_native_form(layout, tmp_path):
    """They load through the package, to the same outputs."""
    model = made("deberta-v2-body", tmp_path)
    done = run(
        "factorize",
        tmp_path / "original",
        "--rank",
        R,
        "-o",
        tmp_path / "small",
        "--layout",
        layout,
        "--json",
    )
    assert json.loads(done.stdout)["tables"][0]["layout"] == "sequential"
    loaded = embcompress.load(MODELS["deberta-v2-body"](), tmp_path / "small")
    torch.testing.assert_close(output(loaded), output(with_low_rank(model, R)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["native", "sequential"])
@pytest.mark.parametrize("method", ["pq", "int8", "auto"])
def test_codes_have_no_such_layout(method, layout, tmp_path):
    """One line that says what to choose instead."""
    made("deberta-v2-body", tmp_path)
    done = run(
        "factorize", tmp_path / "original", "--ratio", "0.5", "--method", method, "--layout", layout, code=2
    )
    assert "--method svd" in done.stderr
    assert done.stderr.count("\n") == 1


def test_load_fills_a_model_that_is_built_from_the_new_configuration(tmp_path):
    """And refuses one of the old sizes, which stays as it was."""
    made("deberta-v2-body", tmp_path)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    config = tf.AutoConfig.from_pretrained(tmp_path / "small")
    torch.manual_seed(9)
    loaded = embcompress.load(tf.DebertaV2Model(config), tmp_path / "small")
    assert torch.equal(output(loaded), output(stock(tmp_path / "small")))
    with refused(embcompress.errors.UsageError, "another shape"):
        embcompress.load(MODELS["deberta-v2-body"](), tmp_path / "small")


def test_projections_that_were_trained_apart_are_no_one_table(tmp_path):
    """expand refuses rather than write a head that is not the model's."""
    made("opt", tmp_path)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    with open_checkpoint(tmp_path / "small") as small:
        about = small.description
    tensors = load_file(tmp_path / "small/model.safetensors")
    tensors["model.decoder.project_out.weight"] *= 1.01
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "small/model.safetensors", {"format": "pt", "embcompress": about.to_json()})
    refused = run("expand", tmp_path / "small", "-o", tmp_path / "dense", code=3)
    assert "differ" in refused.stderr
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_row_66_projections_that_were_trained_apart_hold_numbers(tmp_path, value):
    """They can be loaded and verified as they are; what is no number is refused, in the same words."""
    model = made("opt", tmp_path)
    embcompress.factorize(tmp_path / "original", rank=R, output=tmp_path / "small")
    out = parts_of(tmp_path / "small")[MIRROR]
    out[0, 0] = value
    path = resealed(tmp_path / "small", tmp_path / "tuned", {MIRROR: out}, trained=True)
    into = type(model)(tf.AutoConfig.from_pretrained(path))
    for read in (embcompress.verify, lambda path: embcompress.load(into, path)):
        if value == 1.5:
            read(path)
        else:
            with refused(embcompress.InputError, f"part {MIRROR} holds NaN or infinity in row 0"):
                read(path)
    assert (into.model.decoder.project_out.weight[0, 0] == 1.5) == (value == 1.5)


def test_a_second_run_is_refused_by_the_record_in_the_weights(tmp_path):
    """config.json says nothing, yet the output knows that it is compressed; report shows it."""
    made("opt", tmp_path)
    run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
    assert "compressed already" in run("factorize", tmp_path / "small", "--rank", "2", code=2).stderr
    shown = json.loads(run("report", tmp_path / "small", "--against", tmp_path / "original", "--json").stdout)
    assert shown["compressed"][0]["rank"] == R


def test_registry_names_are_the_forms_own():
    assert all(NATIVE_FORMS[name].name == name for name in NATIVE_FORMS)


class TestStaticModels:
    """sentence-transformers' own classes, saved and loaded by themselves."""

    TEXTS = ("a cat sat", "the dog ran away", "mat")

    def saved(self, folder, *, dtype=torch.float32, further=()):
        st = pytest.importorskip("sentence_transformers")
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = " ".join(self.TEXTS).split()
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        rng = np.random.default_rng(0)
        weight = torch.from_numpy(rng.standard_normal((200, 24), np.float32)).to(dtype)
        model = st.SentenceTransformer(
            modules=[StaticEmbedding(tokenizer, embedding_weights=weight), *further, Normalize()],
            device="cpu",
        )
        model.save(str(folder / "original"), create_model_card=False)
        return st, weight

    def expected(self, weight, rank):
        """Means of rows of the truncated SVD, normalized."""
        u, s, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        table = u[:, :rank] * s[:rank] @ vt[:rank]
        order = {w: i for i, w in enumerate(dict.fromkeys(" ".join(self.TEXTS).split()))}
        means = np.stack([table[[order[w] for w in text.split()]].mean(0) for text in self.TEXTS])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def test_vectors_are_those_of_the_low_rank_table(self, tmp_path):
        st, weight = self.saved(tmp_path)
        run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
        small = st.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert [type(m).__name__ for m in small] == ["StaticEmbedding", "Dense", "Normalize"]
        np.testing.assert_allclose(small.encode([*self.TEXTS]), self.expected(weight, R), atol=1e-6)
        assert small[0].embedding.weight.shape == (200, R)

    def test_expand_gives_the_directory_back(self, tmp_path):
        """Every file but the weights and the card is the original's, and no folder is left over."""
        st, weight = self.saved(tmp_path)
        run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small")
        run("expand", tmp_path / "small", "-o", tmp_path / "dense")
        names = {path.relative_to(tmp_path / "original") for path in (tmp_path / "original").rglob("*")}
        found = {path.relative_to(tmp_path / "dense") for path in (tmp_path / "dense").rglob("*")}
        assert found == names
        for name in names:
            if (tmp_path / "original" / name).is_file() and name.suffix != ".safetensors":
                one, other = (tmp_path / d / name for d in ("original", "dense"))
                assert name.suffix != ".json" or json.loads(one.read_text()) == json.loads(other.read_text())
        dense = st.SentenceTransformer(str(tmp_path / "dense"), device="cpu")
        np.testing.assert_allclose(dense.encode([*self.TEXTS]), self.expected(weight, R), atol=1e-6)

    def test_size_and_report_count_both_files(self, tmp_path):
        self.saved(tmp_path)
        done = run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small", "--json")
        weights = [*(tmp_path / "small").rglob("*.safetensors")]
        assert len(weights) == 2
        assert json.loads(done.stdout)["size_after"] == sum(path.stat().st_size for path in weights)
        shown = run("report", tmp_path / "small", "--against", tmp_path / "original", "--json").stdout
        assert json.loads(shown)["compressed"][0]["rank"] == R

    def test_older_directories_keep_the_table_in_a_folder(self, tmp_path):
        """Up to version 4 the first module had one too, and all classes stood in one package."""
        st, weight = self.saved(tmp_path)
        original = tmp_path / "original"
        (original / "0_StaticEmbedding").mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (original / name).rename(original / "0_StaticEmbedding" / name)
        modules = json.loads((original / "modules.json").read_text())
        modules[0] |= {"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"}
        modules[1]["type"] = "sentence_transformers.models.Normalize"
        (original / "modules.json").write_text(json.dumps(modules))
        run("factorize", original, "--rank", R, "-o", tmp_path / "small")
        written = json.loads((tmp_path / "small/modules.json").read_text())
        assert written[1]["type"] == "sentence_transformers.models.Dense"
        small = st.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        np.testing.assert_allclose(small.encode([*self.TEXTS]), self.expected(weight, R), atol=1e-6)

    @pytest.mark.parametrize(("what", "says"), [("half", "float32"), ("dense", "projection follows")])
    def test_what_would_not_be_exact_is_refused(self, what, says, tmp_path):
        pytest.importorskip("sentence_transformers")
        from sentence_transformers.sentence_transformer.modules import Dense

        further = [Dense(24, 8)] if what == "dense" else []
        self.saved(tmp_path, dtype=torch.float16 if what == "half" else torch.float32, further=further)
        words = ("factorize", tmp_path / "original", "--rank", "4", "-o", tmp_path / "small")
        assert says in run(*words, "--layout", "native", code=2).stderr
        run(*words)
        with open_checkpoint(tmp_path / "small") as small:
            assert small.description.tables[0].native is None

    def test_codes_are_refused_by_sentence_transformers_and_expand(self, tmp_path):
        """The library finds no table under a name that it knows."""
        st, _ = self.saved(tmp_path)
        run(
            "factorize", tmp_path / "original", "--ratio", "0.7", "--method", "int8", "-o", tmp_path / "small"
        )
        unwrap_static_modules()
        with pytest.raises(KeyError):
            st.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        run("expand", tmp_path / "small", "-o", tmp_path / "dense")
        st.SentenceTransformer(str(tmp_path / "dense"), device="cpu")

    def test_force_replaces_a_directory_of_a_static_model(self, tmp_path):
        self.saved(tmp_path)
        for _ in range(2):
            run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small", "--force")

    @pytest.mark.parametrize("folder", ["../x", "a/b", "..", "C:\\x"])
    def test_modules_that_lead_out_of_the_directory_are_refused(self, folder, tmp_path):
        self.saved(tmp_path)
        modules = json.loads((tmp_path / "original/modules.json").read_text())
        modules[0]["path"] = folder
        (tmp_path / "original/modules.json").write_text(json.dumps(modules))
        done = run("factorize", tmp_path / "original", "--rank", R, "-o", tmp_path / "small", code=3)
        assert "leads out" in done.stderr
