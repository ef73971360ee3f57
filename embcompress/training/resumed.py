"""Check the saved state of a run before it is used: it may come from anywhere.

Every check raises a ValueError with what was found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.optim import Optimizer

T = TypeVar("T")

_FREE = {"lr", "fused", "params"}
"""Settings of an optimizer that differ in the course of a run, or by device."""


def tensors_of(state: object) -> Iterator[Tensor]:
    """Every tensor in nested dicts and sequences."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from tensors_of(value)


def check_keys(found: object, names: Collection[object], where: str) -> Mapping[str, Any]:
    """Return a dict that must have exactly these keys."""
    if not isinstance(found, dict) or found.keys() != {*names}:
        raise ValueError(f"{where} has other entries than those of such a run")
    return found


def check_number(found: object, where: str) -> float:
    """Return an integer or float."""
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise ValueError(f"{where} is no number")
    return found


def check_count(found: object, least: float, most: float, where: str) -> int:
    """Return an integer in a range, both ends included."""
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f"{where} is no number from {least:,} to {most:,}")
    return found


def check_tensors(found: object, wanted: Mapping[str, Tensor], where: str) -> None:
    """Tensors must have the names, shapes and types of ``wanted``, and all their bytes."""
    for name, value in check_keys(found, wanted.keys(), where).items():
        _check_tensor(value, wanted[name], f"{where}: {name}")


def _check_tensor(found: object, wanted: Tensor, where: str) -> None:
    if (
        not isinstance(found, Tensor)
        or found.layout != torch.strided
        or (found.shape, found.dtype) != (wanted.shape, wanted.dtype)
        or found.nbytes > found.untyped_storage().nbytes()  # one number that claims to be many
    ):
        raise ValueError(f"{where} is no tensor of shape {[*wanted.shape]} in {wanted.dtype}")


def check_optimizer(found: object, optimizer: Optimizer, stepped: Optimizer) -> None:
    """The state of an optimizer must have the settings of ``optimizer``, and moments of the right shapes.

    Args:
        found: the state.
        optimizer: the optimizer that is to load it.
        stepped: another one of its kind, for one parameter of one number, after a step; tells which
            moments there are.
    """
    own, moments = optimizer.state_dict(), stepped.state_dict()["state"][0]
    state = check_keys(found, own.keys(), "optimizer")
    groups = state["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
        raise ValueError("optimizer: there are other groups of parameters")
    for one, other in zip(groups, own["param_groups"], strict=True):
        check_settings(one, other, _FREE, "optimizer")
        check_number(one["lr"], "optimizer: lr")
        if type(one.get("fused")) not in (bool, type(None)):
            raise ValueError("optimizer: fused is neither true nor false")
        if one["params"] != other["params"]:
            raise ValueError("optimizer: there are other parameters")
    parameters = dict(enumerate(value for group in optimizer.param_groups for value in group["params"]))
    if not isinstance(state["state"], dict) or not state["state"].keys() <= parameters.keys():
        raise ValueError("optimizer: there are other parameters")
    for number, values in state["state"].items():
        parameter = parameters[number]
        for name, value in check_keys(values, moments.keys(), "optimizer").items():
            wanted = moments[name]
            if isinstance(wanted, Tensor):
                shape = parameter.shape if wanted.dim() else wanted.shape
                dtype = parameter.dtype if wanted.dim() else wanted.dtype
                _check_tensor(value, torch.empty(shape, dtype=dtype, device="meta"), f"optimizer: {name}")
            elif type(value) is not type(wanted):
                raise ValueError(f"optimizer: {name} is no {type(wanted).__name__}")


def check_settings(
    found: object, wanted: Mapping[str, Any], free: Collection[str], where: str
) -> Mapping[str, Any]:
    """Return a dict that must have the keys of ``wanted``, and its values except for ``free``."""
    settings = check_keys(found, wanted.keys(), where)
    for name, value in settings.items():
        if name not in free and (type(value) is not type(wanted[name]) or value != wanted[name]):
            raise ValueError(f"{where}: {name} is not {wanted[name]!r}")
    return settings


def check_random(found: object) -> None:
    """None, or the state of torch's generator on the CPU."""
    if found is not None:
        if not isinstance(found, Tensor):
            raise ValueError("random is no state of a generator")
        torch.Generator().set_state(found)


def record_from(kind: type[T], found: object, where: str) -> T:
    """A dataclass of numbers, and of such dataclasses, from the dict that ``asdict`` makes of one."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in check_keys(found, hints.keys(), where).items():
        hint = hints[name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            values[name] = record_from(hint, value, f"{where}: {name}")
        elif isinstance(value, bool) or not isinstance(value, hint):
            raise ValueError(f"{where}: {name} is a {type(value).__name__}")
        else:
            values[name] = value
    return kind(**values)


def records_from(kind: type[T], found: object, most: int, where: str) -> list[T]:
    """At most so many dataclasses from a list; see :func:`record_from`."""
    if not isinstance(found, list) or len(found) > most:
        raise ValueError(f"{where} is no list of at most {most:,} entries")
    return [record_from(kind, each, where) for each in found]
