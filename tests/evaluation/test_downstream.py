import json

import numpy as np
import pytest
from PIL import Image

from defectdiffu.errors import InputError
from defectdiffu.evaluation import downstream
from defectdiffu.evaluation.downstream import shares, verdict
from defectdiffu.evaluation.synthesis import Pictures, copy_paste, perlin, synthesise

COUNTS = {("nut", "dent"): 3, ("nut", "good"): 2}


def test_perlin_noise_is_0_at_the_grid_and_smooth():
    noise = perlin(32, 4, np.random.default_rng(0))
    assert noise[::8, ::8] == pytest.approx(0, abs=1e-12)
    assert 0.1 < noise.std() < 0.5
    assert np.abs(np.diff(noise)).max() < 0.4


def test_copy_paste_moves_the_pixels_and_the_mask_alike():
    defect, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    mask[2:4, 3:8], defect[2:4, 3:8] = 255, 200
    for seed in range(10):
        image, pasted = copy_paste(np.full((16, 16, 3), 50, np.uint8), defect, mask, np.random.default_rng(seed))
        assert ((image == 200).all(-1) == (pasted > 0)).all()
        assert ((image == 50).all(-1) == (pasted == 0)).all()
        assert pasted.any()


@pytest.mark.parametrize("kind", ["copy_paste", "perlin"])
def test_synthesis_stays_within_a_product_and_is_deterministic(kind):
    images = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (10, 20, 200, 210)])
    masks = np.zeros((4, 16, 16), np.uint8)
    masks[[1, 3], 4:8, 4:8] = 255
    real = Pictures(images, masks, np.array(["dark", "dark", "bright", "bright"]))
    made, again = (synthesise(real, 8, kind, np.random.default_rng(0)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(made, again, strict=True))
    assert made.masks.any((1, 2)).all()
    for image, mask, product in zip(*made, strict=True):
        assert set(image[mask == 0].ravel()) == {10 if product == "dark" else 200}
    if kind == "copy_paste":
        for image, mask, product in zip(*made, strict=True):
            assert set(image[mask > 0].ravel()) == {20 if product == "dark" else 210}


def test_a_few_steps_of_everything_once(write_folder, tmp_path, monkeypatch):
    folders = [write_folder(name, COUNTS, size=32, seed=i) for i, name in enumerate(("generated", "real", "test"))]
    progress = tmp_path / "progress.json"
    result = downstream.run(*folders, seeds=(0, 1), steps=2, progress=progress)
    assert result["counts"]["test"] == {"all": 5, "with_defect": 3}
    unet, resnet = result["detectors"]["unet"], result["detectors"]["resnet50"]
    for found in (unet, resnet):
        assert set(found["scores"]) == {"real", "copy_paste", "perlin", "generated"}
        assert len(found["differences"]["real"]["seeds"]) == 2
        assert "against perlin" in found["verdict"]
    assert set(unet["scores"]["real"]) == {"iou", "f1", "ap", "auroc", "per_picture"}
    assert set(resnet["scores"]["real"]) == {"accuracy", "auroc", "per_picture"}
    assert unet["scores"]["real"]["per_picture"]["count"] == 3  # with a defect
    assert resnet["scores"]["real"]["per_picture"]["count"] == 5  # all

    monkeypatch.setattr(downstream, "train", lambda *_: pytest.fail("trained again"))
    assert downstream.run(*folders, seeds=(0, 1), steps=2, progress=progress) == result
    with pytest.raises(InputError, match="trainings on other inputs"):
        downstream.run(*folders, seeds=(0, 1), steps=3, progress=progress)
    assert result["size"] == 32  # of the generated pictures
    with pytest.raises(InputError, match="trainings on other inputs"):
        downstream.run(*folders, seeds=(0, 1), steps=2, progress=progress, size=64)

    record = downstream.record(result, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert [r["name"] for r in record["runs"]][:2] == ["unet, real", "unet, copy_paste"]
    assert record["runs"][0]["differences"]["IoU"] == unet["differences"]["real"]
    over_all = record["runs"][0]["over_all"]
    assert over_all.keys() == {"iou", "f1", "ap", "auroc"}
    assert over_all["ap"] == unet["scores"]["real"]["ap"]


def test_every_set_shows_as_many_defects():
    masks = np.zeros((5, 4, 4), np.uint8)
    masks[:2, 0, 0] = 255
    real = Pictures(np.zeros((5, 4, 4, 3), np.uint8), masks, np.array(["nut"] * 5))
    extra = Pictures(*(array[:2] for array in real))
    for synthetic in (None, extra):
        parts = [(source, rows.tolist(), count) for source, rows, count in shares(real, synthetic, 16)]
        assert parts[0] == (real, [2, 3, 4], 8)  # defect-free pictures, all of them real
        assert sum(count for source, rows, count in parts if source.masks[rows].any((1, 2)).all()) == 8
    assert [(source is extra, count) for source, _, count in parts[1:]] == [(False, 4), (True, 4)]
    assert [count for *_, count in shares(extra, extra, 16)] == [8, 8]  # there is no defect-free picture


def difference(mean, low, high, *seeds):
    return {"real": {"mean": mean, "low": low, "high": high, "seeds": list(seeds)}}


def test_verdicts():
    assert "generated pairs help (IoU +0.100" in verdict(difference(0.1, 0.05, 0.15, 0.1, 0.2))
    assert "harm" in verdict(difference(-0.1, -0.15, -0.05, -0.1, -0.2))
    assert "cannot tell" in verdict(difference(0.1, -0.05, 0.25, 0.1, 0.2))
    assert "cannot tell" in verdict(difference(0.1, 0.05, 0.15, 0.3, -0.1))  # the seeds disagree


def test_bad_input_is_named(write_folder):
    generated, real = write_folder("generated", COUNTS), write_folder("real", COUNTS)
    with pytest.raises(InputError, match="1 seed: at least 2"):
        downstream.run(generated, real, real, seeds=(0,))
    other = write_folder("other", {("bolt", "dent"): 3})
    with pytest.raises(InputError, match="test pictures with a defect and its mask: 0 pictures, at least 2"):
        downstream.run(generated, real, other)
    only_flawed = write_folder("only_flawed", {("nut", "dent"): 3})
    with pytest.raises(InputError, match="no good pictures of nut"):
        downstream.run(generated, real, only_flawed)
    only_good = write_folder("only_good", {("nut", "good"): 3})
    with pytest.raises(InputError, match="generated pictures with a defect and its mask: 0"):
        downstream.run(only_good, real, write_folder("test", COUNTS))
    next(real.glob("nut/ground_truth/dent/*")).unlink()
    with pytest.raises(InputError, match="no mask"):
        downstream.run(generated, real, real)
    for mask in generated.glob("nut/ground_truth/dent/*"):
        Image.new("L", (16, 16)).save(mask)
    with pytest.raises(InputError, match="the mask is empty"):
        downstream.run(generated, real, real)
