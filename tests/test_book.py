"""The committed notebooks: equal to their twins, the same set-up, runnable, part of the book, complete and small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import set_up_notebooks
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_notebook_has_a_twin_and_every_page_its_place():
    twins = sorted((ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in twins]
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    written = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    assert [page for page in listed if page.startswith("notebooks/")] == written
    written += [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    assert sorted(listed) == sorted(written)


def test_the_sidebar_has_each_chapters_number_and_title():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    shown = {Path(c["file"]).stem: c.get("title") for c in chapters if c["file"].startswith("notebooks/")}
    assert shown.pop("00_generate_pairs") is None  # the way in
    for name, title in shown.items():
        number, own = name.split("_")[0].lstrip("0"), jupytext.read(ROOT / f"notebooks/{name}.py").cells[0].source
        assert title is not None and title.split(" ", 1)[0] == number
        assert own.startswith(f"# {title.split(' ', 1)[1]}"), f"{name} is titled otherwise in _toc.yml"


def test_every_slip_names_a_test_that_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "book" / "slips.md").read_text())
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def test_twins_are_in_step(path):
    def cells(file):
        read = jupytext.read(file).cells
        return [(c.cell_type, c.source, c.metadata.get("tags", []), c.metadata.get("mystnb")) for c in read]

    assert cells(path) == cells(path.with_suffix(".py")), f"run: jupytext --sync {path.relative_to(ROOT)}"


def test_every_notebook_is_set_up_alike(path):
    notebook, again = jupytext.read(path), jupytext.read(path)
    set_up_notebooks.set_up(again, path.stem)
    assert notebook == again, f"run: python book/set_up_notebooks.py {path.stem}"
    _, badge, *_ = notebook.cells[0].source.split("\n\n")
    assert badge.endswith(f"(https://colab.research.google.com/github/{address()}/blob/main/notebooks/{path.name})")


def address() -> str:
    return set_up_notebooks.REPOSITORY["url"].removeprefix("https://github.com/")


def run_set_up(tmp_path, **installed):
    """Run the set-up cell with only `installed` available, by name and version; return pip's arguments, or None."""
    for name, version in installed.items():
        (tmp_path / f"{name}.py").touch()
        about = tmp_path / f"{name}-{version}.dist-info" / "METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    called = tmp_path / "called.txt"
    (tmp_path / "pip.py").write_text(f"import sys\nopen({str(called)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n")
    # -S hides what is really installed; pip, run without it, is found in the folder first
    subprocess.run(
        [sys.executable, "-S", "-c", set_up_notebooks.set_up_cell()],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
    )
    return called.read_text().split("\n") if called.exists() else None


def test_set_up_installs_what_is_missing_and_keeps_torch_and_numpy(tmp_path):
    there = {"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124", "numpy": "2.0.2"}
    *options, constraints, package, glue = run_set_up(tmp_path, **there, pillow="11.0.0")
    assert options == ["install", "--quiet", "--constraint"]
    kept = Path(constraints).read_text().split()
    assert sorted(kept) == sorted(f"{name}=={version}" for name, version in there.items())
    assert package.endswith(f"git+https://github.com/{address()}")
    assert glue == "myst-nb"


def test_set_up_asks_only_for_what_is_missing(tmp_path):
    *_, asked = run_set_up(tmp_path, defectdiffu="1.0")
    assert asked == "myst-nb"


def test_set_up_does_nothing_where_all_is_there(tmp_path):
    assert run_set_up(tmp_path, defectdiffu="1.0", myst_nb="1.1", torch="2.6.0") is None


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
