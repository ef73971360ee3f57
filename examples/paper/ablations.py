"""Arm 3: where S goes, what is retrained, and when the right factor is multiplied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench import CALR, CONSTANT, Bench, opened, save, training
from results import Case, Measurement, Step

import embcompress

NAME = "ablations"
RATIO = 0.98
_SPLITS = ("left", "even", "right")
_CALR_RATES = (1e-3, 1e-2)
TOKEN_BY_TOKEN = "networks:token_by_token"  # noqa: S105 - no password
"""The network of that ablation, as embcompress is told of it."""


def steps(case: Case, _earlier: Iterable[Measurement]) -> list[Step]:
    """What is measured; "S left" is the form that all others are changes of."""
    methods = [*(f"S {split}" for split in _SPLITS), "only factors", "folded"]
    if case.model == "dan":
        methods.append("token by token")
    found = [Step(NAME, method, RATIO) for method in methods]
    # The paper's own form: CALR, and S with the right factor.
    return found + [Step(NAME, f"S right, CALR from {rate:g}", RATIO, rate) for rate in _CALR_RATES]


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step: three epochs of Adam, at a constant rate unless the step is about CALR."""
    if step.method == "folded":
        return _folded(step, bench)
    if step.method == "token by token":
        source = token_by_token(bench.early, bench.folder / "token-by-token.safetensors")
        return bench.measure_compressed(step, CONSTANT, source=source, factory=TOKEN_BY_TOKEN)
    recipe = CALR if "CALR" in step.method else CONSTANT
    recipe = replace(recipe, only_factors=step.method == "only factors")
    split = next((split for split in _SPLITS if step.method.startswith(f"S {split}")), "left")
    return bench.measure_compressed(step, recipe, split_scale=split)


def _folded(step: Step, bench: Bench) -> Measurement:
    with bench.scratch() as folder:
        small, tuned = Path(folder, "small.safetensors"), Path(folder, "tuned.safetensors")
        table = embcompress.factorize(bench.early, ratio=step.ratio, output=small).tables[0]
        result = embcompress.finetune(
            folded(bench.early, small, Path(folder, "folded.safetensors")),
            bench.texts,
            output=tuned,
            recipe=bench.retraining(CONSTANT, step),
            session=bench.session,
        )
        left_bytes = table.bytes_after * table.shape[0] // sum(table.shape)
        return bench.row(
            step,
            tuned,
            rank=table.rank or 0,
            table_bytes=left_bytes,
            table_error=table.relative_error or 0.0,
            **training(result),
        )


def folded(dense: Path, small: Path, output: Path) -> Path:
    """Write a classifier whose first weight matrix has taken in the right factor.

    Both classifiers feed a token's vector, or the mean of a text's, to a linear map: W (R x) = (W R) x.
    The factor is gone, the table is V×k, and the network reads k numbers instead of d.

    Args:
        dense: the classifier before compression.
        small: the same with factors V×k and d×k in the place of its table.
        output: where to write.
    """
    (_, record), (state, _) = opened(dense), opened(small)
    left, right = state.pop("embedding.0.weight"), state.pop("embedding.1.weight")
    first = next(name for name in ("lstm.weight_ih_l0", "layers.1.weight") if name in state)
    record["architecture"]["dimension"] = left.shape[1]
    return save(output, {**state, first: state[first] @ right, "embedding.weight": left}, record)


def token_by_token(dan: Path, output: Path) -> Path:
    """Write a DAN as a classifier of ``networks.token_by_token``, with the same weights."""
    state, record = opened(dan)
    record["architecture"].update(name="module", factory=TOKEN_BY_TOKEN, hidden=[])
    return save(output, state, record)
