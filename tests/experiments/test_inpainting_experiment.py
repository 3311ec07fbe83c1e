import json

import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation import oracle
from defectdiffu.experiments import inpainting


def test_every_way_is_judged_and_what_is_given_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([("hazelnut", "crack"), ("carpet", "hole")], []))
    settings = ({"place": "given", "strength": 0.1}, {"place": "chosen", "strength": 0.1, "w_d": 2.0})
    record = inpainting.run("tiny", tmp_path / "record.json", num=2, steps=10, settings=settings)
    assert json.loads((tmp_path / "record.json").read_text()) == record
    names = [row["name"] for row in record["runs"]]
    assert record["held_fixed"]["sampling"]["num_inference_steps"] == 10
    assert names[:4] == ["generated whole", "rendered", "copy-paste", "place given, strength 0.1"]
    for row in record["runs"]:
        assert row["scores"]["mask_iou"]["count"] == 4
        assert ("differences" in row) == (row["name"] != "generated whole")
    assert record["runs"][1]["scores"]["defect_accuracy"]["mean"] >= 0.5  # the judge knows what is rendered
    assert record["runs"][3]["scores"]["outside"]["mean"] == 0
    assert "outside" not in record["runs"][4]["scores"]


def test_what_changes_outside_the_place_is_counted():
    place = np.zeros((1, 64, 64), bool)
    place[0, 20:40, 20:40] = True
    (scene,) = [inpainting.render("leather", "good", size=64)]
    image = scene.normal[None].copy()
    image[0, 19, 25] ^= 2  # in the band, which is one pixel wide
    unchanged = inpainting.kept([scene], place, scene.normal[None])
    found = inpainting.kept([scene], place, image)
    assert (unchanged["outside"][0], unchanged["seam"][0], found["outside"][0]) == (0, 0, 0)
    assert found["seam"][0] > 0
    image[0, 0, 0] ^= 2
    assert found["outside"][0] < inpainting.kept([scene], place, image)["outside"][0] < 0.01


def test_weights_without_procedural_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "known_pairs", lambda pipe: ([], []))
    with pytest.raises(InputError, match="none of the procedural pairs"):
        inpainting.run("tiny", tmp_path / "record.json")
