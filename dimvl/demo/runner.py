"""Runs the stages of the demo and writes its results and its report.

Each stage runs in its own process on one thread, `lanes` of them at a time. Finished stages are kept, so an interrupted
demo loses at most the work since the last checkpoint.
"""

import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dimvl.demo.config import DemoConfig, DemoPaths, load_demo_config, shipped_config
from dimvl.demo.report import summary_table, write_report
from dimvl.demo.results import collect_results, demo_report, goals_of
from dimvl.demo.stages import Stage, all_stages
from dimvl.errors import Interrupted, UserError
from dimvl.files import locked, read_json, write_json
from dimvl.progress import newest_line
from dimvl.showing import format_seconds
from dimvl.stopping import stop_signals

POLL = 0.25  # seconds between two checks of the running stages
PLAIN_EVERY = 15.0  # seconds between progress lines where there is no terminal
STOPPED = "the demo was stopped; run the same command to resume it"


def run_demo(config_path: Path | None, out: Path, quick: bool = False) -> None:
    """Run a demo and write `results.json` and `report.html`.

    Args:
        config_path: YAML file of a demo; None for the one that comes with dimvl.
        out: folder of the demo; an unfinished demo in it is resumed.
        quick: without `config_path`, take the configuration that needs under three minutes.

    Raises:
        UserError: a mistake in the configuration; or `out` holds another demo, or one that another process runs.
        Interrupted: SIGINT or SIGTERM came; the same command resumes the demo.

    """
    config = load_demo_config(config_path or shipped_config("quick" if quick else "demo"))
    paths = DemoPaths(out)
    console = Console()
    stages = all_stages(config)
    with locked(out, f"another process runs a demo in {out}; wait for it, or choose another --out"):
        _claim(config, paths)
        console.print(budget_table(config, stages))
        start, earlier = time.monotonic(), read_json(paths.wall)["seconds"] if paths.wall.exists() else 0.0
        try:
            run_stages(config, paths, stages)
        finally:
            write_json(paths.wall, {"seconds": round(earlier + time.monotonic() - start, 1)})
    option = f" --config {config_path}" if config_path else " --quick" if quick else ""
    finish(config, paths, stages, f"dimvl demo{option} --out {out}", console)


def _claim(config: DemoConfig, paths: DemoPaths) -> None:
    """Record the configuration in the folder, or compare it with the one recorded there."""
    values = config.model_dump(mode="json", exclude={"seconds", "lanes", "minutes", "note"})
    if not paths.record.exists():
        write_json(paths.record, values)
    elif read_json(paths.record) != values:
        raise UserError(
            f"{paths.out} holds a demo with another configuration; choose another --out or remove that folder"
        )


def budget_table(config: DemoConfig, stages: Sequence[Stage]) -> Table:
    """The stages with their expected seconds and amounts of work."""
    table = Table(title="from images to answers, on synthetic scenes")
    for column in ("stage", "what", "seconds", "images", "examples", "steps"):
        table.add_column(column, justify="left" if column in ("stage", "what") else "right")
    for stage in stages:
        amounts = [str(amount or "") for amount in (stage.images, stage.examples, stage.steps)]
        table.add_row(stage.name, stage.about, f"{config.seconds.get(stage.name, 0):.0f}", *amounts)
    total = sum(config.seconds.get(stage.name, 0) for stage in stages)
    table.caption = (
        f"{total:.0f} s of work, {config.lanes} stages at a time: about {format_seconds(total / config.lanes)}"
    )
    return table


@dataclass
class Running:
    """A stage and the process that runs it."""

    stage: Stage
    process: ForkServerProcess
    start: float


def run_stages(config: DemoConfig, paths: DemoPaths, stages: Sequence[Stage]) -> None:
    """Run the unfinished stages, `lanes` at a time, each as soon as the stages it needs have finished."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dimvl.demo.stages", "torch._dynamo"])  # each training would import it, in 1.3 s
    done = {stage.name for stage in stages if (paths.stages / f"{stage.name}.json").exists()}
    running: list[Running] = []
    with stop_signals() as signals, newest_line(PLAIN_EVERY) as show:
        try:
            while len(done) < len(stages):
                started = done | {item.stage.name for item in running}
                for stage in stages:
                    if len(running) < config.lanes and stage.name not in started and done.issuperset(stage.after):
                        process = context.Process(target=_run_stage, args=(stage, config, paths), name=stage.name)
                        process.start()
                        running.append(Running(stage, process, time.monotonic()))
                        started.add(stage.name)
                time.sleep(POLL)
                if signals:
                    raise Interrupted(STOPPED, signals[0])
                for item in [item for item in running if item.process.exitcode is not None]:
                    running.remove(item)
                    _check(item, paths)
                    done.add(item.stage.name)
                show(_status(config, paths, stages, running, done), False)
        finally:
            for item in running:
                item.process.terminate()  # a training stage saves a checkpoint first
            for item in running:
                item.process.join(60)


def _run_stage(stage: Stage, config: DemoConfig, paths: DemoPaths) -> None:
    """Run a stage in this process and record its seconds and memory; a user's mistake is written to a file."""
    import torch

    os.setsid()  # Ctrl-C reaches only the demo's main process, which then stops each stage once
    torch.set_num_threads(1)
    paths.stages.mkdir(parents=True, exist_ok=True)
    error_file, progress_file = paths.stages / f"{stage.name}.error", paths.stages / f"{stage.name}.progress"
    error_file.unlink(missing_ok=True)
    earlier = float(read_json(progress_file)["seconds"]) if progress_file.exists() else 0.0  # of interrupted calls
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            write_json(progress_file, {"done": done / total, "seconds": earlier + last - start})

    try:
        stage.work(config, paths, progress)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(3)
    except UserError as error:
        error_file.write_text(str(error))
        sys.exit(2)
    seconds = earlier + time.monotonic() - start
    write_json(paths.stages / f"{stage.name}.json", {"seconds": seconds, "memory_gb": _memory_gb()})


def _memory_gb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _check(item: Running, paths: DemoPaths) -> None:
    """Raise where a stage has failed."""
    code, error = item.process.exitcode, paths.stages / f"{item.stage.name}.error"
    if code == 3:
        raise Interrupted(STOPPED, signal.SIGTERM)
    if code and error.exists():
        raise UserError(f"stage {item.stage.name}: {error.read_text()}")
    if code:
        raise RuntimeError(f"stage {item.stage.name} ended with exit code {code}; see its traceback above")


def _progress(paths: DemoPaths, stage: Stage, done: set[str]) -> tuple[float, float]:
    """Share of a stage that is done, and the seconds that took."""
    if stage.name in done:
        return 1.0, float(read_json(paths.stages / f"{stage.name}.json")["seconds"])
    file = paths.stages / f"{stage.name}.progress"
    if not file.exists():
        return 0.0, 0.0
    state = read_json(file)
    return float(state["done"]), float(state["seconds"])


def seconds_left(config: DemoConfig, paths: DemoPaths, stages: Sequence[Stage], done: set[str]) -> float:
    """Estimate from the budget, scaled by the measured speed of the finished and running stages."""
    expected = spent = left = 0.0
    for stage in stages:
        budget = config.seconds.get(stage.name, 0.0)
        share, seconds = _progress(paths, stage, done)
        expected, spent, left = expected + share * budget, spent + seconds, left + (1 - share) * budget
    pace = spent / expected if expected > 30 else 1.0  # too early to measure before
    return left * pace / config.lanes


def _status(
    config: DemoConfig, paths: DemoPaths, stages: Sequence[Stage], running: Sequence[Running], done: set[str]
) -> str:
    """The progress line."""
    parts = []
    for item in running:
        share, _ = _progress(paths, item.stage, done)
        parts.append(f"{item.stage.name} {share:.0%} ({format_seconds(time.monotonic() - item.start)})")
    left = format_seconds(seconds_left(config, paths, stages, done))
    return f"{len(done)}/{len(stages)} stages, now {', '.join(parts) or 'starting'}, about {left} left"


def finish(config: DemoConfig, paths: DemoPaths, stages: Sequence[Stage], command: str, console: Console) -> None:
    """Write `results.json` and `report.html` and print the table of scores."""
    records = {stage.name: read_json(paths.stages / f"{stage.name}.json") for stage in stages}
    seconds = {name: round(record["seconds"], 1) for name, record in records.items()}
    seconds["wall"] = read_json(paths.wall)["seconds"]
    results = collect_results(paths, config.seed, seconds, _peak_memory(records, config.lanes))
    write_json(paths.results, results)
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, Python {platform.python_version()}"
    goals = goals_of(results, config.minutes)
    report = demo_report(config, paths, results, goals, command=command, hardware=machine, day=date.today().isoformat())
    write_report(paths.report, report)
    console.print(summary_table(results, goals))
    if config.note:
        console.print(config.note)
    console.print(f"results: {paths.results}\nreport:  {paths.report}\nmodels:  {paths.exports}")


def _peak_memory(records: Mapping[str, Mapping[str, float]], lanes: int) -> float:
    """Upper bound of the peak: the largest stages at the same time, and this process."""
    stages = sorted((record["memory_gb"] for record in records.values()), reverse=True)
    return round(sum(stages[:lanes]) + _memory_gb(), 2)
