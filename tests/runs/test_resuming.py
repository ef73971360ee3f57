"""Resuming is exact to the bit; Ctrl-C; valid recipes and devices."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest
import torch
from helpers.classifying import (
    DAN,
    LSTM,
    RECIPE,
    Log,
    equal,
    factorized,
    fresh,
    run,
    through_a_file,
    trainer,
)
from helpers.refusals import refused

from embcompress.errors import UsageError
from embcompress.training.devices import DEVICES, Runtime, runtime
from embcompress.training.interrupts import Interrupts
from embcompress.training.loop import check_recipe
from embcompress.training.optimizers import OPTIMIZERS
from embcompress.training.records import Recipe, Watcher
from embcompress.training.schedules import SCHEDULES

RESUMED = {
    "adam, calr, dropout": {},
    "sgd, cosine, decay": {"optimizer": "sgd", "schedule": "cosine", "weight_decay": 0.01},
    "clip": {"clip": 0.05, "optimizer": "adamw", "schedule": "linear"},
    "early stopping": {"patience": 1, "learning_rate": 0.5, "schedule": "clr", "epochs": 9},
    "factors": {"make": lambda start: factorized(DAN, start), "only_factors": True},
    "lstm": {"make": lambda start: fresh(LSTM, start)},
    "one step an epoch": {"batch_size": 50},
}


class TestResuming:
    """A stopped run that is resumed ends the same to the bit."""

    @pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
    def test_after_whatever_step(self, settings):
        """A fresh model and trainer with the saved state end as the run that was never stopped."""
        whole, log = trainer(**settings), Log()
        assert run(whole, log=log)
        if "patience" in settings:
            assert len(whole.history) - 1 < settings["epochs"], "it must stop early to test that"
        for step in range(1, log.done + 1):
            stopped = trainer(**settings)
            assert not run(stopped, stop_after=step)
            resumed = trainer(start=99, **settings)
            resumed.load_state_dict(through_a_file(stopped.state_dict()))
            assert run(resumed)
            assert equal(resumed, whole), f"stopped after step {step}"

    @pytest.mark.parametrize("name", [*OPTIMIZERS, *SCHEDULES])
    def test_stopped_after_every_step(self, name):
        """Every optimizer and schedule can be stopped again and again, its state in memory or in a file."""
        settings = {"optimizer" if name in OPTIMIZERS else "schedule": name}
        whole = trainer(**settings)
        assert run(whole)
        resumed, step = trainer(**settings), 1
        while not run(resumed, stop_after=step):
            if step % 3:
                state = through_a_file(resumed.state_dict())
                resumed = trainer(start=step, **settings)
                resumed.load_state_dict(state)
            step += 1
        assert step == 16
        assert equal(resumed, whole)

    @pytest.mark.parametrize(
        "part", ["random", "model", "optimizer", "schedule", "loss_sum", "seen", "highest"]
    )
    def test_without_a_part_of_the_state_it_would_not(self, part):
        """Each part of the state is needed: one from a trainer that has not started changes the outcome."""
        whole, stopped = trainer(schedule="clr"), trainer(schedule="clr")
        assert run(whole)
        assert whole.best.epoch == 2
        # In the last epoch: after its highest rate, or before rates that the optimizer does not hold yet.
        run(stopped, stop_after=12 if part == "schedule" else 14)
        untouched, resumed = trainer(start=99, schedule="clr"), trainer(schedule="clr")
        resumed.load_state_dict({**stopped.state_dict(), part: untouched.state_dict()[part]})
        assert run(resumed)
        assert not equal(resumed, whole)

    def test_the_state_saved_after_an_epoch_is_whole(self):
        """A run resumed from any saved state after a kill ends the same."""
        whole, states = trainer(), []
        assert whole.run(Watcher(), lambda: False, lambda: states.append(through_a_file(whole.state_dict())))
        assert len(states) == 3
        for state in states:
            resumed = trainer(start=99)
            resumed.load_state_dict(state)
            assert run(resumed)
            assert equal(resumed, whole)


class TestInterrupts:
    """The first Ctrl-C waits for the end of a step, the second does not."""

    def test_the_first_is_noted_the_second_raises(self):
        """The earlier handler is restored."""
        old = signal.getsignal(signal.SIGINT)
        with Interrupts() as interrupts:
            assert not interrupts()
            signal.raise_signal(signal.SIGINT)
            assert interrupts()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert interrupts()
        assert signal.getsignal(signal.SIGINT) is old

    def test_what_is_ignored_stays_ignored(self):
        """A job in the background of a script does not end with the foreground's Ctrl-C."""
        old = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Interrupts() as interrupts:
                signal.raise_signal(signal.SIGINT)
                assert not interrupts()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, old)

    def test_errors_pass_and_the_handler_comes_back(self):
        """The handler is restored, whatever ends the block."""
        old = signal.getsignal(signal.SIGINT)
        with pytest.raises(ZeroDivisionError), Interrupts():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGINT) is old

    def test_a_handler_that_is_not_pythons_own_gives_way_to_the_usual_one(self, monkeypatch):
        """Python cannot restore such a handler; ours must not stay and swallow every Ctrl-C."""
        set_to = []
        monkeypatch.setattr(signal, "signal", lambda _, handler: set_to.append(handler))
        with Interrupts():
            pass
        assert len(set_to) == 2
        assert set_to[1] == signal.SIG_DFL

    def test_in_a_thread_it_changes_nothing(self):
        """Only the main thread may set handlers; setting one elsewhere would raise."""
        old, seen = signal.getsignal(signal.SIGINT), []

        def work():
            with Interrupts() as interrupts:
                seen.append((interrupts(), signal.getsignal(signal.SIGINT) is old))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(False, True)]

    def test_a_run_stops_after_the_step_it_is_in(self):
        """It resumes from there, exact to the bit."""

        class Press(Log):
            def step(self, *told):
                super().step(*told)
                if self.done == 6:
                    signal.raise_signal(signal.SIGINT)

        whole, stopped, log = trainer(), trainer(), Press()
        assert run(whole)
        with Interrupts() as interrupts:
            assert not stopped.run(log, interrupts, lambda: None)
        assert log.done == 6
        assert run(stopped)
        assert equal(stopped, whole)


class TestRecipe:
    """Numbers of a recipe and names of devices."""

    @pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
    @pytest.mark.parametrize("value", [0, -1, 0.5, 2.5])
    def test_counts_are_whole_numbers_from_one(self, name, value):
        """Others are named with what is allowed."""
        with refused(UsageError, name, f"{value}; from 1"):
            Recipe(**{name: value})

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
    def test_the_largest_gradient_is_above_zero(self, value):
        """Else nothing would be learned."""
        with refused(UsageError, "clip", f"{value}; above 0"):
            Recipe(clip=value)

    @pytest.mark.parametrize("seed", [-1, 1 << 63])
    def test_seeds_are_what_both_generators_take(self, seed):
        """From 0 to below 2^63; the largest works."""
        with refused(UsageError, "seed", f"{seed}; from 0"):
            Recipe(seed=seed)
        assert run(trainer(epochs=1, seed=(1 << 63) - 1))

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"optimizer": "adan"}, "optimizer 'adan'"),
            ({"schedule": "cosin"}, "schedule 'cosin'"),
            ({"learning_rate": 0.0}, "learning rate 0.0"),
            ({"weight_decay": -1.0}, "weight decay -1.0"),
            ({"schedule": "cosine", "schedule_options": {"window": 3.0}}, "no option 'window'"),
        ],
    )
    def test_what_the_registries_refuse_is_refused_before_training(self, settings, said):
        """They are refused when the trainer is made, or before anything is read."""
        check_recipe(RECIPE)
        for early in (lambda: trainer(**settings), lambda: check_recipe(replace(RECIPE, **settings))):
            with refused(UsageError, said):
                early()

    def test_a_device_is_there_or_refused(self):
        """auto finds one; an unknown name and one that torch lacks are usage errors."""
        assert runtime("cpu") == Runtime(torch.device("cpu"), mixed=False)
        assert runtime("cpu", mixed=True).mixed
        assert runtime().device.type in DEVICES
        with refused(UsageError, "'tpu'", *DEVICES):
            runtime("tpu")
        for name, there in {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }.items():
            if not there:
                with refused(UsageError, name):
                    runtime(name)
