"""The command line as a user meets it: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from embcompress.cli import cli
from embcompress.cli.options import parse_size


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((300, 20)) * np.logspace(0, -1, 20)).astype(np.float32)
    save_file({"embedding.weight": values, "fc.weight": values[:4].copy()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_report_shows_every_ratio(model):
    """Shape, share, spectrum and a row for each ratio stand on the screen."""
    done = run("report", model)
    assert done.exit_code == 0, done.output
    for text in ("embedding.weight", "300 × 20 float32", "effective rank", "break-even rank 18", "▁", "0.95"):
        assert text in done.stdout


def test_factorize_names_the_output_after_the_target(model):
    """Without -o the output stands beside the input and says what it is."""
    done = run("factorize", model, "--ratio", "0.5")
    assert done.exit_code == 0, done.output
    output = model.with_name("model-svd-ratio-0.5.safetensors")
    assert str(output) in done.stdout
    assert set(load_file(output)) == {"embedding.0.weight", "embedding.1.weight", "fc.weight"}
    assert run("factorize", model, "--max-size", "20kB").exit_code == 0
    assert model.with_name("model-svd-max-size-20000.safetensors").exists()


def test_summary_shows_both_errors_and_sizes(model):
    """The predicted and the measured error are printed, and what was saved."""
    done = run("factorize", model, "--rank", "5")
    error = json.loads(run("factorize", model, "--rank", "5", "--dry-run", "--json").stdout)
    predicted_errors = f"{error['tables'][0]['predicted_error']:.4f}"
    assert done.stdout.count(predicted_errors) == 2
    assert "smaller" in done.stdout


def test_a_high_error_is_said_plainly(model):
    """Losing most of a table is told on stderr with what to do about it, also with --json."""
    for extra in ([], ["--json"]):
        done = run("factorize", model, "--rank", "1", "--dry-run", *extra)
        assert done.exit_code == 0
        assert "note: embedding.weight keeps only" in done.stderr
        assert "lower --ratio" in done.stderr
    assert "energy" not in run("factorize", model, "--rank", "14", "--dry-run").stderr


def test_a_better_method_is_named(model):
    """The summary of the default says which method would keep more at this size, and how much."""
    done = run("factorize", model, "--rank", "3", "--dry-run")
    named = re.search(
        r"note: --method (\S+) would keep embedding.weight to an error of about (\S+)", done.stderr
    )
    assert named, done.stderr
    size = json.loads(run("factorize", model, "--rank", "3", "--dry-run", "--json").stdout)["tables"][0]
    told = run("factorize", model, "--method", named[1], "--ratio", size["ratio"], "--dry-run", "--json")
    better = json.loads(told.stdout)["tables"][0]
    assert better["bytes_after"] <= size["bytes_after"]
    assert better["predicted_error"] == pytest.approx(float(named[2]), rel=0.25)
    assert better["predicted_error"] < size["predicted_error"]
    assert "--method" not in told.stderr


@pytest.mark.parametrize("command", ["report", "factorize", "expand"])
def test_json_is_one_object_on_stdout(model, command):
    """With --json, stdout parses as one object and everything else is on stderr."""
    small = model.with_name("small.safetensors")
    assert run("factorize", model, "--rank", "3", "-o", small, "-q").exit_code == 0
    arguments = {"report": [model], "factorize": [model, "--rank", "2"], "expand": [small]}[command]
    done = run(command, *arguments, "--json", "-v")
    assert done.exit_code == 0, done.output
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stderr, "-v prints stages there"


def test_quiet_prints_nothing(model):
    """-q leaves both streams empty when all went well."""
    done = run("factorize", model, "--rank", "1", "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "exactly one of rank, ratio, energy, max_error, max_size"),
        (["--rank", "3", "--ratio", "0.5"], 2, "rank, ratio"),
        (["--rank", "0"], 2, "0 is not in the range"),
        (["--ratio", "1.5"], 2, "ratio 1.5"),
        (["--max-size", "lots"], 2, "write 25MB"),
        (["--max-size", "9" * 400], 2, "write 25MB"),
        (["--rank", "3", "--dtype", "int8"], 2, "int8"),
        (["--rank", "3", "--key", "nothing"], 2, "no such tensor"),
        (["--rank", "21"], 4, "break-even rank is 18"),
        (["--rank", "19"], 4, "break-even rank is 18"),
        (["--ratio", "0.99"], 4, "svd takes at least"),
        (["--max-error", "1e-9"], 4, "rounding"),
        (["--max-size", "1kB"], 4, "all but the tables"),
        (["--max-size", "1GB"], 4, "nothing needs to be done"),
    ],
)
def test_requests_that_cannot_be_met(model, arguments, code, words):
    """Each has its exit code and says the limit; nothing is written."""
    done = run("factorize", model, *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert list(model.parent.iterdir()) == [model]


def test_an_existing_output_is_kept_without_force(model):
    """A second run is refused until --force is given, and then replaces the file."""
    output = model.with_name("small.safetensors")
    assert run("factorize", model, "--rank", "3", "-o", output).exit_code == 0
    first = output.read_bytes()
    again = run("factorize", model, "--rank", "5", "-o", output)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert output.read_bytes() == first
    assert run("factorize", model, "--rank", "5", "-o", output, "--force").exit_code == 0
    assert load_file(output)["embedding.0.weight"].shape == (300, 5)


def test_all_and_key_choose_tables(tmp_path):
    """--all takes every table, --key those named."""
    rng = np.random.default_rng(0)
    tables = {
        f"{side}_embedding.weight": rng.standard_normal((200, 16)).astype("f4") for side in ("src", "tgt")
    }
    save_file(tables, tmp_path / "m.safetensors")
    assert run("factorize", tmp_path / "m.safetensors", "--rank", "3").exit_code == 2
    both = run("factorize", tmp_path / "m.safetensors", "--rank", "3", "--all", "--dry-run", "--json")
    assert len(json.loads(both.stdout)["tables"]) == 2
    one = run(
        "factorize",
        tmp_path / "m.safetensors",
        "--rank",
        "3",
        "--key",
        "tgt_embedding.weight",
        "--dry-run",
        "--json",
    )
    assert [t["name"] for t in json.loads(one.stdout)["tables"]] == ["tgt_embedding.weight"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("25MB", 25_000_000), ("1.5GiB", 3 * 2**29), ("4000", 4000), ("10 kb", 10_000), ("2M", 2_000_000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    """Decimal and binary units, with or without B."""
    assert parse_size(None, None, text) == size


def test_no_bars_and_no_colour_when_piped(model):
    """A file or a pipe gets plain text in full width."""
    done = subprocess.run(
        [sys.executable, "-m", "embcompress", "report", str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


def on_terminal(columns, *args):
    """What a terminal of that many columns gets, without its colours."""
    ours, theirs = pytest.importorskip("pty").openpty()
    settings = {"TERM": "xterm", "COLUMNS": str(columns)}
    others = {
        key: value for key, value in os.environ.items() if not key.startswith(("TTY_", "FORCE_", "NO_"))
    }
    command = subprocess.Popen(
        [sys.executable, "-m", "embcompress", *map(str, args)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**others, **settings},
        text=True,
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 4096):
            written += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    errors = command.communicate()[1]
    assert command.returncode == 0, errors
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_no_terminal_is_too_narrow_for_a_result(tmp_path, columns):
    """Each figure and path is whole, a line each where a line a table does not fit."""
    rows = np.random.default_rng(0).standard_normal((3000, 48)).astype(np.float32)
    name = "model.decoder.embed_tokens_of_a_rather_long_name.weight"
    save_file({name: rows}, tmp_path / "model.safetensors")
    written = on_terminal(columns, "factorize", tmp_path / "model.safetensors", "--rank", "4")
    headers = ("V × d", "dtype", "method", "bytes", "rank", "error", "predicted")
    for text in (name, "3,000 × 48", "float32", "576 kB → 48.8 kB", "0.9", *headers):
        assert text in written
    assert f"wrote {tmp_path / 'model-svd-rank-4.safetensors'};" in written
    assert (written.splitlines()[1] == name) == (columns < 200)


@pytest.mark.slow
def test_no_terminal_is_too_narrow_for_a_report_or_scores(tmp_path, model):
    """The figures are those of a wide terminal."""
    labels = ("a" * 70, "b" * 70)
    texts = "".join(f"{'yes' if i % 2 else 'no'} word{i % 7},{labels[i % 2]}\n" for i in range(40))
    (tmp_path / "texts.csv").write_text(f"text,label\n{texts}")
    small = ("--arch", "dan", "--hidden", "8", "--dimension", "4", "--epochs", "1")
    run("train", tmp_path / "texts.csv", "-o", tmp_path / "classifier.pt", *small)
    evaluate = ("evaluate", tmp_path / "classifier.pt", tmp_path / "texts.csv")
    for command, widths in ((("report", model), (200, 60, 20)), (evaluate, (200, 20))):
        wide, *narrow = ({*re.findall(r"\d[\d.,]*", on_terminal(width, *command))} for width in widths)
        assert narrow == [wide] * len(narrow)


def test_a_closed_pipe_is_no_traceback(model):
    """``embcompress report | head -0`` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "embcompress", "report", str(model)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_an_output_named_like_another_format_is_refused(model, suffix):
    """The output has the input's format, so a name that says otherwise is a mistake."""
    done = run("factorize", model, "--rank", "3", "-o", model.with_suffix(suffix))
    assert done.exit_code == 2
    assert f"{suffix} means torch" in done.stderr
    assert list(model.parent.iterdir()) == [model]


def test_a_compressed_input_is_refused(model):
    """Compressing twice would lose the first record, so the source is asked for."""
    small = model.with_name("small.safetensors")
    assert run("factorize", model, "--rank", "3", "-o", small).exit_code == 0
    for extra in ([], ["--key", "fc.weight"], ["--key", "embedding.0.weight"], ["--all"]):
        done = run("factorize", small, "--rank", "1", *extra)
        assert done.exit_code == 2
        assert "compressed already" in done.stderr


def test_an_output_that_gains_nothing_is_told(tmp_path):
    """Names and record can outweigh what a tiny table saves; the user is told."""
    save_file({"embedding.weight": np.ones((12, 6), np.float32)}, tmp_path / "tiny.safetensors")
    done = run("factorize", tmp_path / "tiny.safetensors", "--rank", "1")
    assert done.exit_code == 0
    assert "no less than the input" in done.stderr


def test_an_ascii_terminal_is_no_traceback(model):
    """Bars and signs that the terminal cannot show become question marks."""
    done = subprocess.run(
        [sys.executable, "-m", "embcompress", "report", str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 ? 20 float32" in done.stdout


def test_help_documents_the_exit_codes():
    """--help lists the codes a script can rely on."""
    text = run("--help").stdout
    assert "3 input unsafe or corrupt" in " ".join(text.split())
    assert run("--version").stdout.startswith("embcompress, version")


def test_an_absent_path_is_a_usage_error(tmp_path):
    """Nothing there: exit code 2 and the path."""
    for command in (["report"], ["expand"], ["factorize", "--rank", "2"]):
        done = run(*command, tmp_path / "absent.pt")
        assert done.exit_code == 2
        assert "absent.pt: does not exist" in done.stderr
