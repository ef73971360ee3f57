"""Models that do more with a table than look up its rows: their classes cannot hold it compressed.

The list goes by config.json, so that transformers is not needed; ``tests/integrations/test_own_lookups.py``
compares it with the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from embcompress.checkpoint.base import Checkpoint
from embcompress.errors import UsageError

_QUANTIZE, _NORMALIZE = "quantize the rows that they look up", "normalize the rows that they look up"
_PATCH = "take some of the rows from another tensor"
OWN_LOOKUPS = {
    "ibert": _QUANTIZE,
    "idefics": _PATCH,
    "inkling2_text": _NORMALIZE,
    "inkling_text": _NORMALIZE,
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


def _model_types(config: object, depth: int = 3) -> Iterator[str]:
    """The type that a configuration names, and those of the parts in it."""
    if not isinstance(config, Mapping) or not depth:
        return
    if isinstance(kind := config.get("model_type"), str):
        yield kind
    for part in config.values():
        yield from _model_types(part, depth - 1)
