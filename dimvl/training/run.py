"""A run from its configuration: stores, tokenizer, model, task, engine and loop; and reading a finished one.

RUN/run.json             the configuration, versions and the git revision
    match.json           which images of the annotations are in the region store
    trained_on.npy       hashes of the images trained on, see `dimvl/data/trained_on.py`
    config.json          the model's arguments
    processor.json, tokenizer.json, tokenizer_config.json
    checkpoints/, log.jsonl, texts/
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dimvl.config import AnyConfig, CaptionConfig, PretrainConfig, VqaConfig
from dimvl.data.annotations import Caption, Question, describe_file, read_captions, read_questions
from dimvl.data.answers import answer_ids, answer_vocabulary, label_ids, read_answers, soft_scores
from dimvl.data.documents import ImageReader
from dimvl.data.matching import match_files
from dimvl.data.processor import Processor
from dimvl.data.sampler import DocumentSource, TrainingSteps
from dimvl.data.text_store import LabelledText, TextStore, text_store
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.data.trained_on import NOTHING, write_trained_on
from dimvl.errors import UserError
from dimvl.files import git_revision, read_json, sha256, write_json
from dimvl.metrics.cider import CiderD
from dimvl.model.convert import bert_arguments, load_bert, load_pretrained, read_weights
from dimvl.model.model import DimvlModel
from dimvl.objectives import WordChanges
from dimvl.pretrained import MODEL, RUN, Trained, load_trained
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.tasks.answering import QuestionSource, VqaTask
from dimvl.tasks.base import Task
from dimvl.tasks.captioning import CaptionSource, CaptionTask
from dimvl.tasks.pretraining import PretrainSource, PretrainTask
from dimvl.tasks.self_critical import SampleSource, SelfCriticalTask, token_references
from dimvl.training.deepspeed_engine import DeepSpeedEngine, checked_options
from dimvl.training.early_stopping import Validation
from dimvl.training.engine import Engine, TorchEngine
from dimvl.training.loop import train
from dimvl.training.ranks import Ranks, check_same, new_groups_wait, open_ranks, together
from dimvl.training.report import StepReport
from dimvl.training.validation import build_validation

logger = logging.getLogger(__name__)
ANNOTATIONS = ("captions", "questions", "annotations")
MATCH = "match.json"
# What may change between two calls of one run: where and how it runs, not what comes out.
FREE = {f"training.{name}" for name in ("threads", "workers", "device", "wandb", "keep", "save_every", "log_every")}
FREE |= {"output", "cache", "training.check_reads", "training.checkpoint_activations", "deepspeed"}
OWN = {"regions", "cache"}  # paths that each rank may have its own of


def run_training(config: AnyConfig, progress: Callable[[StepReport], None] | None = None) -> Path:
    """Train as configured, going on where the run stopped; return the run's folder.

    Raises:
        UserError: anything in configuration, stores, annotations or checkpoints that does not fit.
        OtherRankError: another process of the run failed or is gone.

    """
    with open_ranks(config) as ranks:
        return train_on(ranks, config, progress)


def train_on(ranks: Ranks, config: AnyConfig, progress: Callable[[StepReport], None] | None = None) -> Path:
    """Train on ranks that have met; as `run_training`."""
    settings, run = config.training, config.output
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
    options: dict[str, Any] = {}
    with together(ranks):
        if config.deepspeed is not None:
            options = checked_options(settings, config.deepspeed, ranks.size)
        description = _describe(config)
    if ranks.size > 1:
        _check_ranks(ranks, config, description)
    prepared = None
    for turn in (True, False):  # rank 0 writes the tokenizer, the texts and so on, which the others then find there
        with together(ranks):
            if (ranks.rank == 0) is turn:
                prepared = _prepare(config, description, ranks)
    assert prepared is not None
    task, source, validation = prepared
    engine = _engine(config, task, options, ranks)
    data = TrainingSteps(
        source,
        task.shape,
        seed=config.seed,
        steps=settings.steps,
        rows_per_step=settings.rows_per_step,
        rows_per_micro_batch=settings.rows_per_micro_batch,
        rank=ranks.rank,
        ranks=ranks.size,
    )
    train(engine, data, config, run, progress, validation)
    return run


def _check_ranks(ranks: Ranks, config: AnyConfig, description: dict[str, Any]) -> None:
    """Compare configuration, data, packages and code of all ranks before anything is written.

    Raises:
        UserError: something differs.

    """
    with together(ranks):
        manifests = [sha256(folder.path / "manifest.json") for folder in RegionStore(config.regions).folders]
    values = {key: value for key, value in description["config"].items() if key not in OWN}
    facts = {"launched world size": ranks.size, "region store (checksum of manifest.json)": manifests}
    facts |= {f"{name} in its configuration": value for name, value in flat(values)}
    facts |= {f"file of {name}": value for name, value in flat(description["data"])}
    facts |= {f"version of {name}": value for name, value in description["versions"].items()}
    check_same(ranks, facts | {"git revision of dimvl": description["git_revision"]})


def flat(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Names of nested values, joined by dots, with the values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _prepare(
    config: AnyConfig, description: dict[str, Any], ranks: Ranks
) -> tuple[Task, DocumentSource, Validation | None]:
    """Build model, task, documents and validation; what they need is written into the run's folder."""
    run = config.output
    _check_claim(run, description)
    store = RegionStore(config.regions, config.training.check_reads)
    annotations = _read_annotations(config, store)
    is_new = not (run / RUN).exists()
    if is_new:
        write_json(run / RUN, description)
    torch.manual_seed(config.seed)
    try:
        task, source = _build(config, store, *annotations)
        return task, source, build_validation(config, task, store, ranks)
    except UserError:
        if is_new:  # nothing is trained, so the mended configuration may have the folder
            for name in (RUN, TOKENIZER):
                (run / name).unlink(missing_ok=True)
        raise


def _engine(config: AnyConfig, task: Task, options: dict[str, Any], ranks: Ranks) -> Engine:
    task.model.encoder.checkpoint_activations = config.training.checkpoint_activations
    if config.deepspeed is None:
        return TorchEngine(task, config.training)
    with new_groups_wait(config.deepspeed.timeout):
        return DeepSpeedEngine(task, config.training, options, ranks)


def _describe(config: AnyConfig) -> dict[str, Any]:
    """What `run.json` says."""
    data = {}
    for name in ANNOTATIONS:
        files = [file for file in getattr(config, name, []) if file is not None]
        for number, file in enumerate(files, start=1):
            data[name if len(files) == 1 else f"{name} {number}"] = describe_file(file)
        if (file := getattr(getattr(config, "validation", None), name, None)) is not None:
            data[f"validation {name}"] = describe_file(file)
    names = ("dimvl", "torch", "tokenizers", "numpy", *(() if config.deepspeed is None else ("deepspeed",)))
    packages = {name: version(name) for name in names}
    values = config.model_dump(mode="json")
    return {"config": values, "data": data, "versions": packages, "git_revision": git_revision()}


def _check_claim(run: Path, description: dict[str, Any]) -> None:
    """Compare with the `run.json` that is there.

    Raises:
        UserError: the folder holds a run of another configuration.

    """
    if not (run / RUN).exists():
        return
    old = read_json(run / RUN)
    changed = _differences(old["config"], description["config"]) or _differences(old["data"], description["data"])
    if changed:
        raise UserError(
            f"{run} holds a run with another {changed[0]}; give another output folder, or remove this one to start anew"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    result = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{place}{key}"
        if name in FREE or old.get(key) == new.get(key):
            continue
        both = isinstance(old.get(key), dict) and isinstance(new.get(key), dict)
        result += _differences(old[key], new[key], f"{name}.") if both else [name]
    return result


def _read_annotations(config: AnyConfig, store: RegionStore) -> tuple[list[Caption], list[Question]]:
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
    return match_files(captions, store, config.missing, config.output / MATCH)


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
    return match_files(files, store, config.missing, config.output / MATCH, {"question without an answer": unanswered})


def _build(
    config: AnyConfig, store: RegionStore, captions: Sequence[Caption], questions: Sequence[Question]
) -> tuple[Task, DocumentSource]:
    if isinstance(config, VqaConfig):
        return _build_vqa(config, store, questions)
    if isinstance(config, PretrainConfig):
        return _build_pretraining(config, store, captions)
    return _build_captioning(config, store, captions)


def _build_pretraining(
    config: PretrainConfig, store: RegionStore, captions: Sequence[Caption]
) -> tuple[Task, DocumentSource]:
    initial = _initial(config.initial, store, new_extractor=False)
    abilities = {"captions": True, "matches": True, "shared_prefix": config.objectives.shared_prefix}
    processor = _processor(config, store, [c.text for c in captions], initial, **abilities)
    texts = _caption_texts(config, processor, captions, initial)
    heads = {"word_head": True, "match_head": True, "classes": len(store.extractor.classes)}
    model = _model(config, processor, store, initial, heads)
    changes = None
    if config.objectives.word_changes is not None:
        changes = WordChanges([tuple(pair) for pair in read_json(config.objectives.word_changes)], processor.tokenizer)
    images = ImageReader(store, processor.tags, processor.max_regions)
    source = PretrainSource(texts, images, config.objectives, config.seq2seq, processor.tokenizer, config.seed, changes)
    return PretrainTask(model, processor, config.objectives), source


def _build_captioning(
    config: CaptionConfig, store: RegionStore, captions: Sequence[Caption]
) -> tuple[Task, DocumentSource]:
    initial = _initial(config.initial, store, config.new_extractor)
    processor = _processor(config, store, [c.text for c in captions], initial, captions=True)
    texts = _caption_texts(config, processor, captions, initial)
    model = _model(config, processor, store, initial, {"word_head": True}, config.new_extractor)
    images = ImageReader(store, processor.tags, processor.max_regions)
    if config.self_critical is not None:
        longest = processor.text_tokens + 1
        reward = CiderD(token_references(texts, processor.tokenizer.sep)).scores
        samples = SampleSource(texts, images, config.self_critical.samples, longest, config.seed)
        return SelfCriticalTask(model, processor, reward, longest), samples
    source = CaptionSource(texts, images, config.seq2seq, processor.tokenizer, config.seed, config.drop_worst)
    return CaptionTask(model, processor, config.smoothing), source


def _build_vqa(config: VqaConfig, store: RegionStore, questions: Sequence[Question]) -> tuple[Task, DocumentSource]:
    initial = _initial(config.initial, store, config.new_extractor)
    if isinstance(config.answers, Path):
        answers = read_answers(config.answers)
    else:
        answers = answer_vocabulary([question.answers for question in questions], config.answers)
    answering = {"answers": tuple(answers), "shared_prefix": config.shared_prefix}
    processor = _processor(config, store, [q.text for q in questions], initial, **answering)
    texts = _question_texts(config, processor, questions, initial)
    model = _model(config, processor, store, initial, {"answers": len(answers)}, config.new_extractor)
    images = ImageReader(store, processor.tags, processor.max_regions)
    return VqaTask(model, processor), QuestionSource(texts, images, processor)


def _caption_texts(
    config: AnyConfig, processor: Processor, captions: Sequence[Caption], initial: Trained | None
) -> TextStore:
    assert not isinstance(config, VqaConfig)
    texts = [LabelledText(caption.caption_id, caption.image_id, caption.text) for caption in captions]
    return _texts(config, processor, config.captions, texts, initial)


def _question_texts(
    config: VqaConfig, processor: Processor, questions: Sequence[Question], initial: Trained | None
) -> TextStore:
    ids = answer_ids(processor.answers)
    texts = [LabelledText(q.question_id, q.image_id, q.text, label_ids(soft_scores(q.answers), ids)) for q in questions]
    if unlabelled := sum(not text.labels for text in texts):
        logger.info("%d of %d questions have no answer of the %d kept", unlabelled, len(texts), len(processor.answers))
    sources = [*config.questions, *(path for path in config.annotations if path is not None)]
    return _texts(config, processor, sources, texts, initial)


def _texts(
    config: AnyConfig,
    processor: Processor,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    initial: Trained | None,
) -> TextStore:
    """Tokenise, and write down which images are trained on, those of the checkpoint that the run starts from too."""
    images = dict.fromkeys(text.image_id for text in texts)
    write_trained_on(config.output, images, NOTHING if initial is None else initial.trained_on)
    cache = config.cache or config.output / "texts"
    return text_store(cache, processor.tokenizer, processor.text_tokens, sources, texts)


def _initial(folder: Path | None, store: RegionStore, new_extractor: bool) -> Trained | None:
    if folder is None:
        return None
    initial = load_trained(folder)
    if not new_extractor:
        initial.processor.check_extractor(store.extractor, str(store.path))
    return initial


def _processor(
    config: AnyConfig, store: RegionStore, texts: Sequence[str], initial: Trained | None, **capabilities: Any
) -> Processor:
    """Settle inputs and tokenizer, checked against the checkpoint that the run starts from, and save them."""
    inputs, run = config.inputs, config.output
    if inputs.tokenizer is not None:
        tokenizer = Tokenizer.load(inputs.tokenizer)
    elif initial is not None:
        tokenizer = initial.processor.tokenizer
    elif (run / TOKENIZER).exists():
        tokenizer = Tokenizer.load(run)
    elif not isinstance(config, PretrainConfig | VqaConfig | CaptionConfig) or config.model.bert is None:
        extractor = store.extractor
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


def _check_same_inputs(processor: Processor, initial: Trained) -> None:
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


def _same_network(arguments: dict[str, Any], initial: Trained) -> dict[str, Any]:
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
    initial: Trained | None,
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
        model.regions.feature_deviation.copy_(torch.from_numpy(deviation))
    if initial is not None:
        weights = read_weights(initial.weights)
        if new_extractor:
            logger.warning("the region projection starts afresh for the extractor %s", processor.extractor.name)
            weights |= {name: value for name, value in model.state_dict().items() if name.startswith("regions.feature")}
            weights["regions.hidden_feature"] = model.regions.hidden_feature.detach()
        fresh = load_pretrained(model, weights, str(initial.weights))
        logger.info("%d weights of heads start afresh", len(fresh))
    write_json(config.output / MODEL, arguments)
    return model
