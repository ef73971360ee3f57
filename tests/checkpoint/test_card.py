"""The model card of a directory says what was done; what its author wrote stays."""

from __future__ import annotations

import json

import pytest
import yaml
from helpers.checkpoints import directory, succeed, table

NAME = "model.embed_tokens.weight"
AUTHORS = """---
language:
- en
license: apache-2.0
base_model:
- someone/older
tags: [small]
---

# My model

It says `hello` | and ---.
"""


def made(folder, text=None, **names):
    """A directory with a table, and a card if there is a text."""
    path = directory(folder, [{NAME: table(200, 16), "b": table(4, 4)}], model_type="llama", **names)
    if text is not None:
        (path / "README.md").write_bytes(text.encode())
    return path


def parts(path):
    """YAML block and body of a card, by a YAML parser."""
    text = (path / "README.md").read_bytes().decode()
    begin, block, body = text.split("---", 2)
    assert begin == ""
    return yaml.safe_load(block), body


def small(tmp_path, source, *words):
    succeed("factorize", source, *(words or ("--ratio", "0.5")), "-o", tmp_path / "small")
    return tmp_path / "small"


def test_a_card_is_made_where_there_was_none(tmp_path):
    """base_model is the directory's name; the table has the figures of the record."""
    out = small(
        tmp_path, made(tmp_path / "original"), "--ratio", "0.5", "--method", "int8", "--dtype", "float16"
    )
    block, body = parts(out)
    assert block == {"base_model": "original", "base_model_relation": "quantized"}
    (record,) = json.loads((out / "config.json").read_text())["quantization_config"]["tables"]
    row = next(line for line in body.splitlines() if NAME in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        f"`{NAME}`", "200 × 16 float32", "int8, 8 bits",
        f"12,800 → {round(12800 * (1 - record['ratio'])):,}", f"{record['ratio']:.1%}",
        f"{record['relative_error']:.4g}",
    ]  # fmt: skip
    assert "embcompress factorize original --ratio 0.5 --method int8 --dtype float16\n" in body
    assert "embcompress.register()" in body


def test_what_the_author_wrote_stays(tmp_path):
    """The YAML block keeps its entries in their order, the text comes before the section."""
    out = small(tmp_path, made(tmp_path / "original", AUTHORS))
    block, body = parts(out)
    assert block == yaml.safe_load(AUTHORS.split("---")[1])
    text = AUTHORS.split("---", 2)[2]
    assert body.startswith(text)
    assert body.count("embcompress: begin") == 1


@pytest.mark.parametrize(
    "last", ["", "base_model: x\n", "base_model:\n  - a/b\n  - c/d\n", 'base_model: "x"\nz: 1\n']
)
def test_base_model_of_a_download_cache_is_its_name_on_the_hub(last, tmp_path):
    """It replaces the card's base model, in whatever form that is given."""
    cache = tmp_path / "models--some-org--a.model-v2/snapshots/0123"
    cache.parent.mkdir(parents=True)
    out = small(tmp_path, made(cache, f"---\nlicense: mit\n{last}---\ntext\n"))
    block, body = parts(out)
    assert (block["base_model"], block["license"]) == ("some-org/a.model-v2", "mit")
    assert block["base_model_relation"] == "quantized"
    assert "text" in body


def test_line_ends_and_bytes_that_are_no_utf8_stay(tmp_path):
    """A card with other line ends keeps them, and the section uses them too."""
    source = made(tmp_path / "original")
    (source / "README.md").write_bytes(b"# caf\xe9\r\nline\r\n")
    text = (small(tmp_path, source) / "README.md").read_bytes()
    assert b"# caf\xe9\r\nline\r\n" in text
    assert text.count(b"\n") == text.count(b"\r\n")


@pytest.mark.parametrize(
    "text", ["---\nunfinished", "--- not yaml ---\n", "", "\n\n---\na: 1\n---\n", "----\n"]
)
def test_cards_without_a_yaml_block_get_one_before_them(text, tmp_path):
    """Whatever is there is kept as text."""
    block, body = parts(small(tmp_path, made(tmp_path / "original", text)))
    assert block["base_model"] == "original"
    assert text.strip("\n") in body


def test_expand_says_that_it_is_dense_again(tmp_path):
    """There is one section, and the base model keeps its name."""
    out = small(tmp_path, made(tmp_path / "original"))
    succeed("expand", out, "-o", tmp_path / "dense")
    block, body = parts(tmp_path / "dense")
    assert block["base_model"] == "original"
    assert body.count("embcompress: begin") == 1
    assert "made dense again" in body
    assert "register" not in body


def test_configuration_and_all_other_files_are_untouched(tmp_path):
    """They are, except for the record in config.json."""
    source = made(tmp_path / "original", AUTHORS, vocab_size=200)
    (source / "tokenizer.json").write_text('{"a": 1}')
    out = small(tmp_path, source)
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["command"] == "embcompress factorize original --ratio 0.5"
    assert config == json.loads((source / "config.json").read_text())
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_names_from_strangers_cannot_break_out_of_the_table(tmp_path):
    """Markdown and HTML in a tensor's name are removed."""
    name = "emb`|<!-- x -->.weight"
    source = directory(tmp_path / "original", [{name: table(200, 16)}], model_type="llama")
    _, body = parts(small(tmp_path, source, "--ratio", "0.5", "--key", name))
    row = next(line for line in body.splitlines() if "200 × 16" in line)
    assert row.count("|") == 7
    assert "<!--" not in row


def test_a_huge_readme_is_no_card(tmp_path):
    """It is copied unchanged."""
    text = "x" * (5 << 20)
    assert (small(tmp_path, made(tmp_path / "original", text)) / "README.md").read_text() == text


def test_weights_enter_the_command_by_name_alone(tmp_path):
    """The record has no path of this machine."""
    counts = tmp_path / "secret" / "counts.csv"
    counts.parent.mkdir()
    counts.write_text("id,count\n" + "".join(f"{i},{i}\n" for i in range(200)))
    out = small(tmp_path, made(tmp_path / "original"), "--rank", "3", "--weights", counts)
    body = (out / "README.md").read_text() + (out / "config.json").read_text()
    assert "--weights counts.csv" in body
    assert "secret" not in body
    assert "with rows weighted by" in body
