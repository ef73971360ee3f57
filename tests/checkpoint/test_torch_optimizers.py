"""Optimizers saved with a model, with torch's own as the oracle: factorize, train on, expand, load, step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import embcompress

ROWS, WIDTH = 120, 8
OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {}),
    "AdamW amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "SGD": (torch.optim.SGD, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
}
METHODS = ["svd", "int8", "pq", "lplr", "screen", "screen+int4"]
"""They have two, no, two, one, one and no parameters in the place of the table."""


class Net(nn.Module):
    """Parameters before and after the table, and none of its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(3))
        self.embedding = nn.Embedding(ROWS, WIDTH)
        self.scale = nn.Parameter(torch.ones(()))
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        return self.out(self.embedding(tokens) * self.scale) + self.before


def in_one_group(net):
    return net.parameters()


def in_two_groups(net):
    """As with weight decay for some parameters only."""
    plain = [p for p in net.parameters() if p.dim() < 2]
    return [
        {"params": [p for p in net.parameters() if p.dim() > 1]},
        {"params": plain, "weight_decay": 0.0, "lr": 0.3},
    ]


def with_names(net):
    return net.named_parameters()


def step(net, optimizer):
    net(torch.arange(20)).square().sum().backward()
    optimizer.step()


def trained(optimizer_class, options, grouped):
    torch.manual_seed(0)
    net = Net()
    optimizer = optimizer_class(grouped(net), lr=0.05, **options)
    step(net, optimizer)
    return net, optimizer


def saved(path, net, optimizer):
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, path)
    return path


def loaded(path):
    return torch.load(path, weights_only=True)


def assert_same_moments(old, old_optimizer, new, new_optimizer):
    """All parameters but the table, which both nets have under the same names, have the same moments."""
    others = {name: p for name, p in new.named_parameters() if not name.startswith("embedding.")}
    assert len(others) == 4
    for name, parameter in others.items():
        before, after = old_optimizer.state[old.get_parameter(name)], new_optimizer.state[parameter]
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value


@pytest.mark.parametrize("grouped", [in_one_group, in_two_groups, with_names])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_expand_brings_every_kept_moment_back_to_its_parameter(tmp_path, name, grouped):
    optimizer_class, options = OPTIMIZERS[name]
    net, optimizer = trained(optimizer_class, options, grouped)
    path = saved(tmp_path / "run.pt", net, optimizer)
    small = embcompress.factorize(path, rank=2, output=tmp_path / "small.pt")
    dense = embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    lost = [note for note in (*small.notes, *dense.notes) if "optimizer" in note]
    if name == "SGD" and grouped is in_two_groups:
        assert "dropped" in lost[0], "nothing says in which group the table is"
        assert "optimizer" not in loaded(tmp_path / "dense.pt")
        return
    # Adagrad also loses the fresh entries of the factors; what has no moments cannot lose any.
    assert len(lost) == {"SGD": 0, "Adagrad": 2}.get(name, 1)
    fresh = Net()
    again = optimizer_class(grouped(fresh), lr=9.0, **options)
    before = loaded(path)["optimizer"]
    after = loaded(tmp_path / "dense.pt")["optimizer"]
    assert after.keys() == before.keys()
    assert [group["params"] for group in after["param_groups"]] == [
        group["params"] for group in before["param_groups"]
    ]
    fresh.load_state_dict(loaded(tmp_path / "dense.pt")["model"])
    again.load_state_dict(after)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert_same_moments(net, optimizer, fresh, again)
    step(fresh, again)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.Adagrad])
@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_fits_the_model_that_each_method_makes(tmp_path, method, optimizer_class):
    """It loads into an optimizer of the loaded model, and after expanding into that of the dense one.

    Adagrad needs an entry for every parameter, so those of the new ones are written as it makes them.
    """
    net, optimizer = trained(optimizer_class, {}, in_one_group)
    path = saved(tmp_path / "run.pt", net, optimizer)
    embcompress.factorize(path, ratio=0.4, method=method, output=tmp_path / "small.pt")
    small = embcompress.load(Net(), tmp_path / "small.pt")
    of_small = optimizer_class(small.parameters())
    of_small.load_state_dict(loaded(tmp_path / "small.pt")["optimizer"])
    assert_same_moments(net, optimizer, small, of_small)
    step(small, of_small)
    assert embcompress.verify(tmp_path / "small.pt", against=path).is_right
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    dense = Net()
    dense.load_state_dict(loaded(tmp_path / "dense.pt")["model"])
    of_dense = optimizer_class(dense.parameters())
    of_dense.load_state_dict(loaded(tmp_path / "dense.pt")["optimizer"])
    assert_same_moments(net, optimizer, dense, of_dense)
    if optimizer_class is torch.optim.Adagrad:
        entry = of_dense.state[dense.embedding.weight]
        assert entry["step"] == 0
        assert torch.equal(entry["sum"], torch.zeros(ROWS, WIDTH))
    step(dense, of_dense)


def test_an_optimizer_of_another_module_stays_as_it_is(tmp_path):
    net, optimizer = trained(torch.optim.Adam, {}, in_one_group)
    critic = nn.Linear(4, 2)
    other = torch.optim.Adam(critic.parameters())
    critic(torch.ones(4)).sum().backward()
    other.step()
    run = {"model": net.state_dict(), "critic": critic.state_dict()}
    run |= {"optimizer": optimizer.state_dict(), "critic_optimizer": other.state_dict()}
    torch.save(run, tmp_path / "run.pt")
    small = embcompress.factorize(tmp_path / "run.pt", rank=2, output=tmp_path / "small.pt")
    assert sum("optimizer" in note for note in small.notes) == 1
    again = torch.optim.Adam(critic.parameters())
    again.load_state_dict(loaded(tmp_path / "small.pt")["critic_optimizer"])
    for parameter in critic.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], other.state[parameter]["exp_avg"])


def test_an_optimizer_saved_as_an_object_is_dropped(tmp_path):
    """Its state is a dict whose keys are parameters."""
    net, optimizer = trained(torch.optim.Adam, {}, in_one_group)
    torch.save({"model": net.state_dict(), "optimizer": optimizer}, tmp_path / "m.pt")
    result = embcompress.factorize(tmp_path / "m.pt", rank=2, weights_only=True, output=tmp_path / "small.pt")
    assert any("'optimizer' (torch.optim.adam.Adam)" in note for note in result.notes)
    assert [*loaded(tmp_path / "small.pt")] == ["model"]


def test_names_tell_the_table_from_another_parameter_of_its_shape(tmp_path):
    torch.manual_seed(0)
    net = nn.ModuleDict({"embedding": nn.Embedding(ROWS, WIDTH), "head": nn.Linear(WIDTH, ROWS, bias=False)})
    optimizer = torch.optim.Adam(net.named_parameters())
    net["head"](net["embedding"](torch.arange(5))).square().sum().backward()
    optimizer.step()
    saved(tmp_path / "run.pt", net, optimizer)
    embcompress.factorize(tmp_path / "run.pt", rank=2, keys="embedding.weight", output=tmp_path / "small.pt")
    embcompress.expand(tmp_path / "small.pt", output=tmp_path / "dense.pt")
    again = torch.optim.Adam(net.named_parameters())
    again.load_state_dict(loaded(tmp_path / "dense.pt")["optimizer"])
    head = net["head"].weight
    assert torch.equal(again.state[head]["exp_avg_sq"], optimizer.state[head]["exp_avg_sq"])
    assert not again.state[net["embedding"].weight]


def test_a_stored_copy_of_the_table_is_no_parameter_of_its_own(tmp_path):
    """Scripts that save each tensor of a tied model as a clone hold its head twice, its optimizer once."""
    net, optimizer = trained(torch.optim.Adam, {}, in_one_group)
    state = {**net.state_dict(), "head.weight": net.embedding.weight.detach().clone()}
    torch.save({"model": state, "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    embcompress.factorize(tmp_path / "run.pt", rank=2, output=tmp_path / "small.pt")
    small = embcompress.load(Net(), tmp_path / "small.pt", strict=False)
    again = torch.optim.Adam(small.parameters())
    again.load_state_dict(loaded(tmp_path / "small.pt")["optimizer"])
    assert_same_moments(net, optimizer, small, again)


TABLES = {2: [ROWS, WIDTH]}
NOTES = [
    7,
    {},
    {"params": 3, "tables": {}},
    {"params": [[0, 1, "a"]], "tables": TABLES},
    {"params": [[0, 1, 2, 3, 4], []], "tables": TABLES},
    {"params": [[0, 1, 2, 3, 99]], "tables": TABLES},
    {"params": [[0, 1, 2, 3, 4]], "tables": "2"},
    {"params": [[0, 1, 2, 3, 4]], "tables": {2: [1 << 40, 1 << 40]}},
    {"params": [[0, 1, 2, 3, 4]], "tables": {2: 3}},
]


@pytest.mark.parametrize("note", NOTES)
def test_row_87_a_broken_note_of_the_optimizer_counts_as_none(tmp_path, note):
    """The number of parameters is right even so."""
    net, optimizer = trained(torch.optim.Adam, {}, in_one_group)
    embcompress.factorize(saved(tmp_path / "run.pt", net, optimizer), rank=2, output=tmp_path / "small.pt")
    broken = loaded(tmp_path / "small.pt")
    assert broken["optimizer"]["embcompress"] == {
        "params": [[0, 1, 2, 3, 4]],
        "tables": {2: [ROWS, WIDTH]},
    }
    broken["optimizer"]["embcompress"] = note
    torch.save(broken, tmp_path / "broken.pt")
    result = embcompress.expand(tmp_path / "broken.pt", output=tmp_path / "dense.pt")
    assert any("not certain" in line for line in result.notes)
    after = loaded(tmp_path / "dense.pt")["optimizer"]
    assert after == {
        "state": {},
        "param_groups": [{**broken["optimizer"]["param_groups"][0], "params": [0, 1, 2, 3, 4]}],
    }
