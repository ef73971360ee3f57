"""fastText's own quantization in the bytes of the arm "small", on the same texts.

    pip install fasttext-wheel
    python examples/paper/fasttext_quantized.py --data DIR [--seeds 5]

Joulin et al. 2016, "FastText.zip: Compressing text classification models" (arXiv:1612.03651): the features of
least norm are dropped, the others are product-quantized and the model is retrained. A row has a byte for two
numbers and one for its norm, and a codebook has 256 entries, which take 307 kB at 300 columns: more than most
of these tables. So fastText's have 10 columns and start from random numbers, a row for each word and pair of
words. The rate and the epochs did best on dev of TREC-6 and SNIPS (seed 0; of 0.5, 0.2, 0.1 and 25, 50). The
seed shuffles the texts too, since fastText 0.9.2 ignores it otherwise.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import tables
from bench import Rows, parted, words
from results import SETS, Quantized, ResultFile
from small import RATIOS

NAME = "fasttext"
COLUMNS, OURS = 10, 300
"""Of fastText's tables and of those in the arm "small"."""
_TRAINING = {"lr": 0.1, "epoch": 25, "thread": 1, "verbose": 0}
_FEATURES = {"dim": COLUMNS, "wordNgrams": 2, "bucket": 100_000, "minn": 0, "maxn": 0}
_LABEL = "__label__"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of sst2/, trec6/ and snips/")
    parser.add_argument("--seeds", type=int, default=5, help="0 to this number, excluded")
    parser.add_argument("--out", type=Path, default=tables.RESULTS, help="folder of the CSV files")
    options = parser.parse_args()
    file = ResultFile(options.out / f"{NAME}.csv", Quantized)
    measured = {(row.set, row.seed) for row in file.read() if row.ratio == RATIOS[-1]}
    for seed in range(options.seeds):
        for name in SETS:
            if (name, seed) not in measured:
                for row in measure(options.data, name, seed):
                    file.append(row)
                    print(row, flush=True)
    tables.render(options.out)


def measure(data: Path, name: str, seed: int) -> list[Quantized]:
    """The rows of a set: the dense model, then one for each ratio."""
    import fasttext

    parts = parted(data / name, seed)
    random.Random(seed).shuffle(parts["train.csv"])  # noqa: S311
    dense = 4 * OURS * (2 + len({word for row in parts["train.csv"] for word in words(row["text"])}))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        texts, saved = Path(folder, "train.txt"), Path(folder, "model.bin")
        texts.write_text(
            "\n".join(f"{_LABEL}{row['label']} {_text(row)}" for row in parts["train.csv"]) + "\n"
        )
        for ratio in (0.0, *RATIOS):
            model = fasttext.train_supervised(str(texts), **_FEATURES, **_TRAINING, seed=seed)
            kept = model.get_input_matrix().shape[0]
            nbytes = 4 * kept * COLUMNS
            if ratio:
                books = 4 * 256 * (COLUMNS + 1)
                kept = int(((1 - ratio) * dense - books) / (COLUMNS // 2 + 1))
                nbytes = books + kept * (COLUMNS // 2 + 1)
                model.quantize(str(texts), cutoff=kept, retrain=True, qnorm=True, **_TRAINING)
            model.save_model(str(saved))
            dev, test = (accuracy(model, parts[part]) for part in ("dev.csv", "test.csv"))
            found.append(Quantized(name, seed, ratio, kept, nbytes, saved.stat().st_size, dev, test))
    return found


def accuracy(model: Any, rows: Rows) -> float:
    """Share of the texts whose label has the highest score."""
    # The method of the package's own class does not work with NumPy 2.
    best = [model.f.predict(_text(row) + "\n", 1, 0.0, "strict")[0][1] for row in rows]
    return sum(label == _LABEL + row["label"] for label, row in zip(best, rows, strict=True)) / len(rows)


def _text(row: dict[str, str]) -> str:
    return " ".join(words(row["text"]))


if __name__ == "__main__":
    main()
