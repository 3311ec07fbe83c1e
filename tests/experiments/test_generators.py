import json
import shutil

import numpy as np
import pytest
from PIL import Image

from defectdiffu.errors import InputError
from defectdiffu.evaluation import diversity, memorisation
from defectdiffu.evaluation.downstream import DETECTORS, predict, train
from defectdiffu.evaluation.fidelity import frechet_distance
from defectdiffu.evaluation.folders import load, read_pairs
from defectdiffu.evaluation.synthesis import read
from defectdiffu.experiments import generators

PAIRS = {("hazelnut", "crack"): 4, ("tile", "hole"): 4}


@pytest.fixture
def folders(write_folder, only_that_judge):
    """(two generated ones, the second without masks, training, test), the test pictures in excess."""
    masked, bare = write_folder("masked", PAIRS), write_folder("bare", PAIRS, seed=1)
    for product in ("hazelnut", "tile"):
        shutil.rmtree(bare / product / "ground_truth")
    test = write_folder("rest", {pair: number + 3 for pair, number in PAIRS.items()}, seed=3)
    return masked, bare, write_folder("few", {**PAIRS, ("tile", "good"): 2}, seed=2), test


def test_methods_are_scored_alike_and_masks_where_there_are_some(folders, judge, tmp_path):
    masked, bare, training, test = folders
    costs = tmp_path / "costs.json"
    costs.write_text('{"bare": {"seconds": 7}}')
    files = {"file": tmp_path / "r.json", "costs": costs, "sheet": tmp_path / "sheet.webp"}
    record = generators.run([masked, bare], training, test, seeds=[0, 1], steps=2, **files)
    assert json.loads((tmp_path / "r.json").read_text()) == record
    assert [(run["name"], run["costs"]) for run in record["runs"]] == [("masked", {}), ("bare", {"seconds": 7})]
    assert record["runs"][0]["per_pair"]["tile hole"]["pictures"] == 4
    first, second = (run["scores"] for run in record["runs"])
    assert first.keys() - second.keys() == {"mask_iou", "detector_gain"}
    assert first["detector_gain"]["count"] == 14 and len(first["detector_gain"]["seeds"]) == 2
    assert first["defect_accuracy"]["count"] == 8 and first["frechet"]["count"] == 2
    assert Image.open(tmp_path / "sheet.webp").format == "WEBP"


def test_scores_are_those_of_the_single_measures(folders, judge):
    masked, _, training, test = folders
    ours, few, unseen = (read_pairs(folder) for folder in (masked, training, test))
    found, frechet = generators.scores_of(ours, few, unseen, judge)
    expected = []
    for pair in PAIRS:
        a, b = (judge(load(part[pair][:4], 16)[0]).features for part in (ours, unseen))
        expected.append(frechet_distance(a, b))
    assert list(frechet.values()) == pytest.approx(expected)
    assert found["frechet"]["mean"] == pytest.approx(np.mean(expected))
    spread = diversity.run(masked, training, diversity.judge_distance(judge))
    for score in ("distance", "ic_distance_random_50", "ic_distance_all"):
        assert found[score] == pytest.approx(spread[score], rel=1e-5), score
    copies = memorisation.run(masked, training, judge)
    assert found["nearest_ratio"]["mean"] == pytest.approx(copies["ratio"]["mean"])
    assert found["copies"]["mean"] == copies["below_half"]["mean"]


def test_the_gain_is_that_over_the_same_network_without(folders):
    masked, _, training, test = folders
    few, unseen, made = ([s for part in read_pairs(f).values() for s in part] for f in (training, test, masked))
    real, extra, tested = (read("", samples, 16) for samples in (few, made, unseen))
    unet = DETECTORS["unet"]

    def iou(extra):
        return unet.per_picture(predict(train(unet, real, extra, 4, 3, ""), tested.images), tested.masks).mean()

    found = generators.detector_gains({"made": made}, few, unseen, 16, [3], 4)["made"]
    assert found["mean"] == pytest.approx(iou(extra) - iou(None)) and found["mean"] != 0
    assert generators.detector_gains({}, few, unseen, 16, [3], 4) == {}


def test_folders_that_cannot_be_compared_are_named(folders, write_folder, tmp_path):
    masked, _, training, test = folders
    other = write_folder("other", {("tile", "hole"): 4})
    with pytest.raises(InputError, match="other has other pairs than the folders before it: hazelnut crack"):
        generators.run([masked, other], training, test, tmp_path / "r.json")
    with pytest.raises(InputError, match="test pictures of hazelnut crack: 2 pictures, at least 4 are needed"):
        generators.run([masked], training, write_folder("less", dict.fromkeys(PAIRS, 2)), tmp_path / "r.json")
    with pytest.raises(InputError, match="unknown product 'gravel'"):
        generators.run([write_folder("gravel", {("gravel", "hole"): 4})], training, test, tmp_path / "r.json")
    with pytest.raises(InputError, match=r"no\.json"):
        generators.run([masked], training, test, tmp_path / "r.json", costs=tmp_path / "no.json")
    assert not (tmp_path / "r.json").exists()
