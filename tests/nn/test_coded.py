"""Coded tables in PyTorch: modules that decode what they look up, compared with NumPy."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.coded_tables import HOT, PLAIN, Coded, compressed, decoded, integer, pq, samples, screened
from helpers.compressed_models import CASES, FORMATS, D, V, built, write
from helpers.quick import quick
from torch import Tensor, nn
from torch.nn import functional as F

import embcompress
from embcompress.errors import InputError, UsageError
from embcompress.loading.load import load
from embcompress.loading.swapping import install, replacements
from embcompress.methods import METHODS, method_for
from embcompress.methods.integer.method import Integers
from embcompress.methods.modules import coded_table, module_parts
from embcompress.nn import CodedEmbedding, FactorizedEmbedding, FactorizedHead
from embcompress.nn.coded import LookupOptions
from embcompress.nn.integer import IntegerRows, unpacked
from embcompress.rows import Rows

SAMPLES = samples(V, D)
IDS = torch.tensor([[0, 5, 7, V - 1], [3, 3, 12, 40]])
every = pytest.mark.parametrize("coded", SAMPLES.values(), ids=SAMPLES)
SOME = ("int3", "pq", "lplr-5", "screen+pq", "screen+svd")
some = pytest.mark.parametrize("name", SOME)
compiled = pytest.mark.parametrize("coded", quick(SAMPLES, "int3", "lplr-5", "screen+pq"))
"""Compilers take their time."""


def embedding(coded: Coded, dtype: torch.dtype = torch.float32, **options) -> CodedEmbedding:
    held = coded_table(coded.method, coded.tensors, coded.table.shape)
    return CodedEmbedding(held.lookup, held.projection, **options).to(dtype)


def dense(coded: Coded) -> Tensor:
    return torch.from_numpy(coded.table)


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_torch(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def longer(rates: Tensor) -> Tensor:
    """Rates of the same sizes of codebooks, with which the rows of class 0 take a byte more."""
    changed = rates.clone()
    changed[0, [1, 3]] = 8
    return changed


class TestDecoding:
    @every
    def test_rows_are_those_that_numpy_decodes(self, coded):
        """For ids in any shape, with repetitions, and for none; up to float32 rounding."""
        module = embedding(coded)
        for ids in (IDS, IDS[0, 0], IDS[:0], torch.randint(V, (3, 1, 50)), IDS.int()):
            expected = dense(coded)[ids.long()]
            torch.testing.assert_close(module(ids), expected, rtol=1e-5, atol=1e-5)

    @every
    def test_weight_is_the_whole_table(self, coded):
        """It is decoded on each access, and is not a parameter."""
        module = embedding(coded)
        torch.testing.assert_close(module.weight, dense(coded), rtol=1e-5, atol=1e-5)
        sizes = (module.num_embeddings, module.embedding_dim, module.rank)
        assert sizes == (*coded.table.shape, coded.rank or D)
        assert coded.table.size not in {p.numel() for p in module.parameters()}
        with pytest.raises(AttributeError, match="cannot be set"):
            module.weight = nn.Parameter(torch.zeros(V, D))

    @every
    def test_the_methods_decoder_says_the_same(self, coded):
        """So that expand writes the table that a model computes with."""
        kinds = {np.dtype("u1"): "U8", np.dtype("f2"): "F16", np.dtype("f4"): "F32", np.dtype("i4"): "I32"}
        method = method_for(coded.method)
        parts = {
            suffix: Rows(
                part.shape,
                embcompress.dtypes.DTYPES[kinds[part.dtype]],
                lambda i, j, part=part: part[i:j].astype("f4") if part.dtype.kind == "f" else part[i:j],
            )
            for suffix, part in coded.parts.items()
        }
        read = method.decoder(parts, coded.table.shape, coded.rank)
        np.testing.assert_allclose(read(0, V), embedding(coded).weight.detach(), rtol=1e-5, atol=1e-5)

    @every
    def test_zero_rows_are_exactly_zero(self, coded):
        """As a padding row is in every method that has such rows."""
        zero = ~coded.table.any(axis=1)
        assert not embedding(coded)(torch.arange(V))[torch.from_numpy(zero)].any()

    def test_components_without_bits_and_rows_of_both_classes_are_met(self):
        """The samples include the cases that are easy to get wrong."""
        assert 0 in PLAIN
        assert {1, 2} <= {*PLAIN} & {*HOT}
        hot = np.unpackbits(SAMPLES["pq"].parts["0.hot"])[:V]
        assert 0 < hot.sum() < V
        assert (~SAMPLES["pq"].table.any(axis=1)).sum() == 2

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_integers_of_any_width_are_unpacked(self, bits):
        """Whatever number of them shares bytes."""
        from embcompress.linalg.packing import pack

        for count in (1, 7, 8, 13):
            values = np.random.default_rng(0).integers(0, 1 << bits, (5, count), dtype=np.uint8)
            found = unpacked(torch.from_numpy(pack(values, bits)), count, bits)
            assert torch.equal(found.byte(), torch.from_numpy(values))

    @every
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_the_output_has_the_type_of_the_floats(self, coded, dtype):
        """Codes stay bytes; values are the same up to the type's rounding."""
        module = embedding(coded, dtype)
        assert module(IDS).dtype == module.weight.dtype == dtype
        kinds = {n: v.dtype for n, v in module.state_dict().items() if not v.is_floating_point()}
        assert {*kinds.values()} <= {torch.uint8, torch.int32}
        tolerance = {torch.float16: 0.02, torch.bfloat16: 0.2, torch.float64: 1e-5}[dtype]
        torch.testing.assert_close(module(IDS), dense(coded)[IDS].to(dtype), rtol=tolerance, atol=tolerance)

    @every
    def test_ids_beyond_the_table_are_refused(self, coded):
        """As in a dense embedding; also ids within the padding of the last byte of bits."""
        module = embedding(coded)
        for wrong in (V, -1):
            with pytest.raises(IndexError):
                module(torch.tensor([3, wrong]))


class TestState:
    @every
    def test_the_state_dict_is_what_is_stored(self, coded):
        """Names, types and values, except for a right factor in integers, which is in floats."""
        state = embedding(coded).state_dict()
        expected = module_parts(coded.tensors, D)
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(state[name], value.float() if value.is_floating_point() else value)
        if "1.codes" in coded.parts:
            assert state["1.weight"].shape == (D, coded.rank)

    @every
    def test_only_floats_that_many_rows_share_are_trained(self, coded):
        """Codebooks, the right factor, and the rows behind a screen; no codes and no scales."""
        names = {name for name, _ in embedding(coded).named_parameters()}
        assert names == {*embedding(coded).state_dict()} & {"0.codebooks", "0.weight", "1.weight"}

    @every
    @pytest.mark.parametrize("passed_on", [copy.deepcopy, through_pickle, through_torch])
    def test_a_copy_is_whole(self, coded, passed_on):
        """Derived tensors are copied too, and nothing is shared."""
        module = embedding(coded)
        other = passed_on(module)
        assert torch.equal(other(IDS), module(IDS))
        own = {t.data_ptr() for t in (*module.parameters(), *module.buffers())}
        assert not own & {t.data_ptr() for t in (*other.parameters(), *other.buffers())}

    @every
    def test_everything_moves_with_the_module(self, coded):
        """The parts and the derived tensors move to another device."""
        module = embedding(coded).to("meta")
        assert {t.device.type for t in (*module.parameters(), *module.buffers())} == {"meta"}
        assert module(IDS.to("meta")).shape == (*IDS.shape, D)

    @pytest.mark.parametrize("assign", [False, True])
    def test_loading_another_table_makes_all_anew(self, assign):
        """Other rates, hot rows, zeros and kept tokens in the same shapes, loaded one after the other."""
        one, other = SAMPLES["screen+pq"], screened(V, lambda n: pq(n, D, [PLAIN[::-1], HOT[::-1]]))
        kept, zeros = np.unpackbits(other.parts["0.kept"])[:V], other.parts["0.zeros"]
        turned = np.append(kept[::-1], np.ones(-V % 8, np.uint8))
        parts = {**other.parts, "0.kept": np.packbits(turned)[:, None], "0.zeros": zeros - (zeros > 0)}
        state = module_parts({n: torch.from_numpy(p.copy()) for n, p in parts.items()}, D)
        module, fresh = embedding(one), embedding(replace(other, parts=parts))
        before = module(IDS)
        module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in state.items()},
                               assign=assign)  # fmt: skip
        ids = torch.arange(V)
        assert torch.equal(module(ids), fresh(ids))
        assert not torch.allclose(module(IDS), before)

    @pytest.mark.parametrize(
        ("name", "part", "change", "message"),
        [
            ("pq", "0.rates", longer, "bytes hold codes of"),
            ("pq", "0.rates", lambda p: p * 0 + 8, "codebooks of"),
            ("pq", "0.rates", lambda p: p * 0 + 17, "rates: "),
            ("pq", "0.hot", lambda p: p * 0, "extra has [0-9]+ bytes, not 0"),
            ("pq", "0.zeros", lambda p: p + V, f"zeros beyond row {V - 1}"),
            ("screen+int4", "0.kept", lambda p: p * 0, "41 rows are stored for 1"),
            ("lplr-5", "0.bits", lambda p: p + 4, "integers of"),
        ],
    )
    def test_parts_that_contradict_each_other_are_refused(self, name, part, change, message):
        """In the constructor and when a state dict is loaded."""
        coded = SAMPLES[name]
        wrong = {**coded.tensors, part: change(coded.tensors[part])}
        with pytest.raises(InputError, match=message):
            coded_table(coded.method, wrong, coded.table.shape)
        module = embedding(coded)
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict({**module.state_dict(), part: wrong[part]})

    @pytest.mark.parametrize(
        ("name", "part", "dtype"),
        [("int8", "0.codes", "F32"), ("pq", "0.zeros", "F32"), ("pq", "1.scales", "U8")],
    )
    def test_parts_of_another_type_are_refused(self, name, part, dtype):
        """Floats in place of bytes would be truncated silently."""
        coded = SAMPLES[name]
        kind = torch.uint8 if dtype == "U8" else torch.float32
        wrong = {**coded.tensors, part: coded.tensors[part].to(kind)}
        with pytest.raises(InputError, match=f"{part} is of {dtype}, expected"):
            coded_table(coded.method, wrong, coded.table.shape)


class TestGradients:
    @every
    def test_they_are_those_of_finite_differences(self, coded):
        """For every trained number, in float64."""
        module = embedding(coded, torch.float64)
        weights = torch.randn(*IDS.shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def loss() -> Tensor:
            return (module(IDS).sin() * weights).sum()

        trained = [*module.parameters()]
        if not trained:
            assert not loss().requires_grad
            return
        loss().backward()
        for parameter in trained:
            gradient, flat = parameter.grad.flatten(), parameter.data.view(-1)
            assert gradient.any()
            places = [*gradient.abs().topk(5).indices.tolist(), 0, flat.numel() - 1]
            for i in places:
                was, step = flat[i].item(), 1e-6
                flat[i] = was + step
                more = loss().item()
                flat[i] = was - step
                less = loss().item()
                flat[i] = was
                assert gradient[i].item() == pytest.approx((more - less) / (2 * step), rel=1e-5, abs=1e-7)

    @every
    def test_the_padding_row_gives_none(self, coded):
        """Training on padding alone does not change the parts of its row; without a padding_idx it does."""
        ids = torch.full((2, 3), 7)
        for padding, moves in ((7, False), (None, True)):
            module = embedding(coded, options=LookupOptions(padding))
            rows = module(ids)
            torch.testing.assert_close(rows, dense(coded)[ids], rtol=1e-5, atol=1e-5)
            own = [*module.lookup.parameters()]
            if own:
                rows.sum().backward()
                assert any(p.grad is not None and bool(p.grad.any()) for p in own) == moves


class TestCompilers:
    @pytest.fixture(autouse=True)
    def afresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @compiled
    def test_it_is_one_graph(self, coded):
        """torch.compile needs no graph break, and gradients are the same."""
        module = embedding(coded, options=LookupOptions(3))
        one = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(one(IDS), module(IDS))
        if [*module.parameters()]:
            one(IDS).sum().backward()
            found = [p.grad.clone() for p in module.parameters()]
            module.zero_grad()
            module(IDS).sum().backward()
            torch.testing.assert_close(found, [p.grad for p in module.parameters()])

    @compiled
    def test_it_can_be_exported(self, coded):
        """With batches of any size, and a head that shares the table."""
        module = embedding(coded)
        sizes = (({0: torch.export.Dim("texts"), 1: torch.export.Dim("length")},),)
        program = torch.export.export(module, (IDS,), dynamic_shapes=sizes)
        other = torch.randint(V, (5, 9))
        torch.testing.assert_close(program.module()(other), module(other))
        bag = embedding(coded, options=LookupOptions(3, "mean"))
        program = torch.export.export(bag, (IDS,), dynamic_shapes=sizes)
        torch.testing.assert_close(program.module()(other), bag(other))
        head, hidden = FactorizedHead(module), torch.randn(3, D)
        torch.testing.assert_close(torch.export.export(head, (hidden,)).module()(hidden), head(hidden))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @some
    def test_inductor_makes_code_of_it(self, name):
        """With the default backend, the result is the same."""
        module = embedding(SAMPLES[name])
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(IDS), module(IDS))


class TestHeadsAndBags:
    @every
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_head_multiplies_by_the_transposed_table(self, coded, bias):
        """It has the parts of the embedding and no other tensors."""
        module, hidden = embedding(coded), torch.randn(2, 3, D)
        head = FactorizedHead(module, nn.Parameter(torch.randn(V)) if bias else None)
        torch.testing.assert_close(
            head(hidden), F.linear(hidden, dense(coded), head.bias), rtol=1e-4, atol=1e-4
        )
        assert (head.in_features, head.out_features) == (D, V)
        assert head.lookup is module.lookup
        torch.testing.assert_close(head.weight, dense(coded), rtol=1e-5, atol=1e-5)

    def test_a_large_table_is_decoded_in_blocks(self, monkeypatch):
        """The result is the same as in one block."""
        coded = SAMPLES["screen+pq"]
        whole, hidden = embedding(coded), torch.randn(3, D)
        expected = whole.weight, FactorizedHead(whole)(hidden)
        monkeypatch.setattr("embcompress.nn.lookup._BLOCK", 7)
        torch.testing.assert_close((whole.weight, FactorizedHead(whole)(hidden)), expected)

    @every
    @pytest.mark.parametrize("mode", ["sum", "mean"])
    @pytest.mark.parametrize("padding", [None, 3])
    def test_bags_are_those_of_the_dense_table(self, coded, mode, padding):
        """As rectangles and by offsets, also an empty bag, with the last offset as the end or not."""
        table = dense(coded)
        options = {"mode": mode, "padding_idx": padding}
        module = embedding(coded, options=LookupOptions(padding, mode))
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(module(IDS), F.embedding_bag(IDS, table, **options), **near)
        flat, offsets = IDS.flatten(), torch.tensor([0, 2, 2, 7])
        expected = F.embedding_bag(flat, table, offsets, **options)
        torch.testing.assert_close(module(flat, offsets), expected, **near)
        ends = embedding(coded, options=LookupOptions(padding, mode, include_last_offset=True))
        offsets = torch.tensor([0, 2, 8])
        expected = F.embedding_bag(flat, table, offsets, include_last_offset=True, **options)
        torch.testing.assert_close(ends(flat, offsets), expected, **near)
        if mode == "sum":
            weights = torch.rand(IDS.shape)
            expected = F.embedding_bag(IDS, table, per_sample_weights=weights, **options)
            torch.testing.assert_close(module(IDS, per_sample_weights=weights), expected, **near)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_bags_have_the_type_of_the_floats(self, dtype):
        """The weights for padding have that type too."""
        module = embedding(SAMPLES["pq"], dtype, options=LookupOptions(3, "mean"))
        expected = F.embedding_bag(IDS, dense(SAMPLES["pq"]), mode="mean", padding_idx=3)
        torch.testing.assert_close(module(IDS), expected.to(dtype), rtol=0.1, atol=0.1)

    def test_what_torch_refuses_of_bags_is_refused(self):
        """Per-sample weights in a bag of mode mean."""
        for padding in (None, 3):
            with pytest.raises(NotImplementedError, match="per_sample_weights"):
                embedding(SAMPLES["pq"], options=LookupOptions(padding, "mean"))(
                    IDS, per_sample_weights=torch.ones(IDS.shape)
                )

    @pytest.mark.parametrize("name", ["pq", "lplr-5", "screen+pq", "screen+svd"])
    def test_gradients_of_a_bag_leave_padding_out(self, name):
        """They are means of the rows that count."""
        coded = SAMPLES[name]
        bag, single = embedding(coded, options=LookupOptions(3, "sum")), embedding(coded)
        bag(torch.tensor([[3, 5, 3, 7]])).sin().sum().backward()
        single(torch.tensor([5, 7])).sum(dim=0).sin().sum().backward()
        for one, other in zip(bag.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)

    @pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0)])
    def test_the_scale_of_a_scaled_embedding_is_kept(self, scale):
        """As with float factors."""
        coded = SAMPLES["pq"]
        torch.testing.assert_close(embedding(coded, scale=scale)(IDS), 4 * embedding(coded)(IDS))


class TestSwapping:
    def test_embeddings_of_one_table_share_its_codes_and_keep_their_manner(self):
        """A head, a bag and an embedding share one lookup, each with its own padding."""
        model = nn.ModuleDict({"a": nn.Embedding(V, D, padding_idx=0), "b": nn.EmbeddingBag(V, D, mode="sum"),
                               "c": nn.Linear(D, V)})  # fmt: skip
        model["b"].weight = model["c"].weight = model["a"].weight
        coded = SAMPLES["pq"]
        held = coded_table(coded.method, coded.tensors, (V, D))
        install(model, replacements(model, "a.weight", held))
        assert model["a"].lookup is model["b"].lookup is model["c"].lookup
        assert model["a"].projection is model["b"].projection is model["c"].projection
        assert (model["a"].padding_idx, model["b"].padding_idx) == (0, None)
        torch.testing.assert_close(model["b"](IDS), dense(coded)[IDS].sum(dim=1), rtol=1e-4, atol=1e-5)
        moved = copy.deepcopy(model).to(torch.float64)
        assert moved["a"].lookup is moved["c"].lookup

    def test_type_and_requires_grad_are_the_tables(self):
        """A frozen half-precision model stays one."""
        model = nn.Sequential(nn.Embedding(V, D)).half().eval().requires_grad_(False)
        coded = SAMPLES["pq"]
        install(model, replacements(model, "0.weight", coded_table(coded.method, coded.tensors, (V, D))))
        assert model(IDS).dtype == torch.float16
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())


def tables_of(case, name: str) -> dict[str, Coded]:
    """A coded table for each table of a model, with as many rows."""
    model = built(case, 0)
    return {table: samples(model.get_parameter(table).shape[0], D)[name] for table in case.tables}


LOADED = {
    f"{model}, {name}, {kind}": (model, name, kind)
    for model in ("gpt2", "averaging", "translator")
    for name in SAMPLES
    for kind in FORMATS
}


class TestLoading:
    @pytest.mark.parametrize(
        ("model", "name", "kind"),
        quick(
            LOADED,
            *(f"translator, {name}, model.safetensors" for name in SAMPLES),
            *(f"{model}, pq, {kind}" for model in ("gpt2", "averaging", "translator") for kind in FORMATS),
        ),
    )
    def test_a_loaded_model_computes_with_the_decoded_table(self, tmp_path, model, name, kind):
        """Tied heads, bags and two tables, of every method and from every format."""
        case, tables = CASES[model], tables_of(CASES[model], name)
        trained = built(case, 0)
        path = write(tmp_path, kind, *compressed(trained, tables))
        loaded = load(built(case, 1), path)
        with torch.no_grad():
            expected = case.run(decoded(trained, tables))
            torch.testing.assert_close(case.run(loaded), expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(case.run(trained), expected, rtol=0, atol=1e-3)

    @some
    @pytest.mark.parametrize("model", CASES)
    def test_every_kind_of_model_takes_one(self, tmp_path, model, name):
        """Scaled embeddings, ties, biases; from a directory."""
        case, tables = CASES[model], tables_of(CASES[model], name)
        trained = built(case, 0)
        loaded = load(built(case, 1), write(tmp_path, "directory", *compressed(trained, tables)))
        with torch.no_grad():
            expected = case.run(decoded(trained, tables))
            torch.testing.assert_close(case.run(loaded), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["int4", "pq"])
    def test_a_head_stored_in_full_is_untied(self, tmp_path, name):
        """Its own weights are used, and the table is coded."""
        case, tables = CASES["gpt2"], tables_of(CASES["gpt2"], name)
        trained = built(case, 0)
        trained.lm_head.weight = nn.Parameter(torch.randn(V, D))
        loaded = load(built(case, 1), write(tmp_path, FORMATS[0], *compressed(trained, tables)))
        assert type(loaded.lm_head) is nn.Linear
        assert torch.equal(loaded.lm_head.weight, trained.lm_head.weight)

    @some
    def test_the_model_keeps_its_type(self, tmp_path, name):
        """Float parts have the type, and so does the output."""
        case, tables = CASES["lstm"], tables_of(CASES["lstm"], name)
        path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), tables))
        model = load(built(case, 1).bfloat16(), path)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.embedding(IDS).dtype == torch.bfloat16

    def refuse(self, path, message, kind=UsageError, **options):
        model = built(CASES["lstm"], 1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(kind, match=message) as caught:
            load(model, path, **options)
        assert "\n" not in str(caught.value)
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in {**before, **after})

    @some
    def test_what_is_missing_or_too_much_is_refused(self, tmp_path, name):
        """As with float factors; a table without one of its parts never loads."""
        weights, description = compressed(built(CASES["lstm"], 0), tables_of(CASES["lstm"], name))
        for kind, changed, message in (
            ("a.safetensors", {k: v for k, v in weights.items() if k != "out.bias"}, "1 missing .* out.bias"),
            ("b.safetensors", {**weights, "more": torch.ones(2)}, "1 unknown to the model: more"),
            (
                "c.safetensors",
                {**weights, "out.bias": torch.ones(9)},
                r"out\.bias \(\[9\], the model has \[3\]",
            ),
        ):
            self.refuse(write(tmp_path, kind, changed, description), message)
        part = description.tables[0].part_names[0]
        path = write(tmp_path, "d.safetensors", {k: v for k, v in weights.items() if k != part}, description)
        self.refuse(path, rf"{part}, a part of embedding\.weight, is missing", InputError, strict=False)

    def test_another_vocabulary_is_refused(self, tmp_path):
        """The table has other rows than the model's."""
        tables = {"embedding.weight": integer(V - 1, D, 8)}
        path = write(tmp_path, FORMATS[0], *compressed(built(CASES["lstm"], 0), tables))
        self.refuse(path, rf"embedding\.weight is \[{V - 1}, {D}\], the model has \[{V}, {D}\]")

    def test_parts_that_contradict_each_other_are_corrupt(self, tmp_path):
        """The message names the file and the table."""
        coded = SAMPLES["int8"]
        weights, description = compressed(built(CASES["lstm"], 0), {"embedding.weight": coded})
        weights["embedding.0.codes"] = weights["embedding.0.codes"].float()
        path = write(tmp_path, FORMATS[0], weights, description)
        self.refuse(path, r"model\.safetensors: embedding\.weight: .*0\.codes is of F32", InputError)

    def test_a_method_without_a_module_is_refused(self, tmp_path, monkeypatch):
        """It can still be expanded."""
        monkeypatch.setattr(Integers, "has_module", False)
        tables = {"embedding.weight": SAMPLES["int8"]}
        path = write(tmp_path, FORMATS[0], *compressed(built(CASES["lstm"], 0), tables))
        self.refuse(path, r"method int8\) cannot be loaded; run 'embcompress expand'")


@pytest.mark.parametrize("method", [*METHODS, *(f"screen+{m}" for m in METHODS if m != "screen")])
def test_what_any_method_writes_is_loaded(tmp_path, method):
    """The model computes with the same table that expand writes."""
    torch.manual_seed(0)
    table = torch.randn(1200, D) * 0.8 ** torch.arange(D)
    table[0] = 0
    torch.save({"embedding.weight": table}, tmp_path / "dense.pt")
    embcompress.factorize(tmp_path / "dense.pt", ratio=0.7, method=method, output=tmp_path / "small.pt")
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "wide.pt")
    model = nn.ModuleDict({"embedding": nn.Embedding(1200, D, padding_idx=0)})
    loaded = load(model, tmp_path / "small.pt")["embedding"]
    assert isinstance(loaded, FactorizedEmbedding)
    wide = torch.load(tmp_path / "wide.pt", weights_only=True)["embedding.weight"]
    ids = torch.randint(1200, (4, 25))
    torch.testing.assert_close(loaded(ids), wide[ids], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.weight, wide, rtol=1e-5, atol=1e-5)
    assert not loaded(torch.tensor([0])).any()


def test_a_lookup_decodes_only_what_is_asked_for():
    """The work grows with the ids and not with the table."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for rows in (V, 4 * V):
        module = embedding(pq(rows, D))
        with FlopCounterMode(display=False) as counter:
            module(IDS)
        counts.append(counter.get_total_flops())
    assert counts == [2 * IDS.numel() * len(PLAIN) * D] * 2
    asked: list[Tensor] = []

    class Watched(IntegerRows):
        def rows(self, numbers: Tensor) -> Tensor:
            asked.append(numbers)
            return super().rows(numbers)

    parts = SAMPLES["int8"].tensors
    Watched(parts["0.codes"], parts["0.scales"], D, 8, tokens=V)(IDS)
    assert [len(numbers) for numbers in asked] == [IDS.numel()]
