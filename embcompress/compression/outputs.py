"""Where an output goes when the user names no place, and what its name may say."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.checkpoint.vectors.base import suffix_of
from embcompress.checkpoint.vectors.registry import VECTOR_FORMATS
from embcompress.errors import UsageError


def default_output(source: Path, label: str, suffix: str | None = None) -> Path:
    """A name beside the input: ``model.pt`` and ``svd-ratio-0.9`` give ``model-svd-ratio-0.9.pt``.

    Args:
        source: the input.
        label: what is added to its name.
        suffix: what the name of a file ends in, where that is not what the input's does.

    Raises:
        UsageError: the input lies in a download cache, where nothing should be added.
    """
    source = source.absolute() if source.name else source.resolve()
    if any(part.startswith("models--") for part in source.parts) and "snapshots" in source.parts:
        raise UsageError(
            f"{source}: lies in a download cache, where no output should stand", remedy="name it with -o"
        )
    if source.is_dir():
        return source.with_name(f"{source.name}-{label}")
    stem = Path(source.stem).stem if source.suffix.lower() == ".gz" else source.stem
    return source.with_name(f"{stem}-{label}{source.suffix if suffix is None else suffix}")


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
            remedy="give it another name with -o",
        )
