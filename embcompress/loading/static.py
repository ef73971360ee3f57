"""The table of a static model as torch modules, dense or compressed; needs only torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.directory.modules import MAPPING, WEIGHTS
from embcompress.errors import UsageError
from embcompress.loading.stored_tables import StoredTable, read_stored
from embcompress.methods.modules import TableModules, projected, right_factor
from embcompress.nn.coded import CodedEmbedding
from embcompress.nn.lookup import FloatRows
from embcompress.nn.remapped import RemappedRows
from embcompress.tables import locate


def table_modules(table: StoredTable) -> TableModules:
    """The modules that hold a compressed table; float factors too."""
    if isinstance(table.contents, TableModules):
        return table.contents
    shape = table.record.shape
    return projected(_float_rows(table.parts["0.weight"]), right_factor(table.parts, shape[1]), shape)


def remapped(modules: TableModules, others: Mapping[str, Tensor]) -> TableModules:
    """The modules with the lists that model2vec stores applied to their rows.

    Raises:
        InputError: the lists do not fit the table.
    """
    if MAPPING not in others and WEIGHTS not in others:
        return modules
    lookup = RemappedRows(modules.lookup, others.get(MAPPING), others.get(WEIGHTS))
    return TableModules(lookup, modules.projection)


def static_embedding(path: Path) -> CodedEmbedding:
    """An embedding of the tokens of the static model in a directory, in float32.

    Raises:
        UsageError: it holds several tables.
        InputError: it is corrupt.
    """
    with open_checkpoint(path) as checkpoint:
        records = checkpoint.description.tables if checkpoint.description else ()
        if len(records) > 1:
            raise UsageError(f"{path}: holds {len(records)} compressed tables", remedy="give a static model")
        if records and records[0].native is None:
            stored = read_stored(checkpoint, checkpoint.description, others=True)
            modules, others = table_modules(stored.tables[0]), stored.others
        else:
            checkpoint.check_integrity()
            others = checkpoint.torch_state()
            name = records[0].part_names[0] if records else locate(checkpoint)[0].name
            right = others[records[0].part_names[1]] if records else None
            lookup = _float_rows(others[name])
            shape = (lookup.num_embeddings, lookup.embedding_dim if right is None else right.shape[0])
            modules = projected(lookup, right, shape)
    modules = remapped(modules, others)
    return CodedEmbedding(modules.lookup, modules.projection).float()


def _float_rows(rows: Tensor) -> FloatRows:
    """A lookup in a copy of these rows, since a tensor from a reader may still be mapped to its file."""
    return FloatRows(nn.Parameter(rows.clone()), len(rows))
