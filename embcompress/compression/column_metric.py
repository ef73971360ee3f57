"""Which directions of a table's rows matter to the model, as a metric over its columns."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import static_modules
from embcompress.choices import MAX_LENGTH, METRIC_TEXTS
from embcompress.data.counting import read_texts
from embcompress.data.text_format import TextFormat
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.errors import InputError, UsageError
from embcompress.linalg.metric import Metric
from embcompress.progress import Progress
from embcompress.tables import Table

SHARE = 0.5
"""Share of what was measured in a metric; the rest counts all columns alike. Chosen on all-MiniLM-L6-v2, see
``examples/reference/benchmarks.md``."""

SCORE_SHARE = 0.9
"""The same for a classifier written by ``train``, whose few scores hang on few directions. Chosen on the dev
texts of SST-2, TREC-6 and SNIPS; 0.99 does as well."""

SEED = 0
"""Seed of the sample of texts and of the random directions."""


@dataclass(frozen=True)
class ColumnMetric:
    """A metric over the columns of a table and where it comes from.

    Attributes:
        metric: the metric.
        origin: what the record says of it, e.g. ``"texts.csv, 2,000 texts"``.
    """

    metric: Metric
    origin: str


GivenMetric = str | Path | NDArray[np.float64] | ColumnMetric | None
"""A file of texts to compute a metric from, the metric itself (d×d), one that is ready, or nothing."""


def metric_for(
    source: Checkpoint,
    tables: Sequence[Table],
    given: GivenMetric,
    text_column: str,
    text_format: TextFormat,
    progress: Progress,
) -> ColumnMetric | None:
    """The metric over the columns of the only one of ``tables``; None where nothing is given.

    Args:
        source: holds the tables; if texts are given, the directory of a transformers model or a classifier
            written by ``train``.
        tables: the tables to be compressed.
        given: texts, or a matrix.
        text_column: header of the texts where they are in columns.
        text_format: how the texts are written.
        progress: called as ``progress("metric", done, total)``.

    Raises:
        UsageError: there are several tables, or the model does not look its tokens up in this one; the source
            is neither of these, or needs code of the user's own; the matrix does not fit the table.
        InputError: the texts cannot be read or there are none, or the model gives no gradient.
    """
    if given is None:
        return None
    if len(tables) > 1:
        raise UsageError(
            f"a metric for {len(tables)} tables: {', '.join(table.name for table in tables)}",
            remedy="choose one with --key",
        )
    (table,) = tables
    if isinstance(given, ColumnMetric):
        return given
    if not isinstance(given, str | Path):
        return ColumnMetric(Metric.of(_checked(given, table), SHARE), "a given matrix")
    if not _is_classifier(source):
        _check_directory(source)
    file = Path(given)
    return metric_of(source, table, read_texts(file, text_column, text_format), file, progress)


def metric_of(
    source: Checkpoint,
    table: Table,
    texts: Iterable[str],
    file: Path,
    progress: Progress,
    factory: str | None = None,
) -> ColumnMetric:
    """The metric that a model has on some texts.

    Args:
        source: the directory of a transformers model, or a classifier written by ``train``.
        table: its table.
        texts: the texts, of which a sample is used.
        file: where they come from.
        progress: called as ``progress("metric", done, total)``.
        factory: ``package.module:function`` of a classifier of the user's own.

    Raises:
        UsageError, InputError: as :func:`metric_for`.
    """
    chosen = drawn(texts, METRIC_TEXTS)
    if not chosen:
        raise InputError(f"{file}: holds no text", remedy="give texts of the kind that the model reads")
    if _is_classifier(source):
        found, share = _of_scores(source, table, chosen, progress, factory), SCORE_SHARE
    else:
        found, share = _of_outputs(source, table, chosen, file, progress), SHARE
    if not np.isfinite(found).all():
        raise InputError(
            f"{source.path}: gradients of the model are NaN or infinite",
            remedy="leave out --metric, or repair the model",
        )
    if not found.trace() > 0:
        raise InputError(
            f"{file}: nothing that the model makes of these texts depends on their tokens",
            remedy="give longer texts, or leave out --metric",
        )
    return ColumnMetric(Metric.of(found, share), f"{file.name}, {len(chosen):,} texts")


def _of_outputs(
    source: Checkpoint, table: Table, texts: Sequence[str], file: Path, progress: Progress
) -> NDArray[np.float64]:
    """What counts in a row of a transformers model (d×d)."""
    # Imported here: they need torch and transformers, and everything else works without.
    from embcompress.pretrained.models import open_pretrained
    from embcompress.pretrained.tokens import encoded
    from embcompress.training.devices import runtime
    from embcompress.training.fisher import check_looked_up, outer_products

    model = open_pretrained(source.path)
    check_looked_up(model, table)
    data = encoded(model, texts, MAX_LENGTH)
    if not len(data):
        raise InputError(f"{file}: no text has a token", remedy="give texts of the kind that the model reads")
    return outer_products(model, data, runtime(), SEED, progress)


def _of_scores(
    source: Checkpoint, table: Table, texts: Sequence[str], progress: Progress, factory: str | None
) -> NDArray[np.float64]:
    """What counts in a row of a classifier written by ``train`` (d×d)."""
    from embcompress.classifiers.base import MODULE
    from embcompress.classifiers.opening import open_classifier, record_of
    from embcompress.training.scoring import Dataset
    from embcompress.training.sensitivity import score_products

    if factory is None and record_of(source.path).architecture.name == MODULE:
        raise UsageError(
            f"{source.path}: holds a module of your own, and its code is not run to find out what counts",
            remedy="leave out --metric, or give --model to compress",
        )
    opened = open_classifier(source.path, factory=factory)
    parameter = dict(opened.model.named_parameters()).get(table.name)
    if parameter is None:
        raise UsageError(
            f"{table.name}: is no parameter of {source.path}",
            remedy="choose the table of the classifier's tokens with --key, or leave out --metric",
        )
    record = opened.record
    data = Dataset(
        record.tokenizer.encode(texts, record.max_length),
        np.zeros(len(texts), np.int64),
        record.tokenizer.padding,
    )
    return score_products(opened.model, parameter, data, SEED, progress)


def drawn(texts: Iterable[str], count: int) -> list[str]:
    """At most ``count`` distinct texts that are not blank: those with the smallest hashes.

    So the sample depends neither on their order nor on how often each occurs, and of a long file no more than
    that is kept in memory.
    """
    kept: list[tuple[bytes, str]] = []
    for text in texts:
        key = hashlib.blake2b(
            text.encode("utf-8", "surrogatepass"), digest_size=16, key=bytes([SEED])
        ).digest()
        if not text.strip() or (len(kept) == count and (key, text) >= kept[-1]):
            continue
        place = bisect.bisect_left(kept, (key, text))
        if kept[place : place + 1] != [(key, text)]:
            kept.insert(place, (key, text))
            del kept[count:]
    return [text for _, text in kept]


def _is_classifier(source: Checkpoint) -> bool:
    """Whether ``train`` has written it."""
    return not source.path.is_dir() and source.sidecar(RECORD_KEY) is not None


def _check_directory(source: Checkpoint) -> None:
    """Refuse what transformers cannot run, before texts are read.

    Raises:
        UsageError: it is no directory, or it holds a static model.
    """
    remedy = "leave out --metric"
    if not source.path.is_dir():
        raise UsageError(
            f"{source.path}: a metric needs the model to run, and this is neither a Hugging Face "
            "directory nor a classifier of embcompress",
            remedy=f"give one, or {remedy}",
        )
    if static_modules(source.path):
        raise UsageError(
            f"{source.path}: is a static model, whose vectors are means of rows: all columns count alike",
            remedy=remedy,
        )


def _checked(matrix: NDArray[np.float64], table: Table) -> NDArray[np.float64]:
    """A matrix that may be a metric.

    Raises:
        UsageError: it has another shape, or is not symmetric, finite and positive semidefinite.
    """
    columns = table.rows.shape[1]
    try:
        found: NDArray[np.float64] = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        raise UsageError("the metric is no matrix of numbers", remedy="give a NumPy array") from None
    if found.shape != (columns, columns):
        raise UsageError(
            f"the metric has shape {list(found.shape)}, {table.name} has {columns} columns",
            remedy=f"give a matrix of {columns}×{columns}",
        )
    size = np.abs(found).max()
    if not (np.isfinite(size) and size > 0 and np.allclose(found, found.T, rtol=0, atol=1e-6 * size)):
        raise UsageError("the metric is not symmetric, finite and above 0", remedy="give a covariance matrix")
    found = found / size  # or sums of the largest numbers overflow
    found = (found + found.T) / 2
    least = float(np.linalg.eigvalsh(found)[0])
    if least < -1e-6:
        raise UsageError(
            f"the metric has the eigenvalue {least * size:.3g}", remedy="give a covariance matrix"
        )
    return found
