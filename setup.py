"""Only the dependencies, read from requirements.txt so that they are listed once. All else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("requirements.txt").read_text()
_, *parts = re.split(r"^# \[(\w+)\].*\n", text, flags=re.MULTILINE)
requirements = {heading: lines.split() for heading, lines in zip(parts[::2], parts[1::2], strict=True)}

setup(install_requires=requirements.pop("package"), extras_require=requirements)
