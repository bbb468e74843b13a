"""The command `export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import (
    PARTS,
    Classes,
    Concepts,
    Features,
    FeaturesWeights,
    NamesBy,
    VocabularyFile,
    Weights,
    Where,
    any_path,
    app,
    input_file,
    input_folder,
    print_text,
)
from dimvl.errors import UserError
from dimvl.progress import progress


@app.command()
def export(
    run: Annotated[Path, typer.Argument(parser=input_folder, help="Folder of a run; for programs, also of an export.")],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Folder to write.")],
    where: Where = None,
    weights: Weights = None,
    classes: Classes = None,
    features: Features = None,
    features_weights: FeaturesWeights = None,
    vocabulary: VocabularyFile = None,
    names_by: NamesBy = None,
    concepts: Concepts = None,
    scores: Annotated[
        Path | None, typer.Option(parser=input_file, help="JSON file of scores for the model card.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base, and write the whole model.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of an adapter's base, such as its name on the hub.")
    ] = None,
    program: Annotated[
        bool,
        typer.Option("--program", help="Write programs that torch runs without dimvl (.pt2), instead of an export."),
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write programs that onnxruntime runs; with --program, both kinds.")
    ] = False,
) -> None:
    """Write one folder with everything needed for predictions.

    It holds the weights of the run's best checkpoint (the newest if there was no validation), the tokenizer, a model
    card, and what made the regions, as recorded in the region store: detector, backbone, names. If those files have
    moved, give them with the options of `dimvl extract`. Use --where none to leave them out.

    For a run with the section `adapter`, the folder has only the adapter, to be used with its base.

    With --program or --onnx, the folder has a program for each ability instead, from regions and word pieces to logits;
    see docs/elsewhere.md.

    Example: dimvl export runs/vqa exports/vqa --scores runs/vqa/evaluation/scores.json

    Example: dimvl export exports/vqa programs/vqa --program --onnx
    """
    if program or onnx:
        others = {name: value for name, value in locals().items() if name not in ("run", "out", "program", "onnx")}
        _write_programs(run, out, program, onnx, [name for name, value in others.items() if value])
        return
    parts = {name: value for name, value in locals().items() if name in PARTS}
    from dimvl.export import export as export_run
    from dimvl.fields import mapping
    from dimvl.files import read_json

    measured = None if scores is None else mapping(read_json(scores), (), str(scores), "give scores by name")
    print_text(f"exported: {export_run(run, out, where, measured, merge, base, **parts)}")


def _write_programs(source: Path, out: Path, program: bool, onnx: bool, others: Sequence[str]) -> None:
    """Write programs; `others` are options of an export that were also given."""
    if others:
        raise UserError(f"--{others[0].replace('_', '-')} is for writing an export, not programs; omit it")
    from dimvl.program import write_programs

    with progress("programs") as show:
        differences = write_programs(source, out, program, onnx, show)
    for name, difference in differences.items():
        print_text(f"{out / name}: differs from the model by at most {difference:.1g}")
