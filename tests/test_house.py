"""The rules of the house that a machine can check: imports point down, and cost what they should."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers.checkpoints import loaded_by, succeed
from helpers.weather import weather

import embcompress

PACKAGE = Path(embcompress.__file__).parent

ROOMS = (
    ("__main__",),
    ("cli",),
    ("workflows",),
    ("verification",),
    ("runs",),
    ("compression",),
    ("native",),
    ("reports",),
    ("training",),
    ("classifiers",),
    ("pretrained",),
    ("integrations",),
    ("loading",),
    ("data",),
    ("methods",),
    ("nn",),
    ("tables",),
    ("checkpoint",),
    ("linalg",),
    ("storage",),
    ("rows",),
    ("choices", "dtypes", "errors", "interruption", "paths", "progress", "version"),
)
"""From the roof to the cellar; a room may import from those below it and from itself."""
FLOOR = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

HOMES = {
    "click": ("cli",),
    "rich": (
        "reports/terminal",
        "reports/report_terminal",
        "reports/learning_terminal",
        "reports/comparison_terminal",
    ),
    "torch": (
        "nn",
        "loading",
        "pretrained",
        "classifiers",
        "training",
        "runs/learning",
        "runs/trained",
        "workflows/train",
        "workflows/finetune",
        "workflows/distil",
        "compression/importances",
        "integrations",
        "methods/modules",
        "methods/*/module",
        "checkpoint/base",  # ``torch_state`` alone, which is called where torch is needed
        "checkpoint/pytorch/file",
        "checkpoint/pytorch/for_torch",
    ),
    "transformers": ("integrations", "pretrained", "loading/conversion"),
    "matplotlib": ("reports/plots",),
    "tokenizers": ("data/tokenizing",),
    "onnx": ("checkpoint/onnx",),
}
"""Third-party packages that belong to a few rooms or files, and those."""


def modules():
    return {p.relative_to(PACKAGE).with_suffix("").as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}


def imports(path, *, top_level_only=False):
    """Full names of the modules a file imports, wherever in it."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down():
    """No room imports from one above it."""
    wrong = []
    for name, path in modules().items():
        room = name.split("/")[0]
        if room == "__init__":
            continue  # the front door names every room, lazily
        for target in imports(path):
            other = target.split(".")[1] if target.startswith("embcompress.") else room
            if other != room and FLOOR.get(other, -1) <= FLOOR[room]:
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_factorize_reads_top_to_bottom():
    """The first workflow that anyone reads needs at most a dozen modules of ours."""
    ours = {target.rpartition(".")[0] for target in imports(PACKAGE / "workflows" / "factorize.py")}
    assert len({module for module in ours if module.startswith("embcompress")}) <= 12


def test_packages_stay_in_their_rooms():
    """click, rich, torch and the extras are imported where they belong and nowhere else."""
    wrong = []
    for name, path in modules().items():
        for target in imports(path):
            homes = HOMES.get(target.split(".")[0], ("*",))
            if not any(fnmatch(name, home) or fnmatch(name, f"{home}/*") for home in homes):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


RUN = """
from embcompress.cli import cli
try: cli(sys.argv[1:])
except SystemExit as stop: assert stop.code == 0, stop.code
"""


def test_help_imports_neither_numpy_nor_torch_nor_rich():
    """``--help`` must answer at once, so the heavy packages stay out."""
    assert not loaded_by(RUN, "--help") & {"numpy", "torch", "rich", "safetensors"}


def test_report_and_factorize_on_safetensors_import_neither_torch_nor_onnx(minilm, tmp_path):
    """Importing them costs more than the work itself."""
    small = tmp_path / "small"
    for command in (("report", minilm), ("factorize", minilm, "--ratio", "0.9", "-o", small)):
        assert not loaded_by(RUN, *command) & {"torch", "onnx", "transformers", "matplotlib"}
    assert (small / "model.safetensors").exists()


def test_torch_files_do_not_import_torch_either(tmp_path):
    """A .pt file is read as data, so that neither its code nor torch's start-up is run."""
    import torch

    torch.save({"embedding.weight": torch.randn(500, 16)}, tmp_path / "model.pt")
    loaded = loaded_by(RUN, "factorize", tmp_path / "model.pt", "--rank", "4")
    assert "torch" not in loaded


def test_opening_a_classifier_does_not_import_the_compiler_of_torch(tmp_path):
    """It costs half as much again as torch itself, and meta tensors that are given values load it."""
    weather(tmp_path / "texts.csv")
    succeed("train", tmp_path / "texts.csv", "-o", tmp_path / "dense.pt", "--epochs", "1")
    succeed("factorize", tmp_path / "dense.pt", "--rank", "2", "-o", tmp_path / "small.pt")
    loaded = loaded_by(RUN, "evaluate", tmp_path / "small.pt", tmp_path / "texts.csv")
    assert "torch" in loaded
    assert "torch._dynamo" not in loaded


def test_import_embcompress_is_lazy_and_complete():
    """``import embcompress`` loads nothing heavy, and every public name can be had from it."""
    assert not loaded_by("import embcompress") & {"numpy", "torch", "click", "rich", "transformers"}
    for name in embcompress.__all__:
        assert getattr(embcompress, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = embcompress.nonsense
    assert callable(importlib.import_module("embcompress").report)


TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \|.*\| ([\w., ]+) \|$", re.MULTILINE)
BAD_INPUTS = ROW.findall((TESTS / "BAD_INPUTS.md").read_text())


def test_every_bad_input_has_a_test():
    """Each row of BAD_INPUTS.md is tested, under its number, in the files it names."""
    places = {path.name: path for path in TESTS.rglob("test_*.py")}
    rows = {name: re.findall(r"def test_row_(\d+)_", path.read_text()) for name, path in places.items()}
    missing = [
        f"{row} in {file}"
        for row, files in BAD_INPUTS
        for file in files.split(", ")
        if int(row) not in {*map(int, rows.get(file, []))}
    ]
    assert not missing


def test_the_list_of_bad_inputs_is_whole():
    """Rows are numbered from 1 without a gap."""
    assert [int(row) for row, _ in BAD_INPUTS] == [*range(1, len(BAD_INPUTS) + 1)]
    assert len(BAD_INPUTS) >= 46


def test_the_floors_of_dependencies_are_those_security_md_states():
    """No floor is lowered unseen; torch's weights_only has known flaws before 2.10."""
    root = TESTS.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = [floor for name, extra in extras.items() if name not in ("dev", "fuzz") for floor in extra]
    floors = [*project["dependencies"], *users]
    stated = re.findall(r"`(\w+>=[\d.]+)`", (root / "SECURITY.md").read_text())
    assert sorted(stated) == sorted(floors)
    (torch,) = (floor.removeprefix("torch>=") for floor in floors if floor.startswith("torch>="))
    assert tuple(map(int, torch.split("."))) >= (2, 10)


def test_the_demo_is_run_with_the_floors():
    """``make floors`` takes each package that the demo needs but torch in the lowest version allowed."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    floors = [*project["dependencies"], *project["optional-dependencies"]["plot"]]
    lowest = dict(re.findall(r"^(\w+)==([\d.]+)$", (TESTS / "floors.txt").read_text(), re.MULTILINE))
    for name, version in (floor.split(">=") for floor in floors):
        assert lowest.pop(name).startswith("2.13" if name == "torch" else version)
    assert not lowest


def test_tests_share_helpers_and_never_import_each_other():
    """What two test files need is in helpers, every helper is needed, and no test file imports another."""
    wrong, used = [], set()
    files = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in sorted(TESTS.rglob("*.py")):
        name = path.relative_to(TESTS).with_suffix("").as_posix()
        for target in imports(path):
            parts = target.split(".")
            if files & {*parts}:
                wrong.append(f"{name} imports {target}")
            if parts[0] == "helpers":
                used |= {"/".join(parts[:2]), "/".join(parts[:3])} - {name}
    helpers = {p.relative_to(TESTS).with_suffix("").as_posix() for p in (TESTS / "helpers").glob("*.py")}
    wrong += [f"{name} is used by no test" for name in sorted(helpers - used)]
    assert not wrong, "\n".join(wrong)
