"""Models of Hugging Face directories, compressed or dense, and their tokens; needs transformers.

Nothing is fetched, and no code of a directory is run: the classes are those of transformers itself.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.data.encoded import Encoded, Ids
from embcompress.errors import EmbcompressError, InputError, UsageError
from embcompress.loading import fill

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of architectures that predict the next token."""

_BATCH = 2048
"""Texts that are encoded at a time."""

_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code that lies in a directory is asked for or run."""


@dataclass(frozen=True)
class Outputs:
    """What a model makes of some texts.

    Attributes:
        hidden: last hidden states (B×L×d).
        logits: scores of the next tokens (B×L×V), None where it predicts none.
    """

    hidden: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Pretrained:
    """The model of a directory, in float32 and in evaluation mode.

    Attributes:
        path: the directory.
        model: an instance of the architecture that config.json names.
        causal: whether it predicts the next token.
        vocabulary: rows of its table.
        renamed: the name in the model of a name in the directory's weight files.
        size: bytes of these files.
        notes: what the user should know, one sentence each.
    """

    path: Path
    model: nn.Module
    causal: bool
    vocabulary: int
    renamed: Callable[[str], str]
    size: int
    notes: tuple[str, ...]

    def __call__(self, tokens: Tensor, mask: Tensor) -> Outputs:
        """The outputs for token ids (B×L), of which the mask (B×L) says which are there."""
        if not self.causal:
            found = self.model.base_model(input_ids=tokens, attention_mask=mask)  # type: ignore[operator]
            return Outputs(found[0], None)
        found = self.model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return Outputs(found.hidden_states[-1], found.logits)


def open_pretrained(path: Path) -> Pretrained:
    """The model of a directory; see :class:`Pretrained`.

    Raises:
        UsageError: it is no directory of a model that transformers has, or needs it and has not got it.
        InputError: it is corrupt.
    """
    config = config_of(path)
    kind = architecture_of(config, path)
    with open_checkpoint(path) as checkpoint:
        compressed = bool(checkpoint.description and checkpoint.description.swapped)
        size = checkpoint.size
    renamed: Callable[[str], str] = str
    notes: tuple[str, ...] = ()
    with reading(path):
        if compressed:
            model = kind(config)
            renamed, notes = filled(model, path)
        else:
            model = kind.from_pretrained(path, dtype=torch.float32, **_OFFLINE)
    causal = kind.__name__.endswith(_CAUSAL)
    vocabulary = model.get_input_embeddings().num_embeddings
    return Pretrained(path, model.eval(), causal, vocabulary, renamed, size, notes)


def config_of(path: Path) -> Any:
    """The configuration of a directory, as that of a dense model.

    Raises:
        UsageError: it is no directory of a model, or of an encoder with a decoder.
        InputError: transformers cannot read it.
    """
    transformers = library()
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{path}: is no Hugging Face directory, config.json is missing",
            remedy="give the directory of a model",
        )
    with reading(path):
        config = transformers.AutoConfig.from_pretrained(path, **_OFFLINE)
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{path}: is an encoder with a decoder", remedy="only encoders and language models are taken"
        )
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def architecture_of(config: Any, path: Path) -> Any:
    """The class that a configuration names.

    Raises:
        UsageError: transformers has no such class.
    """
    transformers = library()
    names = config.architectures or ()
    if not names:
        return transformers.MODEL_MAPPING[type(config)]
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UsageError(
            f"{path}: architecture {names[0]} is none of transformers {transformers.__version__}",
            remedy="code that comes with a model is not run; install a newer transformers if it has it",
        )
    return kind


def filled(model: nn.Module, path: Path) -> tuple[Callable[[str], str], tuple[str, ...]]:
    """Load a compressed directory; tensors that the architecture has no use for are passed over with a note.

    Raises:
        UsageError: a weight of the model is missing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renamed = fill(model, path, strict=False)
    notes = tuple(str(warning.message) for warning in caught)
    if lacking := [note for note in notes if "missing from the file" in note]:
        raise UsageError(lacking[0], remedy="its architecture must be the one that config.json names")
    return renamed, notes


@dataclass(frozen=True)
class Tokens:
    """Texts as a model reads them.

    Attributes:
        texts: token ids.
        padding: id that fills short texts up.
    """

    texts: Encoded
    padding: int

    def __len__(self) -> int:
        return len(self.texts)

    def tensors(self, rows: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask (rows × the longest) of some texts."""
        tokens = torch.from_numpy(self.texts.padded(rows, self.padding))
        lengths = torch.from_numpy(self.texts.lengths[rows])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return tokens.to(device), mask.to(device)

    def take(self, rows: Ids) -> Tokens:
        """Some of the texts."""
        texts = self.texts
        kept = [texts.tokens[texts.starts[row] : texts.starts[row] + texts.lengths[row]] for row in rows]
        return Tokens(Encoded(np.concatenate(kept), texts.lengths[rows]), self.padding)


def encoded(model: Pretrained, texts: Iterable[str], max_length: int) -> Tokens:
    """Distinct texts as the tokenizer of a model's directory splits them; blank ones are left out.

    Raises:
        UsageError: the directory brings no tokenizer.
        InputError: it cannot be read, or is that of another model.
    """
    tokenizer = tokenizer_in(model.path)
    longest = min(
        max_length, int(min(tokenizer.model_max_length, 1 << 30)), positions(model.model, max_length)
    )
    distinct = iter(dict.fromkeys(text for text in texts if text.strip()))
    found: list[list[int]] = []
    while batch := [*itertools.islice(distinct, _BATCH)]:
        ids = tokenizer(batch, truncation=True, max_length=longest, padding=False)["input_ids"]
        found += (one for one in ids if one)
    texts_ = Encoded.of(found)
    if texts_.tokens.size and int(texts_.tokens.max()) >= model.vocabulary:
        raise InputError(
            f"{model.path}: a text has token {int(texts_.tokens.max()):,}, the table has rows up to "
            f"{model.vocabulary - 1:,}",
            remedy="take the tokenizer that belongs to this model",
        )
    return Tokens(texts_, tokenizer.pad_token_id or 0)


def tokenizer_in(path: Path) -> Any:
    """The tokenizer of a directory, as transformers makes it.

    Raises:
        UsageError: the directory brings none.
        InputError: it cannot be read.
    """
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UsageError(
            f"{path}: brings no tokenizer", remedy="put the files of the model's tokenizer there"
        )
    with reading(path):
        return library().AutoTokenizer.from_pretrained(path, **_OFFLINE)


def positions(model: Any, usual: int) -> int:
    """Tokens that a model has positions for, ``usual`` where it has no limit.

    RoBERTa and its kin begin to count behind the padding.
    """
    most = getattr(model.config, "max_position_embeddings", None) or usual
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(most) - int(module.padding_idx) - 1
    return int(most)


def library() -> Any:
    """The package transformers.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "models of Hugging Face directories need the library transformers",
            remedy="pip install 'embcompress[transformers]'",
        ) from None
    return transformers


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What transformers raises of a directory as one line of ours, and nothing of its own on stderr.

    Raises:
        InputError: it cannot read the directory.
    """
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (EmbcompressError, MemoryError):
        raise
    except Exception as error:  # whatever a wrong file makes of them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: transformers cannot load it ({reason})", remedy="download the directory again"
        ) from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
