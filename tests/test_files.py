import json

import pytest
import torch

from defectdiffu.errors import InputError
from defectdiffu.files import load_tensors, save_tensors, write_json


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
