import json
import subprocess
import sys

import pytest
import torch

from defectdiffu.errors import InputError
from defectdiffu.files import MARKER, building, load_tensors, save_tensors, write_json


def test_tensors_and_metadata_return(tmp_path):
    save_tensors(
        tmp_path / "x.safetensors", {"b": torch.arange(3), "t": torch.rand(2, 3).T}, {"step": 3, "more": ["a"]}
    )
    tensors, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": 3, "more": ["a"]}
    assert torch.equal(tensors["b"], torch.arange(3))
    assert tensors["t"].shape == (3, 2)


def test_json_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": [1.5, None]})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "deep" / "x.json", {"a": float("nan")})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": [1.5, None]}


def test_space_is_asked_for_only_where_there_is_none(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"could not write .*choose another path"):
            write_json(path, {})


def test_a_folder_is_whole_or_not_there(tmp_path):
    with building(tmp_path / "deep" / "new") as part:
        (part / "a").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "deep" / "new").iterdir()] == ["a"]
    with pytest.raises(InputError, match="new exists: choose another folder"), building(tmp_path / "deep" / "new"):
        pass
    with pytest.raises(RuntimeError), building(tmp_path / "deep" / "broken") as part:
        (part / "a").write_text("a")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_what_a_killed_run_left_of_a_folder_is_removed_and_nothing_else(tmp_path):
    code = "import os, sys; from pathlib import Path; from defectdiffu.files import building\n"
    code += "with building(Path(sys.argv[1])) as part: (part / 'a').touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "new"], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".new.") and (left / MARKER).is_file()
    for name in (".new.mine.part", ".newer.x.part"):  # somebody's own, and another folder's
        (tmp_path / name).mkdir()
    (tmp_path / ".newer.x.part" / MARKER).touch()
    with building(tmp_path / "new"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.mine.part", ".newer.x.part", "new"]
