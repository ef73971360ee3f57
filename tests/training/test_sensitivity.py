"""Which directions of a row move the scores, against Jacobians that autograd computes one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.classifying import dataset, fresh, random_texts, record
from torch.func import functional_call

from embcompress.classifiers import CLASSIFIERS
from embcompress.progress import silent
from embcompress.training.sensitivity import score_products

TABLE = "embedding.weight"


def by_jacobians(model, texts):
    """Σ JᵀJ over the distinct tokens of each text, of scores less their mean."""
    table, total = model.get_parameter(TABLE), 0
    for text in texts:
        tokens, lengths = torch.tensor([text]), torch.tensor([len(text)])

        def centred(weight, tokens=tokens, lengths=lengths):
            scores = functional_call(model, {TABLE: weight}, (tokens, lengths))[0]
            return scores - scores.mean()

        found = torch.autograd.functional.jacobian(centred, table)  # C×V×d
        total = total + sum(found[:, token].T @ found[:, token] for token in {*text})
    return total.detach().double().numpy()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_on_average_it_is_the_sum_of_the_jacobians_squares(name):
    """Over many seeds, for texts that share tokens, repeat them and are padded."""
    texts = random_texts(6, 1)
    model = fresh(record(name, dropout=0.5)).eval()
    wanted = by_jacobians(model, texts)
    data = dataset(texts, [0] * len(texts))
    model.train()  # as it comes from training
    tries = [score_products(model, model.get_parameter(TABLE), data, seed, silent) for seed in range(250)]
    assert np.array_equal(tries[0], tries[0].T)
    assert np.linalg.norm(np.mean(tries, axis=0) - wanted) < 0.12 * np.linalg.norm(wanted)
    again = score_products(model, model.get_parameter(TABLE), data, 0, silent)
    assert np.array_equal(again, tries[0])
    assert not np.array_equal(tries[1], tries[0])


def test_progress_counts_the_texts():
    """Batch by batch, up to all of them."""
    texts = random_texts(150, 2)
    model, seen = fresh(record("dan")), []
    score_products(
        model, model.get_parameter(TABLE), dataset(texts, [0] * 150), 0, lambda *at: seen.append(at)
    )
    assert len(seen) > 1
    assert [at[1] for at in seen] == sorted({at[1] for at in seen})
    assert seen[-1] == ("metric", 150, 150)
