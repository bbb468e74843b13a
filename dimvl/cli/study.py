"""The command `study`."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.cli.app import Config, Overrides, app, print_text
from dimvl.progress import newest_line
from dimvl.showing import counted, format_seconds

if TYPE_CHECKING:
    from dimvl.study.runner import Runner


LINE_EVERY = 60.0  # seconds between lines where there is no terminal


@app.command()
def study(
    config: Config,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Number of stages to run at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the stages and run none.")] = False,
) -> None:
    """Train and evaluate a grid of settings, points and seeds, and compare them.

    Each stage is a `pretrain`, `finetune` or `evaluate` command; those that settings share run once. The same command
    resumes: finished stages are skipped. Writes results.json, results.md and figure.svg. Exit code 1 if a stage
    failed.

    Example: dimvl study configs/studies/scenes-split.yaml --jobs 2
    """
    from dimvl.config import read_keys
    from dimvl.study.config import StudyConfig
    from dimvl.study.stages import make_grid

    settings = read_keys(StudyConfig, config, overrides or [])
    grid = make_grid(settings, config.parent)
    from dimvl.study.runner import Runner

    runner = Runner(grid, settings.output, settings.threads)
    grid.check_inputs(runner.ended)
    for line in _work(runner, every=dry_run):
        print_text(line, error=not dry_run)
    if dry_run:
        return
    with newest_line(LINE_EVERY) as show:
        runner.run(jobs, show)
    from dimvl.study.results import write_results

    command = shlex.join(["dimvl", "study", str(config), *(overrides or [])])
    for line in write_results(settings, runner, command):
        print_text(line)
    print_text(f"results: {settings.output}")
    waiting = len(grid.stages) - len(runner.ended) - len(runner.failed)
    if runner.failed:
        logs = ", ".join(str(runner.log(name)) for name in runner.failed)
        them = "it" if len(runner.failed) == 1 else "them"
        more = f", {counted(waiting, 'other')} that need {them} left out" if waiting else ""
        print_text(f"{counted(len(runner.failed), 'stage')} failed{more}; see {logs}", error=True)
        raise typer.Exit(1)


def _work(runner: "Runner", every: bool) -> Iterator[str]:
    """Yield what is to be done: each stage if `every`, and how much it is together."""
    stages = runner.grid.stages
    for name, stage in stages.items() if every else ():
        size = f" ({counted(stage.steps, 'step')}, {stage.rows:,} rows)" if stage.steps else ""
        yield f"{'ended ' if name in runner.ended else 'to run'} {name}{size}: {stage.command}"
    left = [stage for name, stage in stages.items() if name not in runner.ended]
    trainings = [stage for stage in left if stage.steps]
    steps, rows = sum(stage.steps for stage in trainings), sum(stage.rows for stage in trainings)
    yield (
        f"{len(left)} of {counted(len(stages), 'stage')} to run: {counted(len(trainings), 'training')} with "
        f"{counted(steps, 'step')} and {rows:,} rows, {counted(len(left) - len(trainings), 'evaluation')}"
    )
    if left:
        seconds, complete = runner.seconds_left()
        known = (
            f"{'about' if complete else 'more than'} {format_seconds(seconds)} of work, judging by the finished stages"
        )
        yield known if seconds else "the time is unknown until a stage has finished"
