"""The command `push`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import app, input_folder, print_text
from dimvl.progress import progress_is_shown
from dimvl.showing import counted


@app.command()
def push(
    export: Annotated[Path, typer.Argument(parser=input_folder, metavar="EXPORT", help="Folder of an export.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name of the model on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make the model public; by default it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the files; contact no server.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Licence of the model, such as apache-2.0; by default that of its card."),
    ] = None,
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch to push to, created if it is new; default main.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
) -> None:
    """Push an export to the Hugging Face hub, for Predictor.from_pretrained("owner/name").

    Only the export's own files are uploaded, and only if they match their checksums. The token comes from
    `hf auth login` or the environment variable HF_TOKEN.

    Example: dimvl push exports/vqa someone/scenes-vqa --licence apache-2.0 --dry-run
    """
    from dimvl.push import files_to_push, num_bytes
    from dimvl.push import push as push_files

    files = files_to_push(export, name, licence)
    sizes = {one: num_bytes(content) for one, content in sorted(files.items())}
    seen, where = "public" if public else "private", "" if branch is None else f", branch {branch}"
    if dry_run:
        for one, size in sizes.items():
            print_text(f"{size:>14,}  {one}")
        print_text(
            f"{sum(sizes.values()):>14,}  bytes in {counted(len(sizes), 'file')} would go to {name} ({seen}{where})"
        )
        return
    if not (sys.stderr.isatty() and progress_is_shown()):
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    commit = push_files(files, name, public=public, branch=branch, message=message)
    print_text(f"pushed: {counted(len(sizes), 'file')} to {name} ({seen}{where}), commit {commit}")
