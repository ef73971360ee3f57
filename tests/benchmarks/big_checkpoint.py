"""Makes the large checkpoint of ``bench_factorize.py`` and measures the error of its compressed forms.

    python big_checkpoint.py make FILE --rows 250002
    python big_checkpoint.py error FILE SMALL_FILE ...

``error`` uses nothing of embcompress: it reads both files with safetensors, a block of rows at a time, and
computes in float64.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
from safetensors import safe_open

TABLE = "embeddings.word_embeddings"
COLUMNS = 768
OTHERS = 24
# with 250,002 rows the table and the others together come to 1.96 GB
OTHER_ROWS_PER_TABLE_ROW = 16_168 / 250_002
BLOCK = 8192


def make(path: Path, rows: int) -> None:
    """Writes a safetensors file with a rows × 768 float32 table and 24 other matrices, block by block.

    Rows are normal, the columns scaled from 1 down to 0.1: a spectrum that falls slowly, as those of trained
    tables do, so that no method gets an easy low-rank matrix.
    """
    others = max(1, round(rows * OTHER_ROWS_PER_TABLE_ROW))
    shapes = {f"{TABLE}.weight": rows} | {f"encoder.layer.{i}.weight": others for i in range(OTHERS)}
    header, offset = {}, 0
    for name, count in shapes.items():
        end = offset + count * COLUMNS * 4
        header[name] = {"dtype": "F32", "shape": [count, COLUMNS], "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    rng = np.random.default_rng(0)
    scale = np.linspace(1, 0.1, COLUMNS, dtype=np.float32)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for count in shapes.values():
            for start in range(0, count, BLOCK):
                size = min(BLOCK, count - start)
                file.write((rng.standard_normal((size, COLUMNS), dtype=np.float32) * scale).tobytes())
    partial.rename(path)  # an interrupted run leaves no file that looks whole


def relative_errors(path: Path, small_paths: list[Path]) -> dict[str, float]:
    """Returns the relative Frobenius error of each small file, and "optimum": Eckart and Young's at its rank.

    The optimum comes from the eigenvalues of the float64 Gram matrix, which at these ranks carry more than
    ten digits of it.
    """
    smalls = [safe_open(small, framework="numpy") for small in small_paths]
    rights = [small.get_tensor(f"{TABLE}.1.weight").astype(np.float64) for small in smalls]  # d × r
    gram = np.zeros((COLUMNS, COLUMNS))
    lost = np.zeros(len(smalls))
    with safe_open(path, framework="numpy") as dense:
        table = dense.get_slice(f"{TABLE}.weight")
        rows = table.get_shape()[0]
        for start in range(0, rows, BLOCK):
            stop = min(start + BLOCK, rows)  # unlike numpy, safetensors does not clip a slice
            block = table[start:stop].astype(np.float64)
            gram += block.T @ block
            for i, (small, right) in enumerate(zip(smalls, rights, strict=True)):
                left = small.get_slice(f"{TABLE}.0.weight")[start:stop].astype(np.float64)
                lost[i] += np.square(block - left @ right.T).sum()
    ranks = {right.shape[1] for right in rights}
    if len(ranks) != 1:
        raise SystemExit(f"files of ranks {sorted(ranks)} cannot be compared: give files of one rank")
    total = np.trace(gram)
    ascending = np.linalg.eigvalsh(gram)
    errors = {"optimum": float(np.sqrt(ascending[: COLUMNS - ranks.pop()].sum() / total))}
    return errors | {
        str(small): float(np.sqrt(loss / total)) for small, loss in zip(small_paths, lost, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the checkpoint")
    making.add_argument("file", type=Path)
    making.add_argument("--rows", type=int, required=True)
    errors = commands.add_parser("error", help="print relative errors as one JSON object")
    errors.add_argument("file", type=Path)
    errors.add_argument("small", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.file, arguments.rows)
    else:
        print(json.dumps(relative_errors(arguments.file, arguments.small)))


if __name__ == "__main__":
    main()
