"""Builds what a run trains from its configuration: processor, tokenised texts, model, losses and examples."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.adapters.adding import add_adapter
from dimvl.adapters.folder import AdapterFile, name_of_base, write_adapter
from dimvl.callbacks import NamedProgress
from dimvl.checkpoints import MODEL, VALIDATION
from dimvl.config import TAGS, ModelConfig, RunConfig
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import RESTORE, write_json
from dimvl.model.convert import bert_arguments, check_bert, check_sizes, load_bert, load_pretrained
from dimvl.model.heads import HEADS
from dimvl.model.model import DimvlModel, read_arguments
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.tasks import task_of
from dimvl.tasks.base import ConceptDropout, ImageSource, TaskModule
from dimvl.tasks.task import Record
from dimvl.trained_model import TrainedModel, load_model
from dimvl.training.run_folder import counts_whole_budget
from dimvl.training.texts import tokenised

logger = logging.getLogger(__name__)


def build_task(
    config: RunConfig,
    store: RegionStore,
    records: Sequence[Record] = (),
    known: TextStore | None = None,
    progress: NamedProgress = lambda what, done, total: None,
) -> tuple[TaskModule, ImageSource]:
    """Build the model with its losses, and the source of training examples; write their files into the run's folder.

    Args:
        config: the run's configuration.
        store: the run's region store.
        records: the result of `Task.read`.
        known: tokenised texts of an earlier start, which replace the records.
        progress: called while texts are tokenised.

    Raises:
        UserError: configuration, annotations, store and checkpoint do not fit together.

    """
    task, initial = task_of(config), _initial(config, store)
    if known is not None:
        processor = Processor.load(config.output)
        processor.check_extractor(store.extractor, str(store.path))
    else:
        old = None if initial is None else initial.processor
        _tell_of_left_out_regions(store, config.inputs.max_regions)
        processor = _processor(config, store, records, initial, task.capabilities(config, records, old))
        annotations = task.annotation_files(config).items()
        files = [file for name, paths in annotations for file in paths if not name.startswith(VALIDATION)]
        known = tokenised(config, processor, files, task.labelled_texts(records, processor), initial, progress)
    heads = task.heads(config, len(store.extractor.classes), len(processor.answers or processor.labels))
    model = _model(config, processor, store, initial, heads)
    reader = processor.reader(store, whole_budget=counts_whole_budget(config.output))
    module, source = task.build(config, model, processor, known, reader)
    if config.inputs.concept_dropout:
        source.dropout = ConceptDropout(config.inputs.concept_dropout, config.seed)
    return module, source


def _tell_of_left_out_regions(store: RegionStore, limit: int) -> None:
    """Say in how many images regions are left out: of detections the lowest scores, of a grid its last cells."""
    starts = range(0, len(store) if limit else 0, IMAGES_AT_ONCE)
    parts = (np.arange(start, min(start + IMAGES_AT_ONCE, len(store))) for start in starts)
    if over := sum(int((store.num_regions(part) > limit).sum()) for part in parts):
        total = len(store)
        logger.info("%d of %d images have over %d regions (inputs.max_regions); the first are used", over, total, limit)


def _initial(config: RunConfig, store: RegionStore) -> TrainedModel | None:
    if config.initial is None:
        return None
    initial = load_model(config.initial)
    if not config.new_extractor:
        initial.processor.check_extractor(store.extractor, str(store.path))
    return initial


def _processor(
    config: RunConfig,
    store: RegionStore,
    records: Sequence[Record],
    initial: TrainedModel | None,
    capabilities: dict[str, Any],
) -> Processor:
    """Choose inputs and tokenizer, check them against the initial model, and save them."""
    inputs, run = config.inputs, config.output
    if inputs.tokenizer is not None:
        tokenizer = Tokenizer.load(inputs.tokenizer)
    elif initial is not None:
        tokenizer = initial.processor.tokenizer
    elif (run / TOKENIZER).exists():
        tokenizer = Tokenizer.load(run)
    elif config.model.bert is not None:
        tokenizer = Tokenizer.load(config.model.bert)
    else:
        extractor, texts = store.extractor, [text for record in records for text in record.texts]
        tokenizer = Tokenizer.train([*texts, *extractor.classes, *extractor.attributes], inputs.vocabulary)
    processor = Processor(
        tokenizer=tokenizer,
        extractor=store.extractor,
        max_regions=inputs.max_regions,
        concepts=inputs.concepts,
        concept_score=inputs.concept_score,
        concept_tokens=inputs.concept_tokens,
        text_tokens=inputs.text_tokens,
        max_images=inputs.max_images,
        times=inputs.times,
        task=config.task,
        prompt=config.soft_rows,
        **capabilities,
    )
    if initial is not None:
        _check_same_inputs(processor, initial)
    processor.save(run)
    return processor


def _check_same_inputs(processor: Processor, initial: TrainedModel) -> None:
    """Refuse a tokenizer, text budgets, a variant or places of concepts that the initial model was not trained with.

    Words in the rows of regions may be added.
    """
    old = initial.processor
    if old.tokenizer.fingerprint != processor.tokenizer.fingerprint:
        raise UserError(
            f"inputs.tokenizer is not the tokenizer of {initial.weights}; omit inputs.tokenizer to use that one"
        )
    names = ["text_tokens", *(["times"] if old.times else [])]
    names += ["concepts"] if (old.concepts in TAGS) != (processor.concepts in TAGS) or old.region_words else []
    names += ["concept_tokens"] if processor.concepts in TAGS else []
    names += ["variant"] if processor.captions and old.captions else []
    for name in names:
        if getattr(old, name) != getattr(processor, name):
            section = "seq2seq" if name == "variant" else "inputs"
            raise UserError(
                f"{section}.{name} is {getattr(processor, name)!r} but {initial.weights} was trained with "
                f"{getattr(old, name)!r}; set it to that"
            )


def _model(
    config: RunConfig, processor: Processor, store: RegionStore, initial: TrainedModel | None, heads: dict[str, Any]
) -> DimvlModel:
    """Build the model, load BERT or the initial model, and write its arguments into the run's folder."""
    arguments = {
        **config.model.model_dump(exclude={"bert"}),
        "vocabulary": len(processor.tokenizer),
        "feature_width": processor.extractor.feature_width,
        "max_positions": processor.max_positions,
        "max_images": processor.max_images,
        "times": processor.times,
        "region_words": processor.region_words,
        **heads,
    }
    if config.model.bert is not None:
        arguments |= _fitting_bert(config.model.bert, config.model, processor)
    if initial is not None:
        arguments |= _same_network(arguments, initial)
    if config.adapter is not None and config.initial is not None:
        _check_base(arguments, config.initial)
    model = DimvlModel(**arguments)
    if config.model.bert is not None:
        load_bert(model, config.model.bert)
    fresh = [] if initial is None else _load_initial(model, initial, processor, config)
    if processor.max_regions and (initial is None or config.new_extractor or not initial.processor.max_regions):
        if config.adapter is not None:
            raise UserError(
                f"the base {config.initial} was trained without regions, which an adapter cannot add; set "
                "inputs.max_regions=0, or remove adapter"
            )
        mean, std = feature_statistics(store)
        model.regions.feature_mean.copy_(torch.from_numpy(mean))
        model.regions.feature_std.copy_(torch.from_numpy(std))
    if initial is not None and config.adapter is not None:
        _add_adapter(model, config, initial, fresh)
    write_json(config.output / MODEL, arguments)
    return model


IMAGES_AT_ONCE = 2**20
SECTIONS = {"max_images": "inputs.max_images", "times": "inputs.times", "region_words": "inputs.concepts"}
"""Argument of a model -> key of the configuration where that has another name than `model.NAME`."""


def _check_base(arguments: dict[str, Any], initial: Path) -> None:
    """Refuse a network that differs from that of the base: what it adds would not be trained."""
    base, ours = read_arguments(initial / MODEL, RESTORE), {"dropout", *(entry.argument for entry in HEADS.values())}
    for name, value in arguments.items():
        if name not in ours and base[name] != value:
            key = SECTIONS.get(name, f"model.{name}")
            raise UserError(
                f"{key} makes {name} {value!r} but the base {initial} has {base[name]!r}, and adapter leaves it as it "
                f"is; set {key} as the base has it"
            )


def _add_adapter(model: DimvlModel, config: RunConfig, initial: TrainedModel, fresh: list[str]) -> None:
    """Add the adapter, and write what the run's folder says of it."""
    assert config.adapter is not None and config.initial is not None
    if fresh and not config.adapter.head:
        raise UserError(
            f"adapter.head is false but {initial.weights} has no {fresh[0].partition('.')[0]} of this size, with these "
            "answers or labels, to keep; set adapter.head=true, so that it is trained"
        )
    add_adapter(model, config.adapter)
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    described = AdapterFile(
        adapter=config.adapter,
        base=name_of_base(config.initial),
        base_sha256=initial.weights_sha256,
        base_folder=str(config.initial.absolute()),
        trained=trained,
        parameters=parameters,
    )
    logger.info("training %d of %d parameters (%.2f%%)", trained, parameters, 100 * trained / parameters)
    write_adapter(config.output, described)


def _fitting_bert(folder: Path, model: ModelConfig, processor: Processor) -> dict[str, Any]:
    """Return what BERT's checkpoint decides; refuse other sizes, and one with too few words or positions."""
    arguments = bert_arguments(folder)
    check_bert(folder, arguments)
    check_sizes(folder, arguments, model.model_dump())
    if (tokens := len(processor.tokenizer)) > arguments["vocabulary"]:
        raise UserError(
            f"model.bert {folder} has {arguments['vocabulary']} word embeddings but the tokenizer has {tokens} tokens; "
            "give the tokenizer.json of the checkpoint as inputs.tokenizer"
        )
    if processor.max_positions > arguments["max_positions"]:
        raise UserError(
            f"model.bert {folder} has {arguments['max_positions']} positions but {processor.max_positions} are needed; "
            "lower inputs.concept_tokens or inputs.text_tokens"
        )
    return {name: arguments[name] for name in ("vocabulary", "max_positions", "norm_eps")}


def _same_network(arguments: dict[str, Any], initial: TrainedModel) -> dict[str, Any]:
    """Return arguments of the initial model, and refuse differences that the shapes of weights do not show."""
    model = initial.model
    for name, value in (("heads", model.encoder.heads), ("activation", model.encoder.activation)):
        if arguments[name] != value:
            raise UserError(
                f"model.{name} is {arguments[name]!r} but {initial.weights} was trained with {value!r}; set it to that"
            )
    return {"max_positions": model.tokens.position.num_embeddings, "norm_eps": model.tokens.norm.eps}


def _load_initial(model: DimvlModel, initial: TrainedModel, processor: Processor, config: RunConfig) -> list[str]:
    """Load the initial weights, without heads of other answers, labels or classes, or a new extractor's projection.

    Returns the names of the weights that stay newly initialised.
    """
    weights, old = initial.model.state_dict(), initial.processor
    others = {
        "answer_head.": processor.answers != old.answers,
        "label_head.": processor.labels != old.labels,
        "object_head.": config.new_extractor,
    }
    left_out = tuple(head for head, is_other in others.items() if is_other)
    weights = {name: weight for name, weight in weights.items() if not name.startswith(left_out)}
    if config.new_extractor:
        extractor = processor.extractor.name
        logger.warning("the region projection is newly initialised for the extractor %s", extractor)
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith("regions.feature")}
        weights["regions.hidden_feature"] = model.regions.hidden_feature.detach()
    if config.training.freeze.embeddings:
        _refuse_frozen_additions(model, weights)
    if fresh := load_pretrained(model, weights, str(initial.weights)):
        heads = ", ".join(dict.fromkeys(name.partition(".")[0] for name in fresh))
        logger.info("newly initialised, since %s has none of this kind: %s", initial.weights, heads)
    return fresh


def _refuse_frozen_additions(model: DimvlModel, weights: Mapping[str, Tensor]) -> None:
    """Refuse to freeze embeddings of regions that the initial model does not have: they would never be learned."""
    for name, weight in model.state_dict().items():
        if name.startswith("regions.") and (name not in weights or weights[name].shape != weight.shape):
            raise UserError(
                f"inputs adds {name} to the initial model, and training.freeze.embeddings keeps it from learning; set "
                "training.freeze.words=true instead, which freezes the words alone"
            )
