"""Caption scores by the protocol of the COCO evaluation: PTB tokens, then BLEU 1-4, METEOR, ROUGE-L, CIDEr and SPICE.

The scores are computed by pycocoevalcap (Chen et al., "Microsoft COCO Captions", 2015), from the extra `metrics`. Its
Java programs are started here instead of by its wrappers: nothing is written to its folder, which may be read-only, and
a program that dies is one clear error instead of an endless wait. They run in one locale and encoding, whatever those
of the user are.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.showing import short

_UTF_8 = ("-Duser.language=en", *(f"-D{name}.encoding=UTF-8" for name in ("file", "stdin", "stdout", "sun.stdout")))
_JAVA = "Java is not on PATH, which the PTB tokeniser and METEOR need; install Java 8 or newer"
_SPICE_LIBRARY = "stanford-corenlp-3.6.0"


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of captions, under the names of the COCO evaluation.

    Attributes:
        corpus: Bleu_1 to Bleu_4, METEOR, ROUGE_L and SPICE from 0 to 1, CIDEr from 0 to 10.
        per_image: the same for each image; BLEU and METEOR of the corpus are not means of these.
        statistics: of each image, what BLEU and METEOR of the corpus need: `bleu` and `meteor`, as in
            `dimvl.metrics.measures`.
        left_out: for each missing score, why it is missing.
        failed: those of `left_out` whose program failed.
        count: number of images.
        references: number of reference captions.

    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    statistics: dict[str, dict[str, list[float]]]
    left_out: dict[str, str]
    failed: tuple[str, ...] = ()
    count: int
    references: int


def caption_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], tokenised: bool = False
) -> CaptionScores:
    """Score one caption per image.

    Args:
        predictions: image id -> caption, which may be empty.
        references: image id -> at least one caption, for the same images.
        tokenised: all texts are already PTB tokens separated by spaces. METEOR is then omitted if Java is missing.

    Raises:
        UserError: pycocoevalcap or Java is missing, or the PTB tokeniser failed. Another program that fails leaves out
            its score only.

    """
    if find_spec("pycocoevalcap") is None:
        raise UserError("pycocoevalcap is not installed, which caption scores need; pip install 'dimvl[metrics]'")
    if not tokenised and shutil.which("java") is None:
        raise UserError(
            f"{_JAVA}, or score texts that are already tokenised, without METEOR, by `dimvl score caption --tokenised`"
        )
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    images = list(predictions)
    truth = {image: [_line(text) for text in references[image]] for image in images}
    found = {image: [_line(predictions[image])] for image in images}
    if not tokenised:
        tokens = iter(ptb_tokens([*chain.from_iterable(truth.values()), *chain.from_iterable(found.values())]))
        truth = {image: [next(tokens) for _ in texts] for image, texts in truth.items()}
        found = {image: [next(tokens)] for image in images}
    if not any(text for texts in truth.values() for text in texts):
        raise UserError("no reference caption has a word; give annotations with captions")
    statistics: dict[str, Sequence[Sequence[float]]] = {}
    scores, statistics["bleu"] = _bleu(truth, found)
    left_out, failed = {}, []
    for name, compute, missing in (
        ("METEOR", partial(_meteor, statistics), _JAVA if shutil.which("java") is None else None),
        ("ROUGE_L", Rouge().compute_score, None),
        ("CIDEr", Cider().compute_score, None),
        ("SPICE", _spice, _missing_for_spice()),
    ):
        if missing is not None:
            left_out[name] = missing
            continue
        try:
            scores[name] = compute(truth, found)
        except UserError as error:
            left_out[name] = str(error)
            failed.append(name)
    return CaptionScores(
        corpus={name: float(corpus) for name, (corpus, _) in scores.items()},
        per_image={
            image: {name: float(values[place]) for name, (_, values) in scores.items()}
            for place, image in enumerate(images)
        },
        statistics={
            image: {name: list(rows[place]) for name, rows in statistics.items()} for place, image in enumerate(images)
        },
        left_out=left_out,
        failed=tuple(failed),
        count=len(images),
        references=sum(map(len, truth.values())),
    )


def _line(text: str) -> str:
    """Remove line breaks, which would shift all later texts in the Java programs."""
    return " ".join(text.splitlines())


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenise texts like the COCO evaluation: lower-case Penn Treebank tokens separated by spaces, no punctuation.

    Raises:
        UserError: the Java program failed.

    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", *_UTF_8, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase"]
    lines = "".join(f"{_line(text)}\n" for text in texts).encode(errors="replace")  # lone surrogates cannot be written
    result = subprocess.run(command, input=lines, capture_output=True, env=_environment())
    found = result.stdout.decode(errors="replace").removesuffix("\n").split("\n")
    if result.returncode or len(found) != len(texts):
        raise _failed("the PTB tokeniser", result.stderr)
    removed = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.rstrip().split(" ") if token not in removed) for line in found]


def _bleu(
    truth: Mapping[str, list[str]], found: Mapping[str, list[str]]
) -> tuple[dict[str, tuple[float, list[float]]], list[list[float]]]:
    """Return BLEU 1 to 4 of the corpus and of each image, and the statistics (9,) of each image."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for image, (text,) in found.items():
        scorer += (text, truth[image])
    corpus, of_images = scorer.compute_score(option="closest", verbose=0)
    scores = {f"Bleu_{size}": each for size, each in enumerate(zip(corpus, of_images, strict=True), start=1)}
    rows = [
        [min((abs(length - own["testlen"]), length) for length in lengths)[1], *own["guess"], *own["correct"]]
        for own, (lengths, _) in zip(scorer.ctest, scorer.crefs, strict=True)
    ]
    return scores, rows


def _meteor(
    of_images: dict[str, Sequence[Sequence[float]]], truth: Mapping[str, list[str]], found: Mapping[str, list[str]]
) -> tuple[float, list[float]]:
    """Return METEOR of the corpus and of each image, and put the statistics (23,) of each image into `of_images`.

    The program gives a line of statistics for each image, then all scores.
    """
    from pycocoevalcap.meteor import meteor

    command = ["java", "-Xmx2G", *_UTF_8, "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    options: dict[str, Any] = {"cwd": Path(meteor.__file__).parent, "env": _environment(), "errors": "replace"}
    with tempfile.TemporaryFile() as messages:
        try:
            with subprocess.Popen(command, stderr=messages, **pipes, **options) as process:
                requests, replies = process.stdin, process.stdout
                assert requests is not None and replies is not None
                try:
                    statistics = []
                    for image, (text,) in found.items():
                        clean = text.replace("|||", "").replace("  ", " ")
                        print("SCORE", *truth[image], clean, sep=" ||| ", file=requests, flush=True)
                        statistics.append(replies.readline().strip())
                    print("EVAL", *statistics, sep=" ||| ", file=requests, flush=True)
                    values = [float(replies.readline()) for _ in range(len(found) + 1)]
                    of_images["meteor"] = [_meteor_statistics(line) for line in statistics]
                finally:
                    process.kill()  # it would wait for more lines
        except (OSError, ValueError, IndexError):  # it ended too early: no pipe, or too few numbers
            messages.seek(0)
            raise _failed("METEOR", messages.read()) from None
    return values[-1], values[:-1]


def _meteor_statistics(line: str) -> list[float]:
    """Return the statistics of one text; one that equals its reference has no chunk, so that they can be added."""
    values = [float(value) for value in line.split()]
    same = values[20] == 1 and values[:2] == values[21:]
    return [*values[:20], 0.0 if same else values[20], *values[21:]]


def _environment() -> dict[str, str]:
    """Variables for a Java program, without options that would override its locale and encoding."""
    return {name: value for name, value in os.environ.items() if name != "_JAVA_OPTIONS"} | {"LC_ALL": "C.UTF-8"}


def _failed(program: str, messages: bytes) -> UserError:
    lines = [line for line in messages.decode(errors="replace").splitlines() if not line.startswith("Picked up ")]
    cause = f" ({short(lines[0])})" if lines else ""
    return UserError(
        f"the Java program of {program} failed{cause}; check that `java -version` works and that 2 GB of memory are "
        "free"
    )


def _missing_for_spice() -> str | None:
    """Say what SPICE needs and is missing, if anything; pycocoevalcap would download its files."""
    from pycocoevalcap.spice import get_stanford_models

    library = Path(get_stanford_models.__file__).parent / "lib"
    if all((library / f"{_SPICE_LIBRARY}{part}.jar").is_file() for part in ("", "-models")):
        return None if shutil.which("java") else _JAVA
    return f"its files ({_SPICE_LIBRARY}) are not installed; put them into the folder pycocoevalcap/spice/lib"


def _spice(truth: Mapping[str, list[str]], found: Mapping[str, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    try:
        with _java_variables():
            corpus, values = Spice().compute_score(truth, found)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UserError(f"SPICE failed ({error}); check or remove its files in pycocoevalcap/spice/lib") from None
    by_image = {image: value["All"]["f"] for image, value in zip(sorted(truth), values, strict=True)}
    return corpus, [by_image[image] for image in truth]


@contextmanager
def _java_variables() -> Iterator[None]:
    """Set the variables of Java programs in this process, for one that is started elsewhere."""
    before = dict(os.environ)
    _replace_variables(_environment())
    try:
        yield
    finally:
        _replace_variables(before)


def _replace_variables(variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
