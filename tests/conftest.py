"""Fixtures that many tests share; their functions are in helpers.py."""

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
