"""open → record → parts → with the original: tables, everything else, errors → what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description
from embcompress.choices import SMOOTHING, TEXT_COLUMN
from embcompress.compression.edit import edit_behind
from embcompress.compression.sources import GIVE_ORIGINAL, check_holds, hashed, reading_of
from embcompress.compression.weighting import Weighting, WeightSource, weighting_for
from embcompress.data.counting import Counts
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress, silent
from embcompress.reports.verification import Difference, Verification, VerifiedTable
from embcompress.rows import keep_freed_memory
from embcompress.tables import Table, locate
from embcompress.verification.differences import Compared, other_differences, tensor_differences
from embcompress.verification.measurements import Measured, measured_again, measured_alone
from embcompress.verification.records import (
    field_differences,
    part_differences,
    record_differences,
    source_differences,
    table_differences,
)
from embcompress.version import __version__

_NOTHING = Compared(0, ())


def verify(
    path: str | Path,
    *,
    against: str | Path | None = None,
    weights: str | Path | Counts | None = None,
    corpus: str | Path | None = None,
    text_column: str = TEXT_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    smoothing: float = SMOOTHING,
    progress: Progress = silent,
) -> Verification:
    """Check that an output is as it was written, and everything but its tables as in its original.

    Everything is read in pieces: memory does not grow with the checkpoint.

    Args:
        path: a checkpoint written by :func:`embcompress.factorize`.
        against: the checkpoint it was made from; without it the output is checked against its own record.
        weights: how often each token occurs, as it was given to :func:`embcompress.factorize`; weighted
            errors are then measured again.
        corpus: texts to count tokens in, likewise.
        text_column: header of the texts where they are in columns; a number where there is no header.
        text_format: how the texts are written.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What was checked, and everything that differs.

    Raises:
        UsageError: there is no compressed table; ``against`` or the weights are not what it was made with.
        InputError: a file is corrupt or unsafe, or fails a checksum of its format.
    """
    given = WeightSource(
        weights, corpus, text_column=text_column, smoothing=smoothing, text_format=text_format
    )
    if against is None and given.is_given:
        raise UsageError("weights are given, and no original", remedy="give it with --against")
    keep_freed_memory()
    with open_checkpoint(path, progress) as written:
        written.check_integrity(progress)
        described = written.description
        if described is None or not described.tables:
            return _without_record(written, against)
        own = [*record_differences(written, described)]
        for record in described.tables:
            own += field_differences(described, record)
            own += part_differences(written, record)
        if against is None:
            return _alone(written, described, own, progress)
        with open_checkpoint(against, progress, reading_of(described)) as original:
            return _with_original(original, written, described, own, given, progress)


def _without_record(written: Checkpoint, against: str | Path | None) -> Verification:
    """What can be said of an output whose record is gone, if it is an output at all.

    Raises:
        UsageError: nothing says that it is.
    """
    if against is not None:
        with open_checkpoint(against) as original:
            if written.tensors.keys() - original.tensors.keys():
                gone = Difference("record", "is missing: nothing says what the new tensors are")
                return Verification(written.path, original.path, (), 0, 0, (gone,), (), 0, ())
    raise UsageError(f"{written.path}: holds no compressed table", remedy="there is nothing to verify")


def _alone(
    written: Checkpoint, described: Description, own: Sequence[Difference], progress: Progress
) -> Verification:
    """An output without its original: its tables must decode to finite numbers.

    Args:
        written: the output.
        described: its record.
        own: where the output does not fit its record.
        progress: called as ``progress(stage, done, total)``.
    """
    measured = [measured_alone(written, record, progress) for record in described.tables]
    notes = (
        *_age_notes(described),
        "errors and tensors that are no tables are not checked: give the original with --against",
    )
    rest = _carried(written, described)
    return _verification(written, described, own, measured, notes=notes, skipped=rest)


def _with_original(
    original: Checkpoint,
    written: Checkpoint,
    described: Description,
    own: Sequence[Difference],
    given: WeightSource,
    progress: Progress,
) -> Verification:
    """An output and what it was made from: the same tables, the same errors, and the same everything else.

    Args:
        original: what the output was made from.
        written: the output.
        described: its record.
        own: where the output does not fit its record.
        given: what the weights of tokens are computed from.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: the original or the weights are not what the output was made with.
        InputError: one of the two cannot be read.
    """
    _check_pair(original, written)
    try:
        tables = _dense_tables(original, described)
        weighting = weighting_for(original, tables, given, progress)
        _check_weighting(weighting, described)
    except UsageError:
        if not own:
            raise
        # The record itself was changed, so the tables that it names need not be those of the original.
        return _verification(written, described, own, against=original.path)

    found = [*own]
    for record, table in zip(described.tables, tables, strict=True):
        found += table_differences(record, table)
    notes = [*_age_notes(described), *_pair_notes(described, weighting)]
    notes += () if weighting is None else weighting.notes
    weights = None if weighting is None else weighting.weights
    with hashed(original) as digests:
        tensors, others = _rest(original, written, described, tables, found, progress)
        measured = [measured_again(original, written, r, weights, progress) for r in described.tables]
        foreign = source_differences(described, digests.result())
    if foreign and _is_trained(described):
        # compress trains from a checkpoint that it does not keep.
        notes.append(f"trained from {', '.join(described.source)}, which is not {original.path.name}")
        foreign = []
    return _verification(
        written,
        described,
        [*found, *foreign, *tensors.differences, *others.differences],
        measured,
        notes=(*notes, *others.notes),
        against=original.path,
        tensors=tensors.count,
        others=others.count,
        changed=tensors.changed,
        skipped=tensors.skipped,
    )


def _carried(written: Checkpoint, described: Description) -> int:
    """How many tensors are no parts, and hold something of their own."""
    parts = {name for record in described.tables for name in record.part_names}
    return sum(
        name not in parts and name not in written.aliases and info.nbytes > 0
        for name, info in written.tensors.items()
    )


def _rest(
    original: Checkpoint,
    written: Checkpoint,
    described: Description,
    tables: Sequence[Table],
    found: Sequence[Difference],
    progress: Progress,
) -> tuple[Compared, Compared]:
    """Everything but the tables, compared with the original after the same edit: tensors, and the others.

    Args:
        original: what the output was made from.
        written: the output.
        described: its record.
        tables: the dense table of each record, in ``original``.
        found: what is known to differ already.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError, InputError: the edit cannot be made again, although nothing is known to differ.
    """
    tensors = _NOTHING
    try:
        edit = edit_behind(original, written, described, tables)
        tensors = tensor_differences(original, written, edit, progress, trained=_is_trained(described))
        return tensors, other_differences(original, written, edit, described)
    except (UsageError, InputError) as error:
        if not found:
            raise
        why = Difference("everything but the tables", f"is not compared: {error.message}")
        return tensors, Compared(0, (why,))


def _is_trained(described: Description) -> bool:
    return any(record.trained for record in described.tables)


def _check_pair(original: Checkpoint, written: Checkpoint) -> None:
    """Refuse an original that cannot be one.

    Raises:
        UsageError: it has another format, or is compressed itself.
    """
    wanted, there = (checkpoint.form(dense=False).name for checkpoint in (original, written))
    if wanted != there:
        raise UsageError(
            f"{original.path}: its copies are of the format {wanted}, {written.path} is {there}",
            remedy=GIVE_ORIGINAL,
        )
    if original.description is not None and original.description.tables:
        raise UsageError(f"{original.path}: is compressed itself", remedy=GIVE_ORIGINAL)


def _dense_tables(original: Checkpoint, described: Description) -> tuple[Table, ...]:
    """The dense table of each record.

    Raises:
        UsageError: the original does not hold one of them.
    """
    for record in described.tables:
        check_holds(original, record)
    return tuple(locate(original, [record.name])[0] for record in described.tables)


def _check_weighting(weighting: Weighting | None, described: Description) -> None:
    """Refuse other weights than the recorded errors were measured with.

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
        yield (
            f"written by version {described.version}, which recorded no SHA-256 of parts: those of "
            f"{', '.join(unsealed)} are not checked"
        )


def _pair_notes(described: Description, weighting: Weighting | None) -> Iterator[str]:
    for record in described.tables:
        if record.weighting is not None and weighting is None and not record.trained:
            yield (
                f"{record.name}: its error weighted by {record.weighting} is not measured again; give the "
                "same weights with --weights or --corpus"
            )
        if record.metric is not None and not record.trained:
            yield f"{record.name}: its error in the metric of {record.metric} is not measured again"
    if _is_trained(described):
        yield (
            "its record says that weights were trained afterwards, which cannot be checked: errors and other "
            "values than the original's are not compared with anything"
        )


def _verification(
    written: Checkpoint,
    described: Description,
    found: Sequence[Difference],
    measured: Sequence[Measured] | None = None,
    *,
    notes: tuple[str, ...] = (),
    against: Path | None = None,
    tensors: int = 0,
    others: int = 0,
    changed: int = 0,
    skipped: int = 0,
) -> Verification:
    """What the user is told; ``measured`` has an entry a table, and is None where nothing was measured."""
    unsealed = [f"the parts of {record.name}" for record in described.tables if not record.digests]
    unchecked = [
        *unsealed,
        *([f"{_plural(changed)} with other values"] if changed else []),
        *([_plural(skipped)] if skipped else []),
        *(["the seeds in its record"] if described.version != __version__ else []),
        *(["the command line in its record"] if described.command is not None else []),
    ]
    measured = measured or [Measured()] * len(described.tables)
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
                measured_error=one.plain,
                weighting=record.weighting,
                weighted_error=record.weighted_error,
                trained=record.trained,
                measured_weighted_error=one.weighted,
            )
            for record, one in zip(described.tables, measured, strict=True)
        ),
        tensors=tensors,
        others=others,
        differences=(*found, *(each for one in measured for each in one.differences)),
        notes=notes,
        uncompared=changed + skipped,
        unchecked=tuple(unchecked),
    )


def _plural(count: int) -> str:
    return f"{count:,} other tensor{'s' if count != 1 else ''}"
