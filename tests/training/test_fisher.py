"""Outer products of gradients, against finite differences of what each model is used for.

The oracle moves one looked-up row of one text at a time, or one row of the head, by a small step in a
direction, and measures what becomes of the outputs: no gradients, no padding.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.compressed_models import D, V, gemma3, gpt2, llama
from helpers.quick import quick
from helpers.refusals import refused
from torch.nn import functional as F

from embcompress.data.encoded import Encoded
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokens import Tokens, positions
from embcompress.progress import silent
from embcompress.training.devices import runtime
from embcompress.training.fisher import outer_products

STEP, SEEDS = 1e-3, 60


def bert(kind=tf.BertModel, **options):
    config = tf.BertConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
                           num_attention_heads=2, max_position_embeddings=16, initializer_range=0.3,
                           **options)  # fmt: skip
    return kind(config)


def classifier(labels=3):
    return bert(tf.BertForSequenceClassification, num_labels=labels)


def made(build, causal=False, path=Path("model")):
    torch.manual_seed(0)
    model = build().eval()
    return Pretrained(path, model, causal, V, dict, 0, ())


def tokens(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, V, rng.integers(2, 7)).tolist() for _ in range(count)]


def estimate(model, texts, seeds=1):
    """The mean over seeds: with many, the randomness of the directions averages out."""
    data = Tokens(Encoded.of(texts), 0)
    return np.mean(
        [outer_products(model, data, runtime("cpu"), seed, silent) for seed in range(seeds)], axis=0
    )


def cosine_lost(model, rows, changed):
    """Twice one minus the cosine of the mean of the last hidden states, summed over what the rows become."""
    mine, theirs = (model(inputs_embeds=each).last_hidden_state.mean(dim=1) for each in (changed, rows))
    return 2 * (1 - F.cosine_similarity(mine, theirs)).sum()


def first_cosine_lost(model, rows, changed):
    """The same of the first token's."""
    mine, theirs = (model(inputs_embeds=each).last_hidden_state[:, 0] for each in (changed, rows))
    return 2 * (1 - F.cosine_similarity(mine, theirs)).sum()


def divergence(logits, original):
    """Twice the Kullback–Leibler divergence, summed over texts and positions."""
    mine, theirs = (F.log_softmax(one, dim=-1) for one in (logits, original))
    return 2 * (theirs.exp() * (theirs - mine)).sum()


def logits_lost(model, rows, changed):
    return divergence(model(inputs_embeds=changed).logits, model(inputs_embeds=rows).logits)


@torch.no_grad()
def measured(model, texts, direction, lost):
    """Σ over texts and tokens of the second difference of ``lost`` as one row moves along ``direction``."""
    table = model.get_input_embeddings()
    step = STEP * torch.from_numpy(direction) * getattr(table, "embed_scale", 1.0)
    total = 0.0
    for ids in texts:
        rows = table(torch.tensor([ids]))
        one = torch.eye(len(ids))[:, :, None] * step
        total += float(lost(model, rows, torch.cat([rows + one, rows - one]))) / (2 * STEP**2)
    return total


@torch.no_grad()
def measured_head(model, texts, direction):
    """The same as one row of the head moves, the looked-up rows left as they are."""
    total, step = 0.0, STEP * torch.from_numpy(direction)
    for ids in texts:
        found = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        change = (found.hidden_states[-1] @ step)[:, :, None] * torch.eye(V)[:, None]
        both = torch.cat([found.logits + change, found.logits - change])
        total += float(divergence(both, found.logits)) / (2 * STEP**2)
    return total


def directions(matrix):
    """The directions that matter least and most, and two others."""
    rng = np.random.default_rng(0)
    others = [one / np.linalg.norm(one) for one in rng.standard_normal((2, D))]
    return [*np.linalg.eigh(matrix)[1].T[[0, -1]], *others]


KINDS = {
    "encoder": (bert, False, cosine_lost),
    "classifier": (classifier, False, logits_lost),
    "language model": (lambda: llama(tied=False), True, logits_lost),
}


@pytest.mark.parametrize("kind", quick(KINDS.keys(), "encoder", "classifier"))
def test_gradients_tell_what_an_error_does(kind):
    """Along the best, the worst and other directions, to the noise of the draws."""
    build, causal, lost = KINDS[kind]
    model, texts = made(build, causal), tokens()
    found = estimate(model, texts, seeds=SEEDS)
    oracle = model.model.double()
    for direction in directions(found):
        exact = measured(oracle, texts, direction, lost)
        assert direction @ found @ direction == pytest.approx(exact, rel=0.1, abs=1e-4 * found.trace())


@pytest.mark.parametrize("build", quick({"gpt2": gpt2, "scaled rows": gemma3}, "scaled rows"))
def test_a_tied_head_counts_as_well(build):
    """The form is the sum of what rows do when they are looked up and when hidden states meet them."""
    model, texts = made(build, causal=True), tokens(6)
    found = estimate(model, texts, seeds=SEEDS)
    oracle = model.model.double()
    for direction in directions(found):
        head = measured_head(oracle, texts, direction)
        exact = head + measured(oracle, texts, direction, logits_lost)
        assert direction @ found @ direction == pytest.approx(exact, rel=0.1, abs=1e-6 * found.trace())


@pytest.mark.parametrize("old", quick({"now": False, "before": True}, "now"))
def test_a_pooling_by_the_first_token_is_followed(tmp_path, old):
    """As sentence-transformers stores it now and did before; other vectors, other gradients."""
    entries = (
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        if old
        else {"pooling_mode": "cls"}
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(entries))
    modules = [
        {"path": folder, "type": f"x.{kind}"}
        for folder, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    model, texts = made(bert, path=tmp_path), tokens(6)
    found = estimate(model, texts, seeds=SEEDS)
    _, best, *_ = directions(found)
    exact = measured(model.model.double(), texts, best, first_cosine_lost)
    assert best @ found @ best == pytest.approx(exact, rel=0.1)
    assert best @ estimate(made(bert), texts, seeds=SEEDS) @ best != pytest.approx(exact, rel=0.2)
    (tmp_path / "1_Pooling" / "config.json").write_text("[]")
    with refused(InputError, str(tmp_path / "1_Pooling" / "config.json")):
        estimate(model, texts)


def test_a_regression_has_gradients():
    """A single logit is no distribution, but its gradients count."""
    assert estimate(made(lambda: classifier(1)), tokens()).trace() > 0


def test_the_result_is_the_same_again_and_symmetric():
    """The same seed gives the same bytes, another one others."""
    model, texts = made(bert), tokens()
    first = estimate(model, texts)
    assert np.array_equal(first, estimate(model, texts))
    assert np.array_equal(first, first.T)
    other = outer_products(model, Tokens(Encoded.of(texts), 0), runtime("cpu"), 1, silent)
    assert not np.array_equal(first, other)


def test_progress_counts_texts():
    """Each text once, up to their number."""
    seen = []
    data = Tokens(Encoded.of(tokens(70)), 0)
    outer_products(made(bert), data, runtime("cpu"), 0, lambda *step: seen.append(step))
    assert [total for _, _, total in seen] == [70, 70]
    assert seen[-1] == ("metric", 70, 70)


def test_padding_does_not_count():
    """Two texts together give what they give alone; padding of another id changes nothing."""
    model, texts = made(bert), [[5, 6, 7, 8, 9], [5, 6]]
    padded = [
        outer_products(model, Tokens(Encoded.of(texts), pad), runtime("cpu"), 0, silent) for pad in (0, 9)
    ]
    assert padded[0] == pytest.approx(padded[1], rel=1e-5, abs=1e-9)


def t5():
    return tf.T5EncoderModel(tf.T5Config(vocab_size=V, d_model=D, d_kv=8, d_ff=24, num_layers=1, num_heads=2))


def xlnet():
    return tf.XLNetModel(tf.XLNetConfig(vocab_size=V, d_model=D, n_layer=1, n_head=2, d_inner=24))


@pytest.mark.parametrize("build", [t5, xlnet])
def test_lookups_are_found_wherever_they_are(build):
    """In T5's encoder, which has a module of its own for it; in XLNet, which has no limit of length."""
    model = made(build)
    assert positions(model.model, 256) == 256
    assert estimate(model, tokens()).trace() > 0


def test_a_model_without_a_lookup_is_refused():
    """One that multiplies its table by itself shows no rows."""

    class Own(tf.BertModel):
        def forward(self, input_ids, **_):
            return (F.embedding(input_ids, self.get_input_embeddings().weight),)

    with refused(UsageError, "Own"):
        estimate(made(lambda: bert(Own)), tokens())


def test_a_model_that_does_not_run_is_refused():
    """In one line, with the model's own words."""

    class Broken(tf.BertModel):
        def forward(self, **_):
            raise RuntimeError("shapes do not match")

    with refused(InputError, "model", "shapes do not match"):
        estimate(made(lambda: bert(Broken)), tokens())
