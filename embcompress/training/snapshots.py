"""Save the state of an unfinished run on disk, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from embcompress.checkpoint.pytorch.archive import read_archive
from embcompress.errors import InputError, UsageError, reason_of
from embcompress.pretrained.tokens import Tokens
from embcompress.storage.permissions import keep_permissions, permissions_of
from embcompress.storage.regular import opened
from embcompress.storage.staging import staged
from embcompress.storage.zipstore import check_record, read_directory
from embcompress.training.records import Recipe
from embcompress.training.recovery import DistilRecipe
from embcompress.training.resumed import tensors_of
from embcompress.training.scoring import Dataset

_PAUSE = 20.0
"""Least seconds between snapshots, lost if a run is killed; each may be four times the model's size."""

_TIMES = 20.0
"""Least ratio of training time to saving time, for models so large that saving takes seconds."""


_ROOM = 64 << 20
_COPIES = 8
"""A state takes at most so many times the bytes of the tensors in training, and the room above: weights, the
best of them, and moments."""


class Resumable(Protocol):
    """A run that can be stopped and resumed."""

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` can resume the run."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the state of another run with the same fingerprint."""


class Warned(Protocol):
    """Receives warnings."""

    def warn(self, text: str) -> None:
        """Called when something went wrong but training continues."""


Fingerprint = dict[str, str]
"""Everything that must be unchanged when a run is resumed: name -> digest or value."""


def fingerprint(
    models: Mapping[str, nn.Module], texts: Mapping[str, Dataset | Tokens], recipe: Recipe | DistilRecipe
) -> Fingerprint:
    """Identify a run by its inputs; computed before training.

    Args:
        models: the model to train and any model it learns from, by the names that messages use.
        texts: its texts, by the names that messages use.
        recipe: settings of the training.
    """
    values = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    return {
        **{name: _weights(model) for name, model in models.items()},
        **{name: _digest(data) for name, data in texts.items()},
        **{f"recipe.{key}": json.dumps(v, default=dict, sort_keys=True) for key, v in values.items()},
    }


def _weights(model: nn.Module) -> str:
    digest = hashlib.sha256(str(model).encode())  # the text lists the layers, with their dropout
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(data: Dataset | Tokens) -> str:
    digest = hashlib.sha256()
    labels = (data.labels,) if isinstance(data, Dataset) else ()
    for array in (data.texts.tokens, data.texts.lengths, *labels):
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.tobytes())
    return digest.hexdigest()


class Snapshots:
    """Saves the state of one run in a file next to its output.

    Args:
        place: the output of the run.
        print_: its fingerprint.
        sources: files of the model it starts from, whose permissions the state keeps.
    """

    def __init__(self, place: Path, print_: Fingerprint, sources: tuple[Path, ...] = ()) -> None:
        self.place = place
        self.path = snapshot_path(place)
        self._print, self._sources = print_, sources
        self._began = self._saved = time.monotonic()
        self._took = 0.0

    def save_now_and_then(self, trainer: Resumable, watcher: Warned) -> None:
        """Save if the last save was long enough ago; if it fails, warn and let training continue."""
        if time.monotonic() - self._saved > max(_PAUSE, _TIMES * self._took):
            try:
                self.save(trainer)
            except OSError as error:
                self._saved = time.monotonic()
                watcher.warn(f"{self.path}: the state could not be kept ({error.strerror or error})")

    def save_at_end(self, trainer: Resumable, watcher: Warned) -> None:
        """Save the result of a long run in case writing its output fails."""
        self._saved = self._began
        self.save_now_and_then(trainer, watcher)

    def save(self, trainer: Resumable) -> None:
        """Write the state, completely or not at all."""
        began = time.monotonic()
        with staged(self.path, force=True) as stage:
            torch.save({"fingerprint": self._print, "trainer": trainer.state_dict()}, stage)
            keep_permissions(stage, permissions_of(self._sources))
        self._saved = time.monotonic()
        self._took = self._saved - began

    def restore(self, trainer: Resumable) -> None:
        """Return ``trainer`` to the state of the unfinished run.

        Raises:
            UsageError: there is no unfinished run, or it had other inputs.
            InputError: its state cannot be read.
        """
        if not self.path.exists():
            raise UsageError(
                f"--resume: there is no unfinished run, {self.path} does not exist",
                remedy="leave out --resume, or name the output of the unfinished run with -o",
            )
        own = sum(value.nbytes for value in tensors_of(trainer.state_dict()))
        saved = _read(self.path, _COPIES * own + _ROOM)
        if different := _differences(saved["fingerprint"], self._print):
            raise UsageError(
                f"--resume: the unfinished run differs in {different}",
                remedy="give what it was started with, or start again with --force",
            )
        try:
            trainer.load_state_dict(saved["trainer"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _unreadable(self.path, error) from None


def snapshot_path(place: Path) -> Path:
    """Path of the saved state of the run that writes ``place``."""
    return place.with_name(f"{place.name}.resume")


def _read(path: Path, limit: int) -> dict[str, Any]:
    """Read a state whose tensors take at most ``limit`` bytes."""
    try:
        with opened(path) as file:
            # Our own reader refuses what unfolds in memory; torch itself checks no checksums either.
            size = sum(extent.size for extent in read_archive(file.fileno(), path).storages.values())
            if size > limit:
                raise ValueError(f"holds {size:,} bytes of tensors, a state of this run at most {limit:,}")
            for name, extent in read_directory(file.fileno(), str(path)).items():
                check_record(file.fileno(), name, extent, str(path))
            file.seek(0)
            saved = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or {*map(type, saved.values())} != {dict}:
            raise ValueError("holds no state of a run")
        if saved.keys() != {"fingerprint", "trainer"}:
            raise ValueError("holds no state of a run")
        if {type(text) for pair in saved["fingerprint"].items() for text in pair} - {str}:
            raise ValueError("holds no state of a run")
    except Exception as error:  # after a wrong byte torch's unpickler may raise anything
        raise _unreadable(path, error) from None
    return saved


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = error.message if isinstance(error, InputError) else reason_of(error)
    reason = reason.removeprefix(f"{path}: ")
    return InputError(f"{path}: cannot be read ({reason})", remedy="start again with --force")


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """The entries that differ between two fingerprints, with values that are short enough to show."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name.removeprefix('recipe.')} ({old.get(name)}, now {new.get(name)})" if "." in name else name
        for name in names
    )
