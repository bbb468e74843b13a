import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from dimvl.model.heads import HEADS
from dimvl.tasks import CONFIGS, all_tasks

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dimvl"
# A package imports only from packages to its left. Each module of the top level counts as a package.
ORDER = (
    *(
        "showing",
        "errors",
        "callbacks",
        "files",
        "fields",
        "cpu",
        "config",
        "regions",
        "data",
        "metrics",
        "concepts",
        "model",
        "objectives",
        "decoding",
    ),
    *("checkpoints", "adapters", "trained_model", "tasks", "training", "planning", "profiling"),
    *(
        "model_card",
        "hub",
        "export",
        "push",
        "program",
        "image_inputs",
        "explanation",
        "drawing",
        "encoding",
        "predictor_base",
        "predictor",
        "evaluation",
        "progress",
    ),
    *("stopping", "report", "search", "serve", "bootstrap", "study", "demo", "app", "doctor", "cli", "__main__"),
)
# Packages that prediction must not need.
NOT_FOR_PREDICTION = {"training", "demo", "cli", "evaluation"}
HEAVY = (
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "wandb",
    "deepspeed",
    "matplotlib",
    "pandas",
    "scipy",
    "pycocoevalcap",
    "gradio",
    "onnx",
    "onnxruntime",
    "faiss",
)


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path):
    """Modules that a file imports anywhere, and whether it does so when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(node) for function in ast.walk(tree) if is_function(function) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
            if node.module == "dimvl":
                names = [f"dimvl.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_file_belongs_to_a_package():
    assert {package_of(path) for path in FILES} <= set(ORDER), "give a new package its place in ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = ORDER.index(package_of(path))
    for name, _ in imported_modules(path):
        if name.split(".")[0] == "dimvl" and len(name.split(".")) > 1:
            assert ORDER.index(name.split(".")[1]) <= own, f"{name} comes after {path.relative_to(ROOT)}"


def test_only_the_detection_package_imports_torchvision_and_only_when_it_is_called():
    for path in FILES:
        for name, at_import in imported_modules(path):
            if name.split(".")[0] == "torchvision":
                assert path.parent == PACKAGE / "regions" / "detectors" and not at_import, path


def test_only_the_deepspeed_engine_imports_deepspeed_and_only_when_it_is_made():
    for path in FILES:
        for name, at_import in imported_modules(path):
            if name.split(".")[0] == "deepspeed":
                assert path == PACKAGE / "training" / "deepspeed_engine.py" and not at_import, path


def test_no_part_of_a_finished_model_imports_the_training_code():
    seen, todo = set(), [PACKAGE / "predictor.py", *PACKAGE.glob("tasks/*/task.py")]
    while todo:
        path = todo.pop()
        seen.add(path)
        for name, _ in imported_modules(path):
            module = ROOT.joinpath(*name.split("."))
            for file in (module.with_suffix(".py"), module / "__init__.py"):
                if name.startswith("dimvl.") and file.exists() and file not in seen:
                    todo.append(file)
    assert len(seen) > 10 and not NOT_FOR_PREDICTION & {package_of(path) for path in seen}


TASK_NAMES = re.compile(
    r"""isinstance\(config\s*,|(?:\btask|\.task|task\.name)\s*[!=]=\s*["']|\.task\s+(?:not\s+)?in\b"""
)


def test_only_the_rooms_of_the_tasks_ask_which_task_a_run_has():
    for path in FILES:
        if package_of(path) != "tasks":
            found = TASK_NAMES.findall(path.read_text(encoding="utf-8"))
            assert not found, f"{path}: {found}; ask the interface of the task instead"


INTERFACE = {"dimvl.tasks", "dimvl.tasks.base", "dimvl.tasks.costs", "dimvl.tasks.task"}


def test_what_serves_every_task_imports_the_interface_of_tasks_only():
    packages = {"training", "planning", "profiling", "export", "program", "predictor_base", "predictor", "evaluation"}
    for path in FILES:
        if package_of(path) in packages:
            names = {name for name, _ in imported_modules(path) if name.startswith("dimvl.tasks")}
            assert names <= INTERFACE, f"{path} imports {sorted(names - INTERFACE)}"


def test_the_configuration_of_each_task_is_in_its_room_and_names_the_task_that_takes_it():
    rooms = {path.parent.name for path in PACKAGE.glob("tasks/*/task.py")}
    assert {kind.__module__ for kind in CONFIGS.values()} == {f"dimvl.tasks.{room}.config" for room in rooms}
    for name, kind in CONFIGS.items():
        task = all_tasks()[name]
        assert task.name == name and {get_args(base) for base in type(task).__orig_bases__} == {(kind,)}
        assert type(task).__module__ == kind.__module__.replace(".config", ".task")


def test_one_table_names_the_heads():
    for path in FILES:
        if path not in (PACKAGE / "model" / "heads.py", PACKAGE / "data" / "targets.py"):  # a target names its head
            heads = set(re.findall(r"[\"'](word_head|object_head|match_head|answer_head)[\"']", path.read_text()))
            assert len(heads) < len(HEADS), f"{path} has a table of heads of its own"


def test_nothing_is_unpickled():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text and "weights_only=False" not in text, path
        names = {name.split(".")[0] for name, _ in imported_modules(path)}
        assert not names & {"pickle", "joblib", "dill", "shelve", "marshal"}, path


def loaded_by(statement):
    """Top-level modules after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_dimvl_loads_nothing_but_the_standard_library():
    outside = loaded_by("import dimvl") - set(sys.stdlib_module_names) - {"dimvl"} - loaded_by("pass")
    assert not outside


def test_the_command_line_answers_without_torch():
    assert not {"torch", "numpy", *HEAVY} & loaded_by("import dimvl.cli, dimvl.tasks")


def test_importing_every_room_loads_no_heavy_extra():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    assert not set(HEAVY) & loaded_by("import " + ", ".join(modules))
