"""The commands pretrain and finetune."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import Config, Overrides, Threads, app, print_text
from dimvl.errors import UserError
from dimvl.progress import training_progress
from dimvl.showing import counted


@app.command()
def pretrain(config: Config, overrides: Overrides = None, threads: Threads = 0) -> None:
    """Pretrain a model from captions.

    The same command resumes a run that stopped. To use several GPUs, start it with `torchrun` or `deepspeed`.

    Example: dimvl pretrain pretrain.yaml training.steps=2000
    """
    _train(config, overrides or [], threads, "pretrain")


@app.command()
def finetune(
    config: Config,
    overrides: Overrides = None,
    new_extractor: Annotated[
        bool,
        typer.Option(
            "--new-extractor",
            help="Accept regions of another extractor; the region projection is newly initialised.",
        ),
    ] = False,
    threads: Threads = 0,
) -> None:
    """Fine-tune a model for a task, such as answering questions or captioning images.

    The same command resumes a run that stopped.

    Example: dimvl finetune vqa.yaml initial=runs/pretrain
    """
    added = ["new_extractor=true"] if new_extractor else []
    _train(config, [*(overrides or []), *added], threads, "finetune")


def _train(path: Path, overrides: list[str], threads: int, command: str) -> None:
    from dimvl.tasks import load_config

    config = load_config(path, overrides + ([f"training.threads={threads}"] if threads else []))
    if config.command != command:
        raise UserError(f"{path}: task is {config.task!r}, which is for `dimvl {config.command}`; use that command")
    if "RANK" not in os.environ:  # several processes agree on a mistake later, so that it is printed once
        config.check_inputs()
    from dimvl.checkpoints import MATCH
    from dimvl.files import read_json
    from dimvl.training.run import run_training

    if os.environ.get("RANK", "0") != "0":
        run_training(config)
        return
    if not (logger := logging.getLogger("dimvl")).isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.INFO)
    with training_progress() as (show, working):
        run = run_training(config, show, working)
    print_text(f"trained: {run}")
    dropped = read_json(run / MATCH)["texts_dropped"]
    if left_out := [f"{counted(count, 'text')} ({reason})" for reason, count in dropped.items() if count]:
        print_text(f"left out: {', '.join(left_out)}", error=True)
