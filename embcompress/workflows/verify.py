"""An output looked at later: every checksum, tie, shape and error of its record, and what it left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description
from embcompress.compression.edit import edit_behind
from embcompress.compression.sources import hashed
from embcompress.compression.weighting import SMOOTHING, Weighting, weighting_for
from embcompress.data.counting import Counts
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress, silent
from embcompress.reports.verification import Difference, Verification, VerifiedTable
from embcompress.rows import keep_freed_memory
from embcompress.tables import Table, locate
from embcompress.verification.differences import Compared, other_differences, tensor_differences
from embcompress.verification.measurements import Measured, measured_again, measured_alone
from embcompress.verification.records import (
    part_differences,
    record_differences,
    source_differences,
    table_differences,
)

_ANOTHER = "give the checkpoint that was compressed with --against"


def verify(
    path: str | Path,
    *,
    against: str | Path | None = None,
    weights: str | Path | Counts | None = None,
    corpus: str | Path | None = None,
    text_column: str = "text",
    smoothing: float = SMOOTHING,
    progress: Progress = silent,
) -> Verification:
    """Check that an output is as it was written, and all but its tables as in what it was made from.

    Everything is read in pieces: memory does not grow with the checkpoint.

    Args:
        path: a checkpoint written by :func:`embcompress.factorize`.
        against: the checkpoint it was made from; without it only what the output says of itself is checked.
        weights: how often each token occurs; weighted errors are measured again with the weights that they
            were measured with, see :func:`embcompress.factorize`.
        corpus: texts to count tokens in.
        text_column: header of the texts where ``corpus`` is a CSV.
        smoothing: exponent s of the weight (count + 1)^s.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What was checked, and all that differs.

    Raises:
        UsageError: there is no compressed table; ``against`` or the weights are not what it was made with.
        InputError: a file is corrupt or unsafe, or does not fit a checksum of its format.
    """
    keep_freed_memory()
    if against is None and (weights is not None or corpus is not None):
        raise UsageError("weights are given, and no original", remedy="give it with --against")
    with open_checkpoint(path, progress) as written:
        written.check_integrity(progress)
        described = written.description
        if described is None or not described.tables:
            return _without_record(written, against)
        broken = [*record_differences(written, described)]
        for record in described.tables:
            broken += part_differences(written, record)
        if against is None:
            alone = [measured_alone(written, record, progress) for record in described.tables]
            notes = (
                *_age_notes(described),
                "tensors beside the tables and errors are not checked: give the original with --against",
            )
            return _verification(written, None, described, alone, broken, notes)
        with open_checkpoint(against, progress) as original:
            _check_pair(original, written)
            try:
                tables = _tables(original, described)
                weighting = weighting_for(
                    original,
                    tables,
                    counts=weights,
                    corpus=corpus,
                    text_column=text_column,
                    smoothing=smoothing,
                )
                _check_weighting(weighting, described)
            except UsageError:
                if not broken:
                    raise
                # The record that says which tables there are is itself not what it was.
                return _verification(written, original.path, described, [], broken, ())
            return _against(original, written, tables, weighting, broken, progress)


def _without_record(written: Checkpoint, against: str | Path | None) -> Verification:
    """What can be said of an output whose record is gone, if it is one at all.

    Raises:
        UsageError: nothing tells that it is.
    """
    if against is not None:
        with open_checkpoint(against) as original:
            if written.tensors.keys() - original.tensors.keys():
                gone = Difference("record", "is missing, so that parts are there which nothing explains")
                return Verification(written.path, original.path, (), 0, 0, (gone,), ())
    raise UsageError(f"{written.path}: holds no compressed table", remedy="nothing is to be verified")


def _against(
    original: Checkpoint,
    written: Checkpoint,
    tables: Sequence[Table],
    weighting: Weighting | None,
    broken: Sequence[Difference],
    progress: Progress,
) -> Verification:
    """Compare an output with what it was made from; ``broken`` is known to differ already."""
    described = written.description
    assert described is not None
    trained = any(record.trained for record in described.tables)
    notes = [*_age_notes(described), *_pair_notes(described, weighting)]
    found = [*broken]
    tensors = others = Compared(0, ())
    with hashed(original.weight_files) as digests:
        for record, table in zip(described.tables, tables, strict=True):
            found += table_differences(record, table)
        try:
            edit = edit_behind(original, written, described, tables)
            tensors = tensor_differences(original, written, edit, progress, by_value=not trained)
            others = other_differences(original, written, edit, described)
        except (UsageError, InputError) as error:
            if not found:
                raise
            # The parts, of which the rest is to be remade, are not what they were.
            found.append(Difference("what is beside the tables", f"is not compared, since {error.message}"))
        weights = None if weighting is None else weighting.weights
        measured = [measured_again(original, written, r, weights, progress) for r in described.tables]
        foreign = source_differences(described, digests.result())
    if foreign and trained:
        notes.append(f"trained from {', '.join(described.source)}, which is not {original.path.name}")
        foreign = []
    found += [*foreign, *tensors.differences, *others.differences]
    counts = (tensors.count, others.count)
    return _verification(written, original.path, described, measured, found, (*notes, *others.notes), counts)


def _check_pair(original: Checkpoint, written: Checkpoint) -> None:
    """Refuse an original that cannot be one.

    Raises:
        UsageError: it is of another format, or compressed itself.
    """
    wanted, there = (checkpoint.form(dense=False).name for checkpoint in (original, written))
    if wanted != there:
        raise UsageError(
            f"{original.path}: its copies are of the format {wanted}, {written.path} is {there}",
            remedy=_ANOTHER,
        )
    if original.description is not None and original.description.tables:
        raise UsageError(f"{original.path}: is compressed itself", remedy=_ANOTHER)


def _tables(original: Checkpoint, described: Description) -> tuple[Table, ...]:
    """The dense table of each record.

    Raises:
        UsageError: the original does not hold one of them.
    """
    for record in described.tables:
        info = original.tensors.get(record.name)
        if info is None or info.shape != record.shape:
            raise UsageError(
                f"{original.path}: holds no {record.name} of shape {list(record.shape)}", remedy=_ANOTHER
            )
    return tuple(locate(original, [record.name])[0] for record in described.tables)


def _check_weighting(weighting: Weighting | None, described: Description) -> None:
    """Refuse other weights than the errors were measured with.

    Raises:
        UsageError: with both.
    """
    for record in described.tables:
        if weighting is not None and record.weighting != weighting.origin:
            raise UsageError(
                f"{record.name}: its rows were weighted by {record.weighting or 'nothing'}, "
                f"given is {weighting.origin}",
                remedy="give the weights and the --smoothing that it was made with",
            )


def _age_notes(described: Description) -> Iterator[str]:
    unsealed = [record.name for record in described.tables if not record.digests]
    if unsealed:
        yield f"written by an older version ({described.version}): parts not checked of {', '.join(unsealed)}"


def _pair_notes(described: Description, weighting: Weighting | None) -> Iterator[str]:
    for record in described.tables:
        if record.weighting is not None and weighting is None and not record.trained:
            yield (
                f"{record.name}: its error weighted by {record.weighting} is not measured again; "
                "give what it was weighted by with --weights or --corpus"
            )
    if any(record.trained for record in described.tables):
        yield "weights were trained afterwards: values of other tensors and errors are not compared"


def _verification(
    written: Checkpoint,
    against: Path | None,
    described: Description,
    measured: Sequence[Measured],
    found: Sequence[Difference],
    notes: tuple[str, ...],
    counts: tuple[int, int] = (0, 0),
) -> Verification:
    errors: Mapping[str, Measured] = {
        record.name: one for record, one in zip(described.tables, measured, strict=False)
    }
    return Verification(
        path=written.path,
        against=against,
        tables=tuple(
            VerifiedTable(
                name=record.name,
                shape=record.shape,
                method=record.method,
                rank=record.rank,
                parts=len(record.parts),
                sealed=bool(record.digests),
                recorded_error=record.relative_error,
                measured_error=errors.get(record.name, Measured()).plain,
                weighting=record.weighting,
                weighted_error=record.weighted_error,
                measured_weighted_error=errors.get(record.name, Measured()).weighted,
            )
            for record in described.tables
        ),
        tensors=counts[0],
        others=counts[1],
        differences=(*found, *(each for one in measured for each in one.differences)),
        notes=notes,
    )
