import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dimvl.errors import UserError
from dimvl.metrics import captions
from dimvl.metrics.captions import CaptionScores, caption_scores, ptb_tokens
from dimvl.metrics.measures import measures

GOLDEN = Path(__file__).parents[2].parent / "shared/data/golden/caption_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the official scores are not on this machine")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokeniser and METEOR need Java")
pycocoevalcap = pytest.importorskip("pycocoevalcap.bleu").__path__


def read(name: str):
    return json.loads((GOLDEN / name).read_text())


def references() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in read("captions_gt.json")["annotations"]:
        found.setdefault(str(record["image_id"]), []).append(record["caption"])
    return found


def package_files() -> set[Path]:
    return {path for path in Path(pycocoevalcap[0]).parent.rglob("*") if path.suffix != ".pyc"}


def from_sums(scores: CaptionScores) -> dict[str, float]:
    """Scores of the corpus from what is kept of each image."""
    items = [{"official": own, "statistics": scores.statistics[image]} for image, own in scores.per_image.items()]
    return {name: float(score(numbers.sum(axis=0))) for (_, name), (numbers, score) in measures(items).items()}


@pytest.fixture(scope="module")
def golden() -> CaptionScores:
    before = package_files()
    scores = caption_scores(
        {str(record["image_id"]): record["caption"] for record in read("captions_results.json")}, references()
    )
    assert {path for path in package_files() - before if path.name != "__pycache__"} == set(), "nothing is written"
    return scores


@pytest.mark.slow
@needs_golden
@needs_java
def test_scores_equal_those_of_the_official_evaluation_to_the_digit(golden: CaptionScores) -> None:
    expected = read("expected.json")
    spice = {"SPICE"} & golden.corpus.keys()  # if its files are installed
    assert {name: round(score, 4) for name, score in golden.corpus.items() if name not in spice} == expected["scores"]
    assert (golden.count, golden.references) == (expected["n_images"], expected["n_references"])
    for image, scores in expected["per_image"].items():
        assert {name: round(golden.per_image[image][name], 4) for name in scores} == scores, image
    assert from_sums(golden) == pytest.approx(golden.corpus, abs=1e-12), "what intervals resample"


@needs_golden
@needs_java
def test_tokens_equal_those_of_the_official_tokeniser() -> None:
    tokens, truth = read("tokenized.json"), references()
    found = ptb_tokens([text for texts in truth.values() for text in texts])
    assert found == [text for image in truth for text in tokens["references"][image]]


@needs_golden
def test_without_java_tokenised_texts_get_all_scores_except_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    tokens = read("tokenized.json")
    found = caption_scores({image: text for image, (text,) in tokens["results"].items()}, tokens["references"], True)
    expected = read("expected.json")["scores"]
    del expected["METEOR"]
    assert {name: round(score, 4) for name, score in found.corpus.items()} == expected
    assert "Java is not on PATH" in found.left_out["METEOR"] and "SPICE" in found.left_out


def test_the_errors_without_java_or_the_extra_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"Java is not on PATH.*install Java 8.*by `dimvl score caption --tokenised`"):
        caption_scores({"1": "a star"}, {"1": ["a star"]})
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'dimvl\[metrics\]'"):
        caption_scores({"1": "a star"}, {"1": ["a star"]}, tokenised=True)


@needs_java
def test_line_breaks_empty_texts_and_odd_characters_shift_no_caption_to_another_image() -> None:
    texts = ["a\r\nb\u2028c\x85d\x0be", "", "...", "The Cat's; (here)", "\ud800 star", " "]
    found = ptb_tokens(texts)
    # the evaluation removes brackets written in capitals only, so those of its lower-case tokens remain
    assert found[:4] == ["a b c d e", "", "", "the cat 's -lrb- here -rrb-"]
    assert found[4].endswith("star") and found[5] == ""


@pytest.mark.slow
@needs_java
def test_an_empty_caption_scores_0_and_does_not_affect_others() -> None:
    scores = caption_scores({"1": "", "2": "a red star\n"}, {"1": ["a dog"], "2": ["a red star", "..."]})
    assert set(scores.per_image["1"].values()) == {0} and scores.per_image["2"]["Bleu_2"] == pytest.approx(1)
    assert from_sums(scores) == pytest.approx(scores.corpus, abs=1e-12), "one text equals its reference"


def make_java(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "java").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "java").chmod(0o755)


@pytest.mark.parametrize("script", ["exit 3", "read line; echo 1 2 3; exit 0", "read line; echo 1; read line; echo no"])
def test_a_java_program_that_dies_is_named_with_its_cause_and_leaves_the_other_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    messages = "echo Picked up options >&2; echo java.lang.OutOfMemoryError: heap >&2"
    make_java(tmp_path / "bin", f"{messages}; {script}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    texts = {str(image): "a star" for image in range(3)}
    references = {image: [text] for image, text in texts.items()}
    cause = "OutOfMemoryError: heap'); check that `java -version` works"
    with pytest.raises(UserError, match="PTB tokeniser failed") as refused:
        caption_scores(texts, references)
    assert cause in str(refused.value)
    scores = caption_scores(texts, references, tokenised=True)
    assert scores.failed == ("METEOR",) and cause in scores.left_out["METEOR"]
    assert scores.corpus["Bleu_2"] == pytest.approx(1) and {"ROUGE_L", "CIDEr"} <= scores.corpus.keys()


def test_java_programs_run_in_one_locale_and_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_java(tmp_path / "bin", f'echo "$LC_ALL [$_JAVA_OPTIONS] $*" >> {tmp_path}/calls; cat')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "tr_TR.ISO-8859-9")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Dfile.encoding=ISO-8859-9")
    monkeypatch.setattr(captions, "_missing_for_spice", lambda: None)
    spice = SimpleNamespace(Spice=lambda: SimpleNamespace(compute_score=lambda *_: subprocess.run(["java", "spice"])))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", spice)
    with pytest.raises(TypeError):  # this program computes nothing
        caption_scores({"1": "a star"}, {"1": ["a star"]})
    programs = ("PTBTokenizer", "meteor", "spice")
    for call, program in zip((tmp_path / "calls").read_text().splitlines(), programs, strict=True):
        assert call.startswith("C.UTF-8 [] ") and program in call
        assert program == "spice" or all(word in call for word in ("user.language=en", "-Dfile.encoding=UTF-8"))
    assert os.environ["LC_ALL"] == "tr_TR.ISO-8859-9" and "_JAVA_OPTIONS" in os.environ


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(UserError, match="no reference caption has a word"):
        caption_scores({"1": "a star"}, {"1": [""]}, tokenised=True)


def test_spice_is_reported_by_image_if_its_files_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.spice.spice import Spice

    monkeypatch.setattr(captions, "_missing_for_spice", lambda: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(Spice, "__init__", lambda self: None)
    monkeypatch.setattr(
        Spice, "compute_score", lambda self, truth, found: (0.5, [{"All": {"f": int(i) / 10}} for i in sorted(truth)])
    )
    scores = caption_scores({"3": "a", "1": "b"}, {"1": ["a"], "3": ["b"]}, tokenised=True)
    assert scores.corpus["SPICE"] == 0.5
    assert {image: values["SPICE"] for image, values in scores.per_image.items()} == {"3": 0.3, "1": 0.1}

    def fail(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Spice, "compute_score", fail)
    scores = caption_scores({"1": "a"}, {"1": ["a"]}, tokenised=True)
    assert "SPICE failed (read-only)" in scores.left_out["SPICE"] and scores.failed == ("SPICE",)
