"""Multiple choice: its loss against a plain one, examples, scores, submissions, and the task by the command line."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dimvl.data.annotations import Choice, read_choices
from dimvl.data.examples import collate
from dimvl.errors import UserError
from dimvl.metrics.measures import mean_scores
from dimvl.objectives import choice_loss
from dimvl.planning.data import DataOverrides, gather
from dimvl.predictor import Predictor
from dimvl.regions.extract import extract
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks import CONFIGS, task_of
from dimvl.tasks.multiple_choice.config import ChooseEvaluation
from dimvl.tasks.multiple_choice.prediction import CHOOSE, evaluate_choices, scores_of_each
from dimvl.tasks.multiple_choice.training import OBJECTIVE
from dimvl.trained_model import TrainedModel
from dimvl.training.build import build_task
from tests.cli.calls import call, refused
from tests.data.annotations.test_choices import AOKVQA, VCR, written
from tests.exports import all_abilities, make_detector, make_image, make_trained
from tests.factories import make_store
from tests.tiny_runs import MODEL, TRAINING, all_costs, random_text
from tests.training.test_overfitting import overfit


def make_choices(path: Path, images: int = 3) -> Path:
    """Two questions for each image, with two to five candidates; the second image's are about two images."""
    generator, records = np.random.default_rng(1), []
    for image in range(1, images + 1):
        for number in range(2):
            texts = {random_text(generator): None for _ in range(9)}
            candidates = list(texts)[: int(generator.integers(2, 6))]
            named: dict[str, Any] = {"images": [1, 2]} if image == 2 else {"image": image}
            record = {"text": random_text(generator) if number else "", "candidates": candidates}
            records.append(named | record | {"answer": int(generator.integers(len(candidates)))})
    return written(path, *records)


def choose_config(folder: Path, **changes: Any) -> Any:
    content: dict[str, Any] = {"task": "choose", "output": folder / "run", "seed": 3, "regions": folder / "regions"}
    content |= {"inputs": {"max_regions": 10, "concept_tokens": 8, "text_tokens": 20, "vocabulary": 100}}
    content |= {"choices": folder / "choices.jsonl", "model": {**MODEL, "dropout": 0}, "training": TRAINING}
    make_store(folder / "regions")
    make_choices(folder / "choices.jsonl")
    return CONFIGS["choose"](**{**content, **changes})


def built(config: Any) -> Any:
    store = RegionStore(config.regions)
    return build_task(config, store, task_of(config).read(config, store))


def plain_losses(module: Any, config: Any) -> torch.Tensor:
    """The sum of losses, one question and one candidate at a time, with nothing of the task but its text."""
    store, total = RegionStore(config.regions), torch.zeros(())
    trained = TrainedModel(module.model, module.processor, Path("x"))
    from dimvl.data.examples import Example
    from dimvl.data.prefixes import PrefixImages
    from dimvl.data.targets import TargetSpec, WordTargets
    from dimvl.tasks.base import plain_text

    reader = module.processor.reader(store)
    for choice in read_choices(config.choices[0]).items:
        [prefix], logits = reader.prefixes(PrefixImages.find(store, [choice.images])), []
        for candidate in choice.candidates:
            words = np.array(module.processor.tokenizer.encode(f"{choice.text} {candidate}".strip()))
            text, shared = plain_text(words, module.processor.tokenizer), config.shared_prefix
            batch = trained.batch(
                [Example(source="", objective="", prefix=prefix, texts=[text], seq2seq=shared)],
                {"": TargetSpec(WordTargets)},
            )
            row = batch.layout.num_rows - 1 if shared else len(prefix.features)  # the last word, or [CLS]
            logits.append(module.model.match_head(module.model(batch)[[row]])[0])
        total = total - torch.stack(logits).log_softmax(dim=0)[choice.answer]
    return total


@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradient_are_those_of_each_question_alone(tmp_path: Path, shared: bool) -> None:
    config = choose_config(tmp_path, shared_prefix=shared)
    module, source = built(config)
    assert len(source) == (3 if shared else 6)
    batch = collate(source.build_all(0, np.arange(len(source))), module.shape)
    assert len({*batch.targets[OBJECTIVE].counts}) > 1 and batch.counts() == {OBJECTIVE: 6}
    assert batch.layout.num_rows < 400 or not shared
    losses = [module(batch)[OBJECTIVE], plain_losses(module, config)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)  # fp32: sums run in another order
    names = [name for name, weight in module.model.named_parameters() if weight.requires_grad]
    weights = [dict(module.model.named_parameters())[name] for name in names]
    gradients = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in losses]
    for name, one, other in zip(names, *gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and "key" not in name:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("shared", [True, False])
def test_order_and_company_change_no_loss_and_the_cost_bounds_the_rows(tmp_path: Path, shared: bool) -> None:
    module, source = built(choose_config(tmp_path, shared_prefix=shared))
    losses = []
    for index, cost in enumerate(all_costs(source, 0)):
        batch = collate(source.build_all(0, np.array([index])), module.shape)
        losses.append(module(batch)[OBJECTIVE].item())
        assert batch.layout.num_rows <= cost == source.costs(0, slice(index, index + 1))[0]
    backwards = collate(source.build_all(0, np.arange(len(source))[::-1]), module.shape)
    assert module(backwards)[OBJECTIVE].item() == pytest.approx(sum(losses), rel=1e-5)


def test_the_loss_by_hand_and_without_questions_a_connected_zero() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, -1.0, 3.0], requires_grad=True)
    loss = choice_loss(logits, [2, 3], torch.tensor([0, 2]))
    expected = np.log(np.exp([1, 2]).sum()) - 1 + np.log(np.exp([0, -1, 3]).sum()) - 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    choice_loss(logits, [2, 3], torch.tensor([0, 2])).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[:2].sum().abs() < 1e-6, "each question sums to 0"
    nothing = torch.zeros(0, requires_grad=True)
    empty = choice_loss(nothing, [], torch.zeros(0, dtype=torch.long))
    empty.backward()
    assert empty.item() == 0 and nothing.grad is not None


@pytest.mark.parametrize("shared", [True, False])
def test_an_average_example_has_the_mean_rows_of_an_epoch(tmp_path: Path, shared: bool) -> None:
    config = choose_config(tmp_path, shared_prefix=shared, inputs={"concepts": "none", "text_tokens": 20})
    module, source = built(config)
    planned = task_of(config).average_example(config, gather(config, DataOverrides()))
    batch = collate(source.build_all(0, np.arange(len(source))), module.shape)
    examples = 3 if shared else len(source.texts)
    assert planned.work.heads["match_head"] * examples == pytest.approx(len(batch.targets[OBJECTIVE].rows))
    assert planned.per_prefix * 3 == pytest.approx(examples)
    # a question of more candidates repeats its prefix more often than the mean
    assert planned.work.rows * examples == pytest.approx(batch.layout.num_rows, rel=0.001 if shared else 0.15)


def test_it_overfits_one_batch(tmp_path: Path) -> None:
    losses, _ = overfit(choose_config(tmp_path, model={**MODEL, "dropout": 0, "width": 32}), steps=40)
    first, last = losses[OBJECTIVE]
    assert last < 0.05 < 0.5 < first


def test_wrong_candidates_that_equal_the_right_one_once_they_are_cut_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = choose_config(tmp_path)
    long = "red star " * 12
    written(
        tmp_path / "choices.jsonl",
        {"image": 1, "text": long, "candidates": ["two", "blue"], "answer": 0},
        *(json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()),
    )
    built(config)
    assert (
        "1 of 7 questions have a wrong candidate that equals the right one once both are cut to 20 tokens"
        in caplog.text
    )


def test_a_file_without_right_candidates_is_refused_and_questions_without_one_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = choose_config(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    written(tmp_path / "choices.jsonl", *({**record, "answer": None} for record in records))
    with pytest.raises(UserError, match="no question says which candidate is right; add their answers, or omit it"):
        built(config)
    written(tmp_path / "choices.jsonl", {**records[0], "answer": None}, *records[1:])
    built(config)
    assert "1 texts are dropped: question without an answer" in caplog.text


def test_a_model_that_matches_chooses_by_the_softmax_of_its_logits(tmp_path: Path) -> None:
    trained, store = make_trained(all_abilities(), seed=1), RegionStore(make_store(tmp_path / "regions"))
    from dimvl.data.prefixes import PrefixImages
    from dimvl.tasks.pretraining.matching import match_logits

    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, [(("1",), ()), (("2",), ())]))
    texts, candidates = ["is there", ""], [["a star", "a circle", "two blue stars"], ["a star", "a red circle"]]
    asked = CHOOSE.prepare(trained, texts, candidates=candidates)
    for prefix, text, own, raw in zip(prefixes, texts, candidates, CHOOSE.apply(trained, prefixes, asked), strict=True):
        words = trained.tokenise([f"{text} {one}".strip() for one in own])
        expected = match_logits(trained, [prefix] * len(own), words).softmax(dim=0)
        chosen = CHOOSE.result(trained, raw)
        torch.testing.assert_close(torch.tensor(chosen.probabilities), expected, atol=1e-6, rtol=1e-5)
        assert (chosen.place, chosen.candidate) == (int(expected.argmax()), own[int(expected.argmax())])
        assert chosen.probability == max(chosen.probabilities)


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        (["a star"], "has only the candidate 'a star'; give at least two"),
        ("a star", "has only the candidate 'a star'; give at least two"),
        ([], "has no candidates; give at least two"),
        (["a star", "a star "], "candidates 0 and 1 are both 'a star'; change or remove one"),
        (["a star", " "], "candidate 1 of text 1 is empty; give some words"),
        ([["a star", "a circle"], ["a", "b"]], "there are 1 texts and 2 lists of candidates; give one list for each"),
    ],
)
def test_candidates_between_which_there_is_no_choice_are_refused(candidates: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        CHOOSE.prepare(make_trained(), ["what"], candidates=candidates)


def test_both_parts_of_vcr_and_their_product_are_scored_by_hand() -> None:
    parts = [("a", "answer", 1), ("a", "rationale-0", None), ("a", "rationale-1", 2)]
    parts += [("b", "answer", 0), ("b", "rationale-0", 0), ("c", "answer", 3), ("c", "rationale-3", 1)]
    choices = [Choice(name, ("1",), "", ("w", "x", "y", "z"), answer, part) for name, part, answer in parts]
    each = scores_of_each(choices, [1, 3, 2, 2, 0, 3, 0])
    assert each[1] == {} and each[2] == {"qa_r": 1, "q_ar": 1}
    assert each[4] == {"qa_r": 1, "q_ar": 0} and each[6] == {"qa_r": 0, "q_ar": 0}
    assert mean_scores(each) == {
        "q_a": pytest.approx(2 / 3),
        "qa_r": pytest.approx(2 / 3),
        "q_ar": pytest.approx(1 / 3),
    }


def test_submissions_are_those_of_the_authors(tmp_path: Path) -> None:
    trained = make_trained(all_abilities(shared_prefix=True, text_tokens=40))
    store = RegionStore(make_store(tmp_path / "regions", 2))
    unlabelled = {name: value for name, value in VCR.items() if "label" not in name} | {"annot_id": "test-0"}
    vcr = written(tmp_path / "val.jsonl", *({**record, "img_fn": "1.jpg"} for record in (VCR, unlabelled)))
    found = evaluate_choices(trained, store, ChooseEvaluation(choices=vcr))
    rows = list(csv.DictReader(found.submissions["submission.csv"].splitlines()))
    groups = ["answer", *(f"rationale_conditioned_on_a{number}" for number in range(4))]
    assert list(rows[0]) == ["annot_id", *(f"{group}_{place}" for group in groups for place in range(4))]
    assert [row["annot_id"] for row in rows] == ["val-0", "test-0"]
    for row in rows:
        for group in groups:
            assert sum(float(row[f"{group}_{place}"]) for place in range(4)) == pytest.approx(1, abs=1e-5)
    chosen = max(range(4), key=lambda place: float(rows[0][f"answer_{place}"]))
    assert found.scores["q_a"] == float(chosen == 1) and found.scores["questions"] == 2
    assert found.left_out["question without an answer to compare with"] == 1

    (tmp_path / "aokvqa.json").write_text(json.dumps([{**AOKVQA, "image_id": 2}]))
    found = evaluate_choices(trained, store, ChooseEvaluation(choices=tmp_path / "aokvqa.json"))
    [(question, text)] = json.loads(found.submissions["submission.json"]).items()
    assert question == "22Mex" and text == AOKVQA["choices"][found.predictions[0]["prediction"]]
    assert found.items[0]["means"] == {"accuracy": found.scores["accuracy"]} == {"accuracy": float(text == "cab")}


def test_the_task_trains_validates_evaluates_exports_predicts_and_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import yaml

    run, detector = partial(call, monkeypatch, capfd), make_detector()
    detector.save(tmp_path / "detector")
    files = [tmp_path / f"{number}.png" for number in range(1, 5)]
    for number, file in enumerate(files):
        make_image(number).save(file)
    with RegionStoreWriter(tmp_path / "regions", detector.extractor) as writer:
        extract([(file.stem, file) for file in files], detector, writer)
    choices = written(
        tmp_path / "choices.jsonl",
        *(
            {"image": n, "text": "is it", "candidates": ["red", "a blue star", "two"][: 2 + n % 2], "answer": n % 2}
            for n in (1, 2, 3, 4)
        ),
    )
    config = {"task": "choose", "output": str(tmp_path / "run"), "regions": str(tmp_path / "regions"), "seed": 0}
    config |= {"inputs": {"max_regions": 5, "concept_tokens": 8, "text_tokens": 12, "vocabulary": 100}}
    config |= {"choices": str(choices), "model": MODEL, "training": {**TRAINING, "steps": 2}}
    config |= {"validation": {"choices": str(choices), "every": 2}}
    (tmp_path / "choose.yaml").write_text(yaml.safe_dump(config))
    planned = json.loads(run("plan", tmp_path / "choose.yaml", "--json").out)
    assert planned["flops"]["match_head"]["forward"] > 0
    trained = run("finetune", tmp_path / "choose.yaml")
    assert trained.code == 0, trained.err
    options = ("--regions", tmp_path / "regions", f"choices={choices}", "--allow-trained-images")
    evaluated = run("evaluate", tmp_path / "run", *options)
    scores = json.loads(evaluated.out)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in log if "validation" in line] == [scores["accuracy"]]
    assert scores["intervals"]["accuracy"][0] <= scores["accuracy"] <= scores["intervals"]["accuracy"][1]
    predictions = json.loads((tmp_path / "run" / "evaluation" / "predictions.json").read_text())
    exported = run("export", tmp_path / "run", tmp_path / "export", "--where", tmp_path / "detector")
    assert exported.code == 0, exported.err
    predictor = Predictor.from_pretrained(tmp_path / "export")
    given = [json.loads(line)["candidates"] for line in choices.read_text().splitlines()]
    found = predictor.choose(files, ["is it"] * 4, given)
    for one, line in zip(found, predictions, strict=True):
        assert one.place == line["prediction"] and one.probabilities == pytest.approx(line["probabilities"], abs=1e-4)
    with pytest.raises(UserError, match="cannot match, but it can choose"):
        predictor.match(files[0], "red")

    common = ("--candidate", "red", "--candidate", "two", "--model", tmp_path / "export")
    line = run("choose", files[0], "is it", *common)
    assert line.code == 0 and line.out == f"{found[0].candidate}\n"
    record = json.loads(run("choose", files[0], "is it", *common, "--json", "--explain").out)
    assert (record["image"], record["candidate"]) == (str(files[0]), found[0].candidate)
    assert len(record["regions"]) == len(predictor.regions(files[0]))
    several = [json.loads(one) for one in run("choose", *files, "is it", *common).out.splitlines()]
    assert [one["image"] for one in several] == list(map(str, files)) and several[0]["place"] == found[0].place
    stored = run("choose", "is it", *common, "--regions", tmp_path / "regions", "--images", "2", "--json")
    assert json.loads(stored.out)["probabilities"] == pytest.approx(several[1]["probabilities"], abs=1e-4)
    refused(run("choose", files[0], "is it", "--candidate", "red", "--model", tmp_path / "export"), "give at least two")
    refused(run("choose", files[0], *common), "no question is given; give it last")
    refused(run("choose", files[0], files[1], *common), "is a file or a folder, not a question; give a question last")
    refused(run("choose", files[0], files[1], "is it", *common, "--explain"), "--explain needs one image and one")
