import json

import numpy as np
import pytest
import torch

from defectdiffu.drawn import procedural
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import SHIPPED, Judge, JudgeNetwork
from defectdiffu.experiments import judge_training
from defectdiffu.experiments.judge_training import TESTED, TESTING_SEEDS, degrade, draw, fit, score, train_judge


@pytest.fixture(scope="module")
def drawn():
    return draw(32, 12, first_seed=10**16)


def test_drawing_is_deterministic_and_varied(drawn, monkeypatch):
    again = draw(32, 3, first_seed=10**16)
    assert all((a == b[:3]).all() for a, b in zip(again, drawn, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(procedural, "FEW", 0)
        by_two = draw(32, 3, first_seed=10**16, workers=2)
    assert all((a == b).all() for a, b in zip(again, by_two, strict=True))
    assert len(set(drawn.products)) > 3
    assert len(set(drawn.defects)) > 3
    assert (drawn.masks.any((1, 2)) == (drawn.defects > 0)).all()
    assert ((drawn.images != drawn.normals).any((1, 2, 3)) == (drawn.defects > 0)).all()


def test_a_degraded_picture_is_another_but_much_the_same(drawn):
    rng = np.random.default_rng(0)
    degraded = np.stack([degrade(image, rng) for image in drawn.images])
    assert degraded.dtype == np.uint8 and degraded.shape == drawn.images.shape
    again = degrade(drawn.images[0], np.random.default_rng(0))
    assert (again == degraded[0]).all()
    error = np.abs(degraded.astype(float) - drawn.images).mean((1, 2, 3))
    assert (error > 0.5).all() and (error < 25).all()  # of 255


def test_a_picture_may_be_shown_without_its_defect(drawn, monkeypatch):
    """If every picture is, there is only one class: the judge learns to call all of them good."""
    monkeypatch.setattr(judge_training, "COUNTERFACTUAL_SHARE", 1.0)
    torch.manual_seed(0)
    network = JudgeNetwork(32)
    fit(network, drawn, epochs=20, seed=0, batch_size=6)
    assert set(Judge(network, {"size": 32})(drawn.normals).defects) == {"good"}


def test_a_few_steps_lower_the_loss_the_same_way_each_time(drawn):
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(fit(JudgeNetwork(32), drawn, epochs=12, seed=0, batch_size=6))
    assert losses[0][-1] < 0.6 * losses[0][0]
    assert losses[0] == losses[1]


def test_trained_judge_answers_the_same_when_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_training, "TESTED", 4)
    cache = tmp_path / "drawn.npz"
    judge = train_judge(16, 6, seed=0, out=tmp_path / "judge", epochs=1, cache=cache)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    ours, loaded = judge(images), Judge.load(tmp_path / "judge")(images, batch_size=2)
    assert ours.products == loaded.products
    assert ours.defects == loaded.defects
    assert ours.mask_probs == pytest.approx(loaded.mask_probs, abs=1e-6)
    assert judge.card["trained_on"]["images"] == 6
    assert set(judge.card["scores"]) >= {"product_accuracy", "defect_accuracy", "mask_iou"}

    monkeypatch.setattr(judge_training, "render", None)  # the cache is used: only the test pictures would be drawn
    monkeypatch.setattr(judge_training, "draw", lambda *_: draw_from(cache))
    again = train_judge(16, 6, seed=0, out=tmp_path / "again", epochs=1, cache=cache)
    assert (again(images).mask_probs == judge(images).mask_probs).all()
    with pytest.raises(InputError, match="remove it"):
        train_judge(16, 7, seed=0, out=tmp_path / "again", cache=cache)


def draw_from(cache):
    with np.load(cache) as file:
        return judge_training.Drawn(**file)


@pytest.mark.parametrize("folder", sorted(SHIPPED.glob("*")), ids=lambda folder: folder.name)
def test_a_shipped_judge_is_as_good_as_its_card_says(folder):
    """On 60 pictures not used for the card's scores, within three standard errors."""
    card = json.loads((folder / "judge.json").read_text())
    found = score(Judge.load(folder), draw(card["size"], 60, TESTING_SEEDS + TESTED))
    for name, stated in card["scores"].items():
        assert abs(found[name] - stated) < 3 * np.sqrt(0.25 / 60), name
    assert found["product_accuracy"] >= 0.95
