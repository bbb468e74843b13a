"""Captioning with a trained model: for prefixes, a region store or caption files, with scores."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.config import DecodingOptions, validate
from dimvl.data.annotations import ImageKey, compared, describe_file, read_captions
from dimvl.data.examples import Example
from dimvl.data.matching import in_store, match_file
from dimvl.data.prefixes import Prefix
from dimvl.data.scenes import World, caption_facts, read_worlds, score_captions
from dimvl.decoding import AllRanks, CachedDecoder, caption_prefixes, sample
from dimvl.errors import UserError
from dimvl.metrics.captions import caption_scores
from dimvl.metrics.predictions import official_caption, official_images
from dimvl.metrics.wording import faults
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import CaptionEvaluation
from dimvl.tasks.captioning.evidence import caption_evidence
from dimvl.tasks.inference import store_batches
from dimvl.tasks.task import Ability, Evaluation, Forward
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)


def captions(
    trained: TrainedModel, prefixes: Sequence[Prefix], options: DecodingOptions, all_ranks: AllRanks = bool
) -> list[str]:
    """Caption each prefix.

    Args:
        trained: a model that captions.
        prefixes: images and context.
        options: how to decode; by default a text is as long as those that the model was trained on may be.
        all_ranks: as in `beam_search`.

    Raises:
        UserError: the options ask for longer texts than the model's positions allow.

    """
    processor, options = trained.processor, _within_positions(trained, options)
    examples = [Example(source="image", objective="", prefix=prefix, texts=[], seq2seq=True) for prefix in prefixes]
    found = caption_prefixes(trained.model, processor, trained.batch(examples, {}), options, all_ranks, wanted=1)
    return [processor.tokenizer.decode(hypotheses[0].token_ids) for hypotheses in found]


@torch.inference_mode()
def sampled_captions(
    trained: TrainedModel, prefixes: Sequence[Prefix], draws: np.ndarray, nucleus: float = 1.0
) -> list[list[str]]:
    """Draw S captions of each prefix, which is computed once for all of them.

    Args:
        trained: a model that captions.
        prefixes: B images and contexts.
        draws: (B, S, L) float32 in [0, 1), which decide what is drawn, as in `sample`; a caption has at most L tokens.
        nucleus: as in `sample`.

    """
    processor = trained.processor
    examples = [Example(source="image", objective="", prefix=prefix, texts=[], seq2seq=True) for prefix in prefixes]
    decoder = CachedDecoder(trained.model, processor, trained.batch(examples, {}))
    end = processor.tokenizer.sep
    drawn = sample(decoder, end, torch.from_numpy(draws).to(trained.device), nucleus=nucleus)
    words = [[[token for token in one.token_ids if token != end] for one in own] for own in drawn]
    return [[processor.tokenizer.decode(tokens) for tokens in own] for own in words]


def text_rows(trained: TrainedModel, options: DecodingOptions) -> int:
    """Return the rows that decoding adds to a prefix, of all beams; raises as `captions`."""
    return options.beams * _within_positions(trained, options).max_tokens


def _within_positions(trained: TrainedModel, options: DecodingOptions) -> DecodingOptions:
    longest = trained.processor.text_tokens + 1
    if "max_tokens" not in options.model_fields_set:
        return options.model_copy(update={"max_tokens": longest})
    if options.max_tokens > longest:
        raise UserError(
            f"max_tokens is {options.max_tokens} but {trained.weights.parent} was trained for texts of at most "
            f"{longest} tokens, the final [SEP] included; give at most {longest}"
        )
    return options


def _caption(trained: TrainedModel, prefixes: Sequence[Prefix], words: None, **options: Any) -> list[str]:
    return captions(trained, prefixes, _decoding(options))


def _decoding(options: Mapping[str, Any]) -> DecodingOptions:
    return validate(DecodingOptions, options, "options of captions")


def _next_word(trained: TrainedModel, prefix: Prefix, words: np.ndarray) -> tuple[torch.Tensor]:
    example = Example(source="image", objective="", prefix=prefix, texts=[], seq2seq=True)
    decoder = CachedDecoder(trained.model, trained.processor, trained.batch([example], {}))
    found, first = decoder.start(), torch.zeros(1, 1, dtype=torch.long, device=trained.device)
    for word in words.tolist():
        found = decoder.advance(first, torch.full_like(first, word))
    return (found[0, 0],)


NEXT_WORD = Forward(
    name="caption",
    head="word_head",
    outputs=lambda head, rows: (head(rows.text[-1:])[0].log_softmax(dim=0),),
    meanings={
        "logits": "(vocabulary,) log-probabilities of the next word piece; [SEP] ends the text, and the other "
        "special tokens are never written"
    },
    eager=_next_word,
    next_word=True,
)
CAPTION = Ability(
    verb="caption",
    available=lambda processor: processor.captions,
    apply=_caption,
    result=lambda trained, text, **options: text,
    takes_text=False,
    evidence=lambda trained, prefixes, text, **options: caption_evidence(
        trained, prefixes, _within_positions(trained, _decoding(options))
    ),
    example='predictor.caption("image.png")',
    forward=NEXT_WORD,
    rows=lambda trained, **options: text_rows(trained, _decoding(options)),
)


def caption_images(
    trained: TrainedModel,
    store: RegionStore,
    image_ids: Sequence[str],
    options: DecodingOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Caption single images, by image id; arguments as in `caption_groups`."""
    images = [((image_id,), ()) for image_id in image_ids]
    found = caption_groups(trained, store, images, options, progress)
    return {image_ids[0]: caption for (image_ids, _), caption in found.items()}


def caption_groups(
    trained: TrainedModel,
    store: RegionStore,
    images: Sequence[ImageKey],
    options: DecodingOptions | None = None,
    progress: Progress | None = None,
) -> dict[ImageKey, str]:
    """Caption groups of one or more images.

    Args:
        trained: a model that captions.
        store: regions of the images.
        images: the groups, each once.
        options: how to decode, as in `captions`.
        progress: called with (groups captioned, groups in total).

    Raises:
        UserError: no image, an image that the store lacks, or a store of another extractor; or as `captions`.

    """
    CAPTION.check(trained)
    options = options or DecodingOptions()
    result: dict[ImageKey, str] = {}
    rows = [text_rows(trained, options)] * len(images)
    for chosen, prefixes in store_batches(trained, store, images, rows):
        found = captions(trained, prefixes, options)
        result.update(zip([images[place] for place in chosen], found, strict=True))
        if progress is not None:
            progress(len(result), len(images))
    return {key: result[key] for key in images}


def evaluate_captions(
    trained: TrainedModel, store: RegionStore, options: CaptionEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Caption the images of a caption file and, if they are scenes, score the facts in the captions.

    Images whose captions are not published are captioned too. Of an album (VIST), one story is written, about the
    images of its first story that are in the store, and compared with all of its stories. `with_official_scores` adds
    the scores of the COCO protocol.

    Raises:
        UserError: as `caption_images`, `read_captions` and `match_file`.

    """
    path = options.captions
    read = read_captions(path, options.split, bare=True)
    match = match_file(path, read, store, trained.processor, options.match, "--match ")
    match.check(store, options.missing, "--skip-missing")
    groups = compared(read)
    pairs = [(own, first) for own in groups if (first := next(in_store(own, match), None)) is not None]
    references = [[one.text for one in own if one.text] for own, _ in pairs]
    complete = all(references)
    if options.worlds is not None and not complete:
        raise UserError(f"{path} lacks captions, which the scores of facts need; remove --worlds {options.worlds}")
    singles = {own[0].image_ids[0]: (own[0].image_ids[0], *first.image_ids) for own, first in pairs}
    single = all(len(first.image_ids) == 1 for _, first in pairs)
    beside = path.parent / "worlds.jsonl"
    truth = options.worlds or (beside if beside.exists() and complete else None)
    scenes = _scenes(options, truth, singles) if truth and single and complete else None
    wanted = list(dict.fromkeys(first.images for _, first in pairs))
    written = caption_groups(trained, store, wanted, options.decoding, progress)
    found = [written[first.images] for _, first in pairs]
    items: list[dict[str, Any]] = [
        {**official_images(first.named_images), **({} if first.album is None else {"album_id": first.album})}
        | {"prediction": text}
        | ({"references": texts, "means": faults(text)} if texts else {})
        for (_, first), text, texts in zip(pairs, found, references, strict=True)
    ]
    records = [
        official_caption(first.named_images, text, first.album) for (_, first), text in zip(pairs, found, strict=True)
    ]
    scored = sum("references" in item for item in items)
    scores: dict[str, Any] = {"task": "caption", "data": describe_file(path), "count": scored} if scored else {}
    if scored:
        judged = [item["means"] for item in items if "means" in item]
        scores |= {name: sum(own[name] for own in judged) / len(judged) for name in judged[0]}
    if scenes is not None:
        worlds = [scenes[own[0].image_ids[0]] for own, _ in pairs]
        for item, text, world in zip(items, found, worlds, strict=True):
            stated = caption_facts(text, world)
            item |= {"facts": stated.stated, "means": {**item["means"], **stated.means}}
        numbers = [world.image_id for world in worlds]
        facts = score_captions(
            dict(zip(numbers, found, strict=True)),
            dict(zip(numbers, worlds, strict=True)),
            dict(zip(numbers, references, strict=True)),
        )
        scores |= asdict(facts)
    files = {} if truth is None else {"worlds": truth}
    left_out = {
        "image not in the store": sum(map(len, groups)) - sum(len(own) for own, _ in pairs),
        "image without a caption to compare with": len(items) - scored if scored else 0,
    }
    return Evaluation(predictions=records, items=items, scores=scores, files=files, left_out=left_out)


def _scenes(options: CaptionEvaluation, truth: Path, names: Mapping[str, Sequence[str]]) -> dict[str, World] | None:
    """Find the scene of each image in `truth`; return None if one is missing and `truth` was not named explicitly.

    Args:
        options: the caption file, and the explicitly named ground truth.
        truth: the ground truth.
        names: image -> its ids; the first number among them is the id of its scene.

    Raises:
        UserError: the explicitly named ground truth lacks the scene of an image.

    """
    known, found = read_worlds(truth), dict[str, World]()
    for image, ids in names.items():
        number = next((int(name) for name in ids if name.isdecimal()), None)
        if number not in known:
            missing = f"{truth} has no scene of image {image!r} of {options.captions}"
            if options.worlds is not None:
                raise UserError(f"{missing}; give the worlds.jsonl of the same split")
            logger.warning("%s: facts are not scored", missing)
            return None
        found[image] = known[number]
    return found


def with_official_scores(evaluation: Evaluation) -> Evaluation:
    """Add the scores of the COCO protocol to captions, under `official` in the scores and in each item.

    An item also has the `statistics` of BLEU and METEOR. The reasons for missing scores are under `left_out`.
    """
    scored = {str(place): item for place, item in enumerate(evaluation.items) if "references" in item}
    if not scored:
        return evaluation
    predictions = {name: item["prediction"] for name, item in scored.items()}
    references = {name: item["references"] for name, item in scored.items()}
    try:
        found = caption_scores(predictions, references)
    except UserError as error:
        logger.warning("no scores by the COCO protocol (%s); `dimvl score caption` computes them later", error)
        return replace(evaluation, scores={**evaluation.scores, "left_out": {"official": str(error)}})
    for name in found.failed:
        logger.warning("%s is missing: %s", name, found.left_out[name])
    official = {
        name: {"official": scores, "statistics": found.statistics[name]} for name, scores in found.per_image.items()
    }
    items = [item | official.get(str(place), {}) for place, item in enumerate(evaluation.items)]
    scores: dict[str, Any] = {**evaluation.scores, "official": found.corpus, "left_out": found.left_out}
    return replace(evaluation, items=items, scores=scores)
