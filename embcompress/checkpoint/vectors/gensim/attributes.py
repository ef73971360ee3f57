"""Attributes of a saved object: in its pickle, or, if they are large arrays, in a .npy file beside it.

``SaveLoad`` in https://github.com/piskvorky/gensim (gensim/utils.py): the attributes that an object lists
under ``__numpys`` are in NAME.ATTRIBUTE.npy, those of its attribute ``wv`` in NAME.wv.ATTRIBUTE.npy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.pickles.nodes import Call, Global, Made
from embcompress.checkpoint.vectors.npy import NpyMatrix
from embcompress.dtypes import DTYPES, DType
from embcompress.errors import InputError, UsageError

_KINDS = {"f2": "F16", "f4": "F32", "f8": "F64", "i8": "I64", "i4": "I32"}


@dataclass(frozen=True)
class Array:
    """An array that is read by rows.

    Attributes:
        shape: its sizes.
        dtype: element type.
        rows: ``rows(start, stop)`` returns a part of it, floats as ``DType.decode`` returns them.
        close: closes its file.
    """

    shape: tuple[int, ...]
    dtype: DType
    rows: Callable[[int, int], NDArray[Any]]
    close: Callable[[], None]


class Attributes:
    """The attributes of a saved object.

    Args:
        made: the object in the pickle.
        path: the file, with the name of the attribute that holds the object, if it is one.
        where: name of the object, for messages.

    Raises:
        InputError: the object has no attributes.
    """

    def __init__(self, made: object, path: Path, where: str) -> None:
        state = made.state if isinstance(made, Made) else None
        if not isinstance(made, Made) or type(state) is not dict:
            raise InputError(f"{where}: holds no attributes", remedy="save it again with gensim")
        self.class_name = made.class_name
        self._state, self._path, self._where = state, path, where

    def get(self, name: str) -> Any:
        """An attribute in the pickle, None if there is none."""
        return self._state.get(name)

    def inner(self, name: str) -> Attributes:
        """The attributes of an object that is an attribute."""
        return Attributes(
            self.get(name), self._path.with_name(f"{self._path.name}.{name}"), f"{self._where}.{name}"
        )

    def texts(self, *names: str) -> list[str] | None:
        """The first of these attributes that is a list, None if none is.

        Raises:
            InputError: it holds something else than texts.
        """
        found = next((self.get(name) for name in names if type(self.get(name)) is list), None)
        for number, text in enumerate(found or ()):
            if not isinstance(text, str):
                raise InputError(
                    f"{self._where}: key {number:,} is a {type(text).__name__}, not a text",
                    remedy="give vectors whose keys are words",
                )
        return found

    def array(self, name: str) -> Array | None:
        """An array, None if there is none of this name.

        Raises:
            UsageError: its file is missing.
            InputError: it is broken.
        """
        listed = self.get("__numpys")
        if type(listed) is list and name in [text for text in listed if isinstance(text, str)]:
            file = self._path.with_name(f"{self._path.name}.{name}.npy")
            if not file.is_file():
                raise UsageError(
                    f"{self._where}: needs its array in {file.name} beside it", remedy="put it there"
                )
            matrix = NpyMatrix(file)
            return Array(matrix.shape, matrix.dtype, matrix.rows, matrix.close)
        node = self.get(name)
        return inline_array(node, f"{self._where}.{name}") if isinstance(node, Made) else None


def inline_array(node: Made, where: str) -> Array:
    """An array whose bytes are in the pickle.

    Raises:
        InputError: it is broken, or of another type than floats and integers of 32 and 64 bits.
    """
    if (
        node.class_name.endswith("multiarray._reconstruct")
        and type(node.state) is tuple
        and len(node.state) == 5
    ):
        _, shape, kind, is_fortran, data = node.state
    elif node.class_name.endswith("numeric._frombuffer") and len(node.args) == 4:
        data, kind, shape, order = node.args
        is_fortran = order == "F"
    else:
        raise InputError(f"{where}: is a {node.class_name[:100]}, not an array", remedy=_AGAIN)
    if isinstance(data, Call) and len(data.args) == 1:  # a bytearray
        data = data.args[0]
    dtype = _dtype(kind)
    fits = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
    if dtype is None or not fits or type(data) is not bytes or len(data) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{where}: its type, shape and bytes do not fit each other", remedy=_AGAIN)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    stored = DTYPES[_KINDS[dtype.str[1:]]]

    def rows(start: int, stop: int) -> NDArray[Any]:
        return stored.decode(np.array(array[start:stop], stored.storage))

    return Array(array.shape, stored, rows, lambda: None)


_AGAIN = "save it again with gensim"


def _dtype(node: object) -> np.dtype[Any] | None:
    """The element type that a node describes; None if it is not one that is read."""
    if not isinstance(node, Made) or node.function != Global("numpy", "dtype") or not node.args:
        return None
    order = node.state[1] if type(node.state) is tuple and len(node.state) > 1 else None
    return np.dtype(order + node.args[0]) if order in ("<", ">") and node.args[0] in _KINDS else None
