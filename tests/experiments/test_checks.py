import json

import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import oracle
from defectdiffu.experiments import checks


def test_pairs_that_pass_are_compared_with_all(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([("hazelnut", "crack"), ("leather", "hole")], []))
    monkeypatch.setattr(checks, "change_ratio", lambda images, *_: np.arange(len(images), dtype=float))
    record = checks.run("tiny", tmp_path / "checks.json", num=2, thresholds=(2.0, 9.0))
    assert json.loads((tmp_path / "checks.json").read_text()) == record
    everything, two, none = record["runs"]
    assert everything["scores"]["mask_iou"]["count"] == 4
    assert two["scores"]["accepted"]["mean"] == 0.5
    for score, difference in two["differences"].items():
        expected = two["scores"][score]["mean"] - everything["scores"][score]["mean"]
        assert difference["mean"] == pytest.approx(expected)
    assert none["scores"] == {"accepted": {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 4}}


def test_the_interval_is_of_the_difference():
    values, kept = np.array([1.0] * 50 + [0.0] * 50), np.arange(100) < 50
    found = checks.kept_minus_all(values, kept)
    assert (found["mean"], found["count"]) == (0.5, 50)
    assert 0.3 < found["low"] < 0.5 < found["high"] < 0.7


def test_weights_without_procedural_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([], []))
    with pytest.raises(InputError, match="none of the procedural pairs"):
        checks.run("tiny", tmp_path / "checks.json")
