import subprocess
import sys

import pytest

import defectdiffu


@pytest.mark.parametrize(
    "code",
    ["import defectdiffu; dir(defectdiffu)", "import defectdiffu.cli as c; c.app(['--help'], standalone_mode=False)"],
)
def test_neither_the_import_nor_the_help_loads_torch(code):
    heavy = "[name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]"
    code += f"; import sys; found = {heavy}; sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in defectdiffu.__all__:
        assert getattr(defectdiffu, name) is not None
        assert name in dir(defectdiffu)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        defectdiffu.nothing  # noqa: B018
