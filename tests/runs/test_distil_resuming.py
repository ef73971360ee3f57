"""Recovery without labels is stopped, killed and resumed: exact to the bit, or refused."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.checkpoints import assert_refused, contents, run, succeed
from helpers.distilling import tune
from helpers.quick import quick
from helpers.refusals import refused

import embcompress
from embcompress import DistilRecipe, Interrupted, UsageError
from embcompress.pretrained.models import open_pretrained
from embcompress.pretrained.tokens import encoded
from embcompress.training import distillation, snapshots
from embcompress.training.devices import runtime
from embcompress.training.distillation import Distiller, held_out
from embcompress.training.recovery import DistilWatcher

ROOT = Path(embcompress.__file__).parents[1]
SHORT = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 32}
"""Two epochs of three steps on 112 texts, of which 22 are set aside: checks are after 0, 2, 3, 4, 5, 6."""


class Log(DistilWatcher):
    """Counts steps and does something after one of them."""

    def __init__(self, at=None, deed=lambda: None):
        self.steps, self.at, self.deed = 0, at, deed

    def step(self, *_):
        self.steps += 1
        if self.steps == self.at:
            self.deed()


def strike(at):
    """A watcher that presses Ctrl-C after step ``at``."""
    return Log(at, lambda: signal.raise_signal(signal.SIGINT))


# ---- one run in memory


def distiller(shelf, name="bert", kind="svd", **recipe):
    """A run on few texts, with fresh models."""
    student, teacher = (open_pretrained(shelf / path) for path in (f"{name}-{kind}", name))
    data = encoded(student, (shelf / "train.txt").read_text().splitlines()[:112], 16)
    made = DistilRecipe(**{**SHORT, **recipe}).settled(causal=student.causal, layers=len(student.layers))
    train, held = (data.take(rows) for rows in held_out(len(data), made.seed))
    return Distiller(student, teacher, train, held, made, runtime("cpu"))


def go(run, stop_after=None):
    """Train on; return whether the end was reached."""
    log = Log()
    return run.run(log, lambda: log.steps == stop_after, lambda: None)


def through_a_file(state):
    """Return the state as it comes back from disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def timeless(checks):
    return [replace(check, seconds=0) for check in checks]


def equal(one, other):
    """Whether the results of two runs are equal to the bit."""
    one, other = one.result, other.result
    return (
        one.steps == other.steps
        and timeless(one.checks) == timeless(other.checks)
        and one.checks.index(one.best) == other.checks.index(other.best)
        and one.state.keys() == other.state.keys()
        and all(torch.equal(one.state[n], other.state[n]) for n in one.state)
    )


RUNS = {
    "everything": {},
    "norms around codes": {"kind": "pq", "train": "norms"},
    "tied factors": {"name": "gpt2", "train": "factors"},
    "one step an epoch": {"batch_size": 64, "epochs": 7},
    "the start is best": {"learning_rate": 30.0},
}


@pytest.mark.parametrize("settings", quick(RUNS, "everything", "norms around codes"))
def test_after_whatever_step_it_goes_on_to_the_bit(shelf, settings):
    """Fresh models with the saved state end as the run that was never stopped, checks and all."""
    whole, log = distiller(shelf, **settings), Log()
    assert whole.run(log, lambda: False, lambda: None)
    assert whole.result.changed == ("learning_rate" not in settings)
    for step in range(1, log.steps + 1):
        stopped = distiller(shelf, **settings)
        assert not go(stopped, stop_after=step)
        stopped.stopped(DistilWatcher())
        resumed = distiller(shelf, **settings)
        resumed.load_state_dict(through_a_file(stopped.state_dict()))
        assert go(resumed)
        assert equal(resumed, whole), f"stopped after step {step}"
        distinct = {id(value) for value in resumed.result.state.values()}
        assert len(distinct) == len({id(value) for value in whole.result.state.values()}), "tied names"


def test_a_state_saved_after_any_step_is_whole(shelf):
    """A run resumed from any saved state after a kill ends the same; the last state leaves nothing to do."""
    whole, states = distiller(shelf), []

    def save():
        states.append(through_a_file(whole.state_dict()))

    assert whole.run(DistilWatcher(), lambda: False, save)
    save()
    assert len(states) == 7
    for state in states:
        resumed = distiller(shelf)
        resumed.load_state_dict(state)
        assert go(resumed)
        assert equal(resumed, whole)
    assert states[-1]["step"] == resumed.result.steps


def test_without_a_part_of_the_state_it_would_not(shelf):
    """Each part of the state is needed: taking it from a run that has not started changes the outcome."""
    settings = {"batch_size": 16, "train": "all"}
    whole, stopped = distiller(shelf, **settings), distiller(shelf, **settings)
    assert go(whole)
    assert not go(stopped, stop_after=4)  # where no check is due, which would hide what is missing
    state, untouched = stopped.state_dict(), distiller(shelf, **settings).state_dict()
    needless = []
    for part in ("trained", "optimizer", "step", "loss", "seen", "variance", "looked"):
        resumed = distiller(shelf, **settings)
        resumed.load_state_dict({**through_a_file(state), part: untouched[part]})
        assert go(resumed)
        if equal(resumed, whole):
            needless.append(part)
    assert not needless


def test_minutes_go_on_counting(shelf, monkeypatch):
    """A run with a time limit has after a pause the time that was left, however long the pause was."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(distillation, "time", clock)

    class Ticking(Log):
        def step(self, *told):
            super().step(*told)
            clock.now += 10

    def trained(run, stop_after=None):
        log = Ticking()
        finished = run.run(log, lambda: log.steps == stop_after, lambda: None)
        return finished, log.steps

    settings = {"epochs": None, "minutes": 2}
    whole = distiller(shelf, **settings)
    assert trained(whole) == (True, 12)
    stopped, resumed = distiller(shelf, **settings), distiller(shelf, **settings)
    assert trained(stopped, stop_after=5) == (False, 5)
    clock.now += 1e6
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    clock.now += 1e6
    assert trained(resumed) == (True, 7)
    assert equal(resumed, whole)
    assert resumed.result.checks == whole.result.checks, "the seconds as well"


# ---- on the command line


def command(shelf, output, *more, kind="bert-svd"):
    """A run of 40 steps."""
    recipe = ("--epochs", "2", "--learning-rate", "3e-3", "--batch-size", "16")
    originals = ("--teacher", shelf / kind.split("-")[0], "--texts", shelf / "train.txt")
    return ("distil", shelf / kind, *originals, *recipe, "-q", "-o", output, *more)


def interrupted(shelf, output, at=20, **options):
    """Stop a run after step ``at``."""
    with pytest.raises(Interrupted, match="same command and --resume") as stop:
        tune(shelf, output, epochs=2, options={"watcher": strike(at), **options})
    return str(stop.value)


@pytest.mark.parametrize("at", quick([1, 10, 46], "10", "46"))
def test_interrupted_and_resumed_it_writes_the_same_bytes(shelf, tmp_path, at):
    """The result is the same even if it is stopped twice, and nothing but the output is left."""
    tune(shelf, tmp_path / "whole", epochs=2)
    place = tmp_path / "tuned-0.9"
    says = interrupted(shelf, place, at)
    assert f"interrupted after step {at};" in says
    names = {"whole", "tuned-0.9.resume"} | ({"tuned-0.9.interrupted"} if "best so far" in says else set())
    assert {p.name for p in tmp_path.iterdir()} == names
    if at < 40:
        interrupted(shelf, place, 3, resume=True)
    succeed(*command(shelf, place, "--resume"))
    assert contents(place) == contents(tmp_path / "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "tuned-0.9"}


def test_an_unfinished_run_is_neither_overwritten_nor_taken_for_another(shelf, tmp_path):
    """Refused in one line: starting again, or resuming with another recipe, other texts or models."""
    place = tmp_path / "tuned"
    interrupted(shelf, place)
    assert_refused(tmp_path, *command(shelf, place), code=2,
                   says="an unfinished run waits in tuned.resume; go on with --resume, or start")  # fmt: skip
    again = (*command(shelf, place), "--resume")
    for says, *more in (
        ("epochs (2, now 3)", "--epochs", "3"),
        ("learning_rate (0.003, now null)",),
        ("batch_size (16, now 8)", "--batch-size", "8"),
        ("the training texts, the texts set aside, seed (0, now 1)", "--seed", "1"),
        ('train ("first", now "norms")', "--train", "norms"),
        ("the training texts, the texts set aside, max_length (256, now 8)", "--max-length", "8"),
        ("the training texts, the texts set aside", "--texts", shelf / "test.txt"),
        ("the teacher;", "--teacher", shelf / "bert-pq"),
    ):
        args = again if more else [a for a in again if a not in ("--learning-rate", "3e-3")]
        assert_refused(tmp_path, *args, *more, code=2, says=f"differs in {says}")
    other = command(shelf, place, "--resume", kind="bert-pq")
    assert_refused(tmp_path, *other, code=2, says="differs in the starting model;")
    with refused(UsageError, "minutes", "5"):
        tune(shelf, place, epochs=2, minutes=5, options={"resume": True})
    succeed(*again)


def test_there_must_be_a_run_to_go_on_with(shelf, tmp_path):
    """Otherwise it is refused, as is a state that cannot be read."""
    place = tmp_path / "tuned"
    again = command(shelf, place, "--resume")
    assert_refused(tmp_path, *again, code=2, says=f"{place}.resume does not exist; leave out --resume")
    interrupted(shelf, place)
    state = (tmp_path / "tuned.resume").read_bytes()
    for stale in (b"of another run", state[: len(state) // 2]):
        (tmp_path / "tuned.resume").write_bytes(stale)
        assert_refused(tmp_path, *again, code=3, says="tuned.resume: cannot be read")
    kept = torch.load(io.BytesIO(state), weights_only=True)
    for part, value in (("trained", {}), ("trained", {"0": torch.zeros(1)}), ("checks", [{}]), ("best", 99)):
        torch.save({**kept, "trainer": {**kept["trainer"], part: value}}, tmp_path / "tuned.resume")
        assert_refused(tmp_path, *again, code=3, says="tuned.resume: cannot be read")


def test_force_begins_anew_and_loses_nothing_before_its_end(shelf, tmp_path):
    """What an earlier run kept is renamed until the new output is published, then deleted."""
    tune(shelf, tmp_path / "whole", epochs=2)
    place = tmp_path / "tuned"
    interrupted(shelf, place, 6)
    kept = contents(tmp_path / "tuned.interrupted")
    for _ in range(2):  # what stands aside already must not be in the way
        interrupted(shelf, place, 25, force=True)
    left = {"whole", "tuned.resume", "tuned.interrupted", "tuned.old.resume", "tuned.old.interrupted"}
    assert {p.name for p in tmp_path.iterdir()} == left
    assert contents(tmp_path / "tuned.old.interrupted") != kept
    succeed(*command(shelf, place, "--force"))
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "tuned"}
    assert contents(place) == contents(tmp_path / "whole")


def test_publishing_that_fails_loses_no_training(shelf, tmp_path, monkeypatch):
    """The final state is kept until the output is written, and --resume then only writes it."""
    monkeypatch.setattr(snapshots, "_PAUSE", 0.0)
    monkeypatch.setattr(snapshots, "_TIMES", 0.0)
    tune(shelf, tmp_path / "whole", epochs=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("embcompress.workflows.distil.write_trained", full)
        with pytest.raises(OSError, match="No space"):
            tune(shelf, tmp_path / "tuned", epochs=2)
    log = Log()
    tune(shelf, tmp_path / "tuned", epochs=2, options={"resume": True, "watcher": log})
    assert log.steps == 0
    assert contents(tmp_path / "tuned") == contents(tmp_path / "whole")


def test_a_state_that_cannot_be_kept_is_told(shelf, tmp_path, monkeypatch):
    """A full disk does not end training: a warning on stderr."""
    monkeypatch.setattr(snapshots, "_PAUSE", 0.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    done = run(*(arg for arg in command(shelf, tmp_path / "tuned") if arg != "-q"))
    assert done.exit_code == 0
    assert "warning: " in done.stderr.replace("\n", " ")
    assert "could not be kept" in done.stderr.replace("\n", " ")
    assert {p.name for p in tmp_path.iterdir()} == {"tuned"}
