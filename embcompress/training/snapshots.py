"""The state of an unfinished run on disk, so that it can go on where it was."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from embcompress.errors import InputError, UsageError
from embcompress.pretrained.tokens import Tokens
from embcompress.storage.staging import staged
from embcompress.training.records import Recipe
from embcompress.training.recovery import DistilRecipe
from embcompress.training.scoring import Dataset

_PAUSE = 20.0
"""Seconds of training that a kill may cost: a snapshot is up to four times the model, and is synced."""

_TIMES = 20.0
"""How many times longer a run trains than it saves, where the model is so large that saving takes seconds."""


class Resumable(Protocol):
    """A run that can be stopped and go on."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that it needs to go on as if nothing had been."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where another run with the same fingerprint was."""


class Warned(Protocol):
    """Is told what went wrong."""

    def warn(self, text: str) -> None:
        """When something went wrong that training does not end for."""


Fingerprint = dict[str, str]
"""What must be the same when a run goes on: name -> its digest or value."""


def fingerprint(
    models: Mapping[str, nn.Module], texts: Mapping[str, Dataset | Tokens], recipe: Recipe | DistilRecipe
) -> Fingerprint:
    """Tells this run from every other; taken before training.

    Args:
        models: what is trained, and what it learns from, each by what a message calls it.
        texts: likewise.
        recipe: how it is trained.
    """
    values = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    return {
        **{name: _weights(model) for name, model in models.items()},
        **{name: _digest(data) for name, data in texts.items()},
        **{f"recipe.{key}": json.dumps(v, default=dict, sort_keys=True) for key, v in values.items()},
    }


def _weights(model: nn.Module) -> str:
    digest = hashlib.sha256(str(model).encode())  # names its layers, with their dropout
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
    """Keeps the state of one run in a file beside its output.

    Args:
        place: the output of the run.
        print_: its fingerprint.
    """

    def __init__(self, place: Path, print_: Fingerprint) -> None:
        self.place = place
        self.path = snapshot_path(place)
        self._print = print_
        self._began = self._saved = time.monotonic()
        self._took = 0.0

    def save_now_and_then(self, trainer: Resumable, watcher: Warned) -> None:
        """Save if it is long enough since the last time; a full disk is no reason to end training."""
        if time.monotonic() - self._saved > max(_PAUSE, _TIMES * self._took):
            try:
                self.save(trainer)
            except OSError as error:
                self._saved = time.monotonic()
                watcher.warn(f"{self.path}: the state could not be kept ({error.strerror or error})")

    def save_at_end(self, trainer: Resumable, watcher: Warned) -> None:
        """Keep what a long run came to until its output is published: writing that may fail."""
        self._saved = self._began
        self.save_now_and_then(trainer, watcher)

    def save(self, trainer: Resumable) -> None:
        """Write the state, whole or not at all."""
        began = time.monotonic()
        with staged(self.path, force=True) as stage:
            torch.save({"fingerprint": self._print, "trainer": trainer.state_dict()}, stage)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def restore(self, trainer: Resumable) -> None:
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
        try:
            trainer.load_state_dict(saved["trainer"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _unreadable(self.path, error) from None


def snapshot_path(place: Path) -> Path:
    """Where the state of the run that writes ``place`` is kept."""
    return place.with_name(f"{place.name}.resume")


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or {*map(type, saved.values())} != {dict}:
            raise ValueError("holds no state of a run")
        if saved.keys() != {"fingerprint", "trainer"}:
            raise ValueError("holds no state of a run")
    except Exception as error:  # torch's unpickler raises whatever a wrong byte makes of it
        raise _unreadable(path, error) from None
    return saved


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read ({reason})", remedy="begin anew with --force")


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs between two fingerprints: values where they are short enough to say."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name.removeprefix('recipe.')} ({old.get(name)}, now {new.get(name)})" if "." in name else name
        for name in names
    )
