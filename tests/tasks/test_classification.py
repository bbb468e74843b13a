"""Classification: scores by hand, texts on a shared prefix, several labels, and a run through the command line."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dimvl.data.annotations import LabelledItem
from dimvl.data.prefixes import PrefixImages
from dimvl.errors import UserError
from dimvl.metrics.measures import mean_scores
from dimvl.predictor import Predictor
from dimvl.regions.extract import extract
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks import CONFIGS, task_of
from dimvl.tasks.classification.prediction import chosen_labels, label_probabilities, tokenise
from dimvl.tasks.classification.scores import item_means
from dimvl.training.build import build_task
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.factories import make_regions, make_store
from tests.tiny_runs import MODEL
from tests.training.test_overfitting import overfit

LABELS = ("circle", "square", "star")


def item(number: int, *labels: str, **changes: Any) -> LabelledItem:
    return LabelledItem(number, (str(number),), "a text", labels, **changes)


def processor(**changes: Any):
    return all_abilities(answers=(), captions=False, matches=False, labels=LABELS, task="classify", **changes)


def test_consistency_is_the_share_of_sentences_that_are_right_for_all_of_their_images() -> None:
    items = [item(0, "true", group="a"), item(1, "false", group="b"), item(2, "false", group="a")]
    items += [item(3, "true", group="b"), LabelledItem(4, ("4",), "", None, group="a")]
    means = item_means(items, [("true",), ("true",), ("false",), ("true",), ("true",)], several=False)
    assert mean_scores(means) == {"accuracy": 3 / 4, "consistency": 1 / 2}
    assert [("consistency" in own) for own in means] == [True, True, False, False, False], "once for each sentence"


def test_the_scores_of_gqa_are_those_of_its_program() -> None:
    choices = (("validity", {"yes", "no"}), ("plausibility", {"no"}))
    items = [
        item(0, "yes", kind="binary", entailed=("1", "2"), accepted=choices),
        item(1, "red", scored=False, entailed=("0",)),
        item(2, "no", kind="open", entailed=("0",), accepted=choices),
        item(3, "no", kind="open", entailed=("9",)),
    ]
    scores = mean_scores(item_means(items, [("yes",), ("red",), ("yes",), ("no",)], several=False))
    assert scores["accuracy"] == 2 / 3 and scores["binary"] == 1 and scores["open"] == 1 / 2
    assert scores["consistency"] == 1 / 2, "question 0 is right and entails 1 (right) and 2 (wrong); 2 is wrong itself"
    assert (scores["validity"], scores["plausibility"]) == (1, 0)


def test_several_labels_are_scored_by_f1_and_exact_match() -> None:
    items = [item(0, "a", "b"), item(1), item(2, "a")]
    means = item_means(items, [("b", "c"), (), ("a",)], several=True)
    assert [own["f1"] for own in means] == [1 / 2, 1, 1] and [own["exact_match"] for own in means] == [0, 1, 1]


@pytest.mark.parametrize("several", [False, True])
def test_one_label_is_always_predicted_and_several_are_where_they_are_likely(several: bool) -> None:
    probabilities = torch.tensor([[0.2, 0.1, 0.05], [0.6, 0.1, 0.5]])
    found = chosen_labels(processor(several_labels=several), probabilities)
    assert found == ([(), ("circle", "star")] if several else [("circle",), ("circle",)])


@pytest.mark.parametrize("shared", [False, True])
def test_neither_order_nor_company_changes_a_probability(tmp_path: Path, shared: bool) -> None:
    trained = make_trained(processor(shared_prefix=shared), seed=1)
    store = RegionStore(make_store(tmp_path / "store"))
    keys = [((image,), ()) for image in ("1", "2", "3")] + [(("1", "2"), ()), (("2", "1"), ())]
    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, keys))
    pairs = [(prefix, text) for prefix in prefixes for text in ("a red star", "", "two circles above")]
    words = tokenise(trained, [text for _, text in pairs])
    together = label_probabilities(trained, [prefix for prefix, _ in pairs], words)
    backwards = label_probabilities(trained, [prefix for prefix, _ in pairs[::-1]], words[::-1]).flip(0)
    alone = torch.cat(
        [label_probabilities(trained, [prefix], [own]) for (prefix, _), own in zip(pairs, words, strict=True)]
    )
    for other in (backwards, alone):  # fp32: sums run in another order
        torch.testing.assert_close(together, other, atol=1e-5, rtol=1e-4)
    assert together.sum(dim=1).allclose(torch.ones(len(pairs)))
    assert (together[:3] - together[3:6]).abs().max() > 0.01, "the image matters"
    assert (together[0] - together[1]).abs().max() > 0.01, "the text matters"
    assert (together[9:12] - together[12:15]).abs().max() > 1e-3, "the order of the images matters"


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def configured(folder: Path, items: Path, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"task": "classify", "output": str(folder / "run"), "regions": str(folder / "regions")}
    content |= {"items": str(items), "inputs": {"max_regions": 10, "concept_tokens": 8, "text_tokens": 12}}
    content |= {"model": {**MODEL, "dropout": 0, "width": 32}, "training": {"steps": 4, "learning_rate": 1e-2}}
    content["inputs"]["vocabulary"] = 100
    content["training"] |= {"rows_per_step": 200, "rows_per_micro_batch": 80, "save_every": 2, "keep": 9}
    return content | changes


@pytest.mark.parametrize("several", [False, True])
def test_it_overfits_one_batch_with_and_without_texts(tmp_path: Path, several: bool) -> None:
    make_store(tmp_path / "regions")
    texts = ["a star", "", "two circles", "", "a red square", "above"]
    labels: list[list[str]] = [["a"], ["b"], ["c"], ["a", "c"] if several else ["a"], [] if several else ["b"], ["c"]]
    records = [{"image": place + 1, "text": text, "labels": labels[place]} for place, text in enumerate(texts)]
    content = configured(tmp_path, lines(tmp_path / "items.jsonl", records), several_labels=several)
    losses, _ = overfit(CONFIGS["classify"](**content))
    (first, last) = losses["labels"]
    assert last < 0.05 < 0.3 < first


READ: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([{"image": 1, "label": "a"}, {"image": 2, "label": "a"}], {}, "has only the label a; give items of at least two"),
    ([{"image": 1, "labels": ["a", "b"]}], {}, "item 0 has 2 labels, but exactly one fits without several_labels"),
    ([{"image": 1, "labels": []}], {}, "item 0 has 0 labels, but exactly one"),
    ([{"image": 1, "text": "a"}], {}, "no item has a label; give items with their labels"),
    ([{"image": 1, "label": "c"}], {"labels": ["a", "b"]}, "item 0 has label 'c', which .*labels.json does not list"),
    ([{"image": 1, "label": "a"}], {"labels": ["a"]}, "labels.json has 1 label; give at least 2"),
    ([{"images": [1, 77], "label": "a"}], {}, "lacks image '77' of the 2"),
    ([{"images": [1, 2, 3, 4, 5], "label": "a"}], {}, r"item 0 has 5 images, more than inputs.max_images 4"),
]


@pytest.mark.parametrize(("records", "changes", "words"), READ)
def test_a_mistake_in_training_items_is_one_sentence(
    tmp_path: Path, records: list[dict[str, Any]], changes: dict[str, Any], words: str
) -> None:
    make_store(tmp_path / "regions")
    if "labels" in changes:
        (tmp_path / "labels.json").write_text(json.dumps(changes["labels"]))
        changes = {"labels": str(tmp_path / "labels.json")}
    config = CONFIGS["classify"](**configured(tmp_path, lines(tmp_path / "items.jsonl", records), **changes))
    store = RegionStore(config.regions)
    with pytest.raises(UserError, match=words):
        build_task(config, store, task_of(config).read(config, store))


def test_unknown_labels_count_as_wrong_and_are_refused_where_there_are_no_others(
    tmp_path: Path, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", make_trained(processor()))
    make_store(tmp_path / "regions")
    some = lines(tmp_path / "some.jsonl", [{"image": 1, "label": "circle"}, {"image": 2, "label": "dog"}, {"image": 3}])
    found = run("evaluate", folder, "--regions", tmp_path / "regions", f"items={some}")
    scores = json.loads(found.out)
    assert (scores["count"], scores["unknown_labels"]) == (2, 1) and scores["accuracy"] <= 1 / 2
    assert "1 item of 2 have a label that the model does not know, such as 'dog' of item 1" in caplog.text
    assert "1 left out: item without a label to compare with" in found.err
    none = lines(tmp_path / "none.jsonl", [{"image": 1, "label": "dog"}])
    refused(run("evaluate", folder, "--regions", tmp_path / "regions", f"items={none}"), "none of the 3 labels of the")


def test_a_trained_classifier_takes_a_text_and_no_labels(tmp_path: Path) -> None:
    predictor = Predictor(make_trained(processor(), seed=3), tmp_path)
    images = [make_regions(seed, str(seed)) for seed in range(3)]
    one = predictor.classify((images[0], images[1]), text="both are red", top=2)
    assert len(one) == 2 and {name for name, _ in one} < set(LABELS) and one[0][1] >= one[1][1]
    assert [len(found) for found in predictor.classify(images)] == [3, 3, 3]
    pairs = predictor.classify(images, text=["a star", "", "a star"], top=1)
    assert pairs[1][0] == pytest.approx(predictor.classify(images[1], top=1)[0])
    for options, words in [
        ({"labels": ["a", "b"]}, "cannot classify by labels, but it can classify"),
        ({"labels": ["a", "b"], "text": "a"}, "without labels; omit one of them"),
        ({"templates": ["a {}"]}, "templates are for labels; give labels, or omit"),
    ]:
        with pytest.raises(UserError, match=words):
            predictor.classify(images[0], **options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`dimvl ARGUMENTS` in this process."""
    return partial(call, monkeypatch, capfd)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Images of NLVR2 with their regions, statements about pairs of them, and a configuration."""
    detector = make_detector()
    detector.save(tmp_path / "detector")
    names = [f"dev-{number}-0-img{side}" for number in range(4) for side in range(2)]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        make_image(number, width=60 + 20 * number).save(tmp_path / "images" / f"{name}.png")
    with RegionStoreWriter(tmp_path / "regions", detector.extractor) as writer:
        extract([(name, tmp_path / "images" / f"{name}.png") for name in names], detector, writer)
    records = [
        {"identifier": f"dev-{number}-0-{sentence}", "sentence": text, "label": str(sentence == number % 2)}
        for number in range(4)
        for sentence, text in enumerate(("both show a circle", "only one is red"))
    ]
    items = lines(tmp_path / "dev.json", records)
    content = configured(tmp_path, items, validation={"items": str(items), "every": 2})
    (tmp_path / "nlvr2.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_pairs_of_images_are_trained_resumed_validated_evaluated_exported_predicted_and_planned(
    pairs: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = run("plan", pairs / "nlvr2.yaml", "--json")
    assert json.loads(planned.out)["flops"]["label_head"]["forward"] > 0 and "2 labels" in planned.out
    trained = run("finetune", pairs / "nlvr2.yaml")
    assert trained.code == 0, trained.err
    last = pairs / "run" / "checkpoints" / "step-00000004"
    files = {file.name: file.read_bytes() for file in last.iterdir()}
    log = [json.loads(line) for line in (pairs / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "validation" in line] == [2, 4]
    assert all(0 <= line["validation_parts"]["consistency"] <= 1 for line in log if "validation" in line)
    shutil.rmtree(last)
    assert run("finetune", pairs / "nlvr2.yaml").code == 0
    assert {file.name: file.read_bytes() for file in last.iterdir()} == files, "resumed as if it had never stopped"

    options = ("--regions", pairs / "regions", f"items={pairs / 'dev.json'}", "--allow-trained-images")
    evaluated = run("evaluate", pairs / "run", *options, "--out", pairs / "found")
    scores = json.loads(evaluated.out)
    written = json.loads((pairs / "found" / "predictions.json").read_text())
    rows = [line.split(",") for line in (pairs / "found" / "submission.csv").read_text().splitlines()]
    assert rows == [[one["id"], one["label"]] for one in written] and len(rows) == 8
    truth = {one["identifier"]: one["label"] for one in map(json.loads, (pairs / "dev.json").read_text().splitlines())}
    right = [label.lower() == truth[name].lower() for name, label in rows]  # as the official program compares
    assert scores["accuracy"] == sum(right) / 8 and set(scores["intervals"]) == {"accuracy", "consistency"}

    exported = run("export", pairs / "run", pairs / "export", "--where", pairs / "detector")
    assert exported.code == 0, exported.err
    empty = pairs / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    images = [pairs / "images" / f"dev-0-0-img{side}.png" for side in range(2)]
    asked = ("--text", "both show a circle", "--together", "--model", pairs / "export")
    one = run("classify", *images, *asked)
    assert one.code == 0 and one.out.strip() == rows[0][1]
    record = json.loads(run("classify", *images, *asked, "--json", "--top", 2).out)
    assert record["images"] == list(map(str, images)) and len(record["top"]) == 2
    labels = empty / "labels.txt"
    labels.write_text("a\nb\n")
    given = run("classify", images[0], "--labels", labels, "--model", pairs / "export")
    refused(given, "the model was trained to classify by its own labels; omit --labels")
    refused(run("classify", images[0], "--labels", labels, *asked[:2], "--model", pairs / "export"), "omit one of them")
