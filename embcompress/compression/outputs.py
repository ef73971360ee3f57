"""Where an output goes, what its name may say, and which other files may be written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.directory.replacing import check_replaceable
from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.checkpoint.vectors.base import suffix_of, unpacked_name
from embcompress.checkpoint.vectors.registry import VECTOR_FORMATS
from embcompress.errors import UsageError
from embcompress.progress import Progress
from embcompress.storage.permissions import keep_permissions, permissions_of
from embcompress.storage.targets import check_target, is_same

BAD_DISK = (
    "run the command again; if it fails again, write to another disk with -o, and check this disk and the "
    "memory for errors"
)
"""What to do when a file does not read back as it was written."""


def output_path(output: str | Path | None, source: Path, label: str, suffix: str | None = None) -> Path:
    """The place that the user names, or else a name next to the input.

    ``model.pt`` and ``tuned`` give ``model-tuned.pt``.

    Args:
        output: what the user names.
        source: the input.
        label: what is added to the input's name.
        suffix: how the output's name ends; None for as the input's does.

    Raises:
        UsageError: nothing is named, and the input is in a download cache, where nothing should be added.
    """
    if output is not None:
        return Path(output)
    source = source.absolute() if source.name else source.resolve()
    if any(part.startswith("models--") for part in source.parts) and "snapshots" in source.parts:
        raise UsageError(
            f"{source}: is in a download cache, where no output should be written", remedy="name one with -o"
        )
    if source.is_dir():
        return source.with_name(f"{source.name}-{label}")
    stem = Path(unpacked_name(source.name)).stem
    return source.with_name(f"{stem}-{label}{source.suffix if suffix is None else suffix}")


def check_output(place: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """Refuse an output that must not be written, before any work is done.

    Args:
        place: the output.
        sources: files and directories that are read; the output is a directory if the first one is.
        force: whether an existing output may be replaced.

    Raises:
        UsageError: see ``storage.targets.check_target`` and ``checkpoint.directory.replacing``.
    """
    check_target(place, sources, force=force)
    if place.is_dir():
        check_replaceable(place)


def write_copy(
    source: Checkpoint, target: Path, edit: Edit, description: Description | None, progress: Progress
) -> tuple[str, ...]:
    """Write an edited copy as :meth:`Checkpoint.write` does, with the permissions of the source.

    Args:
        source: what is copied.
        target: in a staging directory; does not exist yet.
        edit: what changes.
        description: the record of the copy.
        progress: called as ``progress("write", done, total)``.

    Returns:
        Warnings for the user, one sentence each.
    """
    warnings = source.write(target, edit, description, progress)
    mask = permissions_of(source.weight_files)
    keep_permissions(target, mask, source.path if source.path.is_dir() else None)
    return warnings


def check_format(place: Path, source: Checkpoint, *, dense: bool = False) -> None:
    """Refuse an output whose name says another format than it will have.

    Args:
        place: the output.
        source: the input.
        dense: whether the output holds dense tables again.

    Raises:
        UsageError: with the suffix.
    """
    form, suffix = source.form(dense=dense), suffix_of(place)
    known = [(kind.format, kind.suffixes) for kind in FILE_FORMATS]
    if form.name != source.format:  # word vectors; a model may well be called .txt
        known += [(kind.name, kind.suffixes) for kind in VECTOR_FORMATS]
    meant = [name for name, suffixes in known if suffix in suffixes]
    if meant and form.name not in meant:
        what = "has the format of the input" if form.name == source.format else "gets another format"
        raise UsageError(
            f"{place}: the output {what}, {form.name}, and {suffix} means {' or '.join(meant)}",
            remedy=f"give it another name with -o, such as {place.with_suffix(form.suffix).name}",
        )


def check_side_file(path: Path, taken: Iterable[Path], *, replace: bool) -> None:
    """Refuse a picture or a log that must not or cannot be written, before any work is done.

    Args:
        path: the file.
        taken: the inputs and the output.
        replace: whether an existing file may be replaced.

    Raises:
        UsageError: with the reason.
    """
    if any(is_same(path, other) for other in taken):
        raise UsageError(f"{path}: is an input or the output", remedy="name another file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}", remedy="make it first")
    if path.exists() and not replace:
        raise UsageError(f"{path}: exists already", remedy="pass --force to replace it")
