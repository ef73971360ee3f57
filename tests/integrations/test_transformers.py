"""Real transformers classes: saved, sharded, factorized by the command, loaded back, refused by stock."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from click.testing import CliRunner
from helpers.compressed_models import CASES, built, low_rank, parameters
from safetensors.torch import save_file

import embcompress
from embcompress.cli import cli

NAMES = ("bert", "gpt2", "t5", "bart", "llama-tied", "llama-untied", "gemma3")
R = 6


@pytest.fixture(params=NAMES)
def case(request):
    return CASES[request.param]


def saved(case, folder, **options):
    """A random model of the case and the sharded directory it was saved to."""
    model = built(case, seed=1)
    model.save_pretrained(folder / "original", max_shard_size="8KB", **options)
    assert len(list((folder / "original").glob("model-*"))) > 1, "or nothing is sharded"
    return model


def factorized(folder, rank=R):
    done = CliRunner().invoke(
        cli, ["factorize", str(folder / "original"), "--rank", str(rank), "-o", str(folder / "small")]
    )
    assert done.exit_code == 0, done.output
    return folder / "small"


def test_loaded_outputs_are_those_of_the_low_rank_table(case, tmp_path):
    """The swapped model computes what the dense model computes with the truncated SVD in its table."""
    model = saved(case, tmp_path)
    expected = case.run(low_rank(model, case.tables))
    loaded = embcompress.load(built(case, seed=2), factorized(tmp_path)).eval()
    torch.testing.assert_close(case.run(loaded), expected, atol=1e-5, rtol=1e-5)
    assert (case.run(loaded) - case.run(model)).abs().max() > 1e-3, "the factors must have been used"
    assert parameters(loaded) < parameters(model)


def test_stock_transformers_refuses_the_directory(case, tmp_path):
    """Without this package from_pretrained raises: it never comes up with a fresh random table."""
    saved(case, tmp_path)
    small = factorized(tmp_path)
    config = json.loads((small / "config.json").read_text())
    kind = getattr(tf, config["architectures"][0])
    for auto in (kind, tf.AutoModel):
        with pytest.raises(RuntimeError, match="mismatch"):
            auto.from_pretrained(small)


def test_without_the_guard_stock_transformers_would_load_noise(tmp_path):
    """The negative control: drop the guard tensor and the same call succeeds with a random table."""
    saved(CASES["bert"], tmp_path)
    small = factorized(tmp_path)
    for shard in small.glob("*.safetensors"):
        from safetensors.torch import load_file

        tensors = {n: t for n, t in load_file(shard).items() if list(t.shape) != [0]}
        save_file(tensors, shard, metadata={"format": "pt"})
    index = small / "model.safetensors.index.json"
    parsed = json.loads(index.read_text())
    del parsed["weight_map"]["bert.embeddings.word_embeddings.weight"]
    index.write_text(json.dumps(parsed))
    first, second = (
        tf.BertForMaskedLM.from_pretrained(small).bert.embeddings.word_embeddings.weight for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_expanded_directories_load_with_stock_transformers(case, tmp_path):
    """expand gives a directory that from_pretrained takes, with the product in the table and all ties."""
    model = saved(case, tmp_path)
    done = CliRunner().invoke(cli, ["expand", str(factorized(tmp_path)), "-o", str(tmp_path / "dense")])
    assert done.exit_code == 0, done.output
    dense, report = type(model).from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = case.run(low_rank(model, case.tables))
    torch.testing.assert_close(case.run(dense.eval()), expected, atol=1e-5, rtol=1e-5)
    original = json.loads((tmp_path / "original" / "config.json").read_text())
    assert json.loads((tmp_path / "dense" / "config.json").read_text()) == original


def test_a_pytorch_bin_directory_works_too(tmp_path):
    """pytorch_model.bin, where tied names share memory, is factorized and loads back."""
    case = CASES["gpt2"]
    model = built(case, seed=1)
    model.config.save_pretrained(tmp_path / "original")
    torch.save(model.state_dict(), tmp_path / "original" / "pytorch_model.bin")
    small = factorized(tmp_path)
    loaded = embcompress.load(built(case, seed=2), small).eval()
    torch.testing.assert_close(case.run(loaded), case.run(low_rank(model, case.tables)), atol=1e-5, rtol=1e-5)
    stored = torch.load(small / "pytorch_model.bin", weights_only=True)
    assert stored["lm_head.0.weight"].data_ptr() == stored["transformer.wte.0.weight"].data_ptr()


def test_minilm_reaches_the_known_figures(minilm, tmp_path):
    """The real table: ranks 189, 94, 37 and errors 0.4605, 0.6589, 0.8276; the rest is untouched."""
    from safetensors.torch import load_file

    original = load_file(minilm / "model.safetensors")
    for ratio, rank, error in ((0.5, 189, 0.4605), (0.75, 94, 0.6589), (0.9, 37, 0.8276)):
        result = embcompress.factorize(minilm, ratio=ratio, output=tmp_path / f"r{rank}")
        (table,) = result.tables
        assert table.rank == rank
        assert table.relative_error == pytest.approx(error, abs=5e-5)
        assert table.predicted_error == pytest.approx(table.relative_error, rel=1e-5)
    stored = load_file(tmp_path / "r37" / "model.safetensors")
    for name, tensor in original.items():
        if name != "embeddings.word_embeddings.weight":
            assert torch.equal(stored[name], tensor)


def test_minilm_runs_with_factors_in_its_table(minilm, tmp_path):
    """At full precision the real model gives the outputs of the dense low-rank table."""
    small = embcompress.factorize(minilm, rank=189, output=tmp_path / "small").output
    ids = torch.tensor([[101, 7592, 2088, 102]])
    loaded = embcompress.load(tf.BertModel(tf.BertConfig.from_pretrained(minilm)), small).eval()
    embcompress.expand(small, output=tmp_path / "dense")
    dense = tf.BertModel.from_pretrained(tmp_path / "dense").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids).last_hidden_state, dense(ids).last_hidden_state, atol=1e-5, rtol=1e-5
        )
