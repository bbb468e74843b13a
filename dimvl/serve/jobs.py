"""Requests computed together: the regions of all images, then one prediction for each model and kind of request.

Nothing is padded (docs/architecture.md), so requests with any numbers of images, regions and words share a batch, and
the results are those of the `Predictor` alone.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from dimvl.data.prefixes import best_regions, join_images
from dimvl.errors import UserError
from dimvl.explanation import RegionDrop, aligned, grounded
from dimvl.image_inputs import AT_ONCE, READERS
from dimvl.regions.extract import detect_images
from dimvl.regions.images import quiet_decoders
from dimvl.regions.records import Regions
from dimvl.serve.models import Served
from dimvl.serve.requests import (
    REQUESTS,
    Align,
    Answer,
    Caption,
    Choose,
    Classify,
    Embed,
    FindRegions,
    GivenRegions,
    Ground,
    Match,
    Request,
)
from dimvl.tasks import abilities_of
from dimvl.tasks.retrieval.labels import TEMPLATES

logger = logging.getLogger(__name__)
Record = dict[str, Any]


class Job:
    """A request that waits for its result.

    Args:
        served: the model that it asks for.
        request: its fields.

    Attributes:
        future: receives one result for each text.
        regions: of each image, as soon as they are known.

    Raises:
        UserError: regions that do not fit the model, or an image for a model without a detector.

    """

    def __init__(self, served: Served, request: Request) -> None:
        self.served = served
        self.request: Any = request
        self.future: Future[list[Record]] = Future()
        own = served.predictor.trained.processor.extractor
        self.images: list[memoryview | Regions] = []
        for image in request.inputs:
            if isinstance(image, GivenRegions):
                if image.extractor != own.fingerprint:
                    raise UserError(
                        f"the regions were found by another extractor than that of {served.name!r}; give the image, or "
                        "what /regions returns for this model"
                    )
                self.images.append(image.regions().checked(own))
            else:
                _ = served.predictor.detector  # which an export may lack
                self.images.append(memoryview(image))  # each is an object of its own, even for equal bytes
        if self.images:
            times = None if request.times is None else [request.times]
            served.predictor.check_inputs([tuple(self.images)], times)
        self.regions: tuple[Regions, ...] = ()


def compute(jobs: Sequence[Job]) -> None:
    """Give each job its result or an error: a `UserError` for what the request itself is to blame for."""
    by_detector: dict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        if any(isinstance(image, memoryview) for image in job.images):
            by_detector[id(job.served.predictor.detector)].append(job)
        else:
            job.regions = tuple(image for image in job.images if isinstance(image, Regions))
    for own in by_detector.values():
        _attempt(_detect, own)
    groups: dict[Hashable, list[Job]] = defaultdict(list)
    for job in jobs:
        if not job.future.done():
            groups[job.served.name, job.request.group].append(job)
    for group in groups.values():
        _attempt(_predict, group)


def _attempt(stage: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> None:
    """Do something with jobs together; if that fails, with each alone, so that none suffers from another."""
    try:
        stage(jobs)
    except Exception as error:
        if len(jobs) > 1:
            for job in jobs:
                _attempt(stage, [job])
            return
        if not isinstance(error, UserError):
            logger.exception("a request of the kind %s failed", type(jobs[0].request).__name__)
        jobs[0].future.set_exception(error)


def _detect(jobs: Sequence[Job]) -> None:
    """Find the regions of the images, all in one call of the detector."""
    failed: dict[int, str] = {}
    named = [
        (f"{place} of {len(job.images)}", image)
        for job in jobs
        for place, image in enumerate(job.images, start=1)
        if isinstance(image, memoryview)
    ]

    def skip(image: Any, reason: str) -> None:
        failed[id(image)] = reason

    with quiet_decoders():
        parts = list(detect_images(named, jobs[0].served.predictor.detector, skip, AT_ONCE, READERS))
    found = iter([regions for _, part in parts for regions in part])
    for job in jobs:
        own = [
            image if isinstance(image, Regions) else None if id(image) in failed else next(found)
            for image in job.images
        ]
        job.regions = tuple(regions for regions in own if regions is not None)
        if len(job.regions) < len(own):
            reason = next(failed[id(image)] for image in job.images if id(image) in failed)
            job.future.set_exception(UserError(reason))


def _predict(jobs: Sequence[Job]) -> None:
    for job, records in zip(jobs, list(PREDICTIONS[type(jobs[0].request)](jobs)), strict=True):
        job.future.set_result(records)


def _applied(jobs: Sequence[Job], **options: Any) -> Iterator[tuple[Job, list[Any]]]:
    """Yield each job with what its model predicts for each of its texts."""
    first = jobs[0]
    predictor, verb = first.served.predictor, first.request.verb
    ability = abilities_of(predictor.trained.processor).get(verb)  # without it, `predict` says what there is
    pairs = [(job, text) for job in jobs for text in job.request.texts]
    times = None if first.request.times is None else [job.request.times or [] for job, _ in pairs]
    texts = [text for _, text in pairs] if ability is not None and ability.takes_text else None
    inputs = [job.regions for job, _ in pairs]
    found = iter(predictor.predict(verb, inputs, texts, times, **options))
    for job in jobs:
        yield job, [next(found) for _ in job.request.texts]


def _most(jobs: Sequence[Job]) -> int:
    """Return the most results that one of the jobs wants; each takes its own from these."""
    return max(job.request.top for job in jobs)


def _answers(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for job, found in _applied(jobs, top=_most(jobs)):
        yield [{"answer": one.text, "probability": one.probability, "top": one.top[: job.request.top]} for one in found]


def _captions(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    request = jobs[0].request
    for _, found in _applied(jobs, **request.model_dump(include={*request.together}, exclude_none=True)):
        yield [{"caption": text} for text in found]


def _matches(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for _, found in _applied(jobs):
        yield [{"probability": probability} for probability in found]


def _labels(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    request = jobs[0].request
    options = {} if request.labels is None else {"labels": request.labels, "templates": request.templates or TEMPLATES}
    for job, found in _applied(jobs, top=_most(jobs), **options):
        yield [{"label": one[0][0], "probability": one[0][1], "top": one[: job.request.top]} for one in found]


def _choices(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for _, found in _applied(jobs, candidates=[job.request.candidates for job in jobs]):
        yield [one._asdict() for one in found]


def _embeddings(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    if jobs[0].request.inputs:
        for _, found in _applied(jobs):
            yield [{"embedding": one.tolist()} for one in found]
        return
    embedded = iter(jobs[0].served.predictor.embed_text([text for job in jobs for text in job.request.texts]))
    for job in jobs:
        yield [{"embedding": next(embedded).tolist()} for _ in job.request.texts]


def _described(jobs: Sequence[Job], describe: Callable[..., Any], **options: Any) -> Iterator[list[Any]]:
    """Yield what a function of `dimvl.explanation` makes of each result and the regions that it is about."""
    processor = jobs[0].served.predictor.trained.processor
    for job, found in _applied(jobs):
        best = [best_regions(regions, processor.max_regions) for regions in job.regions]
        joined = join_images(best, job.request.times)
        yield [describe(processor.extractor, best, joined, one, **options) for one in found]


def _groundings(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for job, found in zip(jobs, _described(jobs, grounded, top=_most(jobs)), strict=True):
        top = job.request.top
        yield [
            {
                "regions": [
                    _region(region) | {"probability": probability}
                    for region, probability in zip(one.regions[:top], one.probabilities[:top], strict=True)
                ],
                "no_region": one.nowhere,
            }
            for one in found
        ]


def _alignments(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for found in _described(jobs, aligned):
        for one in found:
            regions = list(map(_region, one.regions))
            yield [{"words": one.words, "regions": regions, "similarities": one.similarities.tolist()}]


def _region(region: RegionDrop) -> Record:
    values = region.record()
    return {name: values[name] for name in ("box", "name", "attributes", "score", "image")}


def _regions(jobs: Sequence[Job]) -> Iterator[list[Record]]:
    for job in jobs:
        extractor = job.served.predictor.trained.processor.extractor
        yield [{"images": [GivenRegions.of(regions, extractor).model_dump() for regions in job.regions]}]


PREDICTIONS: dict[type[Request], Callable[[Sequence[Job]], Iterator[list[Record]]]] = {
    Answer: _answers,
    Caption: _captions,
    Match: _matches,
    Ground: _groundings,
    Classify: _labels,
    Choose: _choices,
    Embed: _embeddings,
    Align: _alignments,
    FindRegions: _regions,
}
assert {*PREDICTIONS} == {*REQUESTS.values()}
