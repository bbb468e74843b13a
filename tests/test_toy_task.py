"""A new task, with a head and a kind of target of its own, is this one file: nothing in `dimvl/` knows of it.

It counts the regions of an image, as classification from [CLS].
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from dimvl.config import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.cpu.linear import Linear
from dimvl.data.annotations import read_questions
from dimvl.data.examples import Example, collate
from dimvl.data.matching import in_store, match_file, match_files
from dimvl.data.prefixes import PrefixImages
from dimvl.data.targets import Targets, TargetSpec
from dimvl.data.text_store import LabelledText
from dimvl.errors import UserError
from dimvl.model.heads import HEADS, Head, HeadEntry
from dimvl.predictor import Predictor
from dimvl.regions.extract import extract
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks import CONFIGS
from dimvl.tasks.base import ImageSource, TaskModule, plain_text
from dimvl.tasks.costs import AverageExample, planned_work
from dimvl.tasks.inference import store_batches
from dimvl.tasks.task import Ability, Evaluation, Task, ValidationScore, Validator
from tests.cli.calls import call
from tests.exports import make_detector, make_image

LARGEST = 6


class CountHead(Head):
    label_bytes = 8

    def __init__(self, width, largest):
        super().__init__()
        self.outputs, self.hidden = largest + 1, width
        self.count = Linear(width, largest + 1)

    def forward(self, rows):
        return self.count(rows)


@dataclass(frozen=True, eq=False)
class CountTargets(Targets):
    labels: torch.Tensor
    head = "count_head"

    @classmethod
    def gather(cls, chosen, width):
        labels = torch.tensor([payload for payload in chosen.payloads], dtype=torch.long)
        return cls(torch.from_numpy(chosen.layout.context_starts[list(chosen.indices)]), labels)


class CountValidationConfig(ValidationConfig):
    counts: Path


class CountConfig(RunConfig):
    """Training to count regions."""

    task_class = f"{__name__}:Count"
    task: Literal["count"]
    counts: Path
    validation: CountValidationConfig | None = None


class CountEvaluation(EvaluationOptions):
    counts: Path


SPECS = {"count": TargetSpec(CountTargets)}


class CountModule(TaskModule):
    objectives = SPECS
    weights = {"count": 1.0}  # noqa: RUF012

    def forward(self, batch):
        targets = batch.targets["count"]
        logits = self.model.count_head(self.model(batch)[targets.rows])
        return {"count": F.cross_entropy(logits, targets.labels, reduction="sum")}


class CountSource(ImageSource):
    def __init__(self, texts, images, tokenizer):
        super().__init__(texts, images)
        self.tokenizer = tokenizer

    def costs(self, epoch, some):
        return self.prefix_rows(epoch, some) + self.texts.lengths_of(some)[0] + 1

    def build_from(self, regions, epoch, index):
        text = plain_text(self.texts.tokens(index), self.tokenizer)
        label = int(self.texts.labels(index)[0][0])
        prefix = self.images.prefix(regions)
        return Example(source=f"image {index}", objective="count", prefix=prefix, texts=[text], target=label)


def count_probabilities(trained, prefixes, words):
    examples = [Example(source="", objective="count", prefix=prefix, texts=[], target=0) for prefix in prefixes]
    batch = trained.batch(examples, SPECS)
    with torch.inference_mode():
        logits = trained.model.count_head(trained.model(batch)[batch.targets["count"].rows])
    return logits.softmax(dim=1)


COUNT = Ability(
    verb="count",
    available=lambda processor: processor.task == "count",
    apply=count_probabilities,
    result=lambda trained, probabilities: int(probabilities.argmax()),
    takes_text=False,
    example='predictor.predict("count", "image.png")',
)


class CountValidator(Validator):
    def __init__(self, config, module, store):
        section, processor = config.validation, module.processor
        records = read_questions(section.counts)
        match = match_file(section.counts, records, store, config.inputs)
        self.module, self.records = module, list(in_store(records, match))
        self.reader = processor.reader(store)
        self.images = PrefixImages.find(store, [record.images for record in self.records])
        self.costs = self.reader.rows(self.images)

    def run(self, items):
        counts = [int(self.records[item].answers[0]) for item in items]
        examples = [
            Example(source="", objective="count", prefix=prefix, texts=[], target=count)
            for prefix, count in zip(self.reader.prefixes(self.images[items]), counts, strict=True)
        ]
        return float(self.module(collate(examples, self.module.shape).to(self.module.device))["count"])

    def result(self, parts):
        loss = sum(loss for _, loss in parts) / len(self.records)
        return ValidationScore(-loss, {"loss": loss})


class Count(Task[CountConfig]):
    name, title, pipeline_tag = "count", "Training to count regions", "image-classification"
    evaluation, abilities = CountEvaluation, (COUNT,)

    def annotation_files(self, config):
        return {"counts": [config.counts]}

    def read(self, config, store):
        files = [(config.counts, read_questions(config.counts))]
        return match_files(files, store, config.inputs, config.missing, config.output / "match.json")

    def labelled_texts(self, records, processor):
        return [LabelledText(r.question_id, r.image_ids, r.text, ((int(r.answers[0]), 1.0),)) for r in records]

    def capabilities(self, config, records, initial):
        return {}

    def heads(self, config, classes, answers):
        return {"largest_count": LARGEST}

    def build(self, config, model, processor, texts, images):
        return CountModule(model, processor), CountSource(texts, images, processor.tokenizer)

    def validator(self, config, module, store):
        return CountValidator(config, module, store)

    def evaluate(self, trained, store, options, progress=None):
        records, found = read_questions(options.counts), {}
        images = [record.images for record in records]
        for chosen, prefixes in store_batches(trained, store, images, [0] * len(images)):
            counted = count_probabilities(trained, prefixes, None).argmax(dim=1).tolist()
            found |= dict(zip(chosen.tolist(), counted, strict=True))
        predictions = [{"image": image, "count": found[place]} for place, ((image,), _) in enumerate(images)]
        right = [str(found[place]) == record.answers[0] for place, record in enumerate(records)]
        return Evaluation(predictions=predictions, items=predictions, scores={"accuracy": float(np.mean(right))})

    def average_example(self, config, facts):
        work = planned_work(facts, count_head=1.0)
        return AverageExample(work=work, cost=work.rows)


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Images, their regions and counts, and a configuration that learns them; the task is known while a test runs."""
    monkeypatch.setitem(CONFIGS, "count", CountConfig)
    entry = HeadEntry("largest_count", lambda value, sizes: CountHead(sizes.width, value), "[CLS]", "head: counts")
    monkeypatch.setitem(HEADS, "count_head", entry)
    detector = make_detector()
    detector.save(tmp_path / "detector")
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        make_image(number, width=60 + 20 * number).save(file)
    with RegionStoreWriter(tmp_path / "regions", detector.extractor) as writer:
        extract([(file.stem, file) for file in files], detector, writer)
    store = RegionStore(tmp_path / "regions")
    lines = [
        {
            "image": store.image_id(place),
            "question": "how many regions?",
            "answer": min(len(store.read(place)), LARGEST),
        }
        for place in range(len(store))
    ]
    counts = tmp_path / "counts.jsonl"
    counts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {
        "task": "count",
        "output": str(tmp_path / "run"),
        "regions": str(tmp_path / "regions"),
        "counts": str(counts),
        "inputs": {"max_regions": 10, "concept_tokens": 8, "text_tokens": 12, "vocabulary": 100},
        "model": {"layers": 1, "width": 16, "heads": 2, "inner_width": 32},
        "training": {"steps": 6, "rows_per_step": 400, "rows_per_micro_batch": 60, "learning_rate": 1e-2},
        "validation": {"counts": str(counts), "every": 2},
    }
    content["training"] |= {"save_every": 2, "keep": 9, "log_every": 1}
    (tmp_path / "count.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_a_task_in_one_file_trains_resumes_validates_evaluates_exports_predicts_and_is_planned_and_profiled(
    counting, monkeypatch, capfd
):
    run, config, checkpoints = partial(call, monkeypatch, capfd), counting / "count.yaml", counting / "run/checkpoints"
    assert run("finetune", config).code == 0
    last = checkpoints / "step-00000006"
    trained = {file.name: file.read_bytes() for file in last.iterdir()}
    lines = [json.loads(line) for line in (counting / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["losses"]["count"] for line in lines if "losses" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    validations = [line for line in lines if "validation" in line]
    assert [line["step"] for line in validations] == [2, 4, 6]
    assert all(line["validation_parts"] == {"loss": -line["validation"]} for line in validations)

    shutil.rmtree(last)
    assert run("finetune", config).code == 0
    assert {file.name: file.read_bytes() for file in last.iterdir()} == trained, "resumed as if it had never stopped"

    files = ("--regions", counting / "regions", f"counts={counting / 'counts.jsonl'}", "--allow-trained-images")
    evaluated = run("evaluate", counting / "run", *files)
    scores = json.loads(evaluated.out)
    predictions = json.loads((counting / "run" / "evaluation" / "predictions.json").read_text())
    assert evaluated.code == 0 and 0 <= scores["accuracy"] <= 1 and len(predictions) == 6

    exported = run("export", counting / "run", counting / "export", "--where", counting / "detector")
    assert exported.code == 0, exported.err
    card = (counting / "export" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and 'predictor.predict("count", "image.png")' in card
    predictor = Predictor.from_pretrained(counting / "export")
    counted = predictor.predict("count", [counting / "images" / f"{line['image']}.png" for line in predictions])
    assert counted == [line["count"] for line in predictions]
    with pytest.raises(UserError, match="cannot answer, but it can count"):
        predictor.answer(counting / "images" / "0.png", "how many?")

    planned = json.loads(run("plan", config, "--json").out)
    assert planned["flops"]["count_head"]["forward"] > 0 and planned["parameters"]["count_head"] == 17 * 7
    profiled = json.loads(run("profile", config, "--steps", 1, "--warmup", 1, "--json").out)
    assert "head: counts" in {part["name"] for part in profiled["parts"]}


def test_an_incomplete_task_fails_where_it_is_defined():
    with pytest.raises(TypeError, match=r"task Half lacks evaluation, abilities, pipeline_tag, .*validator"):

        class Half(Task[CountConfig]):
            name, title = "half", "Half a task"

            def read(self, config, store):
                return []
