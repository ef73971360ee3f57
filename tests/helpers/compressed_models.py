"""Small models of many kinds, and compressed checkpoints of them made by torch's own SVD.

An oracle for the loading tests: nothing here uses this package but for the record's fields.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import save_file
from torch import Tensor, nn

from embcompress.checkpoint.description import Description, TableRecord, part_name

V, D, R = 60, 16, 6
IDS = torch.tensor([[5, 7, 59, 1, 0], [3, 3, 12, 40, 8]])
FORMATS = ("model.safetensors", "model.pt", "directory")


class LSTMClassifier(nn.Module):
    """Embedding with padding, LSTM, last state to three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D, padding_idx=0)
        self.lstm = nn.LSTM(D, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(ids))[0][:, -1])


class Averaging(nn.Module):
    """Deep averaging network: a bag of embeddings, then layers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(V, D, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, ids: Tensor) -> Tensor:
        offsets = torch.arange(0, ids.numel(), ids.shape[1])
        return self.layers(self.bag(ids.flatten(), offsets))


class Translator(nn.Module):
    """Sequence to sequence with two tables, the target's tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(V, D), nn.Embedding(V + 4, D)
        self.encoder, self.decoder = nn.GRU(D, D, batch_first=True), nn.GRU(D, D, batch_first=True)
        self.generator = nn.Linear(D, V + 4)
        self.generator.weight = self.target.weight

    def forward(self, ids: Tensor) -> Tensor:
        state = self.encoder(self.source(ids))[1]
        return self.generator(self.decoder(self.target(ids), state)[0])


@dataclass(frozen=True)
class Case:
    """A model class, its tables, and how it is run."""

    build: Callable[[], nn.Module]
    tables: tuple[str, ...]
    run: Callable[[nn.Module], Tensor] = lambda model: model(IDS)


def causal(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def seq2seq(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, decoder_input_ids=IDS.flip(1)).logits


def llama(*, tied: bool) -> nn.Module:
    config = tf.LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1,
                            num_attention_heads=2, tie_word_embeddings=tied)  # fmt: skip
    return tf.LlamaForCausalLM(config)


def bert(kind: type = tf.BertForMaskedLM) -> nn.Module:
    config = tf.BertConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1,
                           num_attention_heads=2, max_position_embeddings=16)  # fmt: skip
    return kind(config)


def gpt2() -> nn.Module:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=V, n_embd=D, n_layer=1, n_head=2, n_positions=16,
                                            bos_token_id=1, eos_token_id=2))  # fmt: skip


def t5() -> nn.Module:
    config = tf.T5Config(vocab_size=V, d_model=D, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return tf.T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    config = tf.BartConfig(vocab_size=V, d_model=D, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
                           decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2,
                           max_position_embeddings=16, scale_embedding=True)  # fmt: skip
    return tf.BartForConditionalGeneration(config)


def gemma3() -> nn.Module:
    config = tf.Gemma3TextConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1,
                                 num_attention_heads=2, num_key_value_heads=1, head_dim=8)  # fmt: skip
    return tf.Gemma3ForCausalLM(config)


def mamba() -> nn.Module:
    return tf.MambaForCausalLM(tf.MambaConfig(vocab_size=V, hidden_size=D, state_size=4, num_hidden_layers=1))


CASES = {
    "bert": Case(bert, ("bert.embeddings.word_embeddings.weight",), causal),
    "gpt2": Case(gpt2, ("transformer.wte.weight",), causal),
    "t5": Case(t5, ("shared.weight",), seq2seq),
    "bart": Case(bart, ("model.shared.weight",), seq2seq),
    "llama-tied": Case(lambda: llama(tied=True), ("model.embed_tokens.weight",), causal),
    "llama-untied": Case(lambda: llama(tied=False), ("model.embed_tokens.weight",), causal),
    "gemma3": Case(gemma3, ("model.embed_tokens.weight",), causal),
    "mamba": Case(mamba, ("backbone.embeddings.weight",), causal),
    "lstm": Case(LSTMClassifier, ("embedding.weight",)),
    "averaging": Case(Averaging, ("bag.weight",)),
    "translator": Case(Translator, ("source.weight", "target.weight")),
}


def built(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return case.build().eval()


def factors(table: Tensor, rank: int = R) -> tuple[Tensor, Tensor]:
    """Left (V×r) and right transposed (d×r) of the best approximation of ``table``."""
    u, s, vh = torch.linalg.svd(table.detach().double(), full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vh[:rank].T
    return left.to(table.dtype).contiguous(), right.to(table.dtype).contiguous()


def low_rank(model: nn.Module, tables: Iterable[str]) -> nn.Module:
    """A copy of ``model`` with the product of the factors in its dense tables."""
    model = copy.deepcopy(model)
    for name in tables:
        table = model.get_parameter(name)
        left, right = factors(table)
        table.data.copy_(left @ right.T)
    return model


def compressed(
    model: nn.Module, tables: Iterable[str], rank: int = R
) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a compressed checkpoint of ``model``, each tied one once, and the record."""
    state = model.state_dict(keep_vars=True)
    weights: dict[str, Tensor] = {}
    records = []
    for name in tables:
        table = state[name]
        ties = tuple(n for n, t in state.items() if t is table and n != name)
        weights |= zip(
            (part_name(name, "0.weight"), part_name(name, "1.weight")), factors(table, rank), strict=True
        )
        records.append(TableRecord(name, tuple(table.shape), "F32", "svd", rank, "F32", 32, 0.5, 0.1,
                                   ("0.weight", "1.weight"), ties))  # fmt: skip
    seen = {id(state[name]) for name in tables}
    for name, tensor in state.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor.detach().clone()
    return weights, Description("0", {"source": "0" * 64}, tuple(records))


def prefixed(
    prefix: str, weights: dict[str, Tensor], description: Description
) -> tuple[dict[str, Tensor], Description]:
    """The same checkpoint with ``prefix`` before every name."""
    tables = tuple(
        replace(record, name=prefix + record.name, ties=tuple(prefix + tie for tie in record.ties))
        for record in description.tables
    )
    renamed = {prefix + name: weight for name, weight in weights.items()}
    return renamed, replace(description, tables=tables)


def write(folder: Path, kind: str, weights: dict[str, Tensor], description: Description) -> Path:
    """Write a checkpoint as the README's contract says, with torch and safetensors alone."""
    path = folder / kind
    if kind.endswith(".pt"):
        weights = dict(weights)
        for record in description.tables:  # names that share memory cost nothing here
            for tie in record.ties:
                weights |= {part_name(tie, p): weights[part_name(record.name, p)] for p in record.parts}
        state = nn.Module().state_dict()
        state.update(weights)
        state._metadata["embcompress"] = description.to_json()
        torch.save({"epoch": 3, "model": state}, path)
    elif kind.endswith(".safetensors"):
        save_file(weights, path, metadata={"format": "pt", "embcompress": description.to_json()})
    else:
        path.mkdir()
        weights = {**weights, **{record.name: torch.empty(0) for record in description.tables}}
        names = sorted(weights)
        shards = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, part in shards.items():
            save_file({name: weights[name] for name in part}, path / file, metadata={"format": "pt"})
        size = sum(w.numel() * w.element_size() for w in weights.values())
        where = {name: file for file, part in shards.items() for name in part}
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        quantization = {"quant_method": "embcompress", **description.to_dict()}
        (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return path


def parameters(model: nn.Module) -> int:
    return sum({id(p): p.numel() for _, p in model.named_parameters(remove_duplicate=False)}.values())
