"""Writes into every notebook what all of them share: the Colab badge and the cell that installs what is missing.

    python book/set_up_notebooks.py [NAME ...]     # names without suffix; by default every notebook

Both use the repository's address, which is set only in `_config.yml`. Outputs stay as they are.
"""

import re
import sys
from pathlib import Path

import jupytext
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
BADGE = "[![Open in Colab](../book/figures/open_in_colab.svg)]({colab}/{path})"
SET_UP = """\
import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Where the package is missing, as on Colab, install it with all that it needs.
NEEDED = {
    "defectdiffu": "defectdiffu[evaluation] @ git+{url}",
    "myst_nb": "myst-nb",
}
missing = [
    source
    for module, source in NEEDED.items()
    if importlib.util.find_spec(module) is None
]
if missing:
    # What PyTorch and NumPy are there fit the machine: they stay, to the very version.
    kept = [
        f"{module}=={version(module)}\\n"
        for module in ("torch", "torchvision", "numpy")
        if importlib.util.find_spec(module)
    ]
    constraints = Path(tempfile.mkdtemp(), "constraints.txt")
    constraints.write_text("".join(kept))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(constraints), *missing], check=True)
"""


def set_up_cell() -> str:
    """Source of the first code cell, the same in every notebook."""
    return SET_UP.replace("{url}", REPOSITORY["url"]).rstrip()


def badge(name: str) -> str:
    """Markdown that opens the notebook of this name (without suffix) in Colab."""
    colab = REPOSITORY["url"].replace("https://github.com", "https://colab.research.google.com/github")
    return BADGE.format(colab=f"{colab}/blob/{REPOSITORY['branch']}", path=f"notebooks/{name}.ipynb")


def set_up(notebook: NotebookNode, name: str) -> None:
    """Put the badge below the title and rewrite the first code cell, in place."""
    title, *rest = re.sub(r"\n+\[!\[Open in Colab\].*", "", notebook.cells[0].source).split("\n", 1)
    notebook.cells[0].source = "\n".join([title, "", badge(name), *rest])
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = set_up_cell()
    first.metadata["tags"] = ["remove-cell"]  # on a page there is nothing to install


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(twin.stem for twin in (ROOT / "notebooks").glob("*.py")):
        twin = ROOT / "notebooks" / f"{name}.py"  # written last, so `jupytext --sync` takes it as the source
        notebook = jupytext.read(twin)
        set_up(notebook, name)
        jupytext.write(notebook, twin)
