import json
import shutil

import numpy as np
import pytest
from PIL import Image

from defectdiffu.errors import InputError
from defectdiffu.evaluation.report import MEASURES, evaluate, evaluate_all, table


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


@pytest.fixture
def inputs(write_folder, tmp_path, pipe, no_network, only_that_judge):
    """Folders of one pair, too few pictures for fidelity, and random weights."""
    pipe.save_pretrained(tmp_path / "weights")
    counts = {("nut", "dent"): 4}
    folders = {"generated": write_folder("generated", counts, seed=1), "real": write_folder("real", counts)}
    return folders | {"weights": tmp_path / "weights", "num": 2}


def without_seconds(result):
    if isinstance(result, dict):
        return {key: without_seconds(value) for key, value in result.items() if key != "seconds"}
    return result


def test_everything_in_one_json_twice_the_same_and_kept(inputs, tmp_path, monkeypatch):
    result = evaluate_all(tmp_path / "all.json", **inputs)
    assert list(result["results"]) == ["diversity", "memorisation", "oracle"]
    assert "4 pictures, at least 10 are needed" in result["left_out"]["fidelity"]
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(json.dumps(result))
    again = evaluate_all(tmp_path / "again.json", **inputs)
    assert without_seconds(json.loads(json.dumps(again))) == without_seconds(json.loads(json.dumps(result)))

    # Finished results are kept: after the oracle's is removed, only the oracle is measured again.
    kept = json.loads((tmp_path / "all.json").read_text())
    del kept["results"]["oracle"]
    (tmp_path / "all.json").write_text(json.dumps(kept))
    measured = []
    monkeypatch.setattr(
        "defectdiffu.evaluation.report.evaluate", lambda measure, **_: measured.append(measure) or {"measure": measure}
    )
    assert set(evaluate_all(tmp_path / "all.json", **inputs)["results"]) >= {"diversity", "memorisation", "oracle"}
    assert measured == ["fidelity", "oracle"]

    scores = {(measure, score) for measure, score, _ in table(result)}
    assert {("oracle", "trained mask_iou"), ("diversity", "judge_distance"), ("memorisation", "ratio")} <= scores


def test_another_runs_file_is_not_touched(inputs, tmp_path):
    (tmp_path / "all.json").write_text('{"asked": {}}')
    with pytest.raises(InputError, match="does not hold results of these inputs"):
        evaluate_all(tmp_path / "all.json", **inputs)
    assert (tmp_path / "all.json").read_text() == '{"asked": {}}'


def test_nothing_measured_is_an_error(inputs, tmp_path):
    shutil.rmtree(inputs["generated"])
    with pytest.raises(InputError, match=r"no measure can be computed: fidelity: .*oracle: no weights"):
        evaluate_all(tmp_path / "all.json", **inputs | {"weights": tmp_path / "none"})
    assert not (tmp_path / "all.json").exists()


def test_a_picture_that_is_not_numbers_is_named(write_folder, no_network, only_that_judge):
    folder = write_folder("generated", {("nut", "dent"): 10})
    bad = folder / "nut" / "test" / "dent" / "003.tiff"
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(bad)
    (folder / "nut" / "test" / "dent" / "003.png").unlink()
    with pytest.raises(InputError, match=r"003\.tiff"):
        evaluate("fidelity", generated=folder, real=folder)
