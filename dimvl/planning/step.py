"""What an average optimiser step holds: its examples, and the micro-batches that they are split into.

The row budget is filled by upper bounds of rows, as the sampler does it (`ExampleSource.costs`); the work is that of
average lengths, with contexts as long as their budget.
"""

from dataclasses import dataclass

from dimvl.config import RunConfig, TrainingConfig
from dimvl.errors import UserError
from dimvl.model.work import Work
from dimvl.tasks import task_of
from dimvl.tasks.costs import AverageExample, DataFacts


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


def average_example(config: RunConfig, facts: DataFacts) -> AverageExample:
    """Return what an average example of the run's task costs.

    Raises:
        UserError: the task draws captions before each step, which is not counted.

    """
    task = task_of(config)
    if task.draws_in_steps:
        raise UserError(
            "self_critical draws captions before every step, which the plan does not count; "
            "plan the run that it starts from"
        )
    return task.average_example(config, facts)


def average_step(training: TrainingConfig, example: AverageExample, ranks: int) -> AverageStep:
    """Fill the row budget of a step and split it over ranks and micro-batches, as the sampler does.

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
            f"fewer than --gpus {ranks}, so some would be idle; lower --gpus, or raise rows_per_step"
        )
    micro_batches = max(1, -(-training.rows_per_step // (ranks * training.rows_per_micro_batch)))
    work = example.work * examples
    return AverageStep(
        examples=examples,
        work=work,
        micro_batches=micro_batches,
        micro_batch=work * (1 / (ranks * micro_batches)),
    )
