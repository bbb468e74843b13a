"""Captioning with a trained model: on prefixes, on a region store, and on caption files with their scores."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.data.annotations import describe_file, read_captions
from dimvl.data.examples import Example, Prefix
from dimvl.data.matching import match_file
from dimvl.data.scenes import World, read_worlds, score_captions
from dimvl.decoding import AllRanks, DecodingOptions, caption_prefixes
from dimvl.errors import UserError
from dimvl.metrics.captions import caption_scores
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import CaptionEvaluation
from dimvl.tasks.inference import ROW_BUDGET, official_id, store_batches
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
        options: how to decode; `max_tokens` is lowered to what the model's positions allow.
        all_ranks: as in `beam_search`.

    """
    processor = trained.processor
    options = replace(options, max_tokens=min(options.max_tokens, processor.text_tokens + 1))
    examples = [Example(source="image", objective="", prefix=prefix, texts=[], seq2seq=True) for prefix in prefixes]
    found = caption_prefixes(trained.model, processor, trained.batch(examples, {}), options, all_ranks, wanted=1)
    return [processor.tokenizer.decode(hypotheses[0].token_ids) for hypotheses in found]


def text_rows(trained: TrainedModel, options: DecodingOptions) -> int:
    """Return the rows that decoding adds to a prefix: those of all beams."""
    return options.beams * min(options.max_tokens, trained.processor.text_tokens + 1)


def _caption(trained: TrainedModel, prefixes: Sequence[Prefix], words: None, **options: Any) -> list[str]:
    return captions(trained, prefixes, DecodingOptions(**options))


CAPTION = Ability(
    verb="caption",
    available=lambda processor: processor.captions,
    apply=_caption,
    result=lambda trained, text, **options: text,
    takes_text=False,
    example='predictor.caption("image.png")',
    rows=lambda trained, **options: text_rows(trained, DecodingOptions(**options)),
)


def caption_images(
    trained: TrainedModel,
    store: RegionStore,
    image_ids: Sequence[str],
    options: DecodingOptions | None = None,
    row_budget: int = ROW_BUDGET,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Caption images, by image id.

    Args:
        trained: a model that captions.
        store: the regions of the images.
        image_ids: each once.
        options: how to decode; `max_tokens` is lowered to what the model's positions allow.
        row_budget: most rows of one batch, including those of all beams.
        progress: called with (images captioned, images in total).

    Raises:
        UserError: no image, an image that the store lacks, or a store of another extractor.

    """
    CAPTION.check(trained)
    options = options or DecodingOptions()
    result: dict[str, str] = {}
    rows = [text_rows(trained, options)] * len(image_ids)
    for chosen, prefixes in store_batches(trained, store, image_ids, rows, row_budget):
        found = captions(trained, prefixes, options)
        result.update(zip([image_ids[place] for place in chosen], found, strict=True))
        if progress is not None:
            progress(len(result), len(image_ids))
    return {image_id: result[image_id] for image_id in image_ids}


def evaluate_captions(
    trained: TrainedModel,
    store: RegionStore,
    options: CaptionEvaluation,
    decoding: DecodingOptions | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Caption the images of a caption file and, where they are scenes, score the captions by their facts.

    `with_official_scores` adds the scores of the COCO protocol.

    Args:
        trained: a model that captions.
        store: the regions of the images.
        options: the files and the number of beams.
        decoding: how to decode; by default with the beams of `options`.
        progress: called with (images captioned, images in total).

    Raises:
        UserError: as `caption_images`, `read_captions` and `match_file`.

    """
    path, references = options.captions, dict[str, list[str]]()
    read = read_captions(path, options.split)
    match = match_file(path, read, store)
    match.check(store, options.missing, "--skip-missing")
    for reference in read:
        if reference.image_id in match.store_ids:
            references.setdefault(reference.image_id, []).append(reference.text)
    scenes = _scenes(path, options.worlds, {image: (image, match.store_ids[image]) for image in references})
    images = [match.store_ids[image] for image in references]
    written = caption_images(trained, store, images, decoding or options.decoding, progress=progress)
    found = {image: written[match.store_ids[image]] for image in references}
    records = [{"image_id": official_id(image_id), "caption": caption} for image_id, caption in found.items()]
    items = [
        {"image_id": official_id(image_id), "prediction": caption, "references": references[image_id]}
        for image_id, caption in found.items()
    ]
    scores = {"task": "caption", "data": describe_file(path), "count": len(found)}
    if scenes is not None:
        numbers = {image: world.image_id for image, world in scenes.items()}
        facts = score_captions(
            {numbers[image]: caption for image, caption in found.items()},
            {world.image_id: world for world in scenes.values()},
            {numbers[image]: texts for image, texts in references.items()},
        )
        scores |= asdict(facts)
    used = worlds_of(path, options.worlds)
    return Evaluation(predictions=records, items=items, scores=scores, files={} if used is None else {"worlds": used})


def _scenes(path: Path, worlds: Path | None, names: Mapping[str, Sequence[str]]) -> dict[str, World] | None:
    """Find the scene of each image; None where the captions are not of scenes.

    Args:
        path: the caption file.
        worlds: ground truth that was given; by default the file beside the captions, where it has all the images.
        names: image -> its ids, the first of which that is a number is that of its scene.

    Raises:
        UserError: `worlds` lacks the scene of an image.

    """
    if (truth := worlds_of(path, worlds)) is None:
        return None
    known, found = read_worlds(truth), dict[str, World]()
    for image, ids in names.items():
        number = next((int(name) for name in ids if name.isdecimal()), None)
        if number not in known:
            if worlds is not None:
                raise UserError(
                    f"{truth} has no scene of image {image!r} of {path}; give the worlds.jsonl of the same split"
                )
            logger.warning("%s has no scene of image %r of %s: facts are not scored", truth, image, path)
            return None
        found[image] = known[number]
    return found


def worlds_of(path: Path, worlds: Path | None) -> Path | None:
    """Return the ground truth of scenes: the file given, or `worlds.jsonl` beside the caption file if it exists."""
    beside = path.parent / "worlds.jsonl"
    return worlds or (beside if beside.exists() else None)


def with_official_scores(evaluation: Evaluation) -> Evaluation:
    """Add the scores of the COCO protocol to captions or, where they cannot be computed, the reason.

    They are under `official` in the scores and in each item; what is missing is under `left_out`.
    """
    predictions = {str(item["image_id"]): item["prediction"] for item in evaluation.items}
    references = {str(item["image_id"]): item["references"] for item in evaluation.items}
    try:
        found = caption_scores(predictions, references)
    except UserError as error:
        logger.warning("no scores by the COCO protocol (%s); `dimvl score caption` computes them later", error)
        return replace(evaluation, scores={**evaluation.scores, "left_out": {"official": str(error)}})
    items = [{**item, "official": found.per_image[str(item["image_id"])]} for item in evaluation.items]
    scores: dict[str, Any] = {**evaluation.scores, "official": found.corpus, "left_out": found.left_out}
    return replace(evaluation, items=items, scores=scores)
