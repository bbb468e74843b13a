import pickle

import numpy as np
import pytest
import torch

from dimvl.data.answers import label_ids
from dimvl.data.examples import collate
from dimvl.data.prefixes import ImageReader
from dimvl.data.text_store import LabelledText, text_store
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.training import OBJECTIVE, QuestionSource, VqaModule, answer_logits
from dimvl.tasks.texts import text_example
from tests.factories import make_model, make_processor, make_store
from tests.tiny_runs import all_costs

ANSWERS = ("yes", "no", "2")
QUESTIONS = ("is there a small red circle", "there are two blue stars", "the star is above a circle")


def source(tmp_path, shared_prefix):
    processor = make_processor(answers=ANSWERS, shared_prefix=shared_prefix)
    texts = [
        LabelledText(10 * image + place, (str(image),), text, label_ids({"yes": 1.0}, {"yes": 0}) if place else ())
        for image in (2, 1)
        for place, text in enumerate(QUESTIONS)
    ]
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "questions.json").write_text("[]")
    store = text_store(tmp_path / "texts", processor.tokenizer, 16, [tmp_path / "questions.json"], texts)
    reader = ImageReader(RegionStore(make_store(tmp_path / "store")), processor.tags, processor.max_regions)
    return QuestionSource(store, reader, processor)


def task(processor):
    return VqaModule(make_model(answers=3, vocabulary=len(processor.tokenizer)), processor).eval()


def test_questions_on_a_shared_prefix_get_the_same_answers_as_alone(tmp_path):
    questions = source(tmp_path, shared_prefix=True)
    together = collate([questions.build(0, index) for index in range(len(questions))], task(questions.processor).shape)
    alone = []
    for index in range(len(questions)):
        example = questions.build(0, index)
        for text in example.texts:
            words = text.token_ids[:-1]
            alone.append(text_example("", OBJECTIVE, example.prefix, [words], questions.processor.tokenizer, True))
    model = task(questions.processor)
    # fp32: sums run in another order
    torch.testing.assert_close(
        answer_logits(model.model, together),
        answer_logits(model.model, collate(alone, model.shape)),
        atol=1e-5,
        rtol=1e-4,
    )
    assert len(questions) == 2 and len(alone) == 6


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_every_question_occurs_once_per_epoch_with_its_own_image_and_answers(tmp_path, shared_prefix):
    questions = source(tmp_path, shared_prefix)
    seen = []
    for index in range(len(questions)):
        example = questions.build(0, index)
        found = questions.prefix_images(np.array([index]))
        image = int(questions.images.store.image_id(int(found.positions[0])))
        assert example.source.startswith(f"question {image}")
        [own] = questions.images.read(found)
        np.testing.assert_array_equal(example.prefix.features, own.features)
        for text, scores in zip(example.texts, example.target.scores, strict=True):
            words = questions.processor.tokenizer.decode(text.token_ids)
            seen.append((image, words))
            assert scores.tolist() == ([1, 0, 0] if words != QUESTIONS[0] else [0, 0, 0])
    assert sorted(seen) == sorted((image, text) for image in (1, 2) for text in QUESTIONS)


def test_images_are_looked_up_once_and_not_in_each_loader_process(tmp_path, monkeypatch):
    questions = source(tmp_path, shared_prefix=False)
    sent = pickle.dumps(questions)
    monkeypatch.setattr(RegionStore, "positions", None)
    assert pickle.loads(sent).prefix_images(np.arange(6)).positions.tolist() == [1, 1, 1, 0, 0, 0]


def test_only_a_shared_prefix_does_not_see_the_question(tmp_path):
    for shared_prefix in (True, False):
        questions = source(tmp_path / str(shared_prefix), shared_prefix)
        model = task(questions.processor)
        prefix, tokenizer = questions.build(0, 0).prefix, questions.processor.tokenizer
        batches = [
            collate(
                [text_example("", OBJECTIVE, prefix, [np.array(tokenizer.encode(text))], tokenizer, shared_prefix)],
                model.shape,
            )
            for text in ("a small red circle", "a large blue square")
        ]
        prefix_rows = len(prefix.features) + len(prefix.context)
        first, second = (model.model(batch)[:prefix_rows] for batch in batches)
        assert torch.equal(first, second) == shared_prefix


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_the_cost_of_an_example_bounds_its_rows_in_any_span(tmp_path, shared_prefix):
    questions = source(tmp_path, shared_prefix)
    shape = task(questions.processor).shape
    for index, cost in enumerate(all_costs(questions, 0)):
        assert collate([questions.build(0, index)], shape).layout.num_rows <= cost
        assert questions.costs(0, slice(index, index + 1)).tolist() == [cost]
