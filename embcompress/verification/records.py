"""Where the record of an output does not fit what the output holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.compression.digests import digest_of
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.methods import method_for
from embcompress.methods.decoding import check_stored
from embcompress.reports.verification import Difference
from embcompress.tables import Table
from embcompress.version import __version__


def record_differences(written: Checkpoint, described: Description) -> Iterator[Difference]:
    """A record that was changed, contradicts another copy of it, or is missing where loaders look for it."""
    places = written.descriptions
    for place, each in places.items():
        if each.intact is False:
            yield Difference(f"record in {place}", "does not fit its own SHA-256")
        elif each.intact is None and any(record.digests for record in each.tables):
            yield Difference(f"record in {place}", "has lost its own SHA-256")
        elif each != described:
            yield Difference(f"record in {place}", f"differs from the one in {next(iter(places))}")
    if written.needs_guard and described.swapped and written.config_name not in places:
        yield Difference(
            f"record in {written.config_name}",
            "is missing: other loaders would not notice the compression",
        )


def field_differences(described: Description, record: TableRecord) -> Iterator[Difference]:
    """A rank or seed that the method does not have; seeds are known of this version alone."""
    try:
        method = method_for(record.method, "its record")
    except InputError:
        return  # reported by ``part_differences``
    if record.rank is not None and not method.has_rank:
        yield Difference(record.name, f"rank {record.rank} by its record", f"none with {method.name}")
    if described.version == __version__ and record.seed != method.seed:
        seed = "none" if method.seed is None else str(method.seed)
        yield Difference(record.name, f"seed {record.seed} by its record", f"{seed} with {method.name}")


def part_differences(written: Checkpoint, record: TableRecord) -> Iterator[Difference]:
    """Parts that are missing, have another shape or type, or other bytes than those written."""
    found = [*_byte_differences(written, record)]
    try:
        check_stored(written, record)
    except InputError as error:
        if not found and record.digests and written.tensors.keys() >= {*record.part_names}:
            raise  # it is what was written, and no table: refused as everywhere else
        where = f"{written.path}: {record.name}: "
        found.insert(0, Difference(record.name, error.message.removeprefix(where)))
    yield from found


def _byte_differences(written: Checkpoint, record: TableRecord) -> Iterator[Difference]:
    present = [name for name in record.part_names if name in written.tensors]
    if len(present) == len(record.part_names):
        taken = sum(written.tensors[name].nbytes for name in present)
        ratio = 1 - taken / DTYPES[record.dtype].nbytes(record.shape[0] * record.shape[1])
        if abs(ratio - record.ratio) > 1e-12:
            yield Difference(record.name, f"ratio {ratio:.12g}", f"{record.ratio:.12g} by its record")
    if len(record.digests) not in (0, len(record.parts)):
        yield Difference(record.name, f"{len(record.digests)} digests of {len(record.parts)} parts")
    for name, digest in zip(record.part_names, record.digests, strict=False):
        if name in present and (found := digest_of(written, name)) != digest:
            yield Difference(name, f"SHA-256 {found}", digest)


def table_differences(record: TableRecord, table: Table) -> Iterator[Difference]:
    """A record that does not fit the dense table of the original."""
    if record.name != table.name:
        yield Difference(record.name, "is another name of the table", table.name)
    if DTYPES[record.dtype] != table.rows.dtype:
        yield Difference(record.name, f"{record.dtype} by its record", table.rows.dtype.name)
    for what, stated, there in (
        ("ties", record.ties, table.ties),
        ("copies among the ties", record.copies, table.copies),
    ):
        if {*stated} != {*there}:
            yield Difference(record.name, f"{what}: {_list(stated)} by its record", _list(there))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def source_differences(described: Description, digests: Mapping[str, str]) -> list[Difference]:
    """Files that the output was made from and that are not among those given, whatever their names are now.

    Args:
        described: the record of the output.
        digests: SHA-256 of each file of the original, by name.
    """
    return [
        Difference(f"source {name}", f"SHA-256 {digests.get(name, 'of no file of that name')}", digest)
        for name, digest in described.source.items()
        if digest != digests.get(name) and digest not in digests.values()
    ]
