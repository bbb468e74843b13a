import os
import subprocess
import sys
from pathlib import Path

from dimvl import cpu

PACKAGE = Path(cpu.__file__).parents[1]
IMPORT_ALL = """
import os
before = dict(os.environ)
import MODULES
assert dict(os.environ) == before, set(os.environ.items()) - set(before.items())
"""
COMMAND_LINE = """
import sys
from dimvl import cli, cpu
cpu.configure = lambda: sys.exit("torch" in sys.modules)
cli.main()
"""


def run(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name not in cpu.SETTINGS}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True)


def test_settings_of_the_user_are_kept_and_a_second_call_changes_nothing(monkeypatch):
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "1024"})
    for _ in range(2):
        cpu.configure()
        assert os.environ == cpu.SETTINGS | {"LRU_CACHE_CAPACITY": "1024"}


def test_importing_every_module_sets_no_environment_variable():
    files = (file for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
    names = sorted(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)
    found = run(IMPORT_ALL.replace("MODULES", ", ".join(names)))
    assert found.returncode == 0, found.stderr


def test_the_command_line_configures_before_torch_is_imported():
    found = run(COMMAND_LINE, "--help")
    assert found.returncode == 0 and not found.stdout, found.stderr
