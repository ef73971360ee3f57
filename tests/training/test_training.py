"""The training loop against one written out here; which weights it keeps, and which it leaves alone."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.classifying import (
    CPU,
    LABELS,
    Log,
    Scripted,
    V,
    copied,
    dataset,
    dev_result,
    factorized,
    fresh,
    optimizer_steps,
    random_texts,
    record,
    rows_of,
    run,
    same,
    separable,
    side_by_side,
    through_a_file,
    trained,
)
from helpers.refusals import refused
from torch import nn
from torch.nn import functional as F

from embcompress.data.encoded import shuffled_batches
from embcompress.errors import EmbcompressError, UsageError
from embcompress.loading.swapping import swap
from embcompress.training.calr import CALR
from embcompress.training.devices import Runtime
from embcompress.training.loop import Trainer
from embcompress.training.optimizers import OPTIMIZERS
from embcompress.training.records import Epoch, Recipe
from embcompress.training.schedules import SCHEDULES
from embcompress.training.scoring import scores_of

SOME, DEV = separable(22, 0), separable(17, 1)
ROWS = [*rows_of(SOME), [3, 0, 0, 5]]  # one text holds the padding id
TRAIN = dataset(ROWS, [*SOME.labels, 0])
STEPS = 5  # an epoch of TRAIN
RECIPE = Recipe(epochs=3, batch_size=5, optimizer="adam", learning_rate=0.1, schedule="calr", seed=7)
DAN = record("dan", dropout=0.3)
LSTM = record("lstm", dropout=0.3, hidden=(5, 5), bidirectional=True)


class TestPlainLoop:
    """The loop is the one everyone writes."""

    @pytest.mark.parametrize("kind", [DAN, LSTM], ids=lambda k: k.architecture.name)
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    @pytest.mark.parametrize("schedule", ["calr", "cosine"])
    def test_it_equals_a_loop_written_out(self, kind, optimizer, schedule):
        """Weights are the same to the bit; losses and dev accuracy equal those counted text by text."""
        model = fresh(kind)
        make = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
            "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.02, fused=True),
        }[optimizer](model.parameters())
        rates = {
            "calr": lambda o: CALR(o, 0.1, STEPS),
            "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3 * STEPS),
        }[schedule](make)
        losses, states, results = [], [], []

        def measure():
            model.eval()
            with torch.no_grad():
                scores = [model(*side_by_side([r]))[0] for r in rows_of(DEV)]
            logs = [-torch.log_softmax(s, 0)[y].item() for s, y in zip(scores, DEV.labels, strict=True)]
            hits = [int(s.argmax()) == y for s, y in zip(scores, DEV.labels, strict=True)]
            results.append((np.mean(hits), np.mean(logs)))
            states.append(copied(model))

        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            measure()
            for epoch in (1, 2, 3):
                total = 0.0
                for batch in shuffled_batches(TRAIN.texts.lengths, 5, np.random.default_rng((7, epoch))):
                    model.train()
                    scores = model(*side_by_side([ROWS[i] for i in batch]))
                    loss = F.cross_entropy(scores, torch.tensor(TRAIN.labels[batch]))
                    make.zero_grad()
                    loss.backward()
                    make.step()
                    rates.step()
                    total += loss.item() * len(batch)
                losses.append(total / 23)
                measure()

        recipe = replace(RECIPE, optimizer=optimizer, schedule=schedule, weight_decay=0.02)
        ours = fresh(kind)
        trainer = trained(ours, TRAIN, DEV, recipe)
        assert same(ours.state_dict(), states[-1])
        assert [e.loss for e in trainer.history] == [None, *losses]
        assert [e.dev_accuracy for e in trainer.history] == pytest.approx([r[0] for r in results])
        assert [e.dev_loss for e in trainer.history] == pytest.approx([r[1] for r in results], rel=1e-5)
        assert same(trainer.best_state, states[trainer.best.epoch])
        other = fresh(kind)
        trained(other, TRAIN, DEV, replace(recipe, seed=8))
        assert not same(other.state_dict(), states[-1])

    def test_the_watcher_is_told_every_step(self):
        """It gets epoch, step, total and the mean loss so far; and each epoch after its steps."""
        log = Log()
        trainer = trained(fresh(DAN), TRAIN, DEV, RECIPE, log)
        assert trainer.total_steps == 15
        assert [s[:3] for s in log.steps] == [(1 + i // STEPS, i + 1, 15) for i in range(15)]
        assert [s[3] for s in log.steps[STEPS - 1 :: STEPS]] == [e.loss for e in log.epochs[1:]]
        assert log.epochs == trainer.history
        assert [e.epoch for e in log.epochs] == [0, 1, 2, 3]

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_rates_are_those_of_the_schedule(self, schedule):
        """The watcher gets the rate that the step used; an epoch records its highest."""
        log = Log()
        with optimizer_steps() as steps:
            trained(fresh(DAN), TRAIN, DEV, replace(RECIPE, schedule=schedule), log)
        rates = [step.rate for step in steps]
        assert rates == log.rates
        assert [e.learning_rate for e in log.epochs] == [
            None,
            *(max(rates[i : i + STEPS]) for i in range(0, 15, STEPS)),
        ]
        if schedule == "constant":
            assert set(rates) == {0.1}
        else:
            assert rates == pytest.approx(self.by_hand(schedule), rel=1e-9)

    @staticmethod
    def by_hand(schedule):
        n = np.arange(15)
        rise = 1 - abs((n + 1) % 5 - 2.5) / 2.5  # CALR counts from 1, CLR from 0
        clr = 1 - abs(n % 5 - 2.5) / 2.5
        low, top = 0.1**6, 0.1 ** (1 + n // 5)
        return {
            "calr": low + (top - low) * rise,
            "clr": 0.025 + 0.075 * clr,
            "cosine": 0.05 * (1 + np.cos(np.pi * n / 15)),
            "linear": 0.1 * (1 - n / 15),
        }[schedule]

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_the_usual_rate_is_the_optimizers(self, optimizer):
        """It is used unless the user gives a rate."""
        recipe = replace(RECIPE, epochs=1, optimizer=optimizer, learning_rate=None, schedule="constant")
        with optimizer_steps() as steps:
            trained(fresh(DAN), TRAIN, DEV, recipe)
        assert {step.rate for step in steps} == {OPTIMIZERS[optimizer].learning_rate}

    @pytest.mark.parametrize("ends", ["ends", "stopped", "fails"])
    def test_the_callers_random_numbers_are_untouched(self, ends):
        """A run that ends, is stopped or fails does not advance them; nor do they change the result."""

        def fail():
            raise OSError("disk full")

        def state():
            return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

        finals = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            model = fresh(DAN)
            trainer = Trainer(model, TRAIN, DEV, RECIPE, CPU)
            before = state()
            if ends == "fails":
                with pytest.raises(OSError, match="disk full"):
                    trainer.run(Log(), lambda: False, fail)
            else:
                run(trainer, stop_after=4 if ends == "stopped" else None)
            assert state() == before
            finals.append(copied(model))
        assert same(*finals)
        assert not same(finals[0], fresh(DAN).state_dict())

    def test_mixed_precision_learns(self):
        """Its steps differ, its weights and scores are float32; it learns as well."""
        recipe = Recipe(epochs=15, batch_size=10, learning_rate=0.05, schedule="constant")
        mixed = Runtime(torch.device("cpu"), mixed=True)
        for kind in (record("dan"), record("lstm", bidirectional=True)):
            model, data = fresh(kind), separable(60, 0)
            trainer = Trainer(model, data, separable(40, 1), recipe, mixed)
            assert run(trainer)
            assert trainer.history[0].dev_accuracy < 0.6
            assert trainer.best.dev_accuracy > 0.9
            assert {value.dtype for value in trainer.best_state.values()} == {torch.float32}
            assert torch.equal(scores_of(model, data, mixed), scores_of(model, data, CPU))
            plain = trained(fresh(kind), data, separable(40, 1), recipe)
            assert trainer.history[0].dev_loss == plain.history[0].dev_loss
            assert trainer.history[1].loss != plain.history[1].loss
            assert trainer.history[1].loss == pytest.approx(plain.history[1].loss, rel=0.02)


def scripted(script, **settings):
    """A run whose dev results are given; its log, and the number that was trained after each epoch."""
    model, numbers = Scripted(script), []
    log = Log(lambda: numbers.append(model.number.item()))
    dev = dataset([[1]] * len(script[0]), [0] * len(script[0]))
    recipe = Recipe(epochs=len(script) - 1, batch_size=2, learning_rate=0.1, schedule="constant", **settings)
    train = dataset([[1]] * 4, [0] * 4)
    return trained(model, train, dev, recipe, log), log, numbers


class TestBestEpoch:
    """The epoch that is best on dev is kept."""

    def test_accuracy_first_then_the_lower_loss_then_the_earlier(self):
        """Higher accuracy decides; a lower loss counts only at equal accuracy."""
        script = [
            [1.0, 1.0, -1.0, -1.0],
            [0.1, 0.1, 0.1, -9.0],  # more accurate, at a much higher loss
            [0.1, 0.1, 0.1, -2.0],  # as accurate, at a lower loss: the best
            [0.1, 0.1, 0.1, -2.0],  # the very same
            [9.0, 9.0, -0.1, -0.1],  # the lowest loss
        ]
        trainer, log, numbers = scripted(script)
        results = [dev_result(margins) for margins in script]
        assert [(e.dev_accuracy, e.dev_loss) for e in trainer.history] == [pytest.approx(r) for r in results]
        assert log.best == [True, True, True, False, False]
        assert trainer.best == trainer.history[2]
        assert trainer.best_state["number"].item() == numbers[2]
        assert len(set(numbers)) == 5

    def test_the_start_is_kept_when_training_hurts(self):
        """A model that is trained on wrong labels is returned unchanged, to the bit."""
        data = separable(60, 0)
        recipe = Recipe(epochs=4, batch_size=10, learning_rate=0.05, schedule="constant")
        model = fresh(record("dan"))
        model.load_state_dict(trained(model, data, data, recipe).best_state)
        start = copied(model)
        wrong = replace(data, labels=(data.labels + 1) % 3)
        trainer = trained(model, wrong, data, recipe)
        assert trainer.best.epoch == 0
        assert same(trainer.best_state, start)
        assert trainer.history[-1].dev_accuracy < trainer.best.dev_accuracy
        assert not same(model.state_dict(), start)

    @pytest.mark.parametrize(
        ("patience", "accuracies", "epochs"),
        [
            (None, [1, 0, 0, 0, 0], 5),
            (1, [1, 0, 2, 2, 2], 2),
            (1, [0, 1, 2, 1, 3], 4),
            (2, [1, 0, 2, 1, 1, 3], 5),
            (2, [1, 1, 1, 3, 3], 3),
            (9, [1, 0, 0, 0, 0], 5),
        ],
    )
    def test_patience_counts_epochs_since_the_best(self, patience, accuracies, epochs):
        """That many epochs without a better dev result end the run; an equal result is not better."""
        script = [[1.0 if i < hits else -1.0 for i in range(4)] for hits in accuracies]
        trainer, _, _ = scripted(script, patience=patience)
        assert len(trainer.history) == epochs

    def test_a_model_that_came_apart_is_never_the_best(self):
        """Scores of NaN predict the first label, which may be right more often than the start was."""
        nan = float("nan")
        model = Scripted([[-1.0, -1.0], [nan, nan]])
        recipe = Recipe(epochs=1, batch_size=2)
        dev = dataset([[1], [1]], [0, 0])
        trainer = Trainer(model, dev, dev, recipe, CPU)
        try:
            run(trainer)
        except EmbcompressError:  # to refuse such a run is as good
            return
        assert trainer.best.epoch == 0

    def test_an_epoch_is_ready_for_json(self):
        """Finite numbers stay; missing ones and those of a diverged run are null."""
        epoch = Epoch(3, float("nan"), float("inf"), 0.5, None, 1.5)
        assert json.loads(json.dumps(epoch.to_dict(), allow_nan=False)) == {
            "epoch": 3,
            "loss": None,
            "dev_loss": None,
            "dev_accuracy": 0.5,
            "learning_rate": None,
            "seconds": 1.5,
        }

    def test_best_weights_are_a_copy_that_later_steps_leave_alone(self):
        """Training on after the best epoch does not change what was kept."""
        model, kept = Scripted([[1.0], [-1.0], [-1.0]]), []
        trainer = Trainer(model, dataset([[1]], [0]), dataset([[1]], [0]), Recipe(epochs=2), CPU)
        log = Log(lambda: kept.append((trainer.best_state["number"].item(), model.number.item())))
        assert run(trainer, log=log)
        assert [best for best, _ in kept] == [0.0, 0.0, 0.0]
        assert all(now != 0 for _, now in kept[1:])


class Tied(nn.Module):
    """One table in two places; scores come from its first rows."""

    def __init__(self, bias=False):
        super().__init__()
        self.embedding = nn.Embedding(V, 4, padding_idx=0)
        self.head = nn.Linear(4, V, bias=bias)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, lengths):
        mean = self.embedding(tokens).sum(1) / lengths[:, None]
        return self.head(mean)[:, : len(LABELS)]


@pytest.fixture
def seeded():
    """Seeds the initial weights of ``Tied``."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("seeded")
class TestWhatIsTrained:
    """Frozen, tied, clipped and padding parts of a model."""

    def test_tied_weights_stay_tied(self):
        """They do in the best state, in a file, and in the model that is resumed from it."""
        trainer = Trainer(Tied(), TRAIN, DEV, RECIPE, CPU)
        run(trainer, stop_after=7)
        state = through_a_file(trainer.state_dict())
        model = Tied()
        resumed = Trainer(model, TRAIN, DEV, RECIPE, CPU)
        resumed.load_state_dict(state)
        assert run(resumed)
        assert model.head.weight is model.embedding.weight
        for best in (trainer.best_state, state["best_state"], resumed.best_state):
            assert best["head.weight"].data_ptr() == best["embedding.weight"].data_ptr()
            assert best["embedding.weight"].data_ptr() != model.embedding.weight.data_ptr()

    def test_a_part_of_a_tensor_is_no_tie(self):
        """A buffer that is a view of part of a weight, and empty buffers, are copied separately."""
        model = Tied()
        model.register_buffer("first", model.embedding.weight.detach()[:2])
        model.register_buffer("none", torch.empty(0, 3))
        model.register_buffer("nothing", torch.empty(0, dtype=torch.int64))
        best = trained(model, TRAIN, DEV, replace(RECIPE, learning_rate=1e-9)).best_state
        for name, value in model.state_dict().items():
            assert best[name].shape == value.shape
            assert best[name].dtype == value.dtype

    def test_only_factors_are_trained(self):
        """Everything else is unchanged to the bit; without the switch it changes."""
        for only in (True, False):
            model = factorized(DAN)
            before = copied(model)
            trained(model, TRAIN, DEV, replace(RECIPE, only_factors=only, weight_decay=0.1))
            moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
            factors = {"embedding.0.weight", "embedding.1.weight"}
            assert moved == (factors if only else before.keys())

    def test_only_factors_of_a_dense_model_are_refused(self):
        """There is nothing to train then."""
        with refused(UsageError, "factorize"):
            Trainer(fresh(DAN), TRAIN, DEV, replace(RECIPE, only_factors=True), CPU)

    def test_the_bias_of_a_tied_head_is_no_factor(self):
        """The bias is not part of the table, so it is not trained."""
        model = Tied(bias=True)
        swap(model, "embedding.weight", 2)
        before = model.head.bias.detach().clone()
        trained(model, TRAIN, DEV, replace(RECIPE, only_factors=True))
        assert torch.equal(model.head.bias, before)

    @pytest.mark.parametrize("make", [fresh, factorized])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_the_padding_row_stays_exactly_zero(self, make, optimizer):
        """In a dense table and in a factor, with decay, and even if a text holds the padding id."""
        for kind in (DAN, LSTM):
            model = make(kind)
            name = "embedding.weight" if make is fresh else "embedding.0.weight"
            before = copied(model)[name]
            trained(model, TRAIN, DEV, replace(RECIPE, optimizer=optimizer, weight_decay=0.1))
            table = model.state_dict()[name]
            assert not table[0].any()
            used = sorted({token for row in ROWS for token in row} - {0})
            assert (table[used] != before[used]).any(dim=1).all()

    def test_clip_bounds_the_gradient(self):
        """No step uses a longer gradient, short ones are unchanged; without clipping some are longer."""
        recipe = replace(RECIPE, optimizer="sgd", schedule="constant")
        with optimizer_steps() as free:
            trained(fresh(DAN), TRAIN, DEV, recipe)
        limit = sorted(step.norm for step in free)[7]
        with optimizer_steps() as clipped:
            trained(fresh(DAN), TRAIN, DEV, replace(recipe, clip=limit))
        assert max(step.norm for step in free) > 1.05 * limit
        assert max(step.norm for step in clipped) == pytest.approx(limit, rel=1e-4)
        first = next(i for i, step in enumerate(free) if step.norm > limit)
        assert clipped[:first] == free[:first]


class TestScoring:
    """Scores of many texts."""

    def test_scores_come_in_the_order_of_the_texts(self):
        """Over several batches, whatever the lengths, each score is that of the text alone."""
        rows = random_texts(600, 5, longest=40)
        data = dataset(rows, [0] * 600)
        for kind in (DAN, LSTM):
            model = fresh(kind)
            scores = scores_of(model.train(), data, CPU)
            assert not model.training
            assert not scores.requires_grad
            with torch.no_grad():
                alone = torch.cat([model(*side_by_side([row])) for row in rows[::7]])
            torch.testing.assert_close(scores[::7], alone, rtol=1e-5, atol=1e-6)
            assert not torch.allclose(scores[::7].flip(0), alone, rtol=1e-5, atol=1e-4)

    def test_nothing_is_dropped(self):
        """Scores are the same every time, unlike in training."""
        model, (tokens, lengths) = fresh(DAN), side_by_side(ROWS)
        assert torch.equal(scores_of(model, TRAIN, CPU), scores_of(model.train(), TRAIN, CPU))
        model.train()
        assert not torch.equal(model(tokens, lengths), model(tokens, lengths))
