"""The command bootstrap."""

import typer

from dimvl.cli.app import Config, Overrides, Threads, app, print_text
from dimvl.cli.sharing import set_resources
from dimvl.progress import progress
from dimvl.showing import counted


@app.command()
def bootstrap(config: Config, overrides: Overrides = None, threads: Threads = 0) -> None:
    """Clean noisy captions: write synthetic ones, and keep those that fit their image.

    A captioner writes captions for the images of a region store; a filter scores these and the original ones, and
    keeps what it calls a match. The same command resumes. Several processes (torchrun, SLURM) share the work; the last
    one writes the results, which do not depend on their number. The exit code is 1 if no caption is kept.

    Example: dimvl bootstrap configs/bootstrap/scenes.yaml output=runs/bootstrap
    """
    from dimvl.bootstrap.config import BootstrapConfig
    from dimvl.config import read_keys

    settings = read_keys(BootstrapConfig, config, overrides or [])
    settings.check_inputs()
    from dimvl.bootstrap.results import KEPT, PAGE
    from dimvl.bootstrap.run import bootstrap as run_bootstrap
    from dimvl.regions.parts import launched
    from dimvl.regions.sources.base import Part
    from dimvl.trained_model import choose_device

    process = launched()
    set_resources(process, threads)
    part = Part(1, 1) if process is None else process.part
    with progress("groups of captions") as show:
        results = run_bootstrap(settings, choose_device(settings.device), part, show if part.number == 1 else None)
    if results is None:
        print_text(f"part {part} done; the last of {part.of} processes writes the results: {settings.output}")
        return
    kept = results.kept.total()
    for origin in sorted(results.texts):
        share = results.kept[origin] / results.texts[origin]
        print_text(
            f"{origin}: {results.kept[origin]:,} of {counted(results.texts[origin], 'caption')} kept ({share:.1%})"
        )
    print_text(f"captions: {settings.output / KEPT}; report: {settings.output / PAGE}")
    for reason, number in results.report["captions_dropped"].items():
        if number:
            print_text(f"left out: {counted(number, 'caption')} ({reason})", error=True)
    for origin, found in results.report["origins"].items():
        if found.get("not_written"):
            text = counted(found["not_written"], f"{origin} caption")
            print_text(f"not written: {text} (empty, or a duplicate of another caption of the image)", error=True)
    if not kept:
        print_text(
            "no caption is kept: train the filter longer or on more captions, or choose a lower threshold by "
            "keep.precision and keep.sample; the same command then filters the scored captions again",
            error=True,
        )
        raise typer.Exit(1)
