"""The state of an unfinished run on disk, so that it can go on where it was."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embcompress.checkpoint.staging import staged
from embcompress.errors import InputError, UsageError
from embcompress.training.loop import Trainer
from embcompress.training.records import Recipe
from embcompress.training.scoring import Dataset

_PAUSE = 20.0
"""Seconds of training that a kill may cost: a snapshot is three times the model, and is synced."""

Fingerprint = dict[str, str]
"""What must be the same when a run goes on: name -> its digest or value."""


def fingerprint(model: nn.Module, train: Dataset, dev: Dataset, recipe: Recipe) -> Fingerprint:
    """Tells this run from every other; taken before training."""
    settings = {f"recipe.{key}": json.dumps(value, default=dict) for key, value in asdict(recipe).items()}
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "the starting model": weights.hexdigest(),
        "the training texts": _digest(train),
        "the dev texts": _digest(dev),
        **settings,
    }


def _digest(data: Dataset) -> str:
    arrays = (data.texts.tokens, data.texts.lengths, data.labels)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


class Snapshots:
    """Keeps the state of one run in a file beside its output.

    Args:
        place: the output of the run.
        print_: its fingerprint.
    """

    def __init__(self, place: Path, print_: Fingerprint) -> None:
        self.path = snapshot_path(place)
        self._print = print_
        self._saved = time.monotonic()

    def save_now_and_then(self, trainer: Trainer) -> None:
        """Save if it is long enough since the last time."""
        if time.monotonic() - self._saved > _PAUSE:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the state, whole or not at all."""
        with staged(self.path, force=True) as stage:
            torch.save({"fingerprint": self._print, "trainer": trainer.state_dict()}, stage)
        self._saved = time.monotonic()

    def restore(self, trainer: Trainer) -> None:
        """Put ``trainer`` where the unfinished run was.

        Raises:
            UsageError: there is no unfinished run, or it was another one.
            InputError: its state cannot be read.
        """
        if not self.path.exists():
            raise UsageError(
                f"--resume: there is no unfinished run, {self.path} does not exist",
                remedy="leave out --resume, or name the output of the unfinished run with -o",
            )
        saved = _read(self.path)
        if different := _differences(saved["fingerprint"], self._print):
            raise UsageError(
                f"--resume: the unfinished run differs in {different}",
                remedy="give what it was begun with, or begin anew with --force",
            )
        trainer.load_state_dict(saved["trainer"])

    def remove(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)


def snapshot_path(place: Path) -> Path:
    """Where the state of the run that writes ``place`` is kept."""
    return place.with_name(f"{place.name}.resume")


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not {"fingerprint", "trainer"} <= saved.keys():
            raise ValueError("holds no state of a run")
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({reason})", remedy="begin anew with --force") from None
    return saved


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs between two fingerprints: values where they are short enough to say."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name.removeprefix('recipe.')} ({old.get(name)}, now {new.get(name)})" if "." in name else name
        for name in names
    )
