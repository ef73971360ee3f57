"""The protocol of native forms, in which another library stores a factorized table itself.

A form is one file with a subclass of :class:`NativeForm` and one line in ``NATIVE_FORMS``
(``native/__init__.py``); contract tests run over that registry.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.tables import Table

Documents = Mapping[str, Any]
"""JSON documents of a directory by relative path, as in ``Edit.documents``."""


class NativeForm(abc.ABC):
    """How a library stores a factorized table. Forms hold no state; one instance of each is in the registry.

    Attributes:
        name: registry name, as recorded in outputs.
        mirrored: whether the transpose of the right factor is stored too, for a tied head.
    """

    name: str
    mirrored: ClassVar[bool] = False

    @abc.abstractmethod
    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Whether the architecture of ``checkpoint`` has this form."""

    @abc.abstractmethod
    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        """Say why the model would not compute with the product of the factors in this form; None if it would.

        Args:
            checkpoint: the model.
            table: the table to compress.
            dtype: element type of the factors.
        """

    def note(self, checkpoint: Checkpoint, *, native: bool) -> str | None:
        """Say who can load the output; None if there is nothing special to say.

        Args:
            checkpoint: the model.
            native: whether the output is in this form, and not in one of this package.
        """
        return "it loads with the library of the model, without embcompress" if native else None

    @abc.abstractmethod
    def names(self, table: Table) -> tuple[str, ...]:
        """Names of the left factor (V×r), the right one (d×r), and, if ``mirrored``, its transpose."""

    def files(self, checkpoint: Checkpoint) -> tuple[str | None, ...]:
        """New weight file for each of the names; None for the file that holds the table."""
        return (None,) * (3 if self.mirrored else 2)

    @abc.abstractmethod
    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """The JSON documents in which the library finds the rank of a (V, d) table."""

    @abc.abstractmethod
    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """The JSON documents of the same model with a dense (V, d) table."""


def owner(table: str) -> str:
    """Name of the module that holds the table's module: ``a.b`` for ``a.b.word_embeddings.weight``."""
    return table.rpartition(".")[0].rpartition(".")[0]


def sibling(table: str, module: str) -> str:
    """Name of the weight of a module with the same owner as the table's module."""
    return ".".join(filter(None, (owner(table), module, "weight")))
