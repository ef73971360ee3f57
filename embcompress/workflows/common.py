"""What all workflows that write share: output names, hashes of the source, measured errors."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.dtypes import Floats
from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.checkpoint.progress import Progress
from embcompress.checkpoint.vectors.base import suffix_of
from embcompress.checkpoint.vectors.registry import VECTOR_FORMATS
from embcompress.errors import EmbcompressError, InputError, UsageError
from embcompress.linalg.residual import Residuals, residual
from embcompress.methods.known import Weights
from embcompress.rows import Rows, wide

_HASH_CHUNK = 1 << 20


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


def keep_freed_memory() -> None:
    """Let the arrays of one block reuse the memory of the block before.

    glibc maps large arrays anew each time, and the kernel zeroes them, until a mapping of their
    size has been freed once (mallopt(3), M_MMAP_THRESHOLD); 32 MB is the most it learns. That is
    a tenth of the time a large table takes. Other allocators are not affected.
    """
    np.empty(31 << 20, np.uint8)


@contextlib.contextmanager
def hashed(files: tuple[Path, ...]) -> Iterator[Future[Mapping[str, str]]]:
    """SHA-256 of each file by name, computed beside the work of the block.

    Leaving the block early stops the hashing, so that an error is not held up by it.
    """
    stop = threading.Event()

    def run() -> Mapping[str, str]:
        return {file.name: _sha256(file, stop) for file in files}

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(run)
        finally:
            stop.set()


def _sha256(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_HASH_CHUNK))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(chunk)) and not stop.is_set():
            digest.update(chunk[:count])
    return digest.hexdigest()


Stamps = tuple[tuple[int, int], ...]
"""Size and time of modification of each weight file."""


def stamps(source: Checkpoint) -> Stamps:
    """What tells whether the weight files were written to meanwhile."""
    return tuple((s.st_size, s.st_mtime_ns) for s in (f.stat() for f in source.weight_files))


def check_unchanged(source: Checkpoint, before: Stamps) -> None:
    """Refuse to publish what was made from weight files that were written to while they were read.

    Raises:
        InputError: their stamps are others than ``before``.
    """
    if stamps(source) != before:
        raise InputError(
            f"{source.path}: changed while it was read", remedy="run again when nothing writes to it"
        )


def measured_error(table: Rows, stand_in: Rows, progress: Progress, *, precise: bool = False) -> float:
    """Relative Frobenius error of ``stand_in`` against ``table``; see :func:`measured_errors`."""
    return measured_errors(table, stand_in, progress, precise=precise).plain.relative


Look = Callable[[int, Floats, Floats], None]
"""Called with the number of the first row of a block, its rows, and those that stand for them."""


def measured_errors(
    table: Rows,
    stand_in: Rows,
    progress: Progress,
    *,
    precise: bool = False,
    weights: Weights | None = None,
    look: Look | None = None,
) -> Residuals:
    """The distance of ``stand_in`` from ``table``, block by block, with all rows alike and weighted.

    Args:
        table: what was compressed.
        stand_in: what stands for it.
        progress: called as ``progress(stage, done, total)``.
        precise: compare in float64.
        weights: of each row (V), None for all alike.
        look: shown each block of both before they are compared.

    Raises:
        EmbcompressError: a value of the stand-in is not finite.
    """
    original = wide(table) if precise else table

    def pairs() -> Iterator[tuple[Floats, Floats]]:
        for start, stop in table.spans():
            rows, differences = original.read(start, stop), stand_in.read(start, stop)
            if look is not None:
                look(start, rows, differences)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                np.subtract(differences, rows, out=differences)
            yield rows, differences
            progress("verify", stop, table.shape[0])

    found = residual(pairs(), weights)
    if not np.isfinite(found.plain.relative):
        raise EmbcompressError(f"the result of a table {list(table.shape)} is not finite")
    return found
