"""Tables that no model could load once they are compressed: more is done with them than rows looked up.

The list of models goes by config.json, so that transformers is not needed;
``tests/integrations/test_own_lookups.py`` compares it with the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.errors import UsageError
from embcompress.tables import Table, is_layer

_QUANTIZE, _NORMALIZE = "quantize the rows that they look up", "normalize the rows that they look up"
_PATCH = "take some of the rows from another tensor"
_JOIN = "join their table with a second one while they are loaded"
OWN_LOOKUPS = {
    "ibert": _QUANTIZE,
    "idefics": _PATCH,
    "inkling2_text": _NORMALIZE,
    "inkling_text": _NORMALIZE,
    "molmo2_text": _JOIN,
    "muse_glimmer_text": _NORMALIZE,
    "muse_spark_text": _NORMALIZE,
    "t5gemma2_decoder": _PATCH,
    "t5gemma2_text": _PATCH,
}
"""``model_type`` of a model or of its text part -> what such models do besides."""


def check_lookups(source: Checkpoint) -> None:
    """Refuse the directory of a model that could not be loaded with a compressed table.

    Raises:
        UsageError: with what the model does.
    """
    for kind in _model_types(source.config):
        if kind in OWN_LOOKUPS:
            raise UsageError(
                f"{source.path}: {kind} models {OWN_LOOKUPS[kind]}, which compressed tables cannot do: "
                "nothing could load the result",
                remedy=f"give {source.weight_files[0].name} by itself if code of your own will load it",
            )


def check_loadable(source: Checkpoint, tables: Sequence[Table]) -> None:
    """Refuse layers of a transformers model that the user named as tables: no model could load the result.

    Raises:
        UsageError: with the name, and what to do.
    """
    if not isinstance(source.config.get("model_type"), str):
        return  # in a file by itself, the layer may be of any class
    for table in tables:
        if all(map(is_layer, (table.name, *table.ties))):
            raise UsageError(
                f"{source.path}: {table.name} belongs to a linear layer, not to an embedding: nothing "
                "could load its parts",
                remedy="leave it out; if code of your own will load it, give "
                f"{source.weight_files[0].name} by itself",
            )


def _model_types(config: object, depth: int = 3) -> Iterator[str]:
    """The type that a configuration names, and those of its parts, down to the text part of an encoder."""
    if not isinstance(config, Mapping) or not depth:
        return
    if isinstance(kind := config.get("model_type"), str):
        yield kind
    for part in config.values():
        yield from _model_types(part, depth - 1)
