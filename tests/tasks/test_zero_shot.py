"""Zero-shot answering with a model: scores, batches, evaluation and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dimvl.tasks.inference
from dimvl.data.annotations import Question
from dimvl.data.batch import Batch
from dimvl.data.examples import Example, Text
from dimvl.data.prefixes import PrefixImages
from dimvl.data.targets import TargetSpec, WordTargets
from dimvl.errors import UserError
from dimvl.evaluation import evaluate
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.statements import StatementRules, read_statements
from dimvl.tasks.answering.zero_shot import ZERO_SHOT, answer_by_statements
from dimvl.tasks.pretraining.matching import match_pairs
from dimvl.trained_model import TrainedModel, load_model
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_store

IMAGES = ("1", "2", "3", "4", "5", "6")
ANSWERS = ["red", "blue", "small", "circles"]  # the last one has two pieces
RULES = {
    "statements": [
        {"questions": ["what is the {thing}?"], "statement": "a(n) {answer} {thing} is {answer}", "answers": ANSWERS},
        {"questions": ["is there a(n) {thing}?"], "statement": "there is a(n) {thing}"},
    ]
}
THINGS = ("star", "large square", "circle above a star")


def read(folder: Path, **changes: object) -> StatementRules:
    path = folder / f"{changes.get('score', 'match')}.yaml"
    path.write_text(yaml.safe_dump(RULES | changes, width=1000))
    return read_statements(path)


@pytest.fixture
def rules(tmp_path: Path) -> StatementRules:
    return read(tmp_path)


@pytest.fixture
def masked(tmp_path: Path) -> StatementRules:
    return read(tmp_path, score="masked_word")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return RegionStore(make_store(tmp_path_factory.mktemp("store") / "regions", len(IMAGES), empty=4))


@pytest.fixture(scope="module", params=[True, False], ids=["shared prefix", "own prefixes"])
def trained(request: pytest.FixtureRequest) -> TrainedModel:
    return make_trained(all_abilities(answers=(), shared_prefix=request.param, task="pretrain"), seed=2)


def asked(form: str = "what is the {}?") -> list[Question]:
    pairs = [(image, form.format(thing)) for image in IMAGES for thing in THINGS]
    return [Question(100 + place, (image,), text, ("red",)) for place, (image, text) in enumerate(pairs)]


def test_the_answer_is_the_one_whose_statement_matches_best(
    trained: TrainedModel, store: RegionStore, rules: StatementRules
) -> None:
    questions = asked()
    statements = [(q.image_ids[0], s.text) for q in questions for s in rules.ask(q.text).statements]
    best = match_pairs(trained, store, statements).reshape(len(questions), len(ANSWERS)).argmax(axis=1)
    wanted = {question.question_id: ANSWERS[place] for question, place in zip(questions, best, strict=True)}
    assert answer_by_statements(trained, store, questions, rules) == wanted
    assert len(set(wanted.values())) > 1, "a model that answers everything alike would prove nothing"


def test_yes_means_that_the_statement_is_more_likely_true_than_false(
    trained: TrainedModel, store: RegionStore, rules: StatementRules
) -> None:
    questions = asked("is there a {}?")
    statements = [f"there is a {question.text.removeprefix('is there a ').rstrip('?')}" for question in questions]
    pairs = [(question.image_ids[0], text) for question, text in zip(questions, statements, strict=True)]
    likely = match_pairs(trained, store, pairs) > 0.5
    found = answer_by_statements(trained, store, questions, rules)
    assert [found[question.question_id] for question in questions] == ["yes" if one else "no" for one in likely]
    assert set(found.values()) == {"yes", "no"}


def log_probability(trained: TrainedModel, store: RegionStore, image: str, text: str, hidden: list[int]) -> float:
    """Mean log-probability of some tokens of a text, computed one statement at a time."""
    tokenizer = trained.processor.tokenizer
    tokens = np.array([*tokenizer.encode(text), tokenizer.sep])
    ids, places = tokens.copy(), np.array(hidden)
    ids[places] = tokenizer.mask
    [prefix] = trained.processor.reader(store).prefixes(PrefixImages.find(store, [((image,), ())]))
    example = Example(
        source="", objective="x", prefix=prefix, texts=[Text(token_ids=ids, places=places, labels=tokens[places])]
    )
    batch = trained.batch([example], {"x": TargetSpec(WordTargets)})
    with torch.inference_mode():
        logs = trained.model.word_head(trained.model(batch)[batch.targets["x"].rows]).log_softmax(dim=-1)
    return float(logs[torch.arange(len(places)), tokens[places].tolist()].mean())


def test_masked_words_score_the_mean_log_probability_of_the_answer_with_its_article(
    trained: TrainedModel, store: RegionStore, masked: StatementRules
) -> None:
    tokenizer = trained.processor.tokenizer
    assert len(tokenizer.encode("circles")) == 2
    questions = asked()
    for question in (questions[0], questions[7]):
        thing = question.text.removeprefix("what is the ").rstrip("?")
        middle, logs = len(tokenizer.encode(thing)), []
        for answer in ANSWERS:
            pieces = len(tokenizer.encode(answer))
            last = 1 + pieces + middle + 1
            hidden = [*range(1 + pieces), *range(last, last + pieces)]
            text = f"a {answer} {thing} is {answer}"
            logs.append(log_probability(trained, store, question.image_ids[0], text, hidden))
        [prefix] = trained.processor.reader(store).prefixes(PrefixImages.find(store, [question.images]))
        [ranked] = ZERO_SHOT.apply(trained, [prefix], ZERO_SHOT.prepare(trained, [question.text], masked))
        shares = np.exp(logs) / np.exp(logs).sum()
        assert dict(ranked) == pytest.approx(dict(zip(ANSWERS, shares, strict=True)), abs=1e-5)  # sums in another order


@pytest.mark.parametrize("score", ["match", "masked_word"])
def test_answers_depend_on_neither_the_order_nor_the_batches(
    tmp_path: Path, trained: TrainedModel, store: RegionStore, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    questions, rules = asked(), read(tmp_path, score=score)
    whole = answer_by_statements(trained, store, questions, rules)
    monkeypatch.setattr(dimvl.tasks.inference, "ROW_BUDGET", 1)
    assert answer_by_statements(trained, store, questions[::-1], rules) == whole


def prefixes_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of prefixes and texts of all batches from now on."""
    seen: list[int] = [0, 0]
    batch = TrainedModel.batch

    def counted(self: TrainedModel, *arguments: object) -> Batch:
        made = batch(self, *arguments)  # type: ignore[arg-type]
        seen[0] += len(made.layout.num_regions)
        seen[1] += len(made.layout.text_lengths)
        return made

    monkeypatch.setattr(TrainedModel, "batch", counted)
    return seen


def test_an_image_is_computed_once_for_all_statements_if_its_prefix_is_shared(
    trained: TrainedModel, store: RegionStore, rules: StatementRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prefixes_computed(monkeypatch)
    answer_by_statements(trained, store, asked(), rules)
    statements = len(IMAGES) * len(THINGS) * len(ANSWERS)
    assert seen == [len(IMAGES) if trained.processor.shared_prefix else statements, statements]


def test_the_rows_of_a_question_include_the_prefix_of_each_statement(
    trained: TrainedModel, rules: StatementRules, masked: StatementRules
) -> None:
    processor, text = trained.processor, "what is the star?"
    words = sum(len(processor.tokenizer.encode(one.text)) + 1 for one in rules.ask(text).statements)
    prefixes = 0 if processor.shared_prefix else (len(ANSWERS) - 1) * (processor.max_regions + processor.text_start)
    asked = [ZERO_SHOT.prepare(trained, [text, "why?"], chosen) for chosen in (rules, masked)]
    assert [list(map(len, ones)) for ones in asked] == [[words + prefixes, 0], [words, 0]]


def test_statements_that_differ_in_their_masked_words_only_are_computed_once(
    trained: TrainedModel, store: RegionStore, masked: StatementRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prefixes_computed(monkeypatch)
    answer_by_statements(trained, store, asked(), masked)
    assert seen == [2 * len(IMAGES) * len(THINGS)] * 2  # answers of one piece, and of two


def test_an_evaluation_scores_what_no_rule_covers_0_and_counts_it(
    tmp_path: Path, trained: TrainedModel, store: RegionStore, rules: StatementRules
) -> None:
    run = write_run(tmp_path / "run", trained)
    trained = load_model(run)
    texts = {1: "what is the star?", 2: "where is the star?", 3: "is there a star?"}
    questions = [{"question_id": number, "image_id": number, "question": text} for number, text in texts.items()]
    found = answer_by_statements(trained, store, [Question(n, (str(n),), text, ()) for n, text in texts.items()], rules)
    answers = [
        {
            "question_id": n,
            "image_id": n,
            "answers": [{"answer": found.get(n, "top left")}] * 10,
            "answer_type": "other",
        }
        for n in texts
    ]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    values = {"questions": tmp_path / "q.json", "annotations": tmp_path / "a.json", "statements": Path(rules.source)}
    result = evaluate(run, trained, store, values, tmp_path / "out")
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert predictions == [{"question_id": n, "answer": found.get(n, "")} for n in texts]
    assert result.scores["overall"] == pytest.approx(2 / 3) and [item["accuracy"] for item in result.items] == [1, 0, 1]
    assert result.scores["zero_shot"] == {"score": "match", "uncovered": 1}
    assert [count for reason, count in result.left_out.items() if "no rule" in reason] == [1]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (
        manifest["settings"]["zero_shot"]["statements"][1] == RULES["statements"][1]
        and len(manifest["data"]["statements"]["sha256"]) == 64
    )


def test_rules_that_cover_no_question_are_an_error(
    trained: TrainedModel, store: RegionStore, rules: StatementRules
) -> None:
    with pytest.raises(
        UserError, match=r"match.yaml covers none of the 18 questions, such as 'why star\?'; write rules"
    ):
        answer_by_statements(trained, store, asked("why {}?"), rules)


@pytest.mark.parametrize(("score", "lacking"), [("match", "matches"), ("masked_word", "masked_words")])
def test_a_model_without_the_head_that_scores_statements_is_refused(
    tmp_path: Path, store: RegionStore, score: str, lacking: str
) -> None:
    trained, rules = make_trained(all_abilities(**{lacking: False})), read(tmp_path, score=score)
    message = rf"not trained to predict (matches|masked words), by which .*{score}.yaml scores; give a pretraining run"
    with pytest.raises(UserError, match=message):
        answer_by_statements(trained, store, asked(), rules)
    with pytest.raises(UserError, match=f"{message}|cannot answer by statements, but it can answer and caption; give"):
        Predictor(trained, tmp_path).answer(store.read(0), "is there a star?", statements=rules)


def test_a_masked_answer_beyond_the_text_tokens_is_refused(tmp_path: Path, store: RegionStore) -> None:
    long = " ".join(["star"] * 40)
    rules = read(
        tmp_path, score="masked_word", statements=[{**RULES["statements"][0], "statement": f"{long} {{answer}}"}]
    )
    with pytest.raises(UserError, match=r"the answer of 'star star .* has no word among the \d+ text tokens of the"):
        answer_by_statements(make_trained(all_abilities()), store, asked(), rules)


@pytest.mark.parametrize("score", ["match", "masked_word"])
def test_a_predictor_answers_as_an_evaluation_does_with_images_in_any_order(
    tmp_path: Path, trained: TrainedModel, store: RegionStore, score: str
) -> None:
    rules, questions = read(tmp_path, score=score), asked()[::2]
    regions = {
        image: store.read(int(position)) for image, position in zip(IMAGES, store.positions(IMAGES), strict=True)
    }
    predictor = Predictor(trained, tmp_path)
    images = [regions[question.image_ids[0]] for question in questions]
    answers = predictor.answer(images, [question.text for question in questions], statements=rules)
    wanted = answer_by_statements(trained, store, questions, rules)
    assert {question.question_id: one.text for question, one in zip(questions, answers, strict=True)} == wanted
    one = predictor.answer(images[0], questions[0].text, top=2, statements=rules.source)
    assert one.top == answers[0].top[:2] and one.probability == one.top[0][1] >= one.top[1][1]
    assert sum(probability for _, probability in answers[0].top) == pytest.approx(1)
    both = predictor.answer(images[0], [questions[0].text, "why?"], statements=rules)
    assert both[0].text == one.text and (both[1].text, both[1].probability, both[1].top) == ("", 0.0, [])


def test_a_pretrained_model_without_statements_says_that_it_needs_them(
    tmp_path: Path, trained: TrainedModel, store: RegionStore
) -> None:
    with pytest.raises(
        UserError, match="cannot answer, but it can answer by statements and caption and choose and match"
    ):
        Predictor(trained, tmp_path).answer(store.read(0), "is there a star?")
    (tmp_path / "q.jsonl").write_text('{"image": 1, "question": "is there a star?"}\n')
    with pytest.raises(UserError, match=r"was not trained to answer; give rules as --statements FILE"):
        evaluate(write_run(tmp_path / "run", trained), trained, store, {"questions": tmp_path / "q.jsonl"}, tmp_path)
