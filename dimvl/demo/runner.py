"""The demo: raw pictures in, scores, exports and a report out, going on where it stopped.

Each stage runs in a process of its own on one thread, as many at a time as there are lanes; what a stage has done
stays, so an interrupted demo loses at most the work since the last checkpoint.
"""

import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dimvl.demo.config import DemoConfig, Places, configs_folder, load_demo_config
from dimvl.demo.results import collect_results, demo_report, goals_of
from dimvl.demo.stages import Stage, all_stages, training_of
from dimvl.errors import Interrupted, UserError
from dimvl.files import read_json, write_json
from dimvl.training.report import format_seconds

POLL = 0.25  # seconds between looks at the running stages
PLAIN_EVERY = 15.0  # seconds between progress lines where there is no terminal


def run_demo(config_path: Path | None, out: Path, quick: bool = False) -> None:
    """Run the whole way on synthetic scenes and write `results.json` and `report.html`.

    Args:
        config_path: YAML file of a demo; by default the shipped one.
        out: folder of the demo; an unfinished one there is gone on with.
        quick: take the shipped configuration that needs under three minutes.

    Raises:
        UserError: a mistake in the configuration, `out` holds another demo, or the shipped ones are not there.
        Interrupted: SIGINT or SIGTERM came; the same command goes on.

    """
    path = config_path or configs_folder() / "scenes" / ("quick.yaml" if quick else "demo.yaml")
    if config_path is None and not path.is_file():
        raise UserError(
            f"{path.name} of the demo comes with a checkout of dimvl and is not installed with the package; run the "
            "demo from a checkout (pip install -e .), or give its configs/scenes/demo.yaml by --config"
        )
    config = load_demo_config(path)
    places = Places(out)
    _claim(config, places)
    console = Console()
    stages = all_stages(config)
    console.print(budget_table(config, stages))
    start, earlier = time.monotonic(), read_json(places.wall)["seconds"] if places.wall.exists() else 0.0
    try:
        run_stages(config, places, stages, console)
    finally:
        write_json(places.wall, {"seconds": round(earlier + time.monotonic() - start, 1)})
    finish(config, places, stages, path, console)


def _claim(config: DemoConfig, places: Places) -> None:
    """Write the configuration, or compare it with that of the demo that is there."""
    record = places.out / "demo.json"
    values = config.model_dump(mode="json", exclude={"seconds", "lanes", "minutes", "note"})
    if not record.exists():
        write_json(record, values)
    elif read_json(record) != values:
        raise UserError(f"{places.out} holds a demo of another configuration; give another --out or remove that folder")


def budget_table(config: DemoConfig, stages: Sequence[Stage]) -> Table:
    """What is about to happen and how long it should take."""
    table = Table(title="the way from pictures to answers, on synthetic scenes")
    for column in ("stage", "what", "seconds", "pictures", "examples", "steps"):
        table.add_column(column, justify="left" if column in ("stage", "what") else "right")
    for stage in stages:
        training = training_of(config, stage.name)
        shown = [stage.pictures or "", stage.examples or "", training.steps if training else ""]
        table.add_row(stage.name, stage.about, f"{config.seconds.get(stage.name, 0):.0f}", *map(str, shown))
    total = sum(config.seconds.get(stage.name, 0) for stage in stages)
    table.caption = (
        f"{total:.0f} s of work, {config.lanes} stages at a time: about {format_seconds(total / config.lanes)}"
    )
    return table


@dataclass
class Running:
    """A stage at work."""

    stage: Stage
    process: ForkServerProcess
    start: float


def run_stages(config: DemoConfig, places: Places, stages: Sequence[Stage], console: Console) -> None:
    """Run stages as soon as what they wait for is done, `lanes` at a time, and skip those that are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dimvl.demo.stages"])
    done = {stage.name for stage in stages if (places.stages / f"{stage.name}.json").exists()}
    running: list[Running] = []
    with _stop_signals() as asked, _display(config, places, console) as show:
        try:
            while len(done) < len(stages):
                started = done | {item.stage.name for item in running}
                for stage in stages:
                    if len(running) < config.lanes and stage.name not in started and done.issuperset(stage.after):
                        process = context.Process(target=_run_stage, args=(stage, config, places), name=stage.name)
                        process.start()
                        running.append(Running(stage, process, time.monotonic()))
                        started.add(stage.name)
                time.sleep(POLL)
                if asked:
                    raise Interrupted("the demo was stopped; run the same command to go on", asked[0])
                for item in [item for item in running if item.process.exitcode is not None]:
                    running.remove(item)
                    _check(item, places)
                    done.add(item.stage.name)
                show(stages, running, done)
        finally:
            for item in running:
                item.process.terminate()  # a training stage saves a checkpoint first
            for item in running:
                item.process.join(60)


def _run_stage(stage: Stage, config: DemoConfig, places: Places) -> None:
    """Run one stage in its own process and record seconds and memory; a mistake is left in a file."""
    import torch

    os.setsid()  # Ctrl-C reaches the demo alone, which then asks each stage once to stop
    torch.set_num_threads(1)
    places.stages.mkdir(parents=True, exist_ok=True)
    error_file = places.stages / f"{stage.name}.error"
    error_file.unlink(missing_ok=True)
    before = _seconds_before(places, stage.name)
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            write_json(
                places.stages / f"{stage.name}.progress", {"done": done / total, "seconds": before + last - start}
            )

    try:
        stage.work(config, places, progress)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(3)
    except UserError as error:
        error_file.write_text(str(error))
        sys.exit(2)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = before + time.monotonic() - start
    write_json(places.stages / f"{stage.name}.json", {"seconds": seconds, "memory_gb": memory})


def _seconds_before(places: Places, name: str) -> float:
    """Seconds that earlier calls, interrupted ones, spent on a stage."""
    file = places.stages / f"{name}.progress"
    return float(read_json(file)["seconds"]) if file.exists() else 0.0


def _check(item: Running, places: Places) -> None:
    if item.process.exitcode == 0:
        return
    if item.process.exitcode == 3:
        raise Interrupted("the demo was stopped; run the same command to go on", signal.SIGTERM)
    error = places.stages / f"{item.stage.name}.error"
    if error.exists():
        raise UserError(f"stage {item.stage.name}: {error.read_text()}")
    raise RuntimeError(
        f"stage {item.stage.name} ended with exit code {item.process.exitcode}; its traceback stands above"
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM; the list is empty until one comes."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def seconds_left(config: DemoConfig, places: Places, stages: Sequence[Stage], done: set[str]) -> float:
    """Estimate from the budget, scaled by how the finished and running stages compare with it."""
    planned = spent = left = 0.0
    for stage in stages:
        budget = config.seconds.get(stage.name, 0.0)
        share, seconds = 0.0, 0.0
        if stage.name in done:
            share, seconds = 1.0, float(read_json(places.stages / f"{stage.name}.json")["seconds"])
        elif (file := places.stages / f"{stage.name}.progress").exists():
            state = read_json(file)
            share, seconds = float(state["done"]), float(state["seconds"])
        planned, spent, left = planned + share * budget, spent + seconds, left + (1 - share) * budget
    pace = spent / planned if planned > 30 else 1.0  # too early to tell before
    return left * pace / config.lanes


@contextmanager
def _display(config: DemoConfig, places: Places, console: Console) -> Iterator[Any]:
    """One live line on a terminal, a plain line now and then elsewhere."""
    due = 0.0

    def line(stages: Sequence[Stage], running: Sequence[Running], done: set[str]) -> str:
        parts = []
        for item in running:
            file = places.stages / f"{item.stage.name}.progress"
            share = f" {float(read_json(file)['done']):.0%}" if file.exists() else ""
            parts.append(f"{item.stage.name}{share} ({format_seconds(time.monotonic() - item.start)})")
        left = format_seconds(seconds_left(config, places, stages, done))
        return f"{len(done)}/{len(stages)} stages, now {', '.join(parts) or 'starting'}, about {left} left"

    if not console.is_terminal:

        def show_plain(stages: Sequence[Stage], running: Sequence[Running], done: set[str]) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + PLAIN_EVERY
                print(line(stages, running, done), flush=True)

        yield show_plain
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda stages, running, done: live.update(line(stages, running, done))


def finish(config: DemoConfig, places: Places, stages: Sequence[Stage], path: Path, console: Console) -> None:
    """Write `results.json` and `report.html` and print the table."""
    from dimvl.demo.report import summary_table, write_report

    records = {stage.name: read_json(places.stages / f"{stage.name}.json") for stage in stages}
    seconds = {name: round(record["seconds"], 1) for name, record in records.items()}
    seconds["wall"] = read_json(places.wall)["seconds"]
    results = collect_results(places, config.seed, seconds, _peak_memory(records, config.lanes))
    write_json(places.results, results)
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = f"dimvl demo --config {path.name}" if path.name != "demo.yaml" else "make demo"
    goals = goals_of(results, config.minutes)
    report = demo_report(
        config, places, results, goals, command=command, hardware=machine, day=date.today().isoformat()
    )
    write_report(places.report, report)
    console.print(summary_table(results, goals))
    if config.note:
        console.print(config.note)
    console.print(f"results: {places.results}\nreport:  {places.report}\nmodels:  {places.exports}")


def _peak_memory(records: Mapping[str, Mapping[str, float]], lanes: int) -> float:
    """Upper bound of the peak: the largest stages side by side, and the process that watches them."""
    stages = sorted((record["memory_gb"] for record in records.values()), reverse=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return round(sum(stages[:lanes]) + own, 2)
