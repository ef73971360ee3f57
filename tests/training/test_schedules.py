"""CALR against the published steps walked in exact arithmetic; the contracts of schedules and optimizers."""

from __future__ import annotations

import copy
import io
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.quick import quick
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from embcompress.errors import UsageError
from embcompress.training.calr import CALR
from embcompress.training.optimizers import OPTIMIZERS, optimizer_for
from embcompress.training.schedules import SCHEDULES, Run, schedule_for


def walked(
    iterations,
    max_lr,
    iterations_per_epoch,
    step_size,
    decay=0.1,
    window=5,
    restart_window=5,
    epochs_per_decay=1,
    number=Fraction,
):
    """The authors' CALR step by step, in Fractions (exact) or in floats."""
    top, decay, step_size = number(max_lr), number(decay), number(step_size)
    upper, lower = top, top * decay**window
    rates = []
    for iteration in range(1, iterations + 1):
        epoch, batch = divmod(iteration - 1, iterations_per_epoch)
        if batch == 0 and epoch > 0 and epoch % epochs_per_decay == 0:
            upper = upper * decay
            if upper <= lower:
                upper, lower = top, top * decay**restart_window
        position = iteration % (2 * step_size)
        if position < step_size:
            rates.append(lower + (upper - lower) * position / step_size)
        else:
            rates.append(upper - (upper - lower) * (position - step_size) / step_size)
    return rates


def sgd(groups=1, rate=123.0):
    """An optimizer whose own learning rate would show if it were used."""
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2))]} for _ in range(groups)], lr=rate)


def rates_of(scheduler, iterations):
    """The optimizer's learning rate at each of its steps."""
    seen = []
    hook = scheduler.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    for _ in range(iterations):
        scheduler.optimizer.step()
        scheduler.step()
    hook.remove()
    return [rates[0] for rates in seen] if len(scheduler.optimizer.param_groups) == 1 else seen


def through_a_file(*states):
    """State dicts as they come back after saving, with only data loaded."""
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def close_to(exact, max_lr):
    """A rate may differ only by rounding errors of the largest number in its formula."""
    return pytest.approx([float(rate) for rate in exact], rel=1e-12, abs=1e-15 * max_lr)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_calr_is_the_published_steps(data):
    """Every step has the rate that the paper's loop gives in exact arithmetic, across restarts."""
    window, restart_window = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    arguments = {
        "max_lr": data.draw(st.floats(1e-6, 10)),
        "iterations_per_epoch": data.draw(st.integers(1, 7)),
        "step_size": data.draw(st.integers(1, 20) | st.floats(0.3, 20)),
        "decay": data.draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]) | st.floats(0.05, 1)),
        "window": window,
        "restart_window": restart_window,
        "epochs_per_decay": data.draw(st.integers(1, 3)),
    }
    epochs = (window + 2 * restart_window) * arguments["epochs_per_decay"] + 2
    iterations = epochs * arguments["iterations_per_epoch"]
    expected = close_to(walked(iterations, **arguments), arguments["max_lr"])
    assert rates_of(CALR(sgd(), **arguments), iterations) == expected


@pytest.mark.parametrize(
    ("window", "exponents"),
    [
        (5, [3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3]),  # training
        (3, [3, 4, 5, 3, 4, 5, 6, 7, 3, 4, 5]),  # retraining
    ],
)
def test_calr_peaks_where_the_paper_peaks(window, exponents):
    """The published upper bounds, reached in the middle of each epoch; it ends at the lower one."""
    rates = rates_of(CALR(sgd(), 1e-3, 10, window=window), 10 * len(exponents))
    assert rates[4::10] == pytest.approx([10.0**-e for e in exponents], rel=1e-12)
    assert rates[9::10] == pytest.approx([10.0 ** -(3 + window)] * window + [1e-8] * (11 - window), rel=1e-9)


def test_calr_starts_above_the_lower_bound():
    """Iterations count from 1, and rates rise first: the run starts neither at the bound nor at the top."""
    assert rates_of(CALR(sgd(), 1.0, 100, step_size=4, decay=0.5, window=1), 9) == [
        *[0.625, 0.75, 0.875, 1.0],
        *[0.875, 0.75, 0.625, 0.5],
        0.625,
    ]


@pytest.mark.parametrize(("iterations_per_epoch", "step_size"), [(1, 1.0), (2, 1.0), (7, 3.5), (2000, 1000)])
def test_calr_scales_its_step_to_the_epoch(iterations_per_epoch, step_size):
    """Without a step size an epoch is one cycle, also of an odd number of iterations."""
    scheduler = CALR(sgd(), 0.1, iterations_per_epoch)
    assert scheduler.step_size == step_size
    iterations = min(40, 4 * iterations_per_epoch)
    exact = walked(iterations, 0.1, iterations_per_epoch, step_size)
    assert rates_of(scheduler, iterations) == close_to(exact, 0.1)


@pytest.mark.parametrize(("max_lr", "decay"), [(1.0, 0.1), (0.01, 0.9), (0.1, 0.75)])
def test_calr_restarts_in_time_where_floats_do_not(max_lr, decay):
    """Comparing rounded bounds, as the published code does, makes a window too long in this case."""
    exact = close_to(walked(60, max_lr, 3, 2, decay), max_lr)
    assert rates_of(CALR(sgd(), max_lr, 3, 2, decay), 60) == exact
    assert walked(60, max_lr, 3, 2, decay, number=float) != exact


def test_calr_without_decay_is_constant():
    """A decay of 1 leaves both bounds at the top, exactly."""
    assert set(rates_of(CALR(sgd(), 0.3, 3, 1.7, decay=1), 50)) == {0.3}


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-12, 1), st.floats(1e-3, 1e3), st.integers(1, 10))
def test_calr_stays_within_its_bounds(decay, step_size, window):
    """Rounding never makes a rate negative or larger than the top, however far apart the bounds are."""
    for rate in rates_of(CALR(sgd(), 0.7, 4, step_size, decay, window), 60):
        assert 0 <= rate <= 0.7 * (1 + 1e-15)


def test_calr_has_a_top_for_each_parameter_group():
    """Groups move together, each below its own maximum."""
    both = rates_of(CALR(sgd(groups=2), [0.1, 0.003], 4), 40)
    alone = [rates_of(CALR(sgd(), top, 4), 40) for top in (0.1, 0.003)]
    assert both == [list(pair) for pair in zip(*alone, strict=True)]
    shared = rates_of(CALR(sgd(groups=2), 0.1, 4), 40)
    assert shared == [[rate, rate] for rate in alone[0]]


def test_calr_moves_parameters_by_its_rates():
    """A plain gradient step of slope 1 is as long as the rate that ``get_last_lr`` predicted."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=123.0)
    scheduler = CALR(optimizer, 0.5, 5, decay=0.5)
    places, predicted_errors = [0.0], []
    for _ in range(30):
        weight.grad = torch.ones_like(weight)
        predicted_errors += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
        places.append(weight.item())
    assert [a - b for a, b in pairwise(places)] == pytest.approx(predicted_errors, abs=1e-14)
    assert predicted_errors == close_to(walked(30, 0.5, 5, 2.5, 0.5), 0.5)


@pytest.mark.parametrize("done", [1, 7, 17, 30])
@pytest.mark.parametrize("loaded_first", ["optimizer", "scheduler"])
def test_calr_resumes_bit_for_bit(done, loaded_first):
    """A resumed run has exactly the same rates, in whatever order its parts are loaded."""

    def scheduler():
        return CALR(sgd(groups=2), [0.1, 0.7], 5, 1.7, 0.3, window=3, restart_window=2)

    whole = rates_of(scheduler(), 60)
    stopped = scheduler()
    assert rates_of(stopped, done) == whole[:done]
    saved_optimizer, saved = through_a_file(stopped.optimizer.state_dict(), stopped.state_dict())
    assert "optimizer" not in saved
    if loaded_first == "optimizer":
        optimizer = sgd(groups=2)
        optimizer.load_state_dict(saved_optimizer)
        resumed = CALR(optimizer, 9.0, 1)  # what it was made with is in the state
        resumed.load_state_dict(saved)
    else:
        resumed = CALR(sgd(groups=2), 9.0, 1)
        resumed.load_state_dict(saved)
        resumed.optimizer.load_state_dict(saved_optimizer)
    assert resumed.get_last_lr() == whole[done]
    assert rates_of(resumed, 60 - done) == whole[done:]


def test_calr_continues_from_last_epoch():
    """Without a state dict, the index of the last iteration is enough."""
    whole = rates_of(CALR(sgd(), 0.1, 5), 60)
    optimizer = sgd()
    optimizer.param_groups[0]["initial_lr"] = 0.1  # PyTorch asks for it
    assert rates_of(CALR(optimizer, 0.1, 5, last_epoch=16), 43) == whole[17:]


def test_calr_takes_numpy_numbers_and_tensor_rates():
    """The state holds plain numbers, and a learning rate that is a tensor stays one."""
    optimizer = sgd()
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(1.0, dtype=torch.float64)
    scheduler = CALR(optimizer, np.float64(0.1), np.int64(5), np.float32(2.5), window=np.int32(5))
    for expected in rates_of(CALR(sgd(), 0.1, 5), 20):
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == expected
        optimizer.step()
        scheduler.step()
    (saved,) = through_a_file(scheduler.state_dict())
    scheduler.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == scheduler.get_lr()[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_lr": 0}, "max_lr is 0, choose a finite number above 0"),
        ({"max_lr": math.inf}, "max_lr is inf"),
        ({"max_lr": [0.1, 0.2]}, "2 values for 1 parameter groups"),
        ({"decay": 0}, "decay is 0, choose a number in (0, 1]"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"decay": math.nan}, "decay is nan"),
        ({"step_size": 0}, "step_size is 0"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"iterations_per_epoch": 0}, "iterations_per_epoch is 0, choose a whole number of at least 1"),
        ({"iterations_per_epoch": 2.5}, "iterations_per_epoch is 2.5"),
        ({"window": 0}, "window is 0"),
        ({"restart_window": -1}, "restart_window is -1"),
        ({"epochs_per_decay": 0}, "epochs_per_decay is 0"),
    ],
)
def test_calr_refuses_what_has_no_meaning(wrong, message):
    """An argument outside its range is named with its value and the range."""
    with refused(ValueError, message):
        CALR(sgd(), **{"max_lr": 0.1, "iterations_per_epoch": 5, **wrong})


def test_calr_asks_for_an_optimizer():
    """As every scheduler of PyTorch does."""
    with pytest.raises(TypeError, match="list"):
        CALR([], 0.1, 5)


RUN = Run(max_lr=0.02, iterations_per_epoch=7, epochs=6)


@pytest.fixture(params=SCHEDULES.values(), ids=lambda s: s.name)
def schedule(request):
    return request.param


@pytest.fixture(params=OPTIMIZERS.values(), ids=lambda o: o.name)
def entry(request):
    return request.param


def quadratic_steps(weight, optimizer, scheduler, steps):
    """Rates of some steps down |w|²/2."""
    rates = []
    for _ in range(steps):
        weight.grad = weight.detach().clone()
        rates += [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return rates


def weights(seed=0):
    return nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))


class TestSchedules:
    """What the training loop relies on, for every entry of the registry."""

    def test_name_is_its_key(self, schedule):
        """The registry finds a schedule under its own name, with a line for the help text."""
        assert SCHEDULES[schedule.name] is schedule_for(schedule.name) is schedule
        assert schedule.description
        assert "\n" not in schedule.description

    def test_rates_are_those_of_the_run(self, schedule, entry):
        """Between 0 and the maximum, with every optimizer, whatever rate it was made with."""
        rates = set()
        for own in (1e-5, 3.0):
            weight = weights()
            optimizer = entry.build([weight], own, 0.0)
            steps = quadratic_steps(weight, optimizer, schedule.build(optimizer, RUN), RUN.iterations)
            assert all(0 < rate <= RUN.max_lr * (1 + 1e-12) for rate in steps)
            assert max(steps) > 0.8 * RUN.max_lr
            rates.add(tuple(steps))
        assert len(rates) == 1

    def test_an_earlier_schedule_leaves_no_trace(self, schedule):
        """A second phase of training has its own rates, not those of the first."""
        fresh = rates_of(schedule.build(sgd(), RUN), 20)
        for earlier in SCHEDULES.values():
            optimizer = sgd()
            rates_of(earlier.build(optimizer, Run(5.0, 3, 2)), 4)
            assert rates_of(schedule.build(optimizer, RUN), 20) == fresh

    @pytest.mark.parametrize("done", quick([1, 20, 41], "20", "41"))
    def test_resumes_bit_for_bit(self, schedule, entry, done):
        """Weights and rates after a stop are those of a run without one."""

        def begin():
            weight = weights()
            optimizer = entry.build([weight], 1.0, 0.01)
            return weight, optimizer, schedule.build(optimizer, RUN)

        whole = begin()
        expected = quadratic_steps(*whole, RUN.iterations)
        stopped = begin()
        rates = quadratic_steps(*stopped, done)
        states = through_a_file(stopped[0].detach(), stopped[1].state_dict(), stopped[2].state_dict())
        resumed = begin()
        resumed[0].data.copy_(states[0])
        resumed[1].load_state_dict(states[1])
        resumed[2].load_state_dict(states[2])
        rates += quadratic_steps(*resumed, RUN.iterations - done)
        assert rates == expected
        assert torch.equal(resumed[0], whole[0])

    def test_every_option_is_taken_and_others_are_not(self, schedule):
        """An unknown option is refused with those there are; each known one changes the rates."""
        with refused(UsageError, schedule.name, "'widnow'", *schedule.options):
            schedule.build(sgd(), RUN, {"widnow": 3})
        default = rates_of(schedule.build(sgd(), RUN), 200)
        for option in schedule.options:
            value = 0.5 if option in ("decay", "base_ratio") else 3.0
            assert rates_of(schedule.build(sgd(), RUN, {option: value}), 200) != default

    def test_options_out_of_range_are_usage_errors(self, schedule):
        """The message names the invalid value, for every option."""
        for option in schedule.options:
            with refused(UsageError, schedule.name, option, "-1"):
                schedule.build(sgd(), RUN, {option: -1})

    def test_runs_of_one_step_are_possible(self, schedule):
        """The shortest run has a rate above 0."""
        (rate,) = rates_of(schedule.build(sgd(), Run(0.1, 1, 1)), 1)
        assert 0 < rate <= 0.1


def test_calr_of_the_registry_passes_its_options_on():
    """Whole floats are accepted as counts; other floats are refused."""
    options = {"decay": 0.5, "window": 3.0, "restart_window": 2, "epochs_per_decay": 2.0, "step_size": 2.5}
    rates = rates_of(SCHEDULES["calr"].build(sgd(), RUN, options), 200)
    assert rates == close_to(walked(200, 0.02, 7, 2.5, 0.5, 3, 2, 2), 0.02)
    with refused(UsageError, "window", "2.5"):
        SCHEDULES["calr"].build(sgd(), RUN, {"window": 2.5})


def test_clr_cycles_once_an_epoch_from_its_base():
    """The triangular policy from a quarter of the maximum, or between other bounds."""

    def triangle(iteration, step_size, base):  # Smith 2017, the code of section 3.1
        cycle = math.floor(1 + iteration / (2 * step_size))
        x = abs(iteration / step_size - 2 * cycle + 1)
        return base + (0.02 - base) * max(0, 1 - x)

    rates = rates_of(SCHEDULES["clr"].build(sgd(), RUN), 42)
    assert rates == pytest.approx([triangle(i, 3.5, 0.005) for i in range(42)])
    assert rates[::7] == pytest.approx([0.005] * 6)
    other = rates_of(SCHEDULES["clr"].build(sgd(), RUN, {"base_ratio": 0.0, "step_size": 5}), 42)
    assert other == pytest.approx([triangle(i, 5, 0) for i in range(42)], abs=1e-12)


def test_cosine_and_linear_fall_to_zero_over_the_run():
    """From the top to 0 with the step after the last (cosine: SGDR, arXiv:1608.03983, equation 5)."""
    done = np.arange(43) / 42
    cosine = rates_of(SCHEDULES["cosine"].build(sgd(), RUN), 43)
    linear = rates_of(SCHEDULES["linear"].build(sgd(), RUN), 43)
    np.testing.assert_allclose(cosine, 0.02 * (1 + np.cos(np.pi * done)) / 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(linear, 0.02 * (1 - done), rtol=1e-9, atol=1e-12)


def test_constant_is_constant():
    """Exactly, also past the end."""
    assert set(rates_of(SCHEDULES["constant"].build(sgd(), RUN), 100)) == {0.02}


@pytest.mark.parametrize(
    "wrong", [{"max_lr": 0.0}, {"max_lr": math.nan}, {"iterations_per_epoch": 0}, {"epochs": 0}]
)
def test_runs_without_meaning_are_refused(wrong):
    """No rate, no batch or no epoch is no training."""
    with refused(UsageError, str(*wrong.values())):
        Run(**{"max_lr": 0.1, "iterations_per_epoch": 3, "epochs": 2, **wrong})


def test_unknown_names_are_usage_errors():
    """The message lists what there is."""
    with refused(UsageError, "'cosin'", *SCHEDULES):
        schedule_for("cosin")
    with refused(UsageError, "'adan'", *OPTIMIZERS):
        optimizer_for("adan")


class TestOptimizers:
    """What the training loop relies on, for every entry of the registry."""

    def test_name_is_its_key(self, entry):
        """The registry finds an optimizer under its own name, with a line for the help text."""
        assert OPTIMIZERS[entry.name] is optimizer_for(entry.name) is entry
        assert entry.description
        assert "\n" not in entry.description

    def test_goes_down_a_quadratic(self, entry):
        """At its default rate it loses at least a hundredth of |w|² in fifty steps."""
        weight = weights()
        before = weight.detach().norm()
        quadratic_steps(weight, entry.build([weight], entry.learning_rate, 0.0), None, 50)
        assert weight.detach().norm() < 0.995 * before

    def test_is_the_formula_of_the_plain_form(self, entry):
        """The fastest form takes the same steps as the loop over parameters, but for rounding."""
        fast, plain = weights(), weights()
        quick = entry.build([fast], 0.01, 0.1)
        slow = entry.make([plain], lr=0.01, weight_decay=0.1, foreach=False, **entry.arguments)
        quadratic_steps(fast, quick, None, 20)
        quadratic_steps(plain, slow, None, 20)
        assert not torch.equal(plain, weights())
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)

    def test_weight_decay_shrinks_and_nothing_else_moves(self, entry):
        """Without gradients, decay shrinks weights, and no decay leaves them unchanged."""
        for decay in (0.0, 0.1):
            weight = weights()
            optimizer = entry.build([weight], entry.learning_rate, decay)
            for _ in range(5):
                weight.grad = torch.zeros_like(weight)
                optimizer.step()
            change = weight.detach().abs() - weights().detach().abs()
            assert (change < 0).all() if decay else not change.any()

    def test_a_padding_row_stays_exactly_zero(self, entry):
        """A row of zeros without gradient is not touched, though its moments are kept and it decays."""
        weight = weights()
        weight.data[2] = 0
        quadratic_steps(weight, entry.build([weight], entry.learning_rate, 0.1), None, 10)
        assert not weight[2].any()
        assert weight.any()

    def test_state_goes_through_a_file(self, entry):
        """Moments are saved as data and loaded to the same bits."""
        weight = weights()
        optimizer = entry.build([weight], entry.learning_rate, 0.01)
        quadratic_steps(weight, optimizer, None, 3)
        twin = nn.Parameter(weight.detach().clone())
        other = entry.build([twin], 77.0, 0.0)
        other.load_state_dict(*through_a_file(copy.deepcopy(optimizer.state_dict())))
        quadratic_steps(weight, optimizer, None, 3)
        quadratic_steps(twin, other, None, 3)
        assert torch.equal(weight, twin)

    def test_gradients_may_come_late(self, entry):
        """A parameter that is unfrozen after the first step is trained from then on."""
        early, late = weights(), weights(1)
        optimizer = entry.build([early, late], entry.learning_rate, 0.0)
        quadratic_steps(early, optimizer, None, 2)
        assert torch.equal(late, weights(1))
        late.grad = late.detach().clone()
        quadratic_steps(early, optimizer, None, 2)
        assert not torch.equal(late, weights(1))

    def test_fused_kernels_only_where_there_are_some(self, entry):
        """On other devices and for complex numbers the plain form is used."""
        for elsewhere in (torch.empty(2, device="meta"), torch.empty(2, dtype=torch.complex64)):
            optimizer = entry.build([weights(), nn.Parameter(elsewhere)], 0.1, 0.0)
            assert not optimizer.defaults.get("fused")
        assert bool(entry.build([weights()], 0.1, 0.0).defaults.get("fused")) == ("cpu" in entry.fused_on)

    @pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
    def test_works_on_the_accelerator(self, entry):
        """The form that the registry chooses there works, and steps as on the CPU."""
        here, there = weights(), nn.Parameter(weights().detach().to(torch.accelerator.current_accelerator()))
        for weight in (here, there):
            quadratic_steps(weight, entry.build([weight], 0.01, 0.1), None, 5)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("rate", "decay"), [(0.0, 0.0), (math.inf, 0.0), (0.1, -1.0), (0.1, math.nan)])
    def test_numbers_without_meaning_are_refused(self, entry, rate, decay):
        """A rate must be above 0, a decay not below, and both finite."""
        with refused(UsageError, str(rate if decay == 0 else decay)):
            entry.build([weights()], rate, decay)
