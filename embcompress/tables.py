"""Find the embedding tables of a checkpoint, and the other names of each."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description, stem
from embcompress.checkpoint.rows import rows_of
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.errors import UsageError
from embcompress.rows import Rows

CLEAR_WINNER = 4
"""How many times larger than the next one a table must be to be chosen without ``--key``."""

WIDEST = 8192
"""Most columns of a table that has fewer rows than columns. A columns × columns matrix is computed for each
table: without a limit, a file of a few megabytes with a few very long rows would exhaust memory."""

_TOKEN_LEAF = re.compile(
    r"embed_tokens|(word|tok|token)_(emb|embed|embeddings?)|wte|shared|embed_in|vocab_embedding"
)
"""Last parts of names whose rows are certainly tokens, as in Llama and T5, BERT, CLIP, Llama's original code
and many more, GPT-2, T5, GPT-NeoX, Megatron."""
_GENERIC_LEAF = re.compile(r"emb|embed|embeddings?|\d+")
"""Last parts of names that do not say what is embedded; the part before may."""
_EMBEDDING_WORD = re.compile(r"embd|emb(ed)?s?|embeddings?|embedders?|lookup|luts?|word2vec|glove|vectors?")
_OTHER_WORD = re.compile(
    r"pos|position(s|al)?|wpe|types?|segments?|seg|relative|rel|rotary|rope|distance|row|col|column|level"
    r"|time|timesteps?|freqs?|patch|patches|image|visual|codebook|query|queries|prompt|langs?|class|classes"
    r"|labels?|tasks?|projs?|project|projections?|projector|mapping|linear|dense|fc|conv|mlp|ffn|lstm|gru"
    r"|rnn|attn|attention|norm|layernorm|ln|bias|adapter|lora"
)
"""Words for rows that are not tokens, and for layers that are not tables."""
_FEATURES = re.compile(
    r"emb(ed(ding)?)?s?_?(dict|bags?|tables?|collection|layers|list)|(feature|field|sparse|cat)_emb(ed(ding)?)?s"
)
"""Owners of one table for each feature of a recommender, whatever the feature is called."""
_LAYER_WORD = re.compile(
    r"projs?|project|projections?|projector|linears?|dense|fc|conv|convs|mlp|dnn|ffn|feed|forward|experts?|gate|router|lstm"
    r"|gru|rnn|ih|hh|attn|attention|norm|layernorm|ln|bias|adapter|lora|mul|gemm|classifier|score"
)
"""Words for layers that multiply."""
_ROW_WORD = re.compile(r"pos|position(s|al)?|types?|segments?|seg|relative|rel|distance|rotary|rope")
_HEAD_WORD = re.compile(r"heads?|pred|predictions|projector")
_HEAD_LEAF = re.compile(r"embed_out|decoder|output|output_projection|generator|proj_out|lm_loss")
_WORD = re.compile(
    r"(?i:word2vec)|[A-Z]+(?![a-z])"
    r"|[A-Z]?[a-z]+?(?=emb(?:ed|edding|edder)?s?(?![a-z]))"  # "wordemb", "posembedding"
    r"|[A-Z]?[a-z]+"
)
_OTHER_IDS = re.compile(r"pos|position(s|al)?|types?|segments?|seg|langs?|time|timesteps?")
"""Words in the names of inputs whose ids are not tokens."""
_HAS_HEAD = re.compile(
    r"(ForMaskedLM|ForCausalLM|LMHeadModel|ForConditionalGeneration|MTModel|(?<!Electra)ForPreTraining)$"
)
"""Architectures of transformers that end in a head over the vocabulary. ELECTRA's pretraining head does not:
it detects replaced tokens."""


@dataclass(frozen=True)
class Table:
    """An embedding table: V rows (tokens) by d columns.

    Attributes:
        name: the one of its names that looks most like a table's.
        rows: its contents.
        ties: its other names.
        copies: the names in ``ties`` under which the table is stored again.
        nonfinite: how many numbers are NaN or infinite, if ``rows`` has zeros in their place.
    """

    name: str
    rows: Rows
    ties: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    nonfinite: int = 0


def locate(checkpoint: Checkpoint, keys: Sequence[str] = (), *, every: bool = False) -> tuple[Table, ...]:
    """Find the tables to work on.

    Args:
        checkpoint: where to look.
        keys: names of tables that the user chose; if there are any, no others are considered.
        every: return all token tables instead of the one clear winner.

    Raises:
        UsageError: the checkpoint is compressed already, holds no table or no clear winner, or a key
            names no tensor.
        InputError: the element type of the table cannot be compressed.
    """
    if checkpoint.description is not None and checkpoint.description.tables:
        raise _already_compressed(checkpoint.path, checkpoint.description)
    names = _named(checkpoint, keys) if keys else _found(checkpoint, every=every)
    tables: list[Table] = []
    taken: set[str] = set()
    ties = _Ties(checkpoint)
    for name in names:
        if name not in taken:
            tables.append(ties.table(name))
            taken |= {name, *tables[-1].ties}
    if not keys and not every:
        _check_winner(tables)
        tables = tables[:1]
    return tuple(tables)


def count_heads(checkpoint: Checkpoint, table: Table) -> int:
    """How many output heads multiply by ``table``, from its stored ties and from config.json."""
    stored = sum(_kind_by_name(tie) not in (1, 2) for tie in table.ties)
    architectures = checkpoint.config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    tied = bool(_config_value(checkpoint, "tie_word_embeddings")) and _HAS_HEAD.search(first) is not None
    return max(stored, int(tied))


def differing_head(checkpoint: Checkpoint, table: Table) -> str | None:
    """Name of a stored head whose values differ from ``table`` although config.json says they are tied."""
    if not _config_value(checkpoint, "tie_word_embeddings"):
        return None
    heads = (n for n, i in checkpoint.tensors.items() if is_head(n) and i.shape == table.rows.shape)
    return next((name for name in heads if name not in table.ties), None)


def is_table(checkpoint: Checkpoint, name: str) -> bool:
    """Whether ``locate`` takes this tensor if it is asked for all tables and finds one of tokens."""
    info = checkpoint.tensors[name]
    return len(info.shape) == 2 and 0 not in info.shape and 1 <= _kind(name, info, checkpoint) <= 3


def is_layer(name: str) -> bool:
    """Whether a tensor is by its name the weight of a layer that multiplies by it, such as an output head."""
    owner, leaf = _last_parts(name)
    if _HEAD_LEAF.fullmatch(leaf):
        return True
    if _TOKEN_LEAF.fullmatch(leaf) or _TOKEN_LEAF.fullmatch(owner):
        return False
    if _any_word(name, _EMBEDDING_WORD) or _any_word(name, _ROW_WORD):
        return False
    words = (word.lower() for word in _WORD.findall(stem(name)))
    return is_head(name) or any(_LAYER_WORD.fullmatch(word) for word in words)


def is_head(name: str) -> bool:
    """Whether a tensor is by its name the weight of an output head."""
    return _any_word(name, _HEAD_WORD) or _HEAD_LEAF.fullmatch(_last_parts(name)[1]) is not None


def _named(checkpoint: Checkpoint, keys: Sequence[str]) -> list[str]:
    for key in keys:
        if key not in checkpoint.tensors:
            close = difflib.get_close_matches(key, [*checkpoint.tensors], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "run 'embcompress report' to see names"
            raise UsageError(f"--key {key}: no such tensor in {checkpoint.path}", remedy=hint)
    likeliest = _likeliest_names(checkpoint)
    return [likeliest[checkpoint.aliases.get(key, key)] for key in keys]


def _found(checkpoint: Checkpoint, *, every: bool) -> list[str]:
    """Names of the likely tables, largest first.

    Only those of the most certain kind there is, or with ``every`` those of the first three kinds.
    """
    likeliest = {name: checkpoint.tensors[name] for name in _likeliest_names(checkpoint).values()}
    candidates = {n: info for n, info in likeliest.items() if len(info.shape) == 2 and 0 not in info.shape}
    kinds = {name: _kind(name, info, checkpoint) for name, info in candidates.items()}
    ranked = sorted((n for n in candidates if kinds[n]), key=lambda n: (kinds[n], -candidates[n].nbytes))
    if ranked:
        last = max(kinds[ranked[0]], 3 if every else 0)
        ranked = [n for n in ranked if kinds[n] <= last]
    if ranked:
        return ranked
    tallest = sorted(candidates, key=lambda n: -candidates[n].shape[0])[:3]
    listed = ", ".join(f"{n} {list(candidates[n].shape)}" for n in tallest)
    raise UsageError(
        f"{checkpoint.path}: no tensor is named like an embedding table",
        remedy=f"name it with --key; the tallest matrices are {listed}" if listed else "it holds no matrix",
    )


def _likeliest_names(checkpoint: Checkpoint) -> dict[str, str]:
    """First name of each tensor -> the one of its names that looks most like a table's.

    The order of names means nothing: a tied head may come before its table.
    """
    names: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        names.setdefault(checkpoint.aliases.get(name, name), []).append(name)
    order = {name: _kind(name, info, checkpoint) or 5 for name, info in checkpoint.tensors.items()}
    return {first: min(group, key=order.__getitem__) for first, group in names.items()}


def _kind(name: str, info: TensorInfo, checkpoint: Checkpoint) -> int:
    """How certain a table is.

    Returns:
        1 for a token table by its name, 2 for some embedding by its name or because the model looks rows of
        it up by ids that it is given, 3 for one by vocab_size, 4 for rows that are looked up by other ids,
        such as positions; 0 is no table.
    """
    kind = _kind_by_name(name)
    ids = checkpoint.lookups.get(name)
    if ids is not None and (kind is None or (kind == 0 and is_head(name))):
        return 2 if ids and not any(_OTHER_IDS.fullmatch(word.lower()) for word in _WORD.findall(ids)) else 4
    by_vocab = 3 if info.shape[:1] == (_config_value(checkpoint, "vocab_size"),) else 0
    return by_vocab if kind is None else kind


def _kind_by_name(name: str) -> int | None:
    """The kind by the name alone, None if the name does not show it."""
    owner, leaf = _last_parts(name)
    # "token_emb.emb" is a token table; "shared.0" is more likely a layer that several tasks share.
    decisive = owner if _GENERIC_LEAF.fullmatch(leaf) and owner != "shared" else leaf
    if _TOKEN_LEAF.fullmatch(decisive):
        return 1
    if _FEATURES.fullmatch(owner):
        return 2
    if is_head(name) or _any_word(name, _OTHER_WORD):
        return 0
    # An nn.Embedding named by its owner: "embedding.weight", "src_embed.weight", "encoder.emb.0.weight".
    return 2 if _any_word(name, _EMBEDDING_WORD) else None


def _last_parts(name: str) -> tuple[str, str]:
    """Owner and leaf of a parameter: ``encoder``, ``embed_tokens`` for ``encoder.embed_tokens.weight``."""
    owner, _, leaf = stem(name).lower().rpartition(".")
    return owner.rpartition(".")[2], leaf


def _any_word(name: str, wanted: re.Pattern[str]) -> bool:
    """Whether a word of owner or leaf (split at ``_``, digits and capitals) matches ``wanted``."""
    words = (word for part in stem(name).split(".")[-2:] for word in _WORD.findall(part))
    return any(wanted.fullmatch(word.lower()) for word in words)


def _check_winner(tables: Sequence[Table]) -> None:
    if len(tables) > 1 and tables[0].rows.nbytes < CLEAR_WINNER * tables[1].rows.nbytes:
        listed = ", ".join(f"{t.name} {list(t.rows.shape)}" for t in tables[:8])
        raise UsageError(
            f"{len(tables)} tables are equally likely: {listed}",
            remedy="choose with --key NAME (it repeats), or compress all with --all",
        )


class _Ties:
    """Finds the other names of tables, by shared memory and by equal values.

    First blocks are read once, and compared by digest: a file can hold thousands of tables of one shape.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names: dict[str, list[str]] = {}
        self._alike: dict[object, list[str]] = {}
        self._beginning: dict[object, dict[bytes, list[str]]] = {}
        for name, info in checkpoint.tensors.items():
            first = checkpoint.aliases.get(name, name)
            self._names.setdefault(first, []).append(name)
            if first == name and info.is_matrix:
                self._alike.setdefault((info.shape, info.dtype), []).append(name)

    def table(self, name: str) -> Table:
        """The table with all its other names."""
        checkpoint = self._checkpoint
        rows = rows_of(checkpoint, name)
        if rows.shape[1] > max(rows.shape[0], WIDEST):
            raise UsageError(
                f"{checkpoint.path}: {name} has {rows.shape[0]:,} rows of {rows.shape[1]:,} numbers, "
                f"limit {WIDEST:,} where there are fewer rows",
                remedy="name an embedding table with --key",
            )
        first = checkpoint.aliases.get(name, name)
        copies = [other for other in self._beginning_like(first, rows) if other != first]
        if copies and _is_constant(rows):
            copies = []
        copies = [other for other in copies if _is_same_table(rows, rows_of(checkpoint, other))]
        ties = (n for same in (first, *copies) for n in self._names[same] if n != name)
        return Table(name, rows, tuple(sorted(ties)), tuple(copies))

    def _beginning_like(self, name: str, rows: Rows) -> list[str]:
        """The tensors of the same shape and type that begin with the same block."""
        kind = (rows.shape, rows.dtype)
        alike = self._alike.get(kind, [])
        if len(alike) < 2:
            return alike
        if kind not in self._beginning:
            found = self._beginning.setdefault(kind, {})
            for other in alike:
                found.setdefault(_digest(next(rows_of(self._checkpoint, other).blocks())), []).append(other)
        return next((names for names in self._beginning[kind].values() if name in names), [])


def _digest(block: NDArray[Any]) -> bytes:
    """Equal for blocks of equal numbers, NaN being equal to NaN, and 0 to -0."""
    same = np.where(np.isnan(block), np.nan, block + 0).astype(block.dtype)
    return hashlib.sha256(np.ascontiguousarray(same).data).digest()


def _is_constant(rows: Rows) -> bool:
    """Whether all numbers are one: such tables may be equal by chance, as while they are still all zeros."""
    value = rows.read(0, 1)[0, 0]
    return all((block == value).all() for block in rows.blocks())


def _is_same_table(a: Rows, b: Rows) -> bool:
    """Whether two matrices are equal. Stops at the first block that differs."""
    return all(_same(a.read(*span), b.read(*span)) for span in a.spans())


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two blocks are equal; NaN equals NaN."""
    return np.array_equal(a, b) or np.array_equal(a, b, equal_nan=True)


def _config_value(checkpoint: Checkpoint, key: str) -> object:
    """A value of config.json, or of its text part in a multimodal model."""
    text = checkpoint.config.get("text_config")
    nested = text.get(key) if isinstance(text, dict) else None
    return checkpoint.config.get(key, nested)


def _already_compressed(path: Path, description: Description) -> UsageError:
    done = ", ".join(
        f"{t.name} ({t.method})" if t.rank is None else f"{t.name} ({t.method}, rank {t.rank})"
        for t in description.tables
    )
    return UsageError(
        f"{path}: compressed already: {done}",
        remedy="compress its source, all tables in one run, or run 'embcompress expand' first",
    )
