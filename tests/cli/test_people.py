"""What people meet around the commands: --quiet and --verbose, completion, doctor, the image, the forms."""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dimvl import doctor
from dimvl.progress import show_progress
from tests.cli.calls import refused
from tests.exports import make_image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def as_before():
    yield
    show_progress(True)
    logging.disable(logging.NOTSET)


def test_quiet_shows_no_progress_and_keeps_results_warnings_and_errors(run, model, tmp_path, as_before, caplog):
    make_image().save(tmp_path / "image.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    words = ("caption", tmp_path, "--model", model, "--json")
    plain, quiet = run(*words), run("--quiet", *words)
    assert "of 2 images" in plain.err and "of 2 images" not in quiet.err
    assert (quiet.code, quiet.out) == (plain.code, plain.out) == (1, plain.out) and "1 skipped" in quiet.err
    assert caplog.text.count("torn.png") == 2, "quiet keeps the warning"
    refused(run("--quiet", "caption", tmp_path / "no.png", "--model", model), "does not exist")
    assert "of 2 images" in run(*words).err, "only that call is quiet"


def test_quiet_training_says_only_what_it_wrote(run, config, as_before):
    result = run("-q", "pretrain", config)
    assert (result.code, result.err) == (0, "") and result.out.startswith("trained: ")


def test_verbose_shows_where_an_error_is_and_both_together_are_refused(run, tmp_path, caplog, as_before):
    missing = tmp_path / "no.png"
    words = ("caption", missing, "--model", tmp_path)
    assert "Traceback" not in run(*words).err + caplog.text
    result = run("--verbose", *words)
    assert result.code == 2 and "dimvl.errors.UserError: " in result.err + caplog.text and "error: " in result.err
    refused(run("-q", "-v", "doctor"), "--quiet and --verbose contradict each other; omit one of them")


def completed(words, **changes):
    """What the shell offers after some words."""
    asked = {"_DIMVL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'dimvl'; from dimvl.cli import main; main()"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_the_shell_completes_commands_and_options():
    assert completed("dimvl ex") == ["extract", "export"]
    assert completed("dimvl push --dr") == ["--dry-run"]


def test_doctor_tells_versions_and_extras_but_no_paths_names_or_tokens(run, monkeypatch, tmp_path):
    import torch

    secrets = {"HF_TOKEN": "hf_secretsecret", "WANDB_API_KEY": "0123456789abcdef", "USER": "marie", "LOGNAME": "marie"}
    for name, value in {**secrets, "HOME": "/home/marie", "CUDA_VISIBLE_DEVICES": "/home/marie"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = run("doctor")
    assert result.code == 0 and f"torch: {torch.__version__}" in result.out
    for line in ("GPU: ", "torchvision's operators: ", "Java: ", "GB free, here", "extra: wandb: wandb "):
        assert line in result.out
    assert "environment: OMP_NUM_THREADS=1, HF_TOKEN is set, WANDB_API_KEY is set\n" in result.out
    hidden = [*secrets.values(), "/home", str(Path.cwd()), str(tmp_path), sys.prefix, os.uname().nodename]
    assert not [word for word in hidden if word in result.out.replace(os.uname().release, "")]
    assert not re.search(r"(?<!\w)[/~][\w.-]+/", result.out), "no path at all"


def test_doctor_goes_on_where_a_package_is_broken(run, monkeypatch):
    def broken():
        raise ImportError("/home/marie/lib/libtorch.so: undefined symbol")
        yield

    monkeypatch.setitem(doctor.FINDERS, "torch", broken)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    result = run("doctor")
    assert result.code == 0 and "torch: not known (ImportError)\n" in result.out and "marie" not in result.out
    assert "Java: none (METEOR and SPICE need it)\n" in result.out


def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_copies_what_is_there_and_what_the_build_may_see():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for name, words in instructions() if name == "COPY" for word in words.split()[:-1]]
    assert {*copied} == allowed and all((ROOT / word).exists() for word in copied)
    setup = (ROOT / "setup.py").read_text()
    needed = set(re.findall(r'Path\("([\w./]+)"\)\.read_text|copytree\("(\w+)"', setup))
    assert {name for pair in needed for name in pair if name} - {"dimvl/__init__.py"} <= {*copied}


def test_the_dockerfile_runs_shell_that_parses_as_a_user_of_its_own():
    names = [name for name, _ in instructions()]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert names[:2] == ["ARG", "FROM"] and {*names} <= known and names[-2:] == ["ENTRYPOINT", "CMD"]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "COPY")
    for name, words in instructions():
        if name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", words], timeout=10).returncode == 0, words
            options = [word for word in shlex.split(words) if word.endswith(".txt")]
            assert all((ROOT / word).exists() for word in options)


def test_the_dockerfile_takes_cpu_or_cuda_and_nothing_else(tmp_path):
    install = next(words for name, words in instructions() if name == "RUN" and "pip install" in words)
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$PIP_EXTRA_INDEX_URL $*"\n')
    (tmp_path / "pip").chmod(0o755)
    for device, code, index in (("cpu", 0, "https://download.pytorch.org/whl/cpu "), ("cuda", 0, " "), ("tpu", 2, "")):
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": device, "EXTRAS": "[metrics]"}
        done = subprocess.run(["sh", "-c", install], env=path, capture_output=True, text=True, timeout=10)
        said = f"{index}install --no-cache-dir --constraint constraints.txt .[metrics]\n" if not code else ""
        assert (done.returncode, done.stdout) == (code, said)


def test_the_forms_of_issues_are_valid_and_a_bug_asks_for_doctor():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert forms.keys() == {"bug", "question", "feature", "config"}
    for name in forms.keys() - {"config"}:
        body = forms[name]["body"]
        assert forms[name]["name"] and forms[name]["description"]
        ids = [part["id"] for part in body if part["type"] != "markdown"]
        assert len(ids) == len({*ids}) and all(part["attributes"].get("label") for part in body if "id" in part)
        assert any(part.get("validations", {}).get("required") for part in body)
    doctor_field = next(part for part in forms["bug"]["body"] if part.get("id") == "doctor")
    assert "`dimvl doctor`" in doctor_field["attributes"]["label"] and doctor_field["validations"]["required"]
    policy = (ROOT / "SECURITY.md").read_text()
    assert "Report a vulnerability" in policy and not re.search(r"[\w.]+@[\w.]+", policy)
