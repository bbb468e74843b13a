"""Pairwise probes of a model: what counts as right, the text-only score beside it, and what is written."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import dimvl.tasks.inference
import dimvl.tasks.probing
from dimvl.config import EvaluationOptions
from dimvl.data.examples import Example
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.targets import TargetSpec, WordTargets
from dimvl.errors import UserError
from dimvl.evaluation import write_evaluation
from dimvl.metrics.evaluations import read_evaluation
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import causal_text
from dimvl.tasks.probing import Scorer, cosines, evaluate_probes, log_likelihoods
from dimvl.tasks.retrieval.prediction import embed_images, embed_texts, scales
from dimvl.tasks.task import Evaluation
from dimvl.trained_model import TrainedModel, load_model
from tests.data.annotations.files import write
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_store

IMAGES = ("1", "2", "3", "4", "5", "6")
PAIRS = (
    ("a red star", "a blue star"),
    ("two blue stars", "two red stars"),
    ("the star is above a circle", "the circle is above a star"),
    ("a small circle", "a large circle"),
)
OPTIONS = EvaluationOptions()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return RegionStore(make_store(tmp_path_factory.mktemp("store") / "regions", len(IMAGES), empty=4))


@pytest.fixture(scope="module", params=[True, False], ids=["shared prefix", "own prefixes"])
def trained(request: pytest.FixtureRequest) -> TrainedModel:
    return make_trained(all_abilities(answers=(), shared_prefix=request.param, aligns=True, task="pretrain"), seed=2)


def own_file(folder: Path, name: str = "own.jsonl", pairs: Sequence[tuple[str, str]] = PAIRS) -> Path:
    lines = [{"image": image, "caption": true, "foil": false} for image in IMAGES for true, false in pairs]
    return write(folder / name, "".join(f"{json.dumps(line)}\n" for line in lines))


def winoground_file(folder: Path) -> Path:
    lines = [
        {"id": number, "image_0": one, "image_1": two, "caption_0": texts[0], "caption_1": texts[1]}
        for number, (one, two, texts) in enumerate(zip(IMAGES, IMAGES[1:], PAIRS * 2, strict=False))
    ]
    return write(folder / "winoground.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def pretend(monkeypatch: pytest.MonkeyPatch, values: dict[str, Sequence[float]]) -> None:
    """Let the only score of image and text be what a table says of both texts; without regions, that of image ''."""

    def apply(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> torch.Tensor:
        texts = [trained.processor.tokenizer.decode(text.tolist()) for text in words]
        names = [NAMES.get(len(prefix.features), "") for prefix in prefixes]
        return torch.tensor([values[name][text == BLACK] for name, text in zip(names, texts, strict=True)])

    scorer = Scorer(lambda processor: True, apply, lambda processor: True)
    monkeypatch.setattr(dimvl.tasks.probing, "SCORERS", {"match": scorer})


NAMES = {3: "1", 4: "2"}  # images by their number of regions
WHITE, BLACK = "a red star", "a blue star"


@pytest.mark.parametrize(
    ("seen", "unseen", "accuracy", "text_only"),
    [((2, 1), (1, 2), 1, 0), ((1, 1), (2, 1), 0, 1), ((1, 2), (1, 1), 0, 0), ((2, 1), (2, 1), 1, 1)],
)
def test_a_pair_is_right_if_its_caption_scores_strictly_higher_with_and_without_the_image(
    monkeypatch: pytest.MonkeyPatch,
    store: RegionStore,
    tmp_path: Path,
    seen: tuple[int, int],
    unseen: tuple[int, int],
    accuracy: int,
    text_only: int,
) -> None:
    pretend(monkeypatch, {"1": seen, "": unseen})
    path = write(tmp_path / "a.jsonl", {"image": 1, "caption": WHITE, "foil": BLACK})
    found = evaluate_probes(make_trained(), store, [path], OPTIONS)
    expected = {"accuracy": accuracy, "text_only": text_only, "above_text_only": accuracy - text_only}
    assert found.scores == {"task": "probe", "count": 1, "match": expected}
    assert found.items[0]["scores"] == {"match": [list(seen)], "match_text_only": list(unseen)}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[2, 1], [1, 2]], (1, 1, 1)),
        ([[2, 1], [4, 5]], (1, 0, 0)),
        ([[2, 3], [1, 4]], (0, 1, 0)),
        ([[2, 2], [1, 2]], (0, 0, 0)),
        ([[1, 2], [2, 1]], (0, 0, 0)),
    ],
)
def test_two_images_with_a_caption_each_are_scored_by_text_by_image_and_as_a_group(
    monkeypatch: pytest.MonkeyPatch, store: RegionStore, tmp_path: Path, table: list, expected: tuple[int, int, int]
) -> None:
    pretend(monkeypatch, {"1": table[0], "2": table[1], "": (0, 1)})
    content = {"id": 7, "image_0": "1", "image_1": 2, "caption_0": WHITE, "caption_1": BLACK}
    found = evaluate_probes(make_trained(), store, [write(tmp_path / "a.jsonl", content)], OPTIONS)
    assert found.scores["match"] == dict(zip(("text", "image", "group"), expected, strict=True))
    assert found.items[0]["images"] == ["1", 2] and found.items[0]["text_id"] == "a/7"


def test_the_likelihood_of_a_text_is_that_of_its_words_one_after_the_other(
    trained: TrainedModel, store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.tasks.probing, "WORDS_AT_ONCE", 3)
    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, [((i,), ()) for i in IMAGES[:2]]))
    pairs = [(prefix, text) for prefix in prefixes for text in trained.tokenise([t for pair in PAIRS for t in pair])]
    found = log_likelihoods(trained, [prefix for prefix, _ in pairs], [text for _, text in pairs])
    for (prefix, words), value in zip(pairs, found.tolist(), strict=True):
        text = causal_text(words, trained.processor.tokenizer)
        example = Example(source="", objective="x", prefix=prefix, texts=[text], seq2seq=True)
        batch = trained.batch([example], {"x": TargetSpec(WordTargets)})
        with torch.inference_mode():
            logs = trained.model.word_head(trained.model(batch)[batch.targets["x"].rows]).log_softmax(dim=-1)
        own = logs[torch.arange(len(text.labels)), text.labels.tolist()]
        assert text.labels[-1] == trained.processor.tokenizer.sep and len(own) == len(words) + 1
        assert value == pytest.approx(float(own.sum()), abs=1e-3)


def test_cosines_are_those_of_images_and_texts_one_by_one(trained: TrainedModel, store: RegionStore) -> None:
    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, [((i,), ()) for i in "134"]))
    words = trained.tokenise([text for pair in PAIRS for text in pair])
    chosen = [prefixes[place] for place in (0, 0, 2, 1, 1, 0, 2, 1)]
    found = cosines(trained, chosen, words)
    for prefix, text, value in zip(chosen, words, found.tolist(), strict=True):
        image = embed_images(trained, [prefix]).pooled
        assert value == pytest.approx(
            float(scales(trained)[0] * image @ embed_texts(trained, [text]).pooled.T), abs=1e-3
        )


def test_scores_depend_on_neither_the_order_nor_the_batches_and_progress_ends_with_everything_done(
    trained: TrainedModel, store: RegionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [own_file(tmp_path), winoground_file(tmp_path)]
    done: list[tuple[int, int]] = []
    whole = evaluate_probes(trained, store, paths, OPTIONS, lambda *count: done.append(count))
    assert done[-1][0] == done[-1][1] and set(whole.scores) >= {"match", "cosine", "likelihood", "by_file"}
    assert 0 < whole.scores["match"]["accuracy"] < 1 and whole.scores["count"] == 29
    for module in (dimvl.tasks.inference, dimvl.tasks.probing):
        monkeypatch.setattr(module, "ROW_BUDGET", 1)
    again = evaluate_probes(trained, store, paths[::-1], OPTIONS)
    assert again.scores == whole.scores
    ours, theirs = ({item["text_id"]: item["scores"] for item in found.items} for found in (whole, again))
    for name, own in ours.items():
        for scorer, values in own.items():
            np.testing.assert_allclose(values, theirs[name][scorer], atol=1e-3)


def test_without_an_image_the_model_sees_no_region_and_no_tag(trained: TrainedModel, store: RegionStore) -> None:
    tokenizer = trained.processor.tokenizer
    nothing = dimvl.tasks.probing._without_regions(trained, store, (("1",), ()))
    assert len(nothing.features) == 0 and nothing.context.tolist() == [tokenizer.cls, tokenizer.sep]
    [empty] = trained.processor.reader(store).prefixes(PrefixImages.find(store, [(("4",), ())]))
    words = trained.tokenise(["a red star"])
    assert torch.equal(log_likelihoods(trained, [nothing], words), log_likelihoods(trained, [empty], words))


def evaluated(trained: TrainedModel, store: RegionStore, paths: list[Path], **options: object) -> Evaluation:
    return evaluate_probes(trained, store, paths, EvaluationOptions(**options))


def test_several_files_are_scored_together_each_alone_and_by_their_mean(
    trained: TrainedModel, store: RegionStore, tmp_path: Path
) -> None:
    paths = [own_file(tmp_path), own_file(tmp_path, "few.jsonl", PAIRS[:1])]
    both, alone = evaluated(trained, store, paths), [evaluated(trained, store, [path]).scores for path in paths]
    for name in ("match", "cosine", "likelihood"):
        assert both.scores["by_file"]["few"][name] == alone[1][name]
        values = [scores[name]["accuracy"] for scores in alone]
        assert both.scores["mean_of_files"][name]["accuracy"] == pytest.approx(sum(values) / 2)
        assert both.scores[name]["accuracy"] == pytest.approx((24 * values[0] + 6 * values[1]) / 30)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="are both called 'own'; rename one"):
        evaluated(trained, store, [paths[0], own_file(tmp_path / "other")])


def test_what_is_written_has_intervals_and_is_read_back_by_compare(
    trained: TrainedModel, store: RegionStore, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", trained)
    found = evaluated(trained, store, [own_file(tmp_path), winoground_file(tmp_path)])
    written = write_evaluation(run, load_model(run), store, found, tmp_path / "out", OPTIONS.settings())
    low, high = written.scores["intervals"]["match / above_text_only"]
    assert low <= written.scores["match"]["above_text_only"] <= high and low < high
    assert "by_file / winoground / likelihood / group" in written.scores["intervals"]
    again = read_evaluation(tmp_path / "out")
    assert again.task == "probe" and len(again.items) == 29 and ("match", "text_only") in again.measures
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["data"]) == {"own", "winoground"} and manifest["settings"]["match"] == "auto"


def test_what_cannot_be_scored_is_refused_or_counted(
    trained: TrainedModel, store: RegionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"image": image, "caption": WHITE, "foil": BLACK} for image in ("1", "77")]
    lines[0] |= {"foil": f"{WHITE} \u200b"}  # the same tokens
    path = write(tmp_path / "a.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UserError, match=r"lacks image '77'.*--skip-missing"):
        evaluated(trained, store, [path])
    found = evaluated(trained, store, [path], missing="skip")
    assert found.left_out == {"item with an image that is not in the store": 1}
    assert found.scores["match"]["accuracy"] == 0 and "1 pair of caption and foil have the same tokens" in caplog.text
    answers = make_trained(all_abilities(captions=False, matches=False))
    with pytest.raises(UserError, match=r"neither matches nor aligns.*; give a run that was pretrained"):
        evaluated(answers, store, [path])
