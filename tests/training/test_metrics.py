"""Accuracy, precision, recall and F1, with scikit-learn as oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from embcompress.training.metrics import Confusion

LABELS = ("joy", "fear", "rage", "", "Ärger")


@st.composite
def predictions(draw):
    """Number of labels, and pairs of true and predicted ones; some labels never occur."""
    count = draw(st.integers(2, len(LABELS)))
    numbers = st.lists(
        st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), min_size=1, max_size=40
    )
    true, predicted = np.array(draw(numbers), np.int64).T
    return count, true, predicted


@settings(deadline=None, max_examples=150)
@given(predictions())
@example((2, np.array([0]), np.array([1])))  # nothing right, and neither share has a denominator
@example((3, np.array([1, 1]), np.array([1, 1])))  # one label alone occurs
@example((3, np.array([0, 0]), np.array([0, 2])))  # one is predicted and never true
def test_scores_are_those_of_scikit_learn(drawn):
    """For any labels: a share of nothing is 0, and labels that never occur do not count."""
    count, true, predicted = drawn
    confusion = Confusion.of(LABELS[:count], true, predicted)
    expected = metrics.confusion_matrix(true, predicted, labels=range(count))
    np.testing.assert_array_equal(confusion.counts, expected)
    assert confusion.accuracy == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-12)
    macro = metrics.f1_score(true, predicted, average="macro", zero_division=0)
    assert confusion.macro_f1 == pytest.approx(macro, abs=1e-12)
    columns = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(count), zero_division=0, average=None
    )
    for score, label, *row in zip(confusion.scores, LABELS[:count], *columns, strict=True):
        assert score.label == label
        assert [score.precision, score.recall, score.f1] == pytest.approx(row[:3], abs=1e-12)
        assert score.support == row[3]


def test_rows_are_true_labels():
    """A text of label 0 predicted as label 2 counts in that cell, and lowers the recall of label 0 only."""
    confusion = Confusion.of(LABELS[:3], np.array([0, 0, 2]), np.array([2, 0, 2]))
    assert confusion.counts.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    joy, fear, rage = confusion.scores
    assert (joy.precision, joy.recall) == (1.0, 0.5)
    assert (rage.precision, rage.recall) == (0.5, 1.0)
    assert (fear.precision, fear.recall, fear.f1, fear.support) == (0.0, 0.0, 0.0, 0)


def test_macro_f1_counts_labels_alike_and_accuracy_texts():
    """A classifier that always predicts the frequent label has 90 % accuracy and less than half that F1."""
    true, always = np.array([0] * 90 + [1] * 10), np.zeros(100, np.int64)
    confusion = Confusion.of(LABELS[:2], true, always)
    assert confusion.accuracy == 0.9
    assert confusion.macro_f1 == pytest.approx((2 * 90 / (90 + 100) + 0) / 2)
    assert Confusion.of(LABELS[:5], true, always).macro_f1 == confusion.macro_f1


def test_scores_are_plain_numbers():
    """They can be written as JSON: none is a NumPy scalar."""
    confusion = Confusion.of(LABELS[:2], np.array([0, 1]), np.array([0, 0]))
    (score, _) = confusion.scores
    assert {type(x) for x in (score.precision, score.recall, score.f1, confusion.accuracy)} == {float}
    assert type(confusion.macro_f1) is float
    assert type(score.support) is int
