"""The script that counts imports, on a toy package and on our package."""

import draw_imports
import pytest


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__": "",
        "low": "from toy import high",
        "high": "def f():\n    from toy.low import x",
        "part/__init__": "from . import inner",
        "part/inner": "from ..low import x\nimport json",
    }
    for name, text in files.items():
        file = tmp_path / "toy" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\ncontainers = ["toy"]\nlayers = ["part | high", "low"]\n'
    )
    return tmp_path / "toy"


def test_every_import_is_found_and_the_wrong_ones_named(package):
    arrows = draw_imports.imports(draw_imports.modules(package))
    assert arrows == {
        ("toy.low", "toy.high"),
        ("toy.high", "toy.low"),
        ("toy.part", "toy.part.inner"),
        ("toy.part.inner", "toy.low"),
    }
    rooms = draw_imports.between_rooms(arrows)
    assert rooms == {("low", "high"), ("high", "low"), ("part", "low")}
    assert draw_imports.circles(rooms) == [["high", "low"]]
    assert draw_imports.floors(rooms) == 2
    assert draw_imports.upward(arrows, package.parent / "pyproject.toml") == [("toy.low", "toy.high")]


def test_nothing_goes_up_or_round_in_ours(capsys):
    draw_imports.main()
    table = capsys.readouterr().out
    assert "upward:" not in table
    assert "circle:" not in table
