"""What a library's own form of a factorized table says of itself.

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
"""JSON documents of a directory by relative path, as ``Edit.documents`` takes them."""


class NativeForm(abc.ABC):
    """A factorized table as a library holds it itself. It holds no state: an instance is its registry entry.

    Attributes:
        name: registry name, as outputs record it.
        mirrored: whether the right factor is stored twice, the second time for a tied head.
    """

    name: str
    mirrored: ClassVar[bool] = False

    @abc.abstractmethod
    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Whether ``checkpoint`` is of an architecture that has this form."""

    @abc.abstractmethod
    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        """Why the outputs would not be those of the table's low-rank product; None where they are.

        Args:
            checkpoint: of the model.
            table: that is to be compressed.
            dtype: element type of the factors.
        """

    @abc.abstractmethod
    def names(self, table: Table) -> tuple[str, ...]:
        """Names of the left factor (V×r), the right one (d×r), and its transpose where it is mirrored."""

    def files(self, checkpoint: Checkpoint) -> tuple[str | None, ...]:
        """The weight file made for each of them; None for the one that the table is in."""
        return (None,) * (3 if self.mirrored else 2)

    @abc.abstractmethod
    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """The documents that tell the library of the rank of a (V, d) table."""

    @abc.abstractmethod
    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """The documents of the same model with a dense (V, d) table again."""


def owner(table: str) -> str:
    """Name of the module that holds the table's module: ``a.b`` for ``a.b.word_embeddings.weight``."""
    return table.rpartition(".")[0].rpartition(".")[0]


def sibling(table: str, module: str) -> str:
    """Name of the weight of a module that stands beside the table's."""
    return ".".join(filter(None, (owner(table), module, "weight")))
