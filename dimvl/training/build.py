"""What a run trains, built from its configuration: processor, tokenised texts, model, losses and examples."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dimvl.callbacks import NamedProgress
from dimvl.checkpoints import MODEL
from dimvl.config import RunConfig
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.model.convert import bert_arguments, load_bert, load_pretrained, read_weights
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.tasks import task_of
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.task import Record
from dimvl.trained_model import TrainedModel, load_model
from dimvl.training.texts import tokenised

logger = logging.getLogger(__name__)


def build_task(
    config: RunConfig,
    store: RegionStore,
    records: Sequence[Record] = (),
    known: TextStore | None = None,
    progress: NamedProgress = lambda what, done, total: None,
) -> tuple[TaskModule, ImageSource]:
    """Build the model with its losses, and the examples to train on; write what belongs to them into the run's folder.

    Args:
        config: of the run.
        store: its regions.
        records: annotations to train on, as `Task.read` returns them.
        known: texts of an earlier start, which replace the annotations.
        progress: called while texts are tokenised.

    Raises:
        UserError: configuration, annotations, store and checkpoint do not fit together.

    """
    task, initial = task_of(config), _initial(config, store)
    if known is not None:  # tokenised with what was settled then
        processor = Processor.load(config.output)
    else:
        processor = _processor(config, store, records, initial, task.capabilities(config, records))
        files = [file for name, some in task.annotation_files(config).items() for file in some if " " not in name]
        known = tokenised(config, processor, files, task.labelled_texts(records, processor), initial, progress)
    heads = task.heads(config, len(store.extractor.classes), len(processor.answers))
    model = _model(config, processor, store, initial, heads)
    return task.build(config, model, processor, known, processor.reader(store))


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
    """Settle inputs and tokenizer, check them against the checkpoint that the run starts from, and save them."""
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
        extractor, texts = store.extractor, [record.text for record in records]
        tokenizer = Tokenizer.train([*texts, *extractor.classes, *extractor.attributes], inputs.vocabulary)
    processor = Processor(
        tokenizer=tokenizer,
        extractor=store.extractor,
        max_regions=inputs.max_regions,
        tag_tokens=inputs.tag_tokens,
        tag_score=inputs.tag_score,
        text_tokens=inputs.text_tokens,
        max_images=inputs.max_images,
        times=inputs.times,
        task=config.task,
        **capabilities,
    )
    if initial is not None:
        _check_same_inputs(processor, initial)
    processor.save(run)
    return processor


def _check_same_inputs(processor: Processor, initial: TrainedModel) -> None:
    """Refuse inputs that would mean something else to the checkpoint's weights.

    Raises:
        UserError: tokenizer, tag budget or variant differ.

    """
    old = initial.processor
    if old.tokenizer.fingerprint != processor.tokenizer.fingerprint:
        raise UserError(f"inputs.tokenizer is not the tokenizer of {initial.weights}; omit it to use that one")
    names = ["tag_tokens", "text_tokens", *(["times"] if old.times else [])]
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
    """Build the model, fill it from BERT or from a checkpoint, and write its arguments beside the run."""
    arguments = {
        **config.model.model_dump(exclude={"bert"}),
        "vocabulary": len(processor.tokenizer),
        "feature_width": processor.extractor.feature_width,
        "max_positions": processor.max_positions,
        "max_images": processor.max_images,
        "times": processor.times,
        **heads,
    }
    if config.model.bert is not None:
        arguments |= _fitting_bert(config.model.bert, processor)
    if initial is not None:
        arguments |= _same_network(arguments, initial)
    model = DimvlModel(**arguments)
    if config.model.bert is not None:
        load_bert(model, config.model.bert)
    if processor.max_regions and (initial is None or config.new_extractor):
        mean, deviation = feature_statistics(store)
        model.regions.feature_mean.copy_(torch.from_numpy(mean))
        model.regions.feature_std.copy_(torch.from_numpy(deviation))
    if initial is not None:
        _load_initial(model, initial, processor if config.new_extractor else None)
    write_json(config.output / MODEL, arguments)
    return model


def _fitting_bert(folder: Path, processor: Processor) -> dict[str, Any]:
    """Return the model arguments of a BERT checkpoint that has an embedding for every token and position.

    Raises:
        UserError: it has not.

    """
    arguments = bert_arguments(folder)
    if (tokens := len(processor.tokenizer)) > arguments["vocabulary"]:
        raise UserError(
            f"model.bert {folder} has {arguments['vocabulary']} word embeddings but the tokenizer has {tokens} tokens; "
            "give the tokenizer.json of the checkpoint as inputs.tokenizer"
        )
    if processor.max_positions > arguments["max_positions"]:
        raise UserError(
            f"model.bert {folder} has {arguments['max_positions']} positions but {processor.max_positions} are needed; "
            "lower inputs.tag_tokens or inputs.text_tokens"
        )
    return arguments


def _same_network(arguments: dict[str, Any], initial: TrainedModel) -> dict[str, Any]:
    """Return arguments to take over from the checkpoint, after comparing those that shapes do not show.

    Raises:
        UserError: attention heads or activation differ.

    """
    model = initial.model
    for name, value in (("heads", model.encoder.heads), ("activation", model.encoder.activation)):
        if arguments[name] != value:
            raise UserError(
                f"model.{name} is {arguments[name]!r} but {initial.weights} was trained with {value!r}; set it to that"
            )
    return {"max_positions": model.tokens.position.num_embeddings, "norm_eps": model.tokens.norm.eps}


def _load_initial(model: DimvlModel, initial: TrainedModel, new: Processor | None) -> None:
    """Load the weights to start from; for the new extractor of a processor, without its region projection."""
    weights = read_weights(initial.weights)
    if new is not None:
        logger.warning("the region projection starts from scratch for the extractor %s", new.extractor.name)
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith("regions.feature")}
        weights["regions.hidden_feature"] = model.regions.hidden_feature.detach()
    if fresh := load_pretrained(model, weights, str(initial.weights)):
        logger.info("%d weights of heads are newly initialised", len(fresh))
