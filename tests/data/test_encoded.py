"""Token ids without padding, and the batches of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embcompress.data.encoded import _POOL, Encoded, shuffled_batches, sorted_batches

texts = st.lists(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=9), min_size=1, max_size=30)
many_lengths = st.lists(st.integers(1, 60), max_size=400).map(lambda found: np.array(found, np.int64))


def rng(seed=0):
    return np.random.default_rng(seed)


def padding_share(lengths, batches):
    """How much of the batches, filled up, is padding."""
    cells = sum(len(rows) * lengths[rows].max() for rows in batches)
    return 1 - lengths.sum() / cells


class TestEncoded:
    """Texts one after another."""

    @settings(deadline=None)
    @given(texts)
    def test_it_holds_the_texts(self, rows):
        """Each begins where it is said to, and is as long."""
        encoded = Encoded.of(iter(rows))
        assert len(encoded) == len(rows)
        assert encoded.tokens.dtype == encoded.lengths.dtype == np.int64
        for row, start, length in zip(rows, encoded.starts, encoded.lengths, strict=True):
            assert encoded.tokens[start : start + length].tolist() == row

    @settings(deadline=None)
    @given(texts, st.data())
    def test_padded_is_a_loop_over_rows(self, rows, data):
        """Any texts in any order, also one twice: filled up at the end to the longest of them."""
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
        padding = data.draw(st.integers(0, 5))
        longest = max(len(rows[i]) for i in chosen)
        expected = []
        for i in chosen:
            line = list(rows[i])
            while len(line) < longest:
                line.append(padding)
            expected.append(line)
        found = Encoded.of(rows).padded(np.array(chosen, np.int64), padding)
        assert found.dtype == np.int64
        assert found.tolist() == expected

    def test_the_last_text_is_filled_up_too(self):
        """Behind it there are no tokens to read."""
        encoded = Encoded.of([[5, 6, 7, 8], [9]])
        assert encoded.padded(np.array([0, 1]), 3).tolist() == [[5, 6, 7, 8], [9, 3, 3, 3]]

    def test_the_places_are_counted_once(self):
        """Not for each batch of each epoch: in a million texts that takes longer than a step."""
        encoded = Encoded.of([[1, 2], [3]])
        assert encoded.starts is encoded.starts

    def test_no_texts(self):
        """None at all can be put together and cut into no batch; no rows make an empty block."""
        none = Encoded.of([])
        assert len(none) == len(none.tokens) == len(none.starts) == 0
        assert none.lengths.dtype == none.tokens.dtype == np.int64
        assert shuffled_batches(none.lengths, 5, rng()) == sorted_batches(none.lengths, 5) == []
        assert Encoded.of([[1, 2]]).padded(np.array([], np.int64), 0).shape[0] == 0

    def test_texts_are_kept_apart_from_what_they_were_made_of(self):
        """Later changes of the lists change nothing."""
        rows = [[1, 2], [3]]
        encoded = Encoded.of(rows)
        rows[0].append(9)
        rows.append([4])
        assert encoded.tokens.tolist() == [1, 2, 3]


class TestBatches:
    """One epoch."""

    @settings(deadline=None)
    @given(many_lengths, st.integers(1, 12), st.integers(0, 2**32))
    @example(np.arange(1, 102), 2, 0)  # a pool and one more
    @example(np.ones(100, np.int64), 2, 0)  # a pool exactly
    def test_every_text_comes_once_an_epoch(self, lengths, size, seed):
        """In full batches but for one; nothing is lost, nothing comes twice."""
        for batches in (shuffled_batches(lengths, size, rng(seed)), sorted_batches(lengths, size)):
            together = np.concatenate([*batches, np.array([], np.int64)])
            assert sorted(together.tolist()) == [*range(len(lengths))]
            sizes = sorted((len(rows) for rows in batches), reverse=True)
            assert sizes == [size] * (len(lengths) // size) + [len(lengths) % size] * bool(
                len(lengths) % size
            )

    @settings(deadline=None)
    @given(many_lengths, st.integers(1, 12))
    def test_sorted_batches_go_from_short_to_long(self, lengths, size):
        """Equal lengths stay in the order of the texts, so that they are the same every time."""
        rows = [row for batch in sorted_batches(lengths, size) for row in batch.tolist()]
        assert rows == sorted(range(len(lengths)), key=lambda row: (lengths[row], row))

    @settings(deadline=None)
    @given(many_lengths, st.integers(1, 12), st.integers(1, 200))
    @example(np.full(7, 2), 5, 6)  # three fill it exactly
    def test_sorted_batches_of_long_texts_are_small(self, lengths, size, most):
        """No batch of more than one text has more ids than ``most``, and none could have had one more."""
        batches = sorted_batches(lengths, size, most)
        assert [row for rows in batches for row in rows] == [
            row for rows in sorted_batches(lengths, 1) for row in rows
        ]
        for rows, after in zip(batches, [*batches[1:], None][: len(batches)], strict=True):
            assert len(rows) == 1 or (len(rows) <= size and len(rows) * lengths[rows].max() <= most)
            assert after is None or len(rows) == size or (len(rows) + 1) * lengths[after[0]] > most

    def test_batches_follow_from_the_generator_alone(self):
        """The same seed gives the same batches, whatever was drawn elsewhere; another gives others."""
        lengths = rng().integers(1, 40, 500)
        one = shuffled_batches(lengths, 10, rng(3))
        np.random.seed(1)
        assert [b.tolist() for b in one] == [b.tolist() for b in shuffled_batches(lengths, 10, rng(3))]
        assert [b.tolist() for b in one] != [b.tolist() for b in shuffled_batches(lengths, 10, rng(4))]

    def test_lengths_are_left_as_they_are(self):
        """Nothing is sorted in place."""
        lengths = rng().integers(1, 40, 500)
        before = lengths.copy()
        shuffled_batches(lengths, 10, rng())
        sorted_batches(lengths, 10)
        assert lengths.tolist() == before.tolist()

    @pytest.mark.parametrize("size", [10, 50])
    def test_there_is_little_padding(self, size):
        """Under a tenth, where batches drawn without regard to length are more than half padding."""
        lengths = np.minimum(rng().geometric(0.05, 4 * _POOL * size), 256)
        drawn = rng(1).permutation(len(lengths))
        careless = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        assert padding_share(lengths, careless) > 0.5
        assert padding_share(lengths, shuffled_batches(lengths, size, rng(1))) < 0.1
        assert padding_share(lengths, sorted_batches(lengths, size)) < 0.05

    def test_batches_stay_random(self):
        """Short and long ones come in no order, and a text has new neighbours in each epoch."""
        lengths = np.repeat(np.arange(1, 41), 100)
        epochs = [shuffled_batches(lengths, 10, rng((7, epoch))) for epoch in (1, 2)]
        for batches in epochs:
            means = np.array([lengths[rows].mean() for rows in batches])
            assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15
            assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15
        pairs = [{(a, b) for rows in batches for a in rows for b in rows if a < b} for batches in epochs]
        assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])
        labels = np.arange(len(lengths)) % 2  # of two labels in turn: a batch is not of one
        mixed = np.mean([0 < labels[rows].sum() < len(rows) for rows in epochs[0]])
        assert mixed > 0.99
