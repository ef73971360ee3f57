"""Native forms, in which other libraries store a factorized table: one file each, and their registry."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.errors import InputError
from embcompress.native.base import NativeForm
from embcompress.native.deberta import DeBERTa
from embcompress.native.opt import OPT
from embcompress.native.static import StaticModel

NATIVE_FORMS: dict[str, NativeForm] = {form.name: form for form in (DeBERTa(), OPT(), StaticModel())}
"""All forms by name; contract tests run over this registry."""


def native_named(name: str, where: object) -> NativeForm:
    """Return the form called ``name`` in the record of the file ``where``.

    Raises:
        InputError: this version does not have the form.
    """
    if name not in NATIVE_FORMS:
        raise InputError(f"{where}: stored in the form {name!r}", remedy="install a newer embcompress")
    return NATIVE_FORMS[name]


def native_form(checkpoint: Checkpoint) -> NativeForm | None:
    """Return the form for the architecture of a checkpoint, exact or not; None if there is none."""
    if checkpoint.holds_graph:
        return None
    return next((form for form in NATIVE_FORMS.values() if form.recognizes(checkpoint)), None)
