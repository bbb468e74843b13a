"""What mkdocs cannot say in mkdocs.yml: pages that are not in docs/, and links that work both there and on GitHub."""

import os
import re
from pathlib import Path

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from dimvl.cli import app

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PYTHON = """\
# Python in full

Generated from the code; [the short page](api.md) begins with examples. `import dimvl` offers `Predictor`,
`RegionStore` and `load_model`; the rest is what these take and return.
"""
OBJECTS = (
    "::: dimvl.predictor.Predictor",
    "::: dimvl.data.answers.Answer",
    "::: dimvl.data.answers.Chosen",
    "::: dimvl.explanation.Explanation",
    "::: dimvl.explanation.RegionDrop",
    "::: dimvl.explanation.Alignment",
    "::: dimvl.explanation.Grounding",
    "::: dimvl.encoding.Encoding",
    "::: dimvl.regions.store.RegionStore",
    "::: dimvl.regions.records.Regions",
    "::: dimvl.regions.records.Extractor",
    "::: dimvl.trained_model.load_model",
    "::: dimvl.trained_model.TrainedModel",
)
# Code, in which nothing changes, or a link to a file: its label, the file and the place in it.
LINK = re.compile(r"^```.*?^```$|`[^`\n]*`|\[([^][]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/ and those that are generated from the code."""
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "python.md", content="\n\n".join([PYTHON, *OBJECTS])))
    return files


def commands() -> str:
    """Return the page of all commands with their arguments and options."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="dimvl", title="Command line")
    head, _, rest = text.partition("**Commands**:")  # a list that cuts each sentence off
    return re.sub(r"^Example: (.+)$", r"Example: `\1`", head + rest[rest.index("## ") :], flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the pages of the site; a file that is not part of it becomes its path."""
    folder = Path(page.file.abs_src_path or ROOT).parent

    def relink(found: re.Match[str]) -> str:
        label, target, place = found.groups()
        if target is None:
            return found[0]
        path = os.path.relpath(folder / target, ROOT)
        if path not in OUTSIDE and not path.startswith("docs/"):
            return f"{label} (`{path}`)"
        return f"[{label}]({OUTSIDE.get(path, path.removeprefix('docs/'))}{place or ''})"

    return LINK.sub(relink, markdown)
