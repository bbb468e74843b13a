"""What an average optimiser step holds: examples by objective, and the micro-batches that they are dealt into.

The row budget is filled by upper bounds of rows, as the sampler does it (`ExampleSource.costs`); the work is that of
average lengths, with contexts as long as their budget.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dimvl.config import AnyConfig, CaptionConfig, PretrainConfig, Seq2seqConfig, TrainingConfig, VqaConfig
from dimvl.errors import UserError
from dimvl.model.work import Work, example_work
from dimvl.planning.data import DataFacts


@dataclass(frozen=True, kw_only=True)
class AverageExample:
    """The average of the examples of a run.

    Attributes:
        work: rows and targets.
        cost: rows that the sampler counts for it.
        per_image: how many such examples an image gives in an epoch.

    """

    work: Work
    cost: float
    per_image: float


@dataclass(frozen=True, kw_only=True)
class AverageStep:
    """The average optimiser step.

    Attributes:
        examples: of all ranks.
        work: of all ranks.
        micro_batches: of each rank, one after the other.
        micro_batch: work of one of them on one rank.

    """

    examples: float
    work: Work
    micro_batches: int
    micro_batch: Work


class _Counted(NamedTuple):
    """Work of an example, and the rows that the sampler counts for it."""

    work: Work
    cost: float


def average_example(config: AnyConfig, facts: DataFacts) -> AverageExample:
    """Average over the examples of a task, of pretraining by the shares of its objectives.

    Raises:
        UserError: self-critical training, which draws captions before each step; that is not counted.

    """
    if isinstance(config, CaptionConfig):
        if config.self_critical is not None:
            raise UserError(
                "self_critical draws captions before every step, which the plan does not count; "
                "plan the run that it starts from"
            )
        return AverageExample(**_captions(config, facts, config.seq2seq)._asdict(), per_image=1.0)
    if isinstance(config, VqaConfig):
        together = facts.texts.number if config.shared_prefix else 1.0
        work = _example(config, facts, together, config.shared_prefix, answers=together)
        return AverageExample(work=work, cost=work.rows, per_image=facts.texts.number / together)
    return _pretraining(config, facts)


def _pretraining(config: PretrainConfig, facts: DataFacts) -> AverageExample:
    objectives = config.objectives
    shares = objectives.shares.model_dump()
    words, regions = float(max(1, round(objectives.text_share * facts.texts.words))), 0.0
    if facts.regions:
        regions = float(max(1, round(objectives.region_share * facts.regions)))
    else:  # without regions there is nothing to hide
        shares |= {"masked_lm": shares["masked_lm"] + shares["masked_object"], "masked_object": 0.0}
    matching = facts.texts.drawn if objectives.shared_prefix else 1.0
    longest, longest_of_image = (length - facts.texts.words for length in facts.texts[1:3])  # beyond the mean
    masked = _example(config, facts, words=words)
    hidden = _example(config, facts, regions_predicted=regions)
    matched = _example(config, facts, matching, objectives.shared_prefix, matches=matching)
    kinds = {
        "masked_lm": _Counted(masked, masked.rows + longest_of_image),
        "masked_object": _Counted(hidden, hidden.rows + longest_of_image),
        "seq2seq_lm": _captions(config, facts, config.seq2seq),
        "matching": _Counted(matched, matched.rows + matching * longest),  # another image's text may be the longest
    }
    total = sum(shares.values())
    work, cost = Work(), 0.0
    for name, share in shares.items():
        work += kinds[name].work * (share / total)
        cost += kinds[name].cost * (share / total)
    return AverageExample(work=work, cost=cost, per_image=1.0)


def _captions(config: AnyConfig, facts: DataFacts, seq2seq: Seq2seqConfig) -> _Counted:
    texts, whole = facts.texts.drawn, facts.texts.words + 1
    words = whole if seq2seq.variant == "causal" else float(max(1, round(seq2seq.share * whole)))
    work = _example(config, facts, texts, True, words=texts * words)
    return _Counted(work, work.rows + facts.texts.drawn_rows - texts * whole)


def _example(
    config: AnyConfig, facts: DataFacts, texts: float = 1.0, shared_prefix: bool = False, **targets: float
) -> Work:
    return example_work(
        regions=facts.regions,
        context=config.inputs.tag_tokens + 2,
        texts=texts,
        text_rows=facts.texts.words + 1,
        shared_prefix=shared_prefix,
        **targets,
    )


def average_step(training: TrainingConfig, example: AverageExample, ranks: int) -> AverageStep:
    """Fill the row budget of a step and deal it over ranks and micro-batches, as the sampler does.

    Raises:
        UserError: the budget is below one example, or below one for each rank.

    """
    if example.cost > training.rows_per_step:
        raise UserError(
            f"training.rows_per_step {training.rows_per_step} is below the {example.cost:.0f} rows of an average "
            "document; raise it"
        )
    examples = training.rows_per_step / example.cost
    if examples < ranks:
        raise UserError(
            f"a step of training.rows_per_step {training.rows_per_step} has {examples:.1f} examples of average size, "
            f"fewer than --gpus {ranks}, so some would have nothing to do; lower --gpus, or raise rows_per_step"
        )
    micro_batches = max(1, -(-training.rows_per_step // (ranks * training.rows_per_micro_batch)))
    work = example.work * examples
    return AverageStep(
        examples=examples,
        work=work,
        micro_batches=micro_batches,
        micro_batch=work * (1 / (ranks * micro_batches)),
    )
