"""The comparison of methods in a report: its figures, its chart, its picture, its JSON."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.checkpoints import assert_refused, run, succeed, table
from matplotlib.image import imread
from safetensors.numpy import save_file

import embcompress
from embcompress.cli import cli
from embcompress.dtypes import DTYPES
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.stats import measure
from embcompress.reports.chart import CURVE_TICKS, Curve, Frame, Piece, chart, error_span, marks
from embcompress.reports.record import Comparison
from embcompress.reports.results import FactorizeResult, TableResult
from embcompress.reports.terminal import show
from embcompress.rows import Rows
from embcompress.workflows.report import CURVE, RATIOS

V, D = 3000, 24
NAME = "embedding.weight"


def values(rows=V, columns=D):
    return table(rows, columns)


def zipf(rows=V):
    return np.floor(np.random.default_rng(0).permutation(1e4 / np.arange(1, rows + 1)))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({NAME: values()}, path)
    return path


@pytest.fixture
def counts(tmp_path):
    np.save(tmp_path / "counts.npy", zipf())
    return tmp_path / "counts.npy"


def stats_of(array, weights=None):
    rows = Rows(array.shape, DTYPES["F32"], lambda start, stop: array[start:stop].copy())
    return measure(rows, NAME, weights=weights)


def water_filled(singular, bits):
    """Reverse water-filling by bisection for the water level, from singular values alone."""
    variances = singular[singular > 0] ** 2
    low, high = 0.0, variances.max()
    for _ in range(500):
        level = (low + high) / 2
        rate = np.maximum(0, np.log2(variances / level) / 2).sum() if level else math.inf
        low, high = (level, high) if rate > bits else (low, level)
    return math.sqrt(np.minimum(variances, high).sum() / variances.sum())


# ---- figures


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_errors_are_those_that_each_method_predicts(model, weighted):
    """At each ratio every method that fits stands with what it says itself of that many bytes."""
    counts = zipf() if weighted else None
    found = embcompress.report(model, weights=counts, curve=True).tables[0]
    weights = (counts + 1) ** 0.5 if weighted else None
    known = stats_of(values(), weights if weights is None else weights / weights.mean())
    assert [each.ratio for each in found.comparisons] == [*RATIOS]
    assert [each.ratio for each in found.curve] == [*CURVE]
    for each in found.curve:
        assert each.nbytes == int((1 - each.ratio) * 4 * V * D + 1e-6)
        expected = {
            n: m.predict_error(known, each.nbytes, Settings(DTYPES["F32"])) for n, m in METHODS.items()
        }
        assert {*each.errors} == {name for name, error in expected.items() if error is not None}
        for name, error in each.errors.items():
            assert error == pytest.approx(expected[name], rel=1e-6)
    assert [each for each in found.curve if each.ratio in RATIOS] == [*found.comparisons]
    assert {name for each in found.curve for name in each.errors} >= {"svd", "int8"}
    assert "int8" not in found.curve[-1].errors, "one byte a number is more than a fiftieth of four"


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_bound_is_reverse_water_filling(model, weighted):
    """Against a bisection over the singular values of the weighted table, in float64."""
    counts = zipf() if weighted else None
    roots = np.ones(V) if counts is None else (counts + 1) ** 0.25
    singular = np.linalg.svd(roots[:, None] * values().astype(np.float64), compute_uv=False)
    for each in embcompress.report(model, weights=counts, curve=True).tables[0].curve:
        assert each.bound == pytest.approx(water_filled(singular, 8 * each.nbytes / V), rel=1e-4)


def test_no_method_goes_below_the_bound_of_gaussian_rows(tmp_path):
    """Where rows are Gaussian and weigh alike nothing beats it, and the best method is not far off."""
    rows = np.random.default_rng(0).standard_normal((8000, 32)).astype(np.float32)
    save_file({NAME: rows}, tmp_path / "m.safetensors")
    for each in embcompress.report(tmp_path / "m.safetensors").tables[0].comparisons:
        assert all(error > 0.98 * each.bound for error in each.errors.values())
        assert each.ratio < 0.9 or each.errors[each.best] < 1.8 * each.bound


def test_errors_grow_with_the_ratio(model):
    """Of fewer bytes no method makes more, and one that does not fit does not fit in less."""
    curve = embcompress.report(model, curve=True).tables[0].curve
    for before, after in itertools.pairwise(curve):
        assert {*after.errors} <= {*before.errors}
        assert all(error >= before.errors[name] * (1 - 1e-9) for name, error in after.errors.items())
        assert after.bound > before.bound


def test_ratios_of_the_curve_are_a_dozen_with_those_of_the_report():
    """From 0.5 to 0.98, what the axes name among them."""
    assert {*RATIOS} | {*CURVE_TICKS} <= {*CURVE}
    assert (CURVE[0], CURVE[-1], len(CURVE)) == (0.5, 0.98, 14)
    assert [*CURVE] == sorted(CURVE)


def test_the_curve_goes_through_what_the_report_says(model):
    """Both look at the same methods."""
    plain = embcompress.report(model).tables[0]
    drawn = {c.ratio: c for c in embcompress.report(model, curve=True).tables[0].curve}
    assert all(drawn[c.ratio] == c for c in plain.comparisons)


def test_weights_change_what_is_said(model, counts):
    """Errors, bound and spectrum are weighted, and it says by what; smoothing 0 says what none says."""
    plain = embcompress.report(model).tables[0]
    weighted = embcompress.report(model, weights=counts, smoothing=1).tables[0]
    assert (plain.weighting, weighted.weighting) == (None, "counts.npy, (count+1)^1")
    for one, other in zip(plain.comparisons, weighted.comparisons, strict=True):
        assert one.bound != other.bound
        same = {name for name in one.errors if one.errors[name] == other.errors[name]}
        assert same <= {"lplr"}  # which at full rank looks at no row
    assert plain.options[0].relative_error != weighted.options[0].relative_error
    alike = embcompress.report(model, weights=counts, smoothing=0).tables[0]
    assert [c.errors for c in alike.comparisons] == [c.errors for c in plain.comparisons]
    shown = succeed("report", model, "--weights", counts, "--smoothing", "1").stdout
    assert "spectrum and errors with rows weighted by counts.npy, (count+1)^1" in shown
    assert "weighted error of each method at the same bytes" in shown
    assert "weighted" not in succeed("report", model).stdout


def test_a_corpus_is_counted(minilm, tmp_path):
    """Texts of the named column are counted with the model's own tokenizer."""
    (tmp_path / "texts.csv").write_text("text,said\nx,the cat sat on the mat\n")
    command = (
        "report",
        minilm,
        "--corpus",
        tmp_path / "texts.csv",
        "--text-column",
        "said",
        "--smoothing",
        "2",
        "--json",
    )
    weighted = json.loads(succeed(*command).stdout)["tables"][0]
    assert weighted["weighting"] == "texts.csv and the order of its tokens, (count+1)^2"
    found = {option["ratio"]: option["relative_error"] for option in weighted["options"]}
    assert found[0.5] == weighted["comparisons"][0]["errors"]["svd"] != pytest.approx(0.46047, rel=1e-4)


def test_values_too_large_to_count_with_leave_methods_out(tmp_path):
    """What overflows is neither shown nor warned of."""
    save_file({NAME: values(50, 8) * np.float32(1e30)}, tmp_path / "m.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = embcompress.report(tmp_path / "m.safetensors", curve=True).tables[0]
    assert all(0.001 < error <= 1 for each in found.curve for error in each.errors.values())
    assert {"svd", "screen"} <= {*found.comparisons[0].errors}


@pytest.mark.parametrize("shape", [(1, 8), (50, 1), (3, 40)])
def test_small_tables_are_compared_and_drawn(tmp_path, shape):
    """Where hardly anything fits, dashes stand, and the chart still has its frame."""
    save_file({NAME: np.ones(shape, np.float32)}, tmp_path / "m.safetensors")
    shown = succeed("report", tmp_path / "m.safetensors", "--key", NAME, "--curve").stdout
    assert "error of each method" in shown


def test_a_table_of_zeros_has_nothing_to_draw(tmp_path):
    """Every error is 0, which no logarithmic axis has; the picture is drawn without lines."""
    save_file({NAME: np.zeros((50, 8), np.float32)}, tmp_path / "m.safetensors")
    picture = tmp_path / "p.png"
    shown = succeed("report", tmp_path / "m.safetensors", "--curve", "--plot", picture).stdout
    assert "no error to draw" in shown
    assert imread(picture).shape[0] > 400


# ---- what is asked for, and what is refused


def test_json_has_the_comparisons(model, tmp_path):
    """One a ratio with its fields; the curve is empty unless it is asked for, either way."""
    found = json.loads(succeed("report", model, "--json").stdout)
    assert found["plot"] is None
    (one,) = found["tables"]
    assert one["curve"] == []
    for each, ratio in zip(one["comparisons"], RATIOS, strict=True):
        assert {*each} == {"ratio", "nbytes", "errors", "bound"}
        assert each["ratio"] == ratio
        assert {*each["errors"]} <= {*METHODS}
        assert all(isinstance(error, float) for error in (*each["errors"].values(), each["bound"]))
    drawn = json.loads(succeed("report", model, "--json", "--plot", tmp_path / "p.svg").stdout)
    assert drawn["plot"] == str(tmp_path / "p.svg")
    curve = json.loads(succeed("report", model, "--json", "--curve").stdout)["tables"][0]["curve"]
    assert drawn["tables"][0]["curve"] == curve
    assert [point["ratio"] for point in curve] == [*CURVE]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plot", "p.jpg"), "no picture has the suffix '.jpg'; use .png, .svg, .pdf"),
        (("--plot", "there.png"), "exists already; pass --force"),
        (("--plot", "absent/p.png"), "there is no directory"),
        (("--weights", "there.png", "--plot", "there.png", "--force"), "is an input"),
        (("--smoothing", "3"), "smoothing 3"),
        (("--weights", "there.png", "--corpus", "there.png"), "both --weights and --corpus"),
    ],
)
def test_requests_that_cannot_be_met(model, monkeypatch, options, says):
    """Refused with a remedy, before a row is read; nothing is written."""
    monkeypatch.chdir(model.parent)
    (model.parent / "there.png").write_bytes(b"mine")
    assert_refused(model.parent, "report", model, *options, code=2, says=says)


def test_a_missing_matplotlib_is_told_before_the_work(model, monkeypatch):
    """The remedy names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ("report", model, "--plot", model.with_name("p.png"))
    assert_refused(model.parent, *command, code=2, says="pip install 'embcompress[plot]'")


def test_force_replaces_a_picture(model, tmp_path):
    """And without it the picture stays."""
    (tmp_path / "p.png").write_bytes(b"mine")
    assert run("report", model, "--plot", tmp_path / "p.png").exit_code == 2
    succeed("report", model, "--plot", tmp_path / "p.png", "--force")
    assert imread(tmp_path / "p.png").ndim == 3


def test_tables_of_different_rows_cannot_share_weights(tmp_path, counts):
    """--key chooses the one that has as many rows as there are counts."""
    tables = {"src_embedding.weight": values(), "tgt_embedding.weight": values(500)}
    save_file(tables, tmp_path / "m.safetensors")
    command = ("report", tmp_path / "m.safetensors", "--weights", counts)
    assert_refused(tmp_path, *command, code=2, says="choose one with --key")
    assert "weighted by" in succeed(*command, "--key", "src_embedding.weight").stdout


@pytest.mark.parametrize("options", [("--curve",), ("--plot", "p.png"), ("--weights", "counts.npy")])
def test_a_compressed_table_has_no_methods_to_compare(model, counts, monkeypatch, options):
    """Its source is asked for."""
    monkeypatch.chdir(counts.parent)
    small = model.with_name("small.safetensors")
    succeed("factorize", model, "--rank", 3, "-o", small)
    assert_refused(model.parent, "report", small, *options, code=2, says="holds no dense table to compare")


# ---- the screen


def screen(*args, colour=True):
    """What a terminal of 80 columns shows, in colour or not."""
    env = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color", "NO_COLOR": None}
    given = env if colour else {**env, "NO_COLOR": "1"}
    done = CliRunner().invoke(cli, [str(arg) for arg in args], env=given, color=True)
    assert done.exit_code == 0, done.output
    return done.stdout


def bare(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_the_least_error_of_a_row_is_bold(model):
    """And nothing else in it."""
    found = embcompress.report(model).tables[0].comparisons
    text = screen("report", model).split("error of each method at the same bytes")[1]
    rows = [line for line in text.splitlines() if re.match(r"  0\.\d", bare(line))]
    assert len(rows) == len(RATIOS)
    for row, each in zip(rows, found, strict=True):
        (bold,) = re.findall(r"\x1b\[1m([^\x1b]*)", row)
        assert bold == f"{each.errors[each.best]:.4f}"
        assert bare(row).split()[-1] == f"{each.bound:.4f}" or each.bound < 0.0005


def test_colour_is_no_more_than_colour(model):
    """Without it the same characters stand in the same places."""
    text = screen("report", model, "--curve")
    assert bare(text) == bare(screen("report", model, "--curve", colour=False))
    assert len({*re.findall(r"\x1b\[3\d", text)}) == 6


def test_everything_fits_in_80_columns(minilm, monkeypatch):
    """No line of comparison and chart is wrapped, and the axes are labelled."""
    monkeypatch.chdir(minilm.parent)
    text = screen("report", "model", "--curve")
    lines = bare(text).split("error of each method")[1].splitlines()
    assert max(map(len, lines)) <= 80
    (ground,) = (i for i, line in enumerate(lines) if "└" in line)
    assert lines[ground + 1].split() == ["0.5", "0.75", "0.9", "0.95", "0.98"]
    assert " ".join(lines[ground + 2].split()) == "23.4 MB 11.7 MB 4.69 MB 2.34 MB 938 kB"
    assert {"svd", "pq", "int8", "bound"} <= {*lines[ground + 3].split()}


def test_points_stand_where_they_belong():
    """The first and the last column, the top and the bottom line, a straight line between, labels below."""
    last = 1 - 0.5**10
    rising = Curve("a", "a", ((0.5, 1e-3), (last, 1.0)))
    flat = Curve("b", "b", ((0.5, 0.01), (0.875, 0.01)))
    frame = Frame(10, 4, (0.5, last), (1e-3, 1.0))
    lines = chart([rising, flat], frame, {0.5: ("0.5", "x"), last: ("0.999", "y")})
    assert ["".join(piece.text for piece in line) for line in lines] == [
        "     1 ┤        aa",
        "   0.1 ┤     aaa",
        "  0.01 ┤bbaaa",
        " 0.001 ┤aa",
        "       └┴────────┴",
        "       0.5     0.999",
        "        x        y",
    ]
    assert lines[2] == (Piece("  0.01 ┤"), Piece("bb", "b"), Piece("aaa", "a"))


def test_curves_that_meet_take_turns():
    """Two on the same line are both seen."""
    same = [Curve(name, name, ((0.5, 0.1), (0.75, 0.1))) for name in "xy"]
    lines = chart(same, Frame(6, 3, (0.5, 0.75), (0.01, 1.0)), {})
    assert "".join(piece.text for piece in lines[1]).endswith("┤xyxyxy")


def test_what_lies_outside_of_the_frame_is_not_drawn():
    """Errors of 0 or below the axis, and single points within it."""
    frame = Frame(6, 3, (0.5, 0.75), (0.01, 1.0))
    text = "".join(
        piece.text
        for line in chart(
            [
                Curve("a", "a", ((0.5, 0.0), (0.75, 1e-9))),
                Curve("b", "b", ((0.5, 0.1),)),
                Curve("c", "c", ()),
            ],
            frame,
            {},
        )
        for piece in line
    )
    assert (text.count("a"), text.count("b"), text.count("c")) == (0, 1, 0)


def test_an_error_axis_spans_a_decade_and_one():
    """Errors above 1 are shown too; where all are 0 there is nothing to span."""
    assert error_span([0.5, 0.3]) == (0.1, 1.0)
    assert error_span([0.01, 3.0]) == (0.008, 3.0)
    assert error_span([0.0, 0.0]) is None
    assert error_span([]) is None


def test_every_method_has_a_mark_of_its_own():
    """A digit or a letter of its name where that is free."""
    assert marks(["svd", "pq", "int8", "int4", "screen"]) == {
        "svd": "s",
        "pq": "p",
        "int8": "8",
        "int4": "4",
        "screen": "c",
    }
    many = marks([*METHODS, *(f"s{i}" for i in range(9)), "sss", "ssss"])
    assert len({*many.values()}) == len(many)


# ---- the picture


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures_are_of_the_kind_their_name_says(model, tmp_path, suffix, begins):
    """And the screen says where it is, with the chart if that is asked for too."""
    picture = tmp_path / f"p{suffix}"
    shown = succeed("report", model, "--plot", picture).stdout
    assert f"drew {picture}" in shown
    assert "┤" not in shown
    assert picture.read_bytes().startswith(begins)
    both = succeed("report", model, "--plot", picture, "--curve", "--force").stdout
    assert "┤" in both


def test_the_picture_names_what_it_shows(tmp_path, counts):
    """Every table, method, tick and the weighting are text in an SVD; a name is no formula."""
    tables = {"src_embedding.weight": values(), "tgt_$x$_embedding.weight": 2 * values()}
    save_file(tables, tmp_path / "m.safetensors")
    command = ("report", tmp_path / "m.safetensors", "--weights", counts, "--plot", tmp_path / "p.svg")
    succeed(*command)
    texts = [
        "".join(node.itertext()).strip() for node in ET.parse(tmp_path / "p.svg").iter() if "text" in node.tag
    ]
    (width, height) = re.search(
        r'width="([\d.]+)pt" height="([\d.]+)', (tmp_path / "p.svg").read_text()
    ).groups()
    assert float(height) > float(width)
    for text in (
        *tables,
        "relative error",
        "bytes of the table",
        "Gaussian bound",
        "0.98",
        "144 kB",
        "svd",
        "int8",
    ):
        assert texts.count(text) >= 1, text
    assert texts.count("svd") == 2
    assert "weighted by counts.npy, (count+1)^0.5" in texts


def test_the_picture_has_a_colour_for_each_method(model, tmp_path):
    """Lines in matplotlib's first colours and the black of the bound; the bound's line is dashed."""
    succeed("report", model, "--plot", tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    for colour in ("#1f77b4", "#ff7f0e", "#2ca02c"):
        assert colour in text
    assert "stroke-dasharray" in text


# ---- factorize with auto


def result(*rivals):
    """What factorize returns for tables with these predicted errors."""
    tables = tuple(
        TableResult(
            name=f"t{i}",
            ties=(),
            shape=(10, 4),
            dtype="float32",
            method="pq",
            layout="embcompress",
            rank=None,
            stored_dtype="float16",
            bytes_before=160,
            bytes_after=16,
            ratio=0.9,
            predicted_error=0.1,
            relative_error=None,
            weighting=None,
            weighted_error=None,
            **({"rivals": errors} if errors is not None else {}),
        )
        for i, errors in enumerate(rivals)
    )
    return FactorizeResult("a", "b", False, tables, 160, 16, ())


def test_rivals_are_shown_best_first(capsys):
    """With the table's name where there are several, and not at all where none were looked at."""
    show(result({"svd": 0.8, "pq": 0.1, "int8": 0.2}))
    assert (
        "predicted errors in the same bytes: pq 0.1000 (best) · int8 0.2000 · svd 0.8000"
        in capsys.readouterr().out
    )
    show(result(None, {"svd": 0.25}))
    shown = capsys.readouterr().out
    assert "predicted errors in the same bytes of t1: svd 0.2500 (best)" in shown
    assert "of t0" not in shown
    show(result(None))
    assert "predicted errors" not in capsys.readouterr().out
    assert result(None).tables[0].rivals == {}
    assert result({"svd": 0.8}).to_dict()["tables"][0]["rivals"] == {"svd": 0.8}


def test_the_best_method_is_the_one_with_the_least_error():
    """None where none fits."""
    assert Comparison(0.5, 10, {"a": 0.2, "b": 0.1}, 0.05).best == "b"
    assert Comparison(0.5, 10, {}, 0.05).best is None
