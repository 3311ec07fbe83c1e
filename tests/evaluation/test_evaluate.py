import json

import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import MEASURES, evaluate


def test_every_measure_is_there():
    assert set(MEASURES) == {"oracle", "fidelity", "diversity", "memorisation", "masks", "downstream"}


def test_one_json_with_versions(tmp_path):
    truth = np.eye(4)[None]
    result = evaluate("masks", tmp_path / "out.json", probabilities=truth, truths=truth)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["measure"] == "masks"
    assert result["iou"] == 1
    assert result["versions"]["torch"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_folder_measures_are_ready_for_json(tmp_path, write_folder, no_network, only_that_judge):
    counts = {("nut", "dent"): 10}
    folders = {"generated": write_folder("generated", counts, seed=1), "real": write_folder("real", counts)}
    for measure in ("fidelity", "diversity", "memorisation"):
        result = evaluate(measure, tmp_path / "out.json", **folders)
        assert json.loads((tmp_path / "out.json").read_text()) == result


def test_bad_input_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="did you mean fidelity"):
        evaluate("fidelty")
    with pytest.raises(InputError, match="is a folder"):
        evaluate("masks", tmp_path, probabilities=[], truths=[])
    with pytest.raises(InputError, match="no such folder"):
        evaluate("fidelity", tmp_path / "out.json", generated=tmp_path / "none", real=tmp_path)
    assert not list(tmp_path.iterdir())
