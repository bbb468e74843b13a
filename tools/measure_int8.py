"""Measure int8 weights of linear layers on a CPU: what they cost in score, and what they save in bytes and time.

python tools/measure_int8.py exports/vqa stores/heldout questions.json annotations.json --count 1000 --out int8.json

Needs `pip install torchao==0.18`. The model answers the first COUNT questions with its plain float32 layers; with those
that dimvl packs for prediction (`dimvl/cpu/packed.py`: float32, and half precision); and with three kinds of int8
layers: `dynamic` of torch.ao (rows rounded too), and of torchao weights alone, or rows too. Differences to float32 have
95% intervals by the bootstrap over images. Times are CPU times of one batch of 64 questions about 8 images, all kinds
taking turns in one process; then of 16 questions about 2 images with random weights of BERT's size (12 layers of 768).
"""

import argparse
import copy
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import hardware, interleaved, ratio
from dimvl import cpu
from dimvl.cpu.linear import Linear
from dimvl.cpu.packed import pack_linears
from dimvl.data.annotations import Question, read_questions
from dimvl.data.matching import in_store, match_file
from dimvl.data.prefixes import PrefixImages
from dimvl.files import write_json
from dimvl.metrics.intervals import mean_interval
from dimvl.metrics.vqa import question_accuracy
from dimvl.model.model import DimvlModel, read_arguments
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.prediction import answer_probabilities, answer_questions
from dimvl.trained_model import TrainedModel, load_model

BASE = {"layers": 12, "width": 768, "heads": 12, "inner_width": 3072}


def plain(model: nn.Module) -> nn.Module:
    """Make the linear layers torch's own, which is what both libraries look for."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear
    return model


def dynamic(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(plain(model), {nn.Linear}, dtype=torch.qint8)


def torchao(model: nn.Module, rows: bool) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    quantize_(plain(model), Int8DynamicActivationInt8WeightConfig() if rows else Int8WeightOnlyConfig())
    return model


def packed(model: nn.Module, half: bool) -> nn.Module:
    pack_linears(model, half)
    return model


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": plain,
    "packed": partial(packed, half=False),
    "packed, half": partial(packed, half=True),
    "int8 dynamic, torch.ao": dynamic,
    "int8 weights, torchao": partial(torchao, rows=False),
    "int8 weights and rows, torchao": partial(torchao, rows=True),
}


def variants(trained: TrainedModel) -> dict[str, TrainedModel]:
    """Return the model in each kind; a tied word head keeps its float32 weight in the word embedding."""
    return {
        name: TrainedModel(make(copy.deepcopy(trained.model)), trained.processor, trained.weights)  # type: ignore[arg-type]
        for name, make in KINDS.items()
    }


def num_bytes(model: nn.Module) -> int | None:
    """Return the bytes of a file with all weights; None for packed layers, which cannot be saved."""
    file = io.BytesIO()
    try:
        torch.save(model.state_dict(), file)
    except RuntimeError:
        return None
    return file.tell()


def times(
    models: Mapping[str, TrainedModel], store: RegionStore, questions: list[Question], images: int, rounds: int
) -> Any:
    """Return the CPU milliseconds of each kind for a batch, and those of float32 and of `packed` over them."""
    processor = next(iter(models.values())).processor
    images = list(dict.fromkeys(question.images for question in questions))[:images]
    prefixes = processor.reader(store).prefixes(PrefixImages.find(store, images))
    prefixes = [prefix for prefix in prefixes for _ in range(8)]
    words = [
        np.array(tokens[: processor.text_tokens])
        for tokens in processor.tokenizer.encode_all([q.text for q in questions])
    ]
    runs = {name: partial(answer_probabilities, one, prefixes, words[: len(prefixes)]) for name, one in models.items()}
    seconds = interleaved(runs, rounds)
    return {
        name: {
            "milliseconds": round(1000 * float(np.median(spent)), 2),
            "times_faster_than_float32": ratio(seconds["float32"], spent),
            "times_faster_than_packed": ratio(seconds["packed"], spent),
        }
        for name, spent in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    cpu.configure()
    trained, store = load_model(given.model), RegionStore(given.store)
    read = read_questions(given.questions, given.annotations)
    questions = list(in_store(read, match_file(given.questions, read, store, trained.processor, "auto", "")))[
        : given.count
    ]
    models, scores = variants(trained), {}
    answers = {name: answer_questions(one, store, questions) for name, one in models.items()}
    points = {
        name: np.array([question_accuracy(own[q.question_id], q.answers) for q in questions])
        for name, own in answers.items()
    }
    images = [question.images for question in questions]
    for name, own in points.items():
        change = own - points["float32"]
        scores[name] = {
            "accuracy": float(own.mean()),
            "change": float(change.mean()),
            "interval": mean_interval(change, images),
            "answers_changed": sum(
                answers[name][q.question_id] != answers["float32"][q.question_id] for q in questions
            ),
            "bytes": num_bytes(models[name].model),
        }
    arguments = (
        read_arguments(trained.weights.parents[2] / "config.json", "")
        if "checkpoints" in trained.weights.parts
        else read_arguments(trained.weights.parent / "config.json", "")
    )
    large = TrainedModel(DimvlModel(**{**arguments, **BASE}).eval(), trained.processor, trained.weights)
    found = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "questions": len(questions),
        "scores": scores,
        "times": times(models, store, questions, 8, given.rounds),
        "times_of_base_size": times(variants(large), store, questions, 2, given.rounds),
    }
    write_json(given.out, found)


if __name__ == "__main__":
    main()
