"""One small random model of a class of transformers, through factorize, expand, from_pretrained and load.

What the loaded models should compute comes from transformers alone: the original model, with the numbers of
the expanded file copied over the parameters that held those of the original file.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers as tf
from field.small_configs import FIRST_WORD, V, small_config
from torch import Tensor, nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import UsageError

STEPS = ("factorize", "expand", "from_pretrained", "load")
LARGEST = 30_000_000
"""Most parameters of a model that is built."""
METHODS: dict[str, dict[str, Any]] = {"svd": {"ratio": 0.5}, "int8": {"ratio": 0.7}, "pq": {"ratio": 0.9}}


class ExcludedError(Exception):
    """The class cannot be tried, whatever this package does."""


@dataclass
class Tried:
    """What came of a class with one method.

    Attributes:
        name: the class.
        method: how its table was compressed.
        steps: ``yes``, ``refused`` or ``FAULT`` by step, as far as it came.
        reason: what was refused or wrong.
        excluded: why the class was not tried.
        compared: ``outputs``, or ``weights`` where the model does not run, or not twice alike.
    """

    name: str
    method: str
    steps: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    excluded: str = ""
    compared: str = ""


def tried(name: str, method: str, folder: Path) -> Tried:
    """Try a class of transformers with a method; everything is written into ``folder``, which is empty."""
    result = Tried(name, method)
    try:
        original = _saved(name, folder / "original")
    except ExcludedError as error:
        result.excluded = str(error)
        return result
    small, dense = folder / "small", folder / "dense"
    with _step(result, "factorize"):
        _factorize(folder / "original", method, small)
    if result.steps["factorize"] != "yes":
        return result
    with _step(result, "expand"):
        embcompress.expand(small, output=dense)
        _check_expanded(folder / "original", small, dense)
    if result.steps["expand"] != "yes":
        return result
    kind = type(original)
    with _step(result, "expand"):
        expected = _with_dense_table(original, folder / "original", dense)
    if result.steps["expand"] != "yes":
        return result
    run, result.compared = _runner(original)
    for step in ("from_pretrained", "load"):
        with _step(result, step):
            if step == "load":
                torch.manual_seed(1)
                loaded = embcompress.load(kind(kind.config_class.from_pretrained(small)), small)
            else:
                loaded = kind.from_pretrained(small)
            _check_same(loaded.eval(), expected, original, run)
    return result


@contextmanager
def _step(result: Tried, name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UsageError as error:
        result.steps[name], text = "refused", str(error)
    except Exception as error:
        result.steps[name], text = "FAULT", f"{type(error).__name__}: {error}"
    else:
        result.steps[name] = "yes"
        return
    result.reason += f"{'; ' if result.reason else ''}{name}: {' '.join(text.split())}"


# ---- the model


def _saved(name: str, folder: Path) -> Any:
    """Build and save a model; return what transformers loads from there.

    Raises:
        ExcludedError: that is not possible, or there is no table of tokens.
    """
    try:
        kind = getattr(tf, name)
        config = small_config(kind)
        with torch.device("meta"):
            outline = kind(config)
    except Exception as error:
        raise ExcludedError(f"cannot be built small: {_line(error)}") from error
    count = sum(p.numel() for p in outline.parameters())
    if count > LARGEST:
        raise ExcludedError(f"still has {count:,} parameters")
    table = table_of(outline)
    torch.manual_seed(0)
    try:
        model = kind(config).eval()
        _spread(model.get_submodule(table).weight)
        model.save_pretrained(folder)
        original = kind.from_pretrained(folder).eval()
    except Exception as error:
        raise ExcludedError(f"transformers does not save and load it: {_line(error)}") from error
    if changed := _differing(model, original):
        raise ExcludedError(f"transformers does not load what it saved: {changed}")
    return original


def lookups(model: nn.Module) -> dict[str, Any]:
    """The modules that look up rows, by name."""
    return {name: m for name, m in model.named_modules() if _is_lookup(m)}


def _is_lookup(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Embedding") and isinstance(weight, Tensor) and weight.dim() == 2


def table_of(model: nn.Module) -> str:
    """Name of the module that holds the table of tokens.

    Raises:
        ExcludedError: there is none.
    """
    found = lookups(model)
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # in several models that have a part for texts
        table = next((m for m in found.values() if m.weight.shape[0] == V), None)
    name = next((name for name, m in found.items() if m is table), None)
    if name is None:
        raise ExcludedError("reads no tokens")
    return name


@torch.no_grad()
def _spread(table: Tensor) -> None:
    """Give a table columns of different size, as real ones have."""
    if table.isnan().any() or table.std() == 0:
        nn.init.normal_(table)
    table *= torch.logspace(0, -1, table.shape[1])


def _differing(a: nn.Module, b: nn.Module) -> str:
    """Names of parameters that differ; those which are no floats, NaN or not initialized count as well."""
    other = b.state_dict()
    return ", ".join([n for n, v in a.state_dict().items() if not torch.equal(v, other[n].to(v.dtype))][:3])


# ---- compressing


def _factorize(original: Path, method: str, small: Path) -> None:
    """Factorize one table or, where there are several alike, all of them."""
    try:
        embcompress.factorize(original, method=method, output=small, **METHODS[method])
    except UsageError as error:
        if "equally likely" not in str(error):
            raise
        embcompress.factorize(original, method=method, output=small, all_tables=True, **METHODS[method])


def _tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(file)
    return found


def _check_expanded(original: Path, small: Path, dense: Path) -> None:
    """The expanded tables are as near to the original ones as reported, all else is as it was."""
    before, after = _tensors(original), _tensors(dense)
    assert before.keys() == after.keys(), f"names differ: {sorted(before.keys() ^ after.keys())[:3]}"
    with open_checkpoint(small) as checkpoint:
        assert checkpoint.description is not None
        errors = {
            name: table.relative_error
            for table in checkpoint.description.tables
            for name in (table.name, *table.ties)
        }
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed, "nothing was compressed"
    for name in changed:
        assert name in errors, f"{name} changed"
        a, b = before[name].double(), after[name].double()
        error = float((a - b).norm() / a.norm())
        assert math.isclose(error, errors[name], rel_tol=1e-3, abs_tol=1e-6), (
            f"{name}: error {error:.4g}, reported {errors[name]:.4g}"
        )


# ---- what is expected


def _with_dense_table(model: Any, original: Path, dense: Path) -> Any:
    """A model of transformers, with the numbers of the expanded file in the place of the original ones."""
    before, after = _tensors(original), _tensors(dense)
    changed = {name: value for name, value in before.items() if not torch.equal(value, after[name])}
    found = copy.deepcopy(model)
    places = 0
    with torch.no_grad():
        for value in [*found.parameters()]:
            for name, old in changed.items():
                if value.shape == old.shape and torch.equal(value.to(old.dtype), old):
                    value.copy_(after[name])
                    places += 1
                    break
    assert places, "the table is nowhere in the model"
    with contextlib.suppress(NotImplementedError):
        table, before = (m.get_input_embeddings().weight for m in (found, model))
        largest = max(value.numel() for value in changed.values())
        assert table.numel() < largest or not torch.equal(table, before), "the model's own table is dense"
    return found


def _inputs(model: Any) -> Iterator[dict[str, Tensor]]:
    """What the model may read: tokens alone, or with a sound or a picture."""
    generator = torch.Generator().manual_seed(0)
    config, names = model.config, inspect.signature(model.forward).parameters
    rows = model.get_submodule(table_of(model)).weight.shape[0]
    ids = torch.randint(min(FIRST_WORD, rows // 2), rows, (1, 24), generator=generator)
    if type(model).__name__.endswith("MultipleChoice"):
        ids = ids.view(1, 2, 12)
    if config.is_encoder_decoder and isinstance(getattr(config, "eos_token_id", None), int):
        ids[..., -1] = config.eos_token_id
    given = {
        "input_ids": ids,
        "decoder_input_ids": ids.flip(1),
        "bbox": torch.zeros(1, 24, 4, dtype=torch.int64),
    }
    given = {name: value for name, value in given.items() if name in names}
    if "use_cache" in names:
        given["use_cache"] = False
    yield given
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    size, channels = getattr(vision, "image_size", 16), getattr(vision, "num_channels", 3)
    mels, length = getattr(config, "num_mel_bins", 16), 2 * getattr(config, "max_source_positions", 64)
    signals = {"input_values": (1, 4000), "input_features": (1, mels, length)}
    if isinstance(size, int):
        signals["pixel_values"] = (1, channels, size, size)
    for name, shape in signals.items():
        if name in names:
            yield {**given, name: torch.randn(shape, generator=generator)}


@torch.no_grad()
def _outputs(model: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(**inputs)
    values = found.values() if hasattr(found, "values") else found
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel()]


def _runner(model: Any) -> tuple[Any, str]:
    """What computes the outputs of a model, None where it does not run twice alike; and a word on it."""
    reason = ""
    for inputs in _inputs(model):
        try:
            first, second = _outputs(model, inputs), _outputs(model, inputs)
        except Exception as error:
            reason = reason or f"does not run: {_line(error)[:80]}"
            continue
        if first and all(map(torch.equal, first, second)):
            return (lambda other, inputs=inputs: _outputs(other, inputs)), "outputs"
        reason = "does not run twice alike"
    return None, f"weights, as it {reason}"


@torch.no_grad()
def _check_same(model: Any, expected: Any, original: Any, run: Any) -> None:
    """The model has the weights, rows and outputs of the one with the dense table."""
    state, before = model.state_dict(), original.state_dict()
    for name, value in expected.state_dict().items():
        if name in state and torch.equal(value, before[name]):
            assert torch.equal(state[name], value), f"{name} has other values"
    rows = {
        name: m
        for name, m in lookups(expected).items()
        if not torch.equal(m.weight, before[f"{name}.weight"])
    }
    for name, module in rows.items():
        ids = torch.arange(module.weight.shape[0])
        each = [_first(m.get_submodule(name)(ids)) for m in (model, expected, original)]
        if run and each[0].shape[1] < each[1].shape[1]:  # the class itself has a form for factors
            continue
        _check_near(*each, name)
    if run:
        for each in zip(run(model), run(expected), run(original), strict=True):
            _check_near(*each, "outputs")


def _first(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _check_near(found: Tensor, expected: Tensor, original: Tensor, what: str) -> None:
    """They differ by roundoff, or by a small part of what compressing changed."""
    assert found.shape == expected.shape, f"{what} of shape {[*found.shape]}, not {[*expected.shape]}"
    off = float((found - expected).abs().max())
    roundoff = 1e-5 * float(expected.abs().max())
    effect = float((original - expected).abs().max()) if original.shape == expected.shape else 0
    assert off <= roundoff + 1e-3 * effect, f"{what} are off by {off:.2g}, compressing changed {effect:.2g}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
