"""The record that every output carries under the key ``embcompress``.

It is a JSON string in the metadata of a safetensors file and in ``state_dict._metadata`` of a
torch file, and an object in ``config.json`` of a directory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embcompress.checkpoint.names import check_name
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError

METADATA_KEY = "embcompress"
LAYOUT_VERSION = 1
"""Version of the on-disk layout. A reader refuses a higher one, which it could misread."""

NO_DIGEST = "0" * 64
"""Placeholder for a SHA-256 that is not known yet, of the same length as the real one."""

_SEAL = "digest"
"""Entry of a stored record that holds the SHA-256 of all its other entries."""
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class TableRecord:
    """The record of one compressed table.

    Attributes:
        name: name of the dense table, e.g. ``embedding.weight``.
        shape: (V, d) of the dense table.
        dtype: element type of the dense table, a name of ``DTYPES``.
        method: registry name of the method.
        rank: number of components kept; None for methods that do not reduce the rank.
        stored_dtype: element type from which a lookup is computed.
        bits: bits per stored coefficient, on average.
        ratio: fraction of the table's bytes removed.
        relative_error: Frobenius norm of the difference over the table's norm, measured on the written
            bytes.
        parts: suffixes of the stored tensors after the table's stem, e.g. ``("0.weight", "1.weight")``.
        ties: other names of the same table in the model.
        copies: the ties that the source stored as bytes of their own; expanding writes them again.
        weighting: how rows were weighted, None for equal weights.
        weighted_error: ``relative_error`` with each row's squares times its weight, None for equal weights.
        metric: what the columns were weighted by, None if all counted alike.
        metric_error: error of the weighted rows in that metric, None without one.
        seed: random seed of the method, None if it uses none.
        trained: whether the parts were trained afterwards. ``relative_error`` is then the error before
            training, and the accuracy of the model is what counts.
        native: which of a library's own forms the parts are stored in, None if only embcompress can load
            them.
        names: names of the stored tensors in the order of ``parts``, if the native form prescribes them.
        digests: SHA-256 of the bytes of each stored tensor in the order of ``parts``; empty in records of
            older versions.
        nonfinite: how many numbers of the table were NaN or infinite and were replaced by zeros.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    method: str
    rank: int | None
    stored_dtype: str
    bits: float
    ratio: float
    relative_error: float
    parts: tuple[str, ...]
    ties: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    weighting: str | None = None
    weighted_error: float | None = None
    seed: int | None = None
    trained: bool = False
    native: str | None = None
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    nonfinite: int = 0
    metric: str | None = None
    metric_error: float | None = None

    @property
    def is_one_table(self) -> bool:
        """Whether the parts are of one table: in its own form, a library may train the projections apart."""
        return not (self.trained and self.native)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the stored tensors, in the order of ``parts``."""
        return self.names or tuple(part_name(self.name, suffix) for suffix in self.parts)


@dataclass(frozen=True)
class Description:
    """The whole record of one output.

    Attributes:
        version: version of embcompress that wrote it.
        source: file name -> SHA-256 of each weight file of the source.
        tables: one record per compressed table.
        command: the command line that made the output, with paths shortened to names; None if there was
            none.
        weights_only: whether everything but weights and plain data was left out of the source.
        state: the state dict that was chosen in the source, None if none was.
        quantizer: what quantized the layers around the tables; None if nothing did. Such a model is opened by
            its own library, and only the tables are read from here.
        intact: whether the record matches the SHA-256 that was stored with it; None if it has none (older
            outputs), or if the record has not been written yet.
    """

    version: str
    source: Mapping[str, str]
    tables: tuple[TableRecord, ...]
    command: str | None = None
    weights_only: bool = False
    state: str | None = None
    quantizer: str | None = None
    intact: bool | None = field(default=None, compare=False)

    @property
    def swapped(self) -> tuple[TableRecord, ...]:
        """The tables that embcompress must put into a model; a library loads native ones itself."""
        return tuple(table for table in self.tables if table.native is None)

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-ready dict, with its own SHA-256; tuples become lists when dumped."""
        body = {"layout": LAYOUT_VERSION, **asdict(self)}
        del body["intact"]
        if self.quantizer is None:
            del body["quantizer"]
        for table in body["tables"]:
            if table["metric"] is None:
                del table["metric"], table["metric_error"]
        return {**body, _SEAL: _digest_of(body)}

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))


def stem(name: str) -> str:
    """``X`` for a parameter ``X.weight``; a name without that ending is its own stem."""
    return name.removesuffix(".weight")


def part_name(table: str, suffix: str) -> str:
    """Name of a stored part of ``table``: ``X.weight`` and ``0.weight`` give ``X.0.weight``."""
    return f"{stem(table)}.{suffix}"


def parse_description(value: object, where: str) -> Description:
    """Read a description from JSON text or from a parsed object.

    Args:
        value: text of the metadata entry, or the object in ``config.json``.
        where: name of the place, for error messages.

    Raises:
        InputError: it is not a description, or it has a newer layout.
    """
    try:
        raw = json.loads(value) if isinstance(value, str) else value
        if not isinstance(raw, dict):
            raise TypeError(f"{type(raw).__name__} instead of an object")
        layout = raw["layout"]
        if not isinstance(layout, int) or isinstance(layout, bool) or layout < 1:
            raise TypeError(f"layout {layout!r}")
        if layout > LAYOUT_VERSION:
            raise InputError(
                f"{where}: layout {layout}, this version reads up to {LAYOUT_VERSION}",
                remedy="install a newer embcompress",
            )
        source = {str(k): str(v) for k, v in raw["source"].items()}
        tables = tuple(_table(t) for t in raw["tables"])
        names = [name for table in tables for name in (table.name, *table.ties)]
        for name in (*names, *(name for table in tables for name in table.names)):
            check_name(name, where)
        if len({*names}) < len(names):
            raise ValueError(f"a name is described twice among {names[:8]}")
        command, quantizer = raw.get("command"), raw.get("quantizer")
        state, only_weights = raw.get("state"), raw.get("weights_only", False)
        if not all(isinstance(text, str | None) for text in (command, state, quantizer)):
            raise TypeError("command, state or quantizer is not text")
        if not isinstance(only_weights, bool):
            raise TypeError("weights_only is neither true nor false")
        return Description(
            str(raw["version"]), source, tables, command, only_weights, state, quantizer, _is_intact(raw)
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{where}: the embcompress record cannot be read ({type(error).__name__}: {error})",
            remedy="make the file again from its source",
        ) from None


def _digest_of(body: Mapping[str, Any]) -> str:
    """SHA-256 of a record as canonical JSON, whatever order and white space it is stored with."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_intact(raw: Mapping[str, Any]) -> bool | None:
    """Whether a stored record matches its SHA-256; None if it has none."""
    if _SEAL not in raw:
        return None
    # In config.json the record also holds quant_method, the name by which libraries recognize it.
    body = {key: value for key, value in raw.items() if key not in (_SEAL, "quant_method")}
    return bool(raw[_SEAL] == _digest_of(body))


def parse_entry(metadata: Mapping[str, str], key: str, where: object) -> object:
    """The JSON value of a metadata entry, None if there is no such entry.

    Raises:
        InputError: the entry is not JSON.
    """
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except (ValueError, RecursionError):
        raise InputError(
            f"{where}: the metadata under {key} is not JSON", remedy="make the file again"
        ) from None


def _table(raw: Mapping[str, Any]) -> TableRecord:
    """A table record with the type and range of every field checked, since files come from anywhere."""
    known = {f.name for f in fields(TableRecord)}
    lists = {"shape", "parts", "ties", "copies", "names", "digests"}
    values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in raw.items() if k in known}
    record = TableRecord(**values)
    texts = (record.name, record.method, record.dtype, record.stored_dtype, *record.parts)
    sizes = (*record.shape, *(() if record.rank is None else (record.rank,)))
    if not all(isinstance(t, str) for t in (*texts, *record.ties, *record.copies, *record.names)):
        raise TypeError("a name is not text")
    if len(record.names) not in {0, len(record.parts)} or (record.native is None) != (not record.names):
        raise ValueError("names must be one for each part of a native form")
    if not all(map(_is_digest, record.digests)):
        raise ValueError("digests must be SHA-256")
    if type(record.nonfinite) is not int or not 0 <= record.nonfinite < 1 << 48:
        raise ValueError("nonfinite must be a number from 0 to 2^48")
    if len(record.shape) != 2 or not all(type(s) is int and 0 < s < 1 << 48 for s in sizes):
        raise ValueError("shape and rank must be positive integers below 2^48")
    if type(record.bits) not in (int, float) or not 0 < record.bits <= 64:
        raise ValueError("bits must be a number from 0 to 64")
    if not all(type(x) in (int, float) and abs(x) < 1e12 for x in (record.ratio, record.relative_error)):
        raise TypeError("ratio and relative_error must be finite numbers")
    for name in ("weighted_error", "metric_error"):
        error = getattr(record, name)
        if error is not None and not (type(error) in (int, float) and abs(error) < 1e12):
            raise TypeError(f"{name} must be a finite number")
    for name in ("weighting", "metric", "native"):
        if not isinstance(getattr(record, name), str | None):
            raise TypeError(f"{name} is not text")
    if type(record.trained) is not bool:
        raise TypeError("trained is not true or false")
    if not {*record.copies} <= {*record.ties}:
        raise ValueError("copies are not among the ties")
    if record.dtype not in DTYPES or record.stored_dtype not in DTYPES:
        raise ValueError(f"unknown dtype {record.dtype} or {record.stored_dtype}")
    if not DTYPES[record.dtype].is_table:
        raise ValueError(f"no table has dtype {record.dtype}")
    return record


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None
