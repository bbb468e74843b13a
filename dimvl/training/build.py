"""What a run trains, from its configuration: annotations matched with the store, processor, texts, model and task."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dimvl.callbacks import NamedProgress
from dimvl.config import AnyConfig, CaptionConfig, PretrainConfig, VqaConfig
from dimvl.data.annotations import Caption, Question, read_captions, read_questions
from dimvl.data.answers import answer_ids, answer_vocabulary, label_ids, read_answers, soft_scores
from dimvl.data.epoch_plan import ExampleSource
from dimvl.data.examples import ImageReader
from dimvl.data.matching import match_files
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore, open_text_store, text_store
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.data.trained_on import NOTHING, read_trained_on, write_trained_on
from dimvl.errors import UserError
from dimvl.files import read_json, write_json
from dimvl.metrics.cider import CiderD
from dimvl.model.convert import bert_arguments, load_bert, load_pretrained, read_weights
from dimvl.model.model import DimvlModel
from dimvl.objectives import WordChanges
from dimvl.pretrained import MODEL, TrainedModel, load_model
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.tasks.answering import QuestionSource, VqaTask
from dimvl.tasks.base import Task
from dimvl.tasks.captioning import CaptionSource, CaptionTask
from dimvl.tasks.pretraining import PretrainSource, PretrainTask
from dimvl.tasks.self_critical import SampleSource, SelfCriticalTask, token_references

logger = logging.getLogger(__name__)
MATCH, TEXTS = "match.json", "texts.json"


@dataclass(frozen=True, kw_only=True)
class _Annotations:
    """The texts to train on: as read, or as tokenised by an earlier start."""

    captions: Sequence[Caption]
    questions: Sequence[Question]
    known: TextStore | None
    working: NamedProgress


def known_texts(config: AnyConfig) -> TextStore | None:
    """Open the texts that an earlier start of this run, or rank 0, has tokenised; None where they are gone or damaged.

    They stand for the annotations, which need not be read again; the caller has made sure that these are the same.
    """
    try:
        name = str(read_json(config.output / TEXTS)["store"])
        read_trained_on(config.output)
    except (UserError, TypeError, KeyError):
        return None
    return open_text_store(_cache(config) / name)


def read_annotations(config: AnyConfig, store: RegionStore) -> tuple[list[Caption], list[Question]]:
    """Read the texts to train on; one of the lists is empty."""
    if isinstance(config, VqaConfig):
        return [], _read_questions(config, store)
    return _read_captions(config, store), []


def _read_captions(config: PretrainConfig | CaptionConfig, store: RegionStore) -> list[Caption]:
    """Read the captions to train on and match them with the store; `match.json` tells how they fit.

    Raises:
        UserError: as `read_captions` and `match_files`.

    """
    captions = [(path, read_captions(path, config.split)) for path in config.captions]
    return match_files(captions, store, config.inputs, config.missing, config.output / MATCH)


def _read_questions(config: VqaConfig, store: RegionStore) -> list[Question]:
    """Read the questions to train on, without those that nobody answered, and match them with the store.

    Raises:
        UserError: as `read_questions` and `match_files`, no question of a file has an answer, or two files have one
            question id.

    """
    files, unanswered, seen = [], 0, set[int]()
    for path, annotations in zip(config.questions, config.annotations or [None] * len(config.questions), strict=True):
        questions = read_questions(path, annotations)
        if twice := [question.question_id for question in questions if question.question_id in seen]:
            raise UserError(f"{path} has question {twice[0]}, which another file has too; number the questions anew")
        seen.update(question.question_id for question in questions)
        answered = [question for question in questions if question.answers]
        if questions and not answered:
            raise UserError(f"{path}: no question has an answer; name its file of answers in annotations")
        unanswered += len(questions) - len(answered)
        files.append((path, answered))
    dropped = {"question without an answer": unanswered}
    return match_files(files, store, config.inputs, config.missing, config.output / MATCH, dropped)


def build_task(
    config: AnyConfig,
    store: RegionStore,
    captions: Sequence[Caption],
    questions: Sequence[Question],
    known: TextStore | None = None,
    working: NamedProgress = lambda what, done, total: None,
) -> tuple[Task, ExampleSource]:
    """Build the task with its model, and the examples to train on; write what belongs to them into the run's folder.

    Args:
        config: of the run.
        store: its regions.
        captions: to train on; none for questions.
        questions: to train on; none for captions.
        known: what takes the place of both, see `known_texts`.
        working: called while texts are tokenised.

    Raises:
        UserError: configuration, annotations, store and checkpoint do not fit together.

    """
    annotations = _Annotations(captions=captions, questions=questions, known=known, working=working)
    if isinstance(config, VqaConfig):
        return _build_vqa(config, store, annotations)
    if isinstance(config, PretrainConfig):
        return _build_pretraining(config, store, annotations)
    return _build_captioning(config, store, annotations)


def _build_pretraining(
    config: PretrainConfig, store: RegionStore, annotations: _Annotations
) -> tuple[Task, ExampleSource]:
    initial = _initial(config.initial, store, new_extractor=False)
    abilities = {"captions": True, "matches": True, "shared_prefix": config.objectives.shared_prefix}
    processor = _processor(config, store, annotations, initial, **abilities)
    texts = _caption_texts(config, processor, annotations, initial)
    heads = {"word_head": True, "match_head": True, "classes": len(store.extractor.classes)}
    model = _model(config, processor, store, initial, heads)
    changes = None
    if config.objectives.word_changes is not None:
        changes = WordChanges(read_json(config.objectives.word_changes), processor.tokenizer)
    images = ImageReader(store, processor.tags, processor.max_regions)
    source = PretrainSource(texts, images, config.objectives, config.seq2seq, processor.tokenizer, config.seed, changes)
    return PretrainTask(model, processor, config.objectives), source


def _build_captioning(
    config: CaptionConfig, store: RegionStore, annotations: _Annotations
) -> tuple[Task, ExampleSource]:
    initial = _initial(config.initial, store, config.new_extractor)
    processor = _processor(config, store, annotations, initial, captions=True)
    texts = _caption_texts(config, processor, annotations, initial)
    model = _model(config, processor, store, initial, {"word_head": True}, config.new_extractor)
    images = ImageReader(store, processor.tags, processor.max_regions)
    if config.self_critical is not None:
        longest = processor.text_tokens + 1
        reward = CiderD(token_references(texts, processor.tokenizer.sep)).scores
        samples = SampleSource(texts, images, config.self_critical.samples, longest, config.seed)
        return SelfCriticalTask(model, processor, reward, longest), samples
    source = CaptionSource(texts, images, config.seq2seq, processor.tokenizer, config.seed, config.drop_worst)
    return CaptionTask(model, processor, config.smoothing), source


def _build_vqa(config: VqaConfig, store: RegionStore, annotations: _Annotations) -> tuple[Task, ExampleSource]:
    initial = _initial(config.initial, store, config.new_extractor)
    if isinstance(config.answers, Path):
        answers = read_answers(config.answers)
    else:
        answers = answer_vocabulary([question.answers for question in annotations.questions], config.answers)
    answering = {"answers": tuple(answers), "shared_prefix": config.shared_prefix}
    processor = _processor(config, store, annotations, initial, **answering)
    texts = _question_texts(config, processor, annotations, initial)
    model = _model(config, processor, store, initial, {"answers": len(processor.answers)}, config.new_extractor)
    images = ImageReader(store, processor.tags, processor.max_regions)
    return VqaTask(model, processor), QuestionSource(texts, images, processor)


def _caption_texts(
    config: AnyConfig, processor: Processor, annotations: _Annotations, initial: TrainedModel | None
) -> TextStore:
    assert not isinstance(config, VqaConfig)
    if annotations.known is not None:
        return annotations.known
    texts = [LabelledText(c.caption_id, c.image_ids, c.text, times=c.times) for c in annotations.captions]
    return _texts(config, processor, config.captions, texts, initial, annotations.working)


def _question_texts(
    config: VqaConfig, processor: Processor, annotations: _Annotations, initial: TrainedModel | None
) -> TextStore:
    if annotations.known is not None:
        return annotations.known
    ids = answer_ids(processor.answers)
    texts = [
        LabelledText(q.question_id, q.image_ids, q.text, label_ids(soft_scores(q.answers), ids), q.times)
        for q in annotations.questions
    ]
    if unlabelled := sum(not text.labels for text in texts):
        logger.info("%d of %d questions have no answer of the %d kept", unlabelled, len(texts), len(processor.answers))
    sources = [*config.questions, *(path for path in config.annotations if path is not None)]
    return _texts(config, processor, sources, texts, initial, annotations.working)


def _texts(
    config: AnyConfig,
    processor: Processor,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    initial: TrainedModel | None,
    working: NamedProgress,
) -> TextStore:
    """Tokenise, and write down where, and which images are trained on, those of the checkpoint to start from too."""
    images = dict.fromkeys(image for text in texts for image in text.image_ids)
    write_trained_on(config.output, images, NOTHING if initial is None else initial.trained_on)
    store = text_store(
        _cache(config),
        processor.tokenizer,
        processor.text_tokens,
        sources,
        texts,
        partial(working, "texts tokenised"),
    )
    write_json(config.output / TEXTS, {"store": store.path.name})
    return store


def _cache(config: AnyConfig) -> Path:
    return config.cache or config.output / "texts"


def _initial(folder: Path | None, store: RegionStore, new_extractor: bool) -> TrainedModel | None:
    if folder is None:
        return None
    initial = load_model(folder)
    if not new_extractor:
        initial.processor.check_extractor(store.extractor, str(store.path))
    return initial


def _processor(
    config: AnyConfig, store: RegionStore, annotations: _Annotations, initial: TrainedModel | None, **capabilities: Any
) -> Processor:
    """Settle inputs and tokenizer, checked against the checkpoint that the run starts from, and save them."""
    inputs, run = config.inputs, config.output
    if annotations.known is not None:  # tokenised with what was settled then
        return Processor.load(run)
    if inputs.tokenizer is not None:
        tokenizer = Tokenizer.load(inputs.tokenizer)
    elif initial is not None:
        tokenizer = initial.processor.tokenizer
    elif (run / TOKENIZER).exists():
        tokenizer = Tokenizer.load(run)
    elif not isinstance(config, PretrainConfig | VqaConfig | CaptionConfig) or config.model.bert is None:
        extractor = store.extractor
        texts = [*(c.text for c in annotations.captions), *(q.text for q in annotations.questions)]
        tokenizer = Tokenizer.train([*texts, *extractor.classes, *extractor.attributes], inputs.vocabulary)
    else:
        tokenizer = Tokenizer.load(config.model.bert)
    processor = Processor(
        tokenizer=tokenizer,
        extractor=store.extractor,
        max_regions=inputs.max_regions,
        tag_tokens=inputs.tag_tokens,
        tag_score=inputs.tag_score,
        text_tokens=inputs.text_tokens,
        variant="causal" if isinstance(config, VqaConfig) else config.seq2seq.variant,
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
        raise UserError(f"inputs.tokenizer is not the tokenizer of {initial.weights}; leave it out to take that one")
    names = ["tag_tokens", "text_tokens"] + (["variant"] if processor.captions and old.captions else [])
    for name in names:
        if getattr(old, name) != getattr(processor, name):
            section = "seq2seq" if name == "variant" else "inputs"
            raise UserError(
                f"{section}.{name} is {getattr(processor, name)!r} but {initial.weights} was trained with "
                f"{getattr(old, name)!r}; set it to that"
            )


def _fitting_bert(folder: Path, processor: Processor) -> dict[str, Any]:
    """Model arguments of a BERT checkpoint that has an embedding for every token and position.

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
    """Arguments that fine-tuning takes over from the checkpoint, after comparing those that shapes do not tell.

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


def _model(
    config: AnyConfig,
    processor: Processor,
    store: RegionStore,
    initial: TrainedModel | None,
    heads: dict[str, Any],
    new_extractor: bool = False,
) -> DimvlModel:
    """Build the model, fill it from BERT or from a checkpoint, and write its arguments beside the run."""
    arguments = {
        **config.model.model_dump(exclude={"bert"}),
        "vocabulary": len(processor.tokenizer),
        "feature_width": processor.extractor.feature_width,
        "max_positions": processor.max_positions,
        **heads,
    }
    if config.model.bert is not None:
        arguments |= _fitting_bert(config.model.bert, processor)
    if initial is not None:
        arguments |= _same_network(arguments, initial)
    model = DimvlModel(**arguments)
    if config.model.bert is not None:
        load_bert(model, config.model.bert)
    if processor.max_regions and (initial is None or new_extractor):
        mean, deviation = feature_statistics(store)
        model.regions.feature_mean.copy_(torch.from_numpy(mean))
        model.regions.feature_std.copy_(torch.from_numpy(deviation))
    if initial is not None:
        weights = read_weights(initial.weights)
        if new_extractor:
            logger.warning("the region projection starts afresh for the extractor %s", processor.extractor.name)
            weights |= {name: value for name, value in model.state_dict().items() if name.startswith("regions.feature")}
            weights["regions.hidden_feature"] = model.regions.hidden_feature.detach()
        fresh = load_pretrained(model, weights, str(initial.weights))
        if fresh:
            logger.info("%d weights of heads start afresh", len(fresh))
    write_json(config.output / MODEL, arguments)
    return model
