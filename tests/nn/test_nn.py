"""Factorized modules, and swapping them into models."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.compressed_models import CASES, built
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig, BartModel, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextScaledWordEmbedding

from embcompress.errors import UsageError
from embcompress.loading.swapping import swap
from embcompress.nn import FactorizedEmbedding, FactorizedHead
from embcompress.nn import factorized as nn_factorized

V, D, R = 40, 12, 5


class Tied(nn.Module):
    """A model with one table in an embedding and a head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D, padding_idx=0)
        self.head = nn.Linear(D, V, bias=bias)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(ids)))


def factorized(seed: int = 0, **options: object) -> FactorizedEmbedding:
    torch.manual_seed(seed)
    return FactorizedEmbedding(nn.Embedding(V, R), nn.Linear(R, D, bias=False), **options)


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once, independent of torch's own deduplication."""
    return sum({id(p): p.numel() for _, p in model.named_parameters(remove_duplicate=False)}.values())


class TestFactorizedEmbedding:
    def test_looks_up_rows_of_the_product_of_its_factors(self):
        """It computes what a dense embedding of left times right computes."""
        module, ids = factorized(), torch.randint(V, (3, 7))
        assert module.left.shape == (V, R)
        assert module.right.shape == (R, D)
        torch.testing.assert_close(module(ids), F.embedding(ids, module.left @ module.right))

    def test_says_its_sizes_like_an_embedding(self):
        """num_embeddings, embedding_dim, padding_idx and rank are right."""
        module = FactorizedEmbedding(nn.Embedding(V, R, padding_idx=-1), nn.Linear(R, D, bias=False))
        sizes = (module.num_embeddings, module.embedding_dim, module.padding_idx, module.rank)
        assert sizes == (V, D, V - 1, R)

    @pytest.mark.parametrize("scale", [None, 3.5, torch.tensor(3.5)])
    def test_its_state_dict_is_that_of_a_plain_sequential(self, scale):
        """Plain PyTorch loads it with strict=True, and it loads plain PyTorch's; a scale is not stored."""
        module, plain = (
            factorized(scale=scale),
            nn.Sequential(nn.Embedding(V, R), nn.Linear(R, D, bias=False)),
        )
        plain.load_state_dict(module.state_dict(), strict=True)
        ids = torch.arange(V)
        torch.testing.assert_close(plain(ids) * (1.0 if scale is None else 3.5), module(ids))
        other = factorized(seed=1, scale=scale)
        assert not torch.equal(other(ids), module(ids))
        other.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(other(ids), module(ids))

    @pytest.mark.parametrize("mode", ["sum", "mean"])
    def test_a_bag_of_tokens_goes_through_the_projection_once(self, mode):
        """Offsets and padding work as in the dense bag, and so does the result."""
        torch.manual_seed(0)
        bag = nn.EmbeddingBag(V, R, mode=mode, padding_idx=0)
        module = FactorizedEmbedding(bag, nn.Linear(R, D, bias=False))
        ids, offsets = torch.tensor([1, 2, 0, 0, 3, 7]), torch.tensor([0, 2, 4])
        dense = F.embedding_bag(ids, module.left @ module.right, offsets, mode=mode, padding_idx=0)
        torch.testing.assert_close(module(ids, offsets), dense)

    def test_weights_of_single_tokens_reach_the_bag(self):
        """per_sample_weights count as in the dense bag."""
        torch.manual_seed(0)
        module = FactorizedEmbedding(nn.EmbeddingBag(V, R, mode="sum"), nn.Linear(R, D, bias=False))
        ids, weights = torch.randint(V, (4, 3)), torch.rand(4, 3)
        table = module.left @ module.right
        dense = F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)
        torch.testing.assert_close(module(ids, per_sample_weights=weights), dense)

    def test_a_tensor_as_scale_is_rounded_to_the_dtype_of_the_output(self):
        """A bfloat16 embedding multiplies by a rounded tensor, but by an unrounded float."""
        rounded, exact = (
            factorized(scale=torch.tensor(55.4256)).bfloat16(),
            factorized(scale=55.4256).bfloat16(),
        )
        plain = factorized().bfloat16()(torch.arange(V))
        assert torch.equal(rounded(torch.arange(V)), plain * 55.5)
        assert not torch.equal(exact(torch.arange(V)), plain * 55.5)


class TestFactorizedHead:
    @pytest.fixture
    def at_once(self, monkeypatch):
        """Make small tables compute a few logits as large ones do."""
        monkeypatch.setattr(nn_factorized, "_WIDE", 1)
        monkeypatch.setattr(nn_factorized, "_LARGE", 1)

    def test_multiplies_by_the_transposed_table(self):
        """Logits are those of a dense linear layer with the product as weight."""
        embedding, bias = factorized(), nn.Parameter(torch.randn(V))
        head, hidden = FactorizedHead(embedding, bias), torch.randn(2, 3, D)
        dense = F.linear(hidden, embedding.left @ embedding.right, bias)
        torch.testing.assert_close(head(hidden), dense)
        assert (head.in_features, head.out_features) == (D, V)

    @pytest.mark.usefixtures("at_once")
    @pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (2, 2), (5,), (0,), (3, 0)], ids=str)
    @pytest.mark.parametrize("rows", [1, 31, 32, 33, 1000])
    def test_a_few_hidden_states_have_the_same_logits_and_gradients(self, shape, rows):
        """Up to four are computed in batches, for any V: values and gradients match float64."""
        torch.manual_seed(0)
        head = FactorizedHead(
            FactorizedEmbedding(nn.Embedding(rows, R), nn.Linear(R, D, bias=False)),
            nn.Parameter(torch.randn(rows)),
        )
        hidden, exact = torch.randn(*shape, D, requires_grad=True), copy.deepcopy(head).double()
        wide = hidden.detach().double().requires_grad_()
        logits, target = head(hidden), F.linear(wide, exact.weight, exact.bias)
        torch.testing.assert_close(logits, target.float())
        assert logits.is_contiguous()
        logits.square().sum().backward()
        target.square().sum().backward()
        torch.testing.assert_close(hidden.grad, wide.grad.float(), rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(head.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-4)

    @pytest.mark.usefixtures("at_once")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
    @pytest.mark.parametrize("way", ["export", "compile", "trace", "fx"])
    def test_what_is_made_of_it_takes_any_number_of_hidden_states(self, way):
        """Graphs never contain the batches for a few logits, whatever number they were traced with."""
        head, hidden = FactorizedHead(factorized()), torch.randn(2, 2, D)
        if way == "export":
            sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
            made = torch.export.export(head, (hidden,), dynamic_shapes={"hidden": sizes}).module()
        elif way == "compile":
            made = torch.compile(head, dynamic=True, fullgraph=True, backend="eager")
        elif way == "fx":
            made = torch.fx.symbolic_trace(head)
        else:
            made = torch.jit.trace(head, hidden)
            assert "bmm" not in str(made.graph)
        for shape in ((1, 1), (2, 2), (3, 5)):
            hidden = torch.randn(*shape, D)
            torch.testing.assert_close(made(hidden), head(hidden))

    @pytest.mark.parametrize(
        ("rows", "rank", "batched"), [(40_000, 128, True), (40_000, 64, False), (2000, 128, False)]
    )
    def test_only_large_tables_of_wide_rows_go_the_other_way(self, rows, rank, batched):
        """For other shapes torch's own product is faster."""
        head = FactorizedHead(FactorizedEmbedding(nn.Embedding(rows, rank), nn.Linear(rank, D, bias=False)))
        with torch.no_grad(), torch.profiler.profile() as profile:
            head(torch.randn(1, D))
        assert ("aten::bmm" in {event.key for event in profile.key_averages()}) == batched

    def test_shares_the_factors(self):
        """A change of the embedding changes the head, and the head adds no parameters but its bias."""
        embedding = factorized()
        head = FactorizedHead(embedding)
        before = head(torch.ones(D))
        with torch.no_grad():
            embedding.left.mul_(2)
        torch.testing.assert_close(head(torch.ones(D)), 2 * before)
        assert set(head.state_dict()) == {"0.weight", "1.weight"}
        assert parameters(nn.ModuleList([embedding, head])) == R * (V + D)

    def test_never_makes_a_tensor_of_the_size_of_the_table(self):
        """The forward pass takes 2·r·(d + V) operations per token; a dense head takes 2·V·d."""
        from torch.utils.flop_counter import FlopCounterMode

        head, tokens = FactorizedHead(factorized()), 7
        with FlopCounterMode(display=False) as counter:
            head(torch.randn(tokens, D))
        assert counter.get_total_flops() == tokens * 2 * R * (D + V)


class TestWeight:
    """The dense table, for code that asks any layer for its weight."""

    def test_is_the_product_of_the_factors_as_they_are_now(self):
        """It has the table's values, dtype and gradients, without the scale, and is always up to date."""
        embedding = factorized(scale=3.5)
        head = FactorizedHead(embedding)
        before = embedding.weight
        torch.testing.assert_close(F.embedding(torch.arange(V), before) * 3.5, embedding(torch.arange(V)))
        with torch.no_grad():
            embedding.left.mul_(2)
        assert torch.equal(head.weight, 2 * before)
        head.weight.sum().backward()
        assert embedding.left.grad is not None
        assert embedding.bfloat16().weight.dtype == torch.bfloat16
        assert embedding.to("meta").weight.device.type == "meta"

    def test_is_no_parameter(self):
        """Parameters, state dict and copies hold the two factors and nothing dense."""
        head = copy.deepcopy(FactorizedHead(factorized()))
        assert head.weight.shape == (V, D)
        assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}
        assert parameters(head) == R * (V + D)

    @pytest.mark.parametrize("value", [nn.Parameter(torch.ones(V, D)), torch.ones(V, D), None])
    def test_cannot_be_set(self, value):
        """Tying or replacing it would leave factors that the model no longer uses, or the reverse."""
        head = FactorizedHead(factorized())
        with pytest.raises(AttributeError, match="product of its factors and cannot be set"):
            head.weight = value
        assert parameters(head) == R * (V + D)

    @pytest.mark.parametrize(
        "change", [lambda m: m.tie_weights(), lambda m: m.resize_token_embeddings(m.config.vocab_size + 3)]
    )
    @pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
    def test_transformers_neither_ties_nor_resizes_it_in_silence(self, name, change):
        """Both raise errors, and the model still shares its factors and computes the same."""
        case = CASES[name]
        model = built(case, seed=0)
        embedding = swap(model, case.tables[0], R)
        before, names = case.run(model), list(model.state_dict())
        with pytest.raises((AttributeError, TypeError), match=r"neither a parameter|not an instance of"):
            change(model)
        assert list(model.state_dict()) == names
        assert model.get_output_embeddings().left is embedding.left
        assert torch.equal(case.run(model), before)


class TestSwap:
    def test_replaces_the_embedding_and_its_head(self):
        """Both modules share one pair of factors; the head keeps its bias; parameters fall."""
        model = Tied()
        bias, before = model.head.bias, parameters(model)
        embedding = swap(model, "embedding.weight", R)
        assert model.embedding is embedding
        assert isinstance(model.head, FactorizedHead)
        assert model.head.left is embedding.left
        assert model.head.bias is bias
        assert before - parameters(model) == V * D - R * (V + D)

    def test_gradients_reach_both_factors_and_the_bias(self):
        """Training a swapped model trains left, right and bias."""
        model = Tied()
        swap(model, "embedding.weight", R)
        model(torch.randint(V, (4, 6))).logsumexp(-1).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_the_padding_row_gets_no_gradient(self):
        """A lookup of the padding token leaves its row of left without gradient."""
        model = nn.Sequential(nn.Embedding(V, D, padding_idx=3), nn.Linear(D, 2))
        embedding = swap(model, "0.weight", R)
        model(torch.tensor([3, 4, 3])).sum().backward()
        assert embedding.left.grad is not None
        assert embedding.left.grad[4].abs().sum() > 0
        assert embedding.left.grad[3].abs().sum() == 0

    def test_two_embeddings_of_one_table_keep_their_own_padding(self):
        """Tied embeddings share the factors, not the options."""
        model = nn.ModuleDict({"a": nn.Embedding(V, D, padding_idx=0), "b": nn.Embedding(V, D)})
        model["b"].weight = model["a"].weight
        swap(model, "b.weight", R)
        assert model["a"].left is model["b"].left
        assert (model["a"].padding_idx, model["b"].padding_idx) == (0, None)

    def test_a_module_under_two_names_stays_one_module(self):
        """A module that occurs twice is replaced by one module that occurs twice."""
        shared = nn.Embedding(V, D)
        model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
        swap(model, "a.weight", R)
        assert model["a"] is model["b"][0]
        assert isinstance(model["a"], FactorizedEmbedding)

    def test_a_table_named_by_its_head_takes_the_embedding_with_it(self):
        """The name may be that of any module that holds the table."""
        model = Tied()
        assert swap(model, "head.weight", R) is model.embedding
        assert isinstance(model.head, FactorizedHead)

    def test_a_named_tie_is_replaced_though_the_model_does_not_share_it(self):
        """Equal values in two parameters become one pair of factors; without the name they do not."""
        model = Tied()
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
        alone = copy.deepcopy(model)
        swap(alone, "embedding.weight", R)
        assert type(alone.head) is nn.Linear
        swap(model, "embedding.weight", R, ties=["head.weight"])
        assert model.head.left is model.embedding.left

    def test_mode_dtype_and_requires_grad_are_kept(self):
        """A frozen half-precision model in evaluation mode gives a frozen half-precision one."""
        model = Tied().half().eval().requires_grad_(False)
        embedding = swap(model, "embedding.weight", R)
        assert {p.dtype for p in model.parameters()} == {torch.float16}
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        assert swap(Tied(), "embedding.weight", R, dtype=torch.bfloat16).left.dtype == torch.bfloat16
        assert embedding.padding_idx == 0

    def test_the_options_of_a_bag_are_kept(self):
        """Mode and include_last_offset of an EmbeddingBag carry over."""
        model = nn.ModuleList([nn.EmbeddingBag(V, D, mode="sum", include_last_offset=True)])
        lookup = swap(model, "0.weight", R).lookup
        assert isinstance(lookup, nn.EmbeddingBag)
        assert (lookup.mode, lookup.include_last_offset) == ("sum", True)

    @pytest.mark.parametrize("kind", ["bart", "gemma3"])
    def test_the_scale_of_a_scaled_embedding_is_kept(self, kind):
        """The output of transformers' scaled embeddings is still multiplied."""
        if kind == "bart":
            config = BartConfig(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1,
                                encoder_ffn_dim=8, decoder_ffn_dim=8, encoder_attention_heads=2,
                                decoder_attention_heads=2, scale_embedding=True)  # fmt: skip
            model, name = BartModel(config), "shared"
        else:
            config = Gemma3TextConfig(vocab_size=V, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=1, head_dim=8)  # fmt: skip
            model, name = Gemma3ForCausalLM(config), "model.embed_tokens"
        embedding = swap(model, f"{name}.weight", R)
        ids = torch.arange(V)
        dense = 4 * F.embedding(ids, embedding.left @ embedding.right)
        torch.testing.assert_close(model.get_input_embeddings()(ids), dense)

    def test_an_overridden_forward_is_refused(self):
        """A subclass that computes something else is refused, even one that looks like a scaled one."""

        class ScaledWordEmbedding(nn.Embedding):
            embed_scale = 2.0

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                return super().forward(ids).clamp(-1, 1)

        model = nn.Sequential(ScaledWordEmbedding(V, D))
        with pytest.raises(UsageError, match="forward of its own"):
            swap(model, "0.weight", R)
        assert type(model[0]) is ScaledWordEmbedding

    def test_the_scaled_class_that_patches_rows_in_is_refused(self):
        """T5Gemma2's embedding has a second parameter that two factors would drop."""
        model = nn.Sequential(T5Gemma2TextScaledWordEmbedding(V, D, 0, embed_scale=2.0))
        with pytest.raises(UsageError, match="forward of its own"):
            swap(model, "0.weight", R)

    def test_a_patched_instance_is_refused(self):
        """A forward set on the instance would be lost."""
        model = nn.Sequential(nn.Embedding(V, D))
        model[0].forward = lambda ids: F.embedding(ids, model[0].weight) * 2
        with pytest.raises(UsageError, match="forward of its own"):
            swap(model, "0.weight", R)

    @pytest.mark.parametrize(
        ("model", "name", "message"),
        [
            (nn.Sequential(nn.Embedding(V, D, max_norm=1.0)), "0.weight", "max_norm"),
            (nn.Sequential(nn.EmbeddingBag(V, D, mode="max")), "0.weight", "not linear"),
            (nn.Sequential(nn.Linear(D, V)), "0.weight", "not an nn.Embedding"),
            (nn.Sequential(nn.Embedding(V, D)), "1.weight", "no parameter 1.weight"),
            (nn.Embedding(V, D), "weight", "outside of an embedding"),
            (Tied(), "head.bias", "outside of an embedding"),
        ],
    )
    def test_what_two_factors_cannot_do_is_refused(self, model, name, message):
        """Tables that are not plain lookups are refused with the reason."""
        with pytest.raises(UsageError, match=message):
            swap(model, name, R)

    @pytest.mark.parametrize("rank", [0, D + 1])
    def test_a_rank_the_table_does_not_have_is_refused(self, rank):
        """Ranks go from 1 to min(V, d)."""
        with pytest.raises(UsageError, match=f"rank {rank}"):
            swap(Tied(), "embedding.weight", rank)

    def test_a_tie_of_another_shape_is_refused_and_nothing_changes(self):
        """A refusal leaves the model unchanged."""
        model = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, V + 1))
        with pytest.raises(UsageError, match="tied to"):
            swap(model, "0.weight", R, ties=["1.weight"])
        assert [type(m) for m in model] == [nn.Embedding, nn.Linear]

    def test_a_parameter_used_outside_of_a_module_is_refused(self):
        """A table that the model itself multiplies by would stay dense."""
        model = Tied()
        model.output = model.embedding.weight
        with pytest.raises(UsageError, match="output: the table is used here"):
            swap(model, "embedding.weight", R)
