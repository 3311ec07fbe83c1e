"""Fixtures that many tests share; their functions are in helpers.py."""

import shutil
from pathlib import Path

import pytest
from helpers import random_pipeline, tiny_preset, write_folder


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
