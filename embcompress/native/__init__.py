"""Forms in which libraries hold a factorized table themselves: one file each, and the registry."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.errors import InputError
from embcompress.native.base import NativeForm
from embcompress.native.deberta import DeBERTa
from embcompress.native.opt import OPT
from embcompress.native.static import StaticModel

NATIVE_FORMS: dict[str, NativeForm] = {form.name: form for form in (DeBERTa(), OPT(), StaticModel())}
"""Every form by name; contract tests run over it."""


def native_named(name: str, where: object) -> NativeForm:
    """The form that the record in ``where`` names.

    Raises:
        InputError: this version does not have it.
    """
    if name not in NATIVE_FORMS:
        raise InputError(f"{where}: stored in the form {name!r}", remedy="install a newer embcompress")
    return NATIVE_FORMS[name]


def native_form(checkpoint: Checkpoint) -> NativeForm | None:
    """The form of the architecture of a checkpoint, exact or not; None where it has none."""
    return next((form for form in NATIVE_FORMS.values() if form.recognizes(checkpoint)), None)
