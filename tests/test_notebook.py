"""examples/quickstart.ipynb runs from top to bottom, shows images, and is kept without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_docs import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_the_notebook_runs_and_shows_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, changed = re.subn("^QUICK = False", "QUICK = True", first.source, flags=re.MULTILINE)
    assert changed == 1
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("image/png" in data for data in shown) == 5, "two scenes and three that were found"
    assert sum("<img" in page for page in pages) == 2, "regions, and what an answer rests on"
    assert len(pages) == 4 and all("<table>" in page for page in pages)
    assert (tmp_path / "runs/quickstart/exports/vqa").is_dir() and not list((tmp_path / "examples").iterdir())


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
