"""What README and the pages say about commands, keys, files and Python is true."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import typer.main

from dimvl.cli import app
from dimvl.cli.app import PathParser
from dimvl.demo.config import DemoPaths, load_demo_config, shipped_config
from dimvl.explanation import Explanation, RegionDrop
from dimvl.files import read_json
from dimvl.predictor import Answer, Predictor
from tests.exports import make_trained, write_run
from tools import write_configuration_docs, write_results

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
EXPERIMENTS = ROOT / "docs" / "experiments.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app)
RUN = {
    **dict.fromkeys(("README.md", "tutorial.md", "scenes.md", "scaling.md"), "tests/test_tutorial.py"),
    "photos.md": "tests/test_photos.py",
    "real-data.md": "tests/test_real_data.py",
    "model.md": "tests/test_docs.py",
}
"""Pages whose commands and Python a test runs, at a small size."""


def blocks(path, language):
    return [content for name, content in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def called(path):
    """Calls of dimvl in the fenced blocks of a page, as lists of arguments."""
    lines = "\n".join(blocks(path, "")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["dimvl"]]


def named(path):
    """Calls of dimvl within sentences and tables, as lists of words."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [name.split()[1:] for name in re.findall(r"`(dimvl [^-`][^`]*)`", text)]


def command_of(words):
    """The command that words call, and the words from its own name on."""
    command = COMMANDS.commands[words[0]]
    while hasattr(command, "commands"):
        words = words[1:]
        command = command.commands[words[0]]
    return command, words


def options_of(command):
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_the_page_of_the_configuration_is_what_its_script_writes():
    written = write_configuration_docs.PAGE.read_text(encoding="utf-8")
    assert written == write_configuration_docs.page(), "run python tools/write_configuration_docs.py"


def test_the_readme_names_every_command():
    assert {words[0] for words in named(README)} == set(COMMANDS.commands)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_call_of_the_command_line_is_valid(path, monkeypatch):
    monkeypatch.setattr(PathParser, "__call__", lambda self, text: Path(text))  # the files of the examples do not exist
    options = sys.modules[PathParser.__module__]
    monkeypatch.setattr(options, "existing", Path)
    monkeypatch.setattr(options, "folder_or_hub_name", lambda name, what: Path(name))
    for words in called(path):
        command, words = command_of(words)
        command.make_context(words[0], words[1:])  # parses and checks without running anything
    for words in named(path):
        assert words[0] in COMMANDS.commands, words
        assert {word for word in words if word.startswith("--")} <= options_of(command_of(words)[0]), words


@pytest.mark.parametrize("path", [page for page in PAGES if page.name != "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_the_commands_of_a_page_are_run_by_a_test_or_it_says_what_they_need(path):
    if path.name in RUN:
        assert f'"{path.name}"' in (ROOT / RUN[path.name]).read_text(encoding="utf-8")
    elif blocks(path, "") or blocks(path, "python"):
        assert re.search(r"^> \*\*Needs\*\* \w", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(path):
    names = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", FENCE.sub("", path.read_text(encoding="utf-8")))
    assert not [name for name in names if not (ROOT / name).exists() and not (ROOT / "dimvl" / name).exists()]


@pytest.mark.parametrize(
    "path", [README, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"], ids=lambda path: path.name
)
def test_every_name_of_the_code_occurs_in_it(path):
    files = [file for folder in ("dimvl", "tests", "tools") for file in (ROOT / folder).rglob("*.py")]
    words = set(re.findall(r"\w+", " ".join(file.read_text(encoding="utf-8") for file in files)))
    names = re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]\w*)*)`", FENCE.sub("", path.read_text(encoding="utf-8")))
    files_named = re.compile(r".*\.(py|md|txt|json|jsonl|yaml|safetensors)")
    assert not [name for name in names if not files_named.fullmatch(name) and not words.issuperset(name.split("."))]


def test_the_python_of_the_readme_compiles_and_names_what_exists():
    (code,) = blocks(README, "python")
    tree = ast.parse(code)
    known = {name for kind in (Predictor, Answer, Explanation, RegionDrop) for name in dir(kind)}
    known |= {field for kind in (Answer, Explanation) for field in kind.__dataclass_fields__}
    assert {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} <= known
    assert len(code.strip().splitlines()) <= 12, "the first screen has about ten lines of Python"


def test_the_python_of_the_readme_uses_files_that_the_demo_writes():
    (code,) = blocks(README, "python")
    paths = DemoPaths(Path("runs/demo"))
    (image,) = re.findall(r'"(runs/demo/\S+\.png)"', code)
    exports = set(re.findall(r'"(runs/demo/exports/\w+)"', code))
    assert Path(image).parent == paths.scenes / "heldout" / "images"
    assert re.fullmatch(r"0000020000\d\d\.png", Path(image).name)
    assert exports == {str(paths.exports / name) for name in ("vqa", "caption", "match")}


def test_the_python_of_the_page_about_the_network_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "exports" / "vqa", make_trained())
    found = {}
    for code in blocks(ROOT / "docs" / "model.md", "python"):
        exec(code, found)
    model, same, new = found["model"], found["same"], found["new"]
    assert found["logits"].shape == (2, 5) and found["loss"].isfinite() and found["rows"].shape == (10, 16)
    assert model.answer_head.outer.weight.grad.any() and found["cls"].shape == (2, 16)
    assert all(torch.equal(weight, same.state_dict()[name]) for name, weight in model.state_dict().items())
    assert new and all(name.startswith("answer_head.") for name in new)


@pytest.mark.parametrize(
    ("page", "mark", "demo"),
    [
        (README, "results", "demo"),
        (EXPERIMENTS, "demo-times", "demo"),
        (EXPERIMENTS, "full", "full"),
        (EXPERIMENTS, "full-times", "full"),
    ],
)
def test_the_results_of_the_demo_are_what_their_tool_writes(page, mark, demo):
    written = re.search(f"<!-- {mark} -->\n(.*)\n<!-- /{mark} -->", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    file = ROOT / "docs" / "results" / f"{demo}.json"
    if not file.exists():
        assert written == "Not run yet."
        return
    results = read_json(file)
    source = re.search(r"`[^`]+`, seed .*?, \d{4}-\d\d-\d\d", written)[0]
    if mark.endswith("times"):
        assert written == write_results.times(results, source)
    else:
        minutes = load_demo_config(shipped_config(demo)).minutes
        assert written == write_results.scores(results, source, minutes)


def test_every_test_that_the_page_on_reliability_names_exists():
    text = (ROOT / "docs/reliability.md").read_text().partition("| changed ")[0]  # counts of trials come last
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for row in rows:
        assert row.startswith("| situation") or "`tests/" in row or "`make " in row, row
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row):
            assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
    assert len(rows) > 100


def test_no_page_names_a_folder_of_one_machine():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root)\b|\bshared/", text), path
