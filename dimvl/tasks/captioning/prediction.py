"""Captioning with a trained model: for prefixes, a region store or caption files, with scores."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.config import DecodingOptions, validate
from dimvl.data.annotations import ImageKey, describe_file, read_captions
from dimvl.data.examples import Example
from dimvl.data.matching import in_store, match_file
from dimvl.data.prefixes import Prefix
from dimvl.data.scenes import World, caption_facts, read_worlds, score_captions
from dimvl.decoding import AllRanks, caption_prefixes
from dimvl.errors import UserError
from dimvl.metrics.captions import caption_scores
from dimvl.metrics.predictions import official_images
from dimvl.metrics.wording import faults
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import CaptionEvaluation
from dimvl.tasks.captioning.evidence import caption_evidence
from dimvl.tasks.inference import store_batches
from dimvl.tasks.task import Ability, Evaluation
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)


def captions(
    trained: TrainedModel, prefixes: Sequence[Prefix], options: DecodingOptions, all_ranks: AllRanks = bool
) -> list[str]:
    """Caption each prefix.

    Args:
        trained: a model that captions.
        prefixes: images and context.
        options: how to decode; by default a text is no longer than the model's positions allow.
        all_ranks: as in `beam_search`.

    Raises:
        UserError: the options ask for longer texts than the model's positions allow.

    """
    processor, options = trained.processor, _within_positions(trained, options)
    examples = [Example(source="image", objective="", prefix=prefix, texts=[], seq2seq=True) for prefix in prefixes]
    found = caption_prefixes(trained.model, processor, trained.batch(examples, {}), options, all_ranks, wanted=1)
    return [processor.tokenizer.decode(hypotheses[0].token_ids) for hypotheses in found]


def text_rows(trained: TrainedModel, options: DecodingOptions) -> int:
    """Return the rows that decoding adds to a prefix, of all beams; raises as `captions`."""
    return options.beams * _within_positions(trained, options).max_tokens


def _within_positions(trained: TrainedModel, options: DecodingOptions) -> DecodingOptions:
    longest = trained.processor.text_tokens + 1
    if options.max_tokens > longest and "max_tokens" in options.model_fields_set:
        raise UserError(
            f"max_tokens is {options.max_tokens} but {trained.weights.parent} was trained for texts of at most "
            f"{longest} tokens, the final [SEP] included; give at most {longest}"
        )
    return options.model_copy(update={"max_tokens": min(options.max_tokens, longest)})


def _caption(trained: TrainedModel, prefixes: Sequence[Prefix], words: None, **options: Any) -> list[str]:
    return captions(trained, prefixes, _decoding(options))


def _decoding(options: Mapping[str, Any]) -> DecodingOptions:
    return validate(DecodingOptions, options, "options of captions")


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

    Images whose captions are not published are captioned too. `with_official_scores` adds the scores of the COCO
    protocol.

    Raises:
        UserError: as `caption_images`, `read_captions` and `match_file`.

    """
    path, references, stored = options.captions, dict[ImageKey, list[str]](), dict[ImageKey, ImageKey]()
    names = dict[ImageKey, dict[str, Any]]()
    read = read_captions(path, options.split, bare=True)
    match = match_file(path, read, store, trained.processor, options.match, "--match ")
    match.check(store, options.missing, "--skip-missing")
    for reference in read:
        for found_in_store in in_store([reference], match):
            stored[reference.images] = found_in_store.images
            names.setdefault(reference.images, official_images(reference.named_images))
            references.setdefault(reference.images, []).extend([reference.text] if reference.text else [])
    complete = all(references.values())
    if options.worlds is not None and not complete:
        raise UserError(f"{path} lacks captions, which the scores of facts need; remove --worlds {options.worlds}")
    singles = {ids[0]: (ids[0], stored[ids, times][0][0]) for ids, times in references if len(ids) == 1}
    beside = path.parent / "worlds.jsonl"
    truth = options.worlds or (beside if beside.exists() and complete else None)
    scenes = _scenes(options, truth, singles) if truth and len(singles) == len(references) and complete else None
    written = caption_groups(trained, store, list(stored.values()), options.decoding, progress)
    found = {key: written[images] for key, images in stored.items()}
    records = [{**names[key], "caption": caption} for key, caption in found.items()]
    items: list[dict[str, Any]] = [
        {**names[key], "prediction": text}
        | ({"references": references[key], "means": faults(text)} if references[key] else {})
        for key, text in found.items()
    ]
    scored = sum("references" in item for item in items)
    scores: dict[str, Any] = {"task": "caption", "data": describe_file(path), "count": scored} if scored else {}
    if scored:
        judged = [item["means"] for item in items if "means" in item]
        scores |= {name: sum(own[name] for own in judged) / len(judged) for name in judged[0]}
    if scenes is not None:
        numbers = {image: world.image_id for image, world in scenes.items()}
        for item, ((ids, _), caption) in zip(items, found.items(), strict=True):
            own = caption_facts(caption, scenes[ids[0]])
            item |= {"facts": own.stated, "means": {**item["means"], **own.means}}
        facts = score_captions(
            {numbers[ids[0]]: caption for (ids, _), caption in found.items()},
            {world.image_id: world for world in scenes.values()},
            {numbers[ids[0]]: texts for (ids, _), texts in references.items()},
        )
        scores |= asdict(facts)
    files = {} if truth is None else {"worlds": truth}
    left_out = {
        "image not in the store": match.texts_missing,
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
