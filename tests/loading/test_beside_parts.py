"""Row 73 of BAD_INPUTS: a full table in the place of the guard, beside the parts of the compressed one."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from helpers.compressed_models import CASES, built
from safetensors.torch import load_file, save_file

import embcompress
from embcompress.errors import InputError


@pytest.mark.usefixtures("registered")
def test_row_73_a_full_table_in_the_place_of_the_guard(tmp_path):
    """Nothing says which of the two is meant, so all who read tables refuse it."""
    case = CASES["bert"]
    model = built(case, seed=1)
    model.save_pretrained(tmp_path / "model")
    small = embcompress.factorize(tmp_path / "model", rank=4).output
    file = small / "model.safetensors"
    held = load_file(file)
    (guard,) = (name for name, value in held.items() if tuple(value.shape) == (0,))
    save_file({**held, guard: torch.zeros(model.get_input_embeddings().weight.shape)}, file)

    says = rf"{guard}: holds a tensor of shape \[\d+, \d+\] under this name"
    fresh = built(case, seed=2)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(InputError, match=says) as caught:
        embcompress.load(fresh, small)
    assert caught.value.remedy
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(InputError, match=says):
        embcompress.expand(small)
    with pytest.raises(InputError, match=says):
        tf.BertForMaskedLM.from_pretrained(small)
    with pytest.raises(InputError, match=says):
        embcompress.verify(small)
