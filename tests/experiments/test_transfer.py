import json

import pytest
from helpers import random_pipeline
from PIL import Image

from defectdiffu.errors import InputError
from defectdiffu.experiments import transfer

COUNTS = {("hazelnut", "good"): 3, ("hazelnut", "crack"): 4, ("tile", "good"): 2, ("tile", "hole"): 3}
CRACKED = ("hazelnut", "crack")


@pytest.fixture
def save(tmp_path):
    """Weights of 32 pixels that were trained on the given pairs."""

    def save(name, **trained_on):
        pipe = random_pipeline()
        pipe.transformer.register_to_config(trained_on=trained_on)
        pipe.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def test_a_pair_is_asked_of_weights_that_know_it_and_of_others(save, write_folder, monkeypatch, judge, tmp_path):
    monkeypatch.setattr(transfer, "STEPS", 2)
    monkeypatch.setattr(transfer.Judge, "shipped", lambda size: judge)
    real = write_folder("real", COUNTS, size=32)
    held_out = save("held_out", hazelnut=["hole"], tile=["crack", "hole"])
    trained = save("trained", hazelnut=["crack", "hole"], tile=["crack", "hole"])
    (held_out / "config.json").write_text('{"training": {"steps": 7, "variants": 8, "hold_out": "hazelnut/crack"}}')
    result = transfer.run([held_out, trained], [real], [CRACKED], num=2, sheet=tmp_path / "sheet.webp")
    assert Image.open(tmp_path / "sheet.webp").format == "WEBP"
    assert result["unets"]["hazelnut crack"]["real"] == {"training": 2, "test": 2}
    first, second = result["weights"].values()
    assert [w["pairs"]["hazelnut crack"]["trained"] for w in (first, second)] == [False, True]
    # Of the trained pairs, tile with hole has real pictures; for the second weights, hazelnut with crack has.
    assert [w["nearest_ratio"]["count"] for w in (first, second)] == [2, 4]

    record = transfer.record(result, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert [r["name"] for r in record["runs"]] == ["hazelnut crack, held out", "hazelnut crack, trained"]
    assert [r["steps"] for r in record["runs"]] == [7, None]
    for run in record["runs"]:
        assert 0 <= run["scores"]["mask_iou"]["mean"] <= 1
        assert run["empty"] in (0, 1, 2)


def test_bad_input_is_named(save, write_folder, only_that_judge, monkeypatch):
    monkeypatch.setattr(transfer, "_copied", lambda *_: {})
    weights = save("weights", hazelnut=["hole"], tile=["crack"])
    real = write_folder("real", COUNTS, size=32)
    with pytest.raises(InputError, match="real hazelnut hole pictures with a defect and its mask: 0 pictures"):
        transfer.run([weights], [real], [("hazelnut", "hole")])
    monkeypatch.setattr(transfer, "STEPS", 1)
    with pytest.raises(InputError, match="'nothing'"):
        transfer.run([weights], [write_folder("more", {("tile", "nothing"): 4}, size=32)], [("tile", "nothing")], num=1)
