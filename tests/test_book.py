"""The notebooks as committed: twins in step, ready for papermill, part of the book, free of errors, light."""

from pathlib import Path

import jupytext
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_notebook_has_a_twin_and_a_page():
    twins = sorted((ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in twins]
    pages = [chapter["file"] for chapter in yaml.safe_load((ROOT / "_toc.yml").read_text())["chapters"]]
    assert [page for page in pages if page.startswith("notebooks/")] == [f"notebooks/{path.stem}" for path in NOTEBOOKS]


def test_twins_are_in_step(path):
    def cells(file):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(file).cells]

    assert cells(path) == cells(path.with_suffix(".py")), f"run: jupytext --sync {path.relative_to(ROOT)}"


def test_papermill_finds_kernel_and_parameters(path):
    notebook = jupytext.read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert "FAST = False" in parameters.source


def test_committed_outputs_are_whole_and_light(path):
    assert path.stat().st_size < 2_000_000
    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "execute the notebook with its full settings, then commit it"
    assert not [
        out for cell in code for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"
    ]
