"""The command `doctor`."""

from dimvl.cli.app import app, print_text


@app.command()
def doctor() -> None:
    """Print what a bug report should say about this installation: versions, GPU, operators, Java, disk, extras.

    The output has no paths, no names of people or machines and no tokens.

    Example: dimvl doctor
    """
    from dimvl.doctor import facts

    for name, fact in facts():
        print_text(f"{name}: {fact}")
