"""Models whose classes do more with their table than look up rows are refused before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers as tf
from field.small_configs import small_config
from helpers.refusals import refused

import embcompress
from embcompress.compression.lookups import OWN_LOOKUPS
from embcompress.errors import UsageError


@pytest.mark.parametrize(("kind", "type_"), [
    ("IBertModel", "ibert"), ("T5Gemma2Model", "t5gemma2_"), ("InklingForCausalLM", "inkling_text"),
    ("InklingForConditionalGeneration", "inkling_text"), ("IdeficsModel", "idefics"),
    ("Molmo2TextModel", "molmo2_text"),
])  # fmt: skip
def test_row_99_nothing_is_written_that_no_class_could_load(tmp_path, kind, type_):
    """The weight file by itself, which the message names, can be compressed."""
    kind = getattr(tf, kind)
    kind(small_config(kind)).save_pretrained(tmp_path / "model")
    with refused(UsageError, f"{type_} model.safetensors"):
        embcompress.factorize(tmp_path / "model", ratio=0.5, output=tmp_path / "small")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert type_ in embcompress.report(tmp_path / "model").tables[0].obstacle
    file = tmp_path / "model" / "model.safetensors"
    embcompress.factorize(file, ratio=0.5, all_tables=True, output=tmp_path / "small.safetensors")
    embcompress.expand(tmp_path / "small.safetensors", output=tmp_path / "dense.safetensors")


def test_a_configuration_of_odd_parts_is_read(tmp_path):
    """Only the types of parts are looked at, and not for ever."""
    kind = tf.BertModel
    kind(small_config(kind)).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    deep = {"model_type": "ibert"}
    for _ in range(50):
        deep = {"text_config": deep}
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": ["ibert"], "a": deep, "b": [deep], "ibert": None}))
    embcompress.factorize(tmp_path / "model", ratio=0.5, output=tmp_path / "small")


def test_the_list_has_every_such_class_of_transformers():
    """A class of a newer version that looks up rows in its own way joins the list or the exceptions."""
    known = {
        "ovis2": "a table of pictures, which is multiplied by probabilities",
    }
    head, rest = r"^class (\w+)\((?:nn\.)?Embedding\):(?:\n(?: .*)?)*?\n", r"((?: {8}.*\n|\n)*)"
    own = re.compile(head + r"    def forward\(.*\n" + rest, re.M)
    found = set()
    for file in Path(tf.__file__).parent.glob("models/*/modeling_*.py"):
        for name, body in own.findall(file.read_text()):
            scales = re.fullmatch(r" *return super\(\)\.forward\(input_ids\) \* self\.embed_scale.*\s*", body)
            if not scales and "position" not in name.lower():
                found.add(file.parent.name)
    listed = {kind.removesuffix("_text").removesuffix("_decoder") for kind in OWN_LOOKUPS}
    others = {"ibert", "molmo2"}  # whose classes are no subclasses of nn.Embedding
    assert found - known.keys() == listed - others
