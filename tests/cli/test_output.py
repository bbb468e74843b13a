"""Results arrive on standard output, whatever standard output and standard error lead to."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main

import dimvl.cli
from dimvl.demo import runner
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.extract import extract
from dimvl.regions.naming.concepts import ConceptNamer, ConceptNetwork, Source
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.search.indexing import index_store
from dimvl.serve import running
from dimvl.trained_model import load_model
from tests.cli.calls import write_config
from tests.cli.test_compare import RIGHT, flipped, write_evaluation
from tests.exports import all_abilities, make_image, make_trained, write_run
from tests.factories import make_extractor
from tests.regions.importers.written import images_of, write_lxmert
from tests.regions.videos import write_frames
from tests.study.fakes import pretend, write_study
from tests.tiny_runs import make_data

SHOWN_IN_PLACE = "\x1b[?25l"  # the cursor is hidden
COMMANDS = {
    "demo": (["--out", "{new}"], "results"),
    "scenes": (["{new}", "--train", "1", "--heldout", "0", "--compositional", "0"], "written to"),
    "frames": (["{frames}", "{new}", "--count", "2"], "1 video cut into 2 frames"),
    "extract": (["{images}", "{new}", "--where", "{detector}"], "2 images done"),
    "import": (["{features}", "{new}"], "6 images done"),
    "inspect": (["{regions}"], "images: 6"),
    "verify": (["{regions}"], "is sound"),
    "join": (["{new}", "{regions}"], "6 images"),
    "concepts": (["{concepts}", "output={new}"], "trained: "),
    "name": (["{regions}", "{words}", "{new}"], "6 images done"),
    "plan": (["{pretrain}"], "parameters"),
    "profile": (["{pretrain}", "--steps", "1", "--warmup", "1"], "forward"),
    "pretrain": (["{pretrain}"], "trained: "),
    "finetune": (["{vqa}"], "trained: "),
    "evaluate": (
        ["{run}", "--regions", "{regions}", "--questions", "{questions}", "--annotations", "{answers}"],
        "overall",
    ),
    "probe": (["{run}", "{probes}", "--regions", "{regions}"], "text_only"),
    "score vqa": (
        ["--questions", "{questions}", "--annotations", "{answers}", "--predictions", "{answered}"],
        "overall: ",
    ),
    "score caption": (["--annotations", "{captions}", "--predictions", "{captioned}", "--tokenised"], "CIDEr: "),
    "compare": (["{worse}", "{better}"], "higher"),
    "study": (["{study}"], "| pretrained |"),
    "bootstrap": (["{bootstrap}", "output={new}"], r"synthetic: .+ kept"),
    "watch": (["{run}", "--once"], "stopped"),
    "report": (["{run}"], "report: "),
    "push": (["{model}", "someone/model", "--licence", "mit", "--dry-run"], r"bytes in \d+ files would go to"),
    "doctor": ([], "torch: "),
    "export": (["{run}", "{new}", "--where", "none"], "exported: "),
    "caption": (["{images}", "--model", "{model}", "--json"], '2.png", "caption": "'),
    "answer": (["{images}", "what is it?", "--model", "{model}"], '2.png", "question": "what is it\\?", "answer"'),
    "classify": (["{images}", "--labels", "{labels}", "--model", "{model}"], "2.png: (star|circle)"),
    "match": (["{images}/1.png", "a star", "--model", "{model}"], r"0\.\d"),
    "choose": (
        ["{images}/1.png", "what", "--candidate", "a star", "--candidate", "red", "--model", "{model}"],
        "star|red",
    ),
    "ground": (["{images}/1.png", "a star", "--model", "{model}"], r"\d, \d+  .+0\.\d"),
    "align": (["{images}/1.png", "a star", "--model", "{model}"], r"star: .+ at \d"),
    "index": (["{seen}", "{new}", "--model", "{model}"], "2 images embedded"),
    "search": (["{index}", "a star", "--model", "{model}"], r"2  -?0\.\d+  "),
    "app": (["{model}", "--index", "{index}", "--port", "0"], r"page: http://127\.0\.0\.1:\d+/"),
    "serve": (["{model}", "--port", "0"], "serving export at http://127.0.0.1:"),
}
"""Of every command: arguments, and something that its results contain."""
QUIET = {
    "inspect",
    "plan",
    "watch",
    "push",
    "doctor",
    "report",
    "score vqa",
    "score caption",
    "compare",
    "export",
    "match",
    "choose",
    "align",
    "ground",
    "search",
    "app",
    "serve",
}
"""Commands that show no progress."""


def all_commands() -> set[str]:
    found = typer.main.get_command(dimvl.cli.app).commands
    return {f"{name} {part}" if part else name for name in found for part in getattr(found[name], "commands", [""])}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    data = make_data(folder / "data")
    (folder / "images").mkdir()
    for number in (1, 2):
        make_image(number).save(folder / "images" / f"{number}.png")
    write_frames(folder / "frames" / "clip", ["clip@1.png", "clip@2.png"])
    answers = [{"question_id": 10 * image + n, "answer": "yes"} for image in range(1, 7) for n in range(2)]
    (folder / "answered.json").write_text(json.dumps(answers))
    captions = [{"image_id": image, "caption": "a red star"} for image in range(1, 7)]
    (folder / "captioned.json").write_text(json.dumps(captions))
    (folder / "labels.txt").write_text("star\ncircle\n")
    (folder / "probes.jsonl").write_text('{"image": 1, "caption": "a red star", "foil": "a blue star"}')
    concepts = {"regions": str(data.regions), "captions": str(data.captions), "words": 2, "output": "unused"}
    (folder / "concepts.yaml").write_text(json.dumps(concepts))
    (folder / "sample.jsonl").write_text('{"image": 1, "caption": "a red star", "label": true}')
    clean = {"regions": str(data.regions), "captions": str(folder / "sample.jsonl"), "output": "unused"}
    clean |= {"captioner": str(folder / "run"), "filter": str(folder / "run"), "device": "cpu"}
    keep = {"precision": 1, "sample": str(folder / "sample.jsonl")}  # so that its caption is kept
    (folder / "bootstrap.yaml").write_text(json.dumps({**clean, "keep": keep}))
    detector = load_detector(model / "detector")
    with RegionStoreWriter(folder / "seen", detector.extractor) as writer:
        extract([(str(number), folder / "images" / f"{number}.png") for number in (1, 2)], detector, writer)
    index_store(load_model(model), RegionStore(folder / "seen"), folder / "index")
    extractor = RegionStore(data.regions).extractor
    network = ConceptNetwork(extractor.feature_width, 2, "max")
    ConceptNamer(network, ("star", "circle"), ("noun", "noun"), Source.of(extractor)).save(folder / "words")
    return {
        "model": model,
        "seen": folder / "seen",
        "index": folder / "index",
        "concepts": folder / "concepts.yaml",
        "bootstrap": folder / "bootstrap.yaml",
        "words": folder / "words",
        "detector": model / "detector",
        "images": folder / "images",
        "frames": folder / "frames",
        "features": write_lxmert(folder, images_of()),
        "regions": data.regions,
        "questions": data.questions,
        "answers": data.annotations,
        "captions": data.captions,
        "answered": folder / "answered.json",
        "captioned": folder / "captioned.json",
        "probes": folder / "probes.jsonl",
        "labels": folder / "labels.txt",
        "worse": write_evaluation(folder / "worse", RIGHT),
        "better": write_evaluation(folder / "better", flipped(0.9, 0)),
        "study": write_study(folder),
        "run": write_run(folder / "run", make_trained(all_abilities(make_extractor()))),
        **{task: write_config(folder, data, task) for task in ("pretrain", "vqa")},
    }


@contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the descriptor of a terminal and, afterwards, what was written to it."""
    ours, theirs = os.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                written.append(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, written
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def test_every_command_is_listed_here() -> None:
    assert set(COMMANDS) == all_commands() and set(COMMANDS) >= QUIET


@pytest.mark.parametrize("command", COMMANDS)
def test_results_arrive_in_a_file_while_a_terminal_shows_progress(
    command: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a terminal called dumb is only written to at the end
    monkeypatch.setenv("PATH", "")  # no Java, whose start would take most of the time
    monkeypatch.setattr(runner, "all_stages", lambda config: [])
    monkeypatch.setattr(runner, "finish", lambda *_: print("results"))
    monkeypatch.setattr("dimvl.app.server.make_server", lambda *_: SimpleNamespace(run=lambda sockets: None))
    monkeypatch.setattr(running, "serve", lambda *_: None)  # it runs until it is stopped
    if command == "study":
        pretend(monkeypatch, places["study"].parent)
    arguments, expected = COMMANDS[command]
    words = [word.format(**places, new=tmp_path / "new") for word in [*command.split(), *arguments]]
    monkeypatch.setattr(sys, "argv", ["dimvl", *words])
    with terminal() as (descriptor, written), (tmp_path / "results").open("w") as results:
        monkeypatch.setattr(sys, "stdout", results)
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(descriptor), "w", buffering=1))
        with pytest.raises(SystemExit) as end, sys.stderr:
            dimvl.cli.main()
    shown = b"".join(written).decode()
    assert not end.value.code, shown
    assert re.search(expected, (tmp_path / "results").read_text()), shown
    assert (SHOWN_IN_PLACE in shown) == (command not in QUIET)


def dimvl_process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dimvl", *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=60, **options)  # type: ignore[call-overload]


def test_a_message_keeps_its_line_while_progress_is_shown(places: dict[str, Path], tmp_path: Path) -> None:
    name = "long " * 30
    with shutil.copy(places["features"], tmp_path / "features.tsv").open("a") as file:
        file.write(f"{name}\t4\n")
    with terminal() as (descriptor, written):
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        arguments = ("import", tmp_path / "features.tsv", tmp_path / "out")
        ended = dimvl_process(*arguments, stdout=subprocess.PIPE, stderr=descriptor, env=environment)
    last = ended.stdout.splitlines()[-1]
    assert (ended.returncode, last.split(":")[0]) == (1, "6 images done, 0 already there, 1 skipped")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(written).decode()).replace("\r", "\n").splitlines()
    messages = [line for line in lines if "INFO: " in line or "WARNING: " in line]
    assert len(messages) == 3 and all(line.startswith(("INFO: ", "WARNING: ")) for line in messages), lines
    assert name.strip() in messages[-1] and "2 columns" in messages[-1]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_a_full_disk_does_not_take_are_an_error(places: dict[str, Path], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        for arguments in (("--version",), ("inspect", places["regions"])):
            ended = dimvl_process(*arguments, stdout=full, stderr=subprocess.PIPE, env=environment)
            expected = "error: standard output cannot be written (No space left on device); "
            assert ended.returncode == 2 and ended.stderr.startswith(expected) and ended.stderr.count("\n") == 1


def test_a_character_that_the_encoding_of_the_output_lacks_is_escaped(places: dict[str, Path], tmp_path: Path) -> None:
    store = shutil.copytree(places["regions"], tmp_path / "caf\xe9")
    ended = dimvl_process("verify", store, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0 and r"caf\xe9 is sound" in ended.stdout


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = dimvl_process("--help", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_messages_that_lead_nowhere_change_neither_results_nor_exit_code(places: dict[str, Path]) -> None:
    sound = f"{places['regions']} is sound: 6 images\n"
    cases = (
        (places["regions"], "<&- 2>&-", 0, sound),
        (places["regions"], "2>/dev/full", 0, sound),
        ("no", "2>&-", 2, ""),
    )
    for store, redirection, code, results in cases:
        words = f"{sys.executable} -m dimvl verify {store} {redirection}"
        ended = subprocess.run(["sh", "-c", words], stdout=subprocess.PIPE, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (code, results), redirection
