"""Fixtures that many tests share; their functions are in helpers.py."""

import shutil
import sys
from pathlib import Path

import pytest
from helpers import random_pipeline, tiny_preset, write_folder

from defectdiffu import cli


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def preset():
    return tiny_preset()


@pytest.fixture
def pipe():
    return random_pipeline()


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A folder of random weights; a test that changes it takes `copy`."""
    folder = tmp_path_factory.mktemp("pipeline")
    random_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def run(monkeypatch, capsys):
    """run("generate", "--num", 2): the command line as a user calls it; exit code, stdout and stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["defectdiffu", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call
