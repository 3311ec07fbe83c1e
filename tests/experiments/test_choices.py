"""A record of choices on one pair: changes are named, and compared picture by picture."""

import json

import pytest
from diffusers import PNDMScheduler

from defectdiffu.errors import InputError
from defectdiffu.evaluation import oracle
from defectdiffu.experiments import choices


def test_each_change_is_compared_with_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([("hazelnut", "crack")], []))
    changes = ({"num_inference_steps": 2}, {"w_p": 2.0}, {"scheduler": "DDIM", "num_inference_steps": 2})
    monkeypatch.setattr(choices, "CHANGES", changes)
    record = choices.run("tiny", tmp_path / "choices.json", num=1)
    assert json.loads((tmp_path / "choices.json").read_text()) == record
    assert record["held_fixed"]["sampling"]["scheduler"] == "SDE-DPM-Solver++"
    defaults, *others = record["runs"]
    assert "differences" not in defaults
    # w_p = 2 is already the default, so it is not a change.
    assert [run["changes"]["sampling"] for run in others] == [changes[0], changes[2]]
    for run in others:
        for score, difference in run["differences"].items():
            assert difference["mean"] == pytest.approx(run["scores"][score]["mean"] - defaults["scores"][score]["mean"])


def test_a_scheduler_is_told_by_its_settings():
    for name, (kind, settings) in choices.SCHEDULERS.items():
        assert choices.scheduler_name(kind(**settings)) == name
    assert choices.scheduler_name(PNDMScheduler()) == "PNDMScheduler"


def test_weights_without_procedural_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([], []))
    with pytest.raises(InputError, match="none of the procedural pairs"):
        choices.run("tiny", tmp_path / "choices.json")
    assert not (tmp_path / "choices.json").exists()
