"""The average optimiser step of a run: its examples and micro-batches.

As in the sampler, upper bounds of rows (`ExampleSource.costs`) fill the row budget. The work is that of texts of
average length and of contexts that fill their budget.
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
        examples: number of examples on all ranks.
        work: work of all ranks.
        micro_batches: number of micro-batches on each rank.
        micro_batch: work of one micro-batch.

    """

    examples: float
    work: Work
    micro_batches: int
    micro_batch: Work


def average_example(config: RunConfig, facts: DataFacts) -> AverageExample:
    """Return the cost of an average example of the run's task.

    Raises:
        UserError: self-critical training.

    """
    task = task_of(config)
    if task.draws_in_steps:
        raise UserError(
            "self_critical draws captions in every step, which the plan does not count; plan its initial run instead"
        )
    return task.average_example(config, facts)


def average_step(training: TrainingConfig, example: AverageExample, ranks: int) -> AverageStep:
    """Fill the row budget of a step and split it over ranks and micro-batches, as the sampler does.

    Raises:
        UserError: the budget is less than one example, or less than one per rank.

    """
    if example.cost > training.rows_per_step:
        raise UserError(
            f"training.rows_per_step {training.rows_per_step} is below the {example.cost:.0f} rows of an average "
            "example; raise it"
        )
    examples = training.rows_per_step / example.cost
    if examples < ranks:
        raise UserError(
            f"a step of training.rows_per_step {training.rows_per_step} has {examples:.1f} examples of average size, "
            f"fewer than --gpus {ranks}, so some GPUs would be idle; lower --gpus or raise rows_per_step"
        )
    micro_batches = max(1, -(-training.rows_per_step // (ranks * training.rows_per_micro_batch)))
    work = example.work * examples
    micro_batch = work * (1 / (ranks * micro_batches))
    return AverageStep(examples=examples, work=work, micro_batches=micro_batches, micro_batch=micro_batch)
