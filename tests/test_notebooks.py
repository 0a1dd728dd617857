"""The notebooks run from top to bottom, and are kept as a reader wants to find them: executed, with outputs, not large."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# The cell tagged `parameters` is replaced by this one: the same code on fewer samples.
SMALL = {"00_tour.ipynb": "PER_TAG = 2", "01_hybrid_policy_gradient.ipynb": "SAMPLES = 4_800"}
LARGEST = 400_000

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@pytest.mark.slow
@every_notebook
def test_the_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = SMALL[path.name]
    NotebookClient(notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()


@every_notebook
def test_the_kept_outputs_are_those_of_one_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert path.stat().st_size < LARGEST


def test_there_are_notebooks():
    assert set(SMALL) == {path.name for path in NOTEBOOKS}
