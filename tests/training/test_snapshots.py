"""The state of an unfinished run on disk: whole, of this run, or refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.checkpoints import contents
from helpers.classifying import (
    CPU,
    DAN,
    DEV,
    LSTM,
    RECIPE,
    TRAIN,
    copied,
    dataset,
    equal,
    factorized,
    fresh,
    record,
    rows_of,
    run,
    same,
    trainer,
)
from helpers.refusals import assert_says
from helpers.refusals import refused as refused_with

from embcompress.errors import InputError, UsageError
from embcompress.training import snapshots
from embcompress.training.loop import Trainer
from embcompress.training.records import Recipe, Watcher
from embcompress.training.snapshots import Snapshots, fingerprint, snapshot_path

OTHER = {
    "epochs": (3, 4),
    "batch_size": (5, 6),
    "optimizer": ('"adam"', "adamw"),
    "learning_rate": (0.1, 0.2),
    "schedule": ('"calr"', "linear"),
    "schedule_options": ("{}", {"window": 3.0}),
    "weight_decay": (0.0, 0.5),
    "clip": ("null", 2.0),
    "patience": ("null", 1),
    "only_factors": ("false", True),
    "seed": (1, 8),
}
"""Every field of a recipe: its value in RECIPE as messages show it, and another value."""


def print_of(model=None, train=TRAIN, dev=DEV, recipe=RECIPE):
    texts = {"the training texts": train, "the dev texts": dev}
    return fingerprint({"the starting model": model or fresh(DAN)}, texts, recipe)


@pytest.fixture
def stopped(tmp_path):
    """A run stopped after step 7; its state is next to small.pt."""
    begun = trainer()
    kept = Snapshots(tmp_path / "small.pt", print_of())
    run(begun, stop_after=7)
    kept.save(begun)
    return kept


def refused(folder, print_, kind, code, *says):
    """The state next to small.pt is refused in one line; neither it nor the trainer is changed."""
    before, model = contents(folder), fresh(DAN, 99)
    start, other = copied(model), Trainer(model, TRAIN, DEV, RECIPE, CPU)
    with pytest.raises(kind) as caught:
        Snapshots(folder / "small.pt", print_).restore(other)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert caught.value.remedy
    line = str(caught.value)
    assert line.isprintable()
    assert_says(line, *says)
    assert contents(folder) == before
    assert other.history == []
    assert same(start, model.state_dict())


class TestSnapshots:
    """The state on disk: whole, of this run, or refused."""

    def test_a_run_goes_on_from_the_file(self, tmp_path, stopped):
        """It ends as a run that was never stopped, to the bit."""
        whole, resumed = trainer(), trainer(start=99)
        assert run(whole)
        assert stopped.path == snapshot_path(tmp_path / "small.pt") == tmp_path / "small.pt.resume"
        stopped.restore(resumed)
        assert run(resumed)
        assert equal(resumed, whole)
        assert contents(tmp_path).keys() == {"small.pt.resume"}

    @pytest.mark.usefixtures("stopped")
    @pytest.mark.parametrize("name", OTHER)
    def test_another_recipe_is_refused(self, tmp_path, name):
        """The message names the field that differs, and both values."""
        assert OTHER.keys() == {field.name for field in fields(Recipe)}
        old, new = OTHER[name]
        print_ = print_of(recipe=replace(RECIPE, **{name: new}))
        said = f"differs in {name} ({old}, now "
        refused(tmp_path, print_, UsageError, 2, said, "--resume", "--force")

    @pytest.mark.usefixtures("stopped")
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"train": replace(TRAIN, labels=TRAIN.labels[::-1].copy())}, "the training texts"),
            ({"train": dataset([[1], *rows_of(TRAIN)[1:]], TRAIN.labels)}, "the training texts"),
            ({"dev": TRAIN}, "the dev texts"),
            ({"train": DEV, "dev": TRAIN}, "the training texts, the dev texts"),
            ({"model": fresh(DAN, 1)}, "the starting model"),
            ({"model": fresh(LSTM)}, "the starting model"),
            ({"model": factorized(DAN)}, "the starting model"),
            ({"model": fresh(record("dan", dropout=0.1))}, "the starting model"),
        ],
    )
    def test_other_texts_or_another_model_are_refused(self, tmp_path, change, said):
        """The message shows no digest, which would help nobody."""
        refused(tmp_path, print_of(**change), UsageError, 2, f"the unfinished run differs in {said}; give")

    def test_several_differences_are_all_named(self, tmp_path, stopped):
        """One message names them all, so that one correction is enough."""
        print_ = print_of(fresh(DAN, 1), recipe=replace(RECIPE, epochs=9, seed=7))
        assert stopped.path.exists()
        refused(tmp_path, print_, UsageError, 2, "the starting model", "epochs (3, now 9)", "seed (1, now 7)")

    def test_texts_cut_otherwise_are_others(self):
        """One text with the ids 7 8 1 1 differs from two texts with one id each, whatever the labels."""
        one, two = dataset([[7, 8, 1, 1]], [2]), dataset([[7], [8]], [4, 2])
        assert print_of(train=one) != print_of(train=two)

    def test_options_may_be_any_mapping(self):
        """Any mapping works, as the type of the field promises."""
        frozen = replace(RECIPE, schedule_options=MappingProxyType({"window": 3.0}))
        assert print_of(recipe=frozen) == print_of(recipe=replace(RECIPE, schedule_options={"window": 3.0}))

    def test_the_order_of_options_is_no_difference(self):
        """A command line may name them in any order."""
        one, other = {"window": 3.0, "decay": 0.5}, {"decay": 0.5, "window": 3.0}
        prints = [print_of(recipe=replace(RECIPE, schedule_options=options)) for options in (one, other)]
        assert prints[0] == prints[1]

    def test_no_unfinished_run_is_a_usage_error(self, tmp_path):
        """The message says where it was looked for."""
        refused(tmp_path, print_of(), UsageError, 2, f"{tmp_path / 'small.pt.resume'} does not exist", "-o")

    def test_files_that_are_no_state_are_refused(self, tmp_path, stopped):
        """Truncated, of another kind, or a pickle that calls something: exit code 3, and nothing is run."""
        whole = stopped.path.read_bytes()
        called = pickle.dumps(SimpleNamespace(), protocol=2).replace(b"types\nSimpleNamespace", b"os\ngetcwd")
        for content in (whole[: len(whole) // 2], b"<html>", b"PK\x03\x04", called):
            stopped.path.write_bytes(content)
            refused(tmp_path, print_of(), InputError, 3, f"{stopped.path}: cannot be read (", "--force")
        for other in ({"model": {}}, [1, 2], torch.zeros(3)):
            torch.save(other, stopped.path)
            refused(tmp_path, print_of(), InputError, 3, "holds no state of a run", "--force")
        stopped.path.unlink()
        stopped.path.mkdir()
        refused(tmp_path, print_of(), InputError, 3, "cannot be read")

    @pytest.mark.parametrize("content", [b"", b"\x80\x02", b"\x80", b"\x80\x02X\x01"], ids=repr)
    def test_files_cut_off_at_their_beginning_are_refused(self, tmp_path, stopped, content):
        """Also an empty one, as a full disk leaves it."""
        stopped.path.write_bytes(content)
        refused(tmp_path, print_of(), InputError, 3, f"{stopped.path}: cannot be read (", "--force")

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("fingerprint", 3),
            ("trainer", 3),
            ("trainer", {}),
            ("model", None),
            ("model", {"embedding.weight": torch.zeros(3)}),
            ("optimizer", {}),
            ("optimizer", {"state": {}, "param_groups": []}),
            ("history", [{"epoch": 0}]),
            ("history", 3),
            ("history", [{"epoch": "0" * 99}] * 10**5),
            ("best", 10**9),
            ("best_state", {}),
            ("best_state", {"a" * 10**6: torch.zeros(1)}),
            ("best_state", {"embedding.weight": torch.zeros(1).expand(10**6, 10**6)}),
            ("random", torch.zeros(7, dtype=torch.uint8)),
            ("random", "seed"),
            ("step", -3),
            ("step", 10**30),
            ("step", True),
            ("seen", 2.5),
            ("rate", "fast"),
            ("loss_sum", None),
            ("schedule", {"last_epoch": "now"}),
            ("a stranger's", "entry"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_row_65_a_state_of_another_form_is_refused(self, tmp_path, stopped, part, value):
        """As another version may have written it."""
        state = torch.load(stopped.path, weights_only=True)
        (state if part in state else state["trainer"])[part] = value
        torch.save(state, stopped.path)
        before = contents(tmp_path)
        with refused_with(InputError, "small.pt.resume", "--force"):
            stopped.restore(trainer())
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        ("part", "name", "value"),
        [
            ("schedule", "get_lr", 3),
            ("schedule", "last_epoch", "now"),
            ("schedule", "_last_lr", [[]]),
            ("schedule", "base_lrs", None),
            ("optimizer", "lr", "fast"),
            ("optimizer", "betas", (0.9,)),
            ("optimizer", "fused", "yes"),
            ("optimizer", "params", [3]),
            ("moments", "exp_avg", torch.zeros(1)),
            ("moments", "exp_avg", torch.zeros(1, dtype=torch.float64).expand(10**6, 10**6)),
            ("moments", "step", 3),
            ("moments", "stranger", torch.zeros(1)),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_row_65_odd_settings_inside_a_state_are_refused(self, stopped, part, name, value):
        """A stranger's file must not reach into a schedule or an optimizer."""
        state = torch.load(stopped.path, weights_only=True)
        inside = state["trainer"]["schedule" if part == "schedule" else "optimizer"]
        inside = inside["param_groups"][0] if part == "optimizer" else inside
        inside = inside["state"][0] if part == "moments" else inside
        inside[name] = value
        torch.save(state, stopped.path)
        with pytest.raises(InputError, match=r"cannot be read \(.*start again with --force"):
            stopped.restore(trainer())

    @pytest.mark.parametrize("print_", [{3: "x"}, {"recipe.seed": [1] * 10**5}, {None: None}], ids=str)
    def test_row_65_odd_fingerprints_are_refused(self, tmp_path, stopped, print_):
        """Names and values are text."""
        torch.save({"fingerprint": print_, "trainer": {}}, stopped.path)
        refused(tmp_path, print_of(), InputError, 3, "holds no state of a run")

    def test_row_65_more_bytes_than_a_run_has_are_not_read(self, tmp_path, stopped):
        """A hole of a terabyte costs nothing on disk, and would fill the memory."""
        torch.save({"fingerprint": {}, "trainer": {"model": torch.zeros(1 << 25)}}, stopped.path)
        refused(
            tmp_path, print_of(), InputError, 3, "holds 134,217,728 bytes of tensors, a state of this run"
        )
        stopped.path.unlink()
        os.mkfifo(stopped.path)
        with pytest.raises(InputError, match="expected a regular file"):
            stopped.restore(trainer())

    def test_nothing_in_it_is_run(self, tmp_path, stopped):
        """A file that would call something when it is unpickled is refused, and calls nothing."""

        class Touch:
            def __reduce__(self):
                return Path.touch, (tmp_path / "touched",)

        state = torch.load(stopped.path, weights_only=True)
        torch.save({**state, "trainer": {**state["trainer"], "random": Touch()}}, stopped.path)
        refused(tmp_path, print_of(), InputError, 3, "cannot be read (", "--force")
        assert not (tmp_path / "touched").exists()
        torch.load(stopped.path, weights_only=False)
        assert (tmp_path / "touched").exists(), "the file must be able to do it, to test that"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80",
            b"\x80\x02X\x01",
            b"\x80\x02h\x01.",
            b".",
        ],
        ids=repr,
    )
    def test_a_whole_archive_of_a_broken_pickle_is_refused(self, tmp_path, stopped, content):
        """The checksums are right, the contents are not."""
        other = tmp_path / "other"
        with zipfile.ZipFile(stopped.path) as old, zipfile.ZipFile(other, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
        other.replace(stopped.path)
        refused(tmp_path, print_of(), InputError, 3, "cannot be read (", "--force")

    def test_a_changed_byte_is_noticed(self, tmp_path, stopped):
        """Weights from a damaged file are not trained on; stray bytes do no harm."""
        whole, refusals = stopped.path.read_bytes(), 0
        good = torch.load(stopped.path, weights_only=True)["trainer"]
        for place in np.random.default_rng(0).integers(0, whole.index(b"PK\x01\x02"), 150):
            other = bytes([whole[place] ^ 0x41])
            stopped.path.write_bytes(whole[:place] + other + whole[place + 1 :])
            resumed = trainer(start=99)
            try:
                stopped.restore(resumed)
            except InputError:
                refusals += 1
                assert resumed.history == []
            else:
                state = resumed.state_dict()
                assert same(state["model"], good["model"])
                assert same(state["best_state"], good["best_state"])
        assert refusals > 100
        raw = good["model"]["embedding.weight"].numpy().tobytes()
        stopped.path.write_bytes(whole.replace(raw, raw[:-1] + bytes([raw[-1] ^ 1])))
        refused(tmp_path, print_of(), InputError, 3, "cannot be read", "CRC-32", "--force")

    def test_it_is_saved_whole_or_not_at_all(self, tmp_path, stopped, monkeypatch):
        """If the disk fills up during saving, only the older state is left, and it can be resumed."""
        before, save = contents(tmp_path), torch.save
        later = trainer()
        run(later, stop_after=9)

        def full(state, file):
            save(state, file)
            os.truncate(file, 100)
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(OSError, match="No space"):
                stopped.save(later)
        assert contents(tmp_path) == before
        stopped.save(later)
        assert contents(tmp_path).keys() == before.keys()
        assert contents(tmp_path) != before

    @pytest.fixture
    def clock(self, monkeypatch):
        """The clock of the snapshots, set by the test."""
        clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
        monkeypatch.setattr(snapshots, "time", clock)
        return clock

    def test_it_is_saved_now_and_then(self, tmp_path, clock):
        """Not at every epoch: a kill may cost 20 seconds, but saving must not take longer than training."""
        kept, saved = Snapshots(tmp_path / "small.pt", print_of()), []
        for now in (101, 119, 121, 122, 140, 142):
            clock.now = now
            kept.save_now_and_then(trainer(), Watcher())
            saved.append(kept.path.exists())
            kept.path.unlink(missing_ok=True)
        assert saved == [False, False, True, False, False, True]

    def test_the_end_of_a_long_run_is_saved(self, tmp_path, clock):
        """Its state is kept until the output is written; a short run is quick to repeat."""
        kept = Snapshots(tmp_path / "small.pt", print_of())
        clock.now = 119.0
        kept.save_at_end(trainer(), Watcher())
        assert not kept.path.exists()
        clock.now = 121.0
        kept.save(trainer())
        kept.path.unlink()
        clock.now = 122.0
        kept.save_at_end(trainer(), Watcher())
        assert kept.path.exists()

    def test_a_full_disk_does_not_end_training(self, tmp_path, clock, monkeypatch):
        """It warns, the older state stays, and saving is tried again later; after Ctrl-C it is an error."""
        told = []
        watcher = SimpleNamespace(warn=told.append)
        kept = Snapshots(tmp_path / "small.pt", print_of())
        kept.save(trainer())
        before = contents(tmp_path)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        for clock.now in (121.0, 122.0, 142.0):
            kept.save_now_and_then(trainer(), watcher)
        assert len(told) == 2
        assert told[0] == f"{kept.path}: the state could not be kept (No space left on device)"
        assert contents(tmp_path) == before
        with pytest.raises(OSError, match="No space"):
            kept.save(trainer())
