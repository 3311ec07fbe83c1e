"""A pipeline that writes the conditions into pixels as numbers, and a judge that reads them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import KINDS, NAMES, Verdict
from defectdiffu.evaluation.oracle import SWEPT, judge_pipeline, measure, pooled, rank_correlation, run

SIZE = 16
WOOD_AND_TILE = {"wood": ["scratch", "hole", "cut", "color", "liquid"], "tile": ["crack"]}


class Painter:
    """Writes product and defect into the first two pixels and marks 2 * w_d rows; paints cracks as scratches."""

    config = SimpleNamespace(guidance="double_free", w_p=1.0, w_d=2.0, num_inference_steps=3)

    def __init__(self, pairs, draws_masks=True):
        self.pairs = pairs
        self.products = list(pairs)
        self.defects = sorted({d for defects in pairs.values() for d in defects})
        self.draws_masks = draws_masks

    def __call__(self, product, defect, w_d, seeds, batch_size):
        painted = [self.paint(p, d, w_d) for p, d, _ in zip(product, defect, seeds, strict=True)]
        return SimpleNamespace(images=[image for image, _ in painted], masks=[mask for _, mask in painted])

    def paint(self, product, defect, w_d):
        painted = "scratch" if defect == "crack" else defect
        image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        image[0, 0] = NAMES.index(product)
        image[0, 1] = KINDS.index(painted) if w_d else 0
        rows = slice(4, 4 + int(2 * w_d))
        image[rows] = 255
        if self.draws_masks:
            mask[rows] = 255
        return Image.fromarray(image), Image.fromarray(mask)


class Reader:
    def __init__(self):
        self.size, self.card = SIZE, {"size": SIZE}

    def __call__(self, images):
        products = [NAMES[i[0, 0, 0] % len(NAMES)] for i in images]
        defects = [KINDS[i[0, 1, 0] % len(KINDS)] for i in images]
        return Verdict(products, defects, (images[..., 0] == 255).astype(np.float32), np.zeros((len(images), 192)))


@pytest.fixture(scope="module")
def result():
    return judge_pipeline(Painter(WOOD_AND_TILE), num=2, strengths=(0, 1, 3), judge=Reader())


def test_what_was_asked_for_is_found(result):
    """Trained: five pairs of wood and the cracked tile, which is painted scratched; two pictures each."""
    trained = {name: row["mean"] for name, row in result["trained"].items()}
    assert trained["product_accuracy"] == trained["defect_seen"] == trained["mask_iou"] == trained["judged_good"] == 1
    assert trained["defect_accuracy"] == pytest.approx(5 / 6)
    assert trained["monotony"] == pytest.approx(1)
    assert [trained[f"area_at_{s}"] for s in (0, 1, 3)] == pytest.approx([0, 2 / SIZE, 6 / SIZE])
    assert trained["product_at_0"] == trained["product_at_3"] == 1
    assert result["trained"]["defect_accuracy"]["count"] == 12
    assert result["trained"]["monotony"]["count"] == 6


def test_change_outside_the_mask_is_that_of_the_one_pixel(result):
    written = KINDS.index("hole")
    assert result["per_pair"]["trained"]["wood hole"]["change_outside"] == pytest.approx(
        written / 255 / (SIZE * (SIZE - 4))
    )


def test_pairs_the_weights_have_not_seen_are_apart(result):
    held_out = result["per_pair"]["held_out"]
    assert set(held_out) == {"wood crack", "tile scratch", "tile color", "tile liquid"}
    assert held_out["wood crack"]["defect_accuracy"] == 0
    assert set(result["per_pair"]["rendered_held_out"]) == set(held_out)
    assert result["rendered_held_out"]["change_outside"]["mean"] < 0.01


def test_missed_masks_count_0():
    painter = Painter({"tile": ["crack"]}, draws_masks=False)
    result = judge_pipeline(painter, num=1, strengths=(1, 2), judge=Reader())
    assert result["trained"]["mask_iou"]["mean"] == 0
    assert result["held_out"] == {}  # no such pair, no score


def test_the_frame_without_a_defect_counts_once_for_each_product():
    row = {"defect_accuracy": np.ones(2), "judged_good": np.array([0.0, 1.0])}
    scores = pooled({("wood", "hole"): row, ("wood", "cut"): row, ("tile", "crack"): row})
    assert scores["judged_good"].tolist() == [0, 1, 0, 1]
    assert len(scores["defect_accuracy"]) == 6
    assert pooled({}) == {}


def test_rank_correlation():
    assert rank_correlation((0, 1, 2, 3), (0.0, 0.1, 0.3, 0.9)) == pytest.approx(1)
    assert rank_correlation((0, 1, 2, 3), (0.9, 0.3, 0.1, 0.0)) == pytest.approx(-1)
    assert rank_correlation((0, 1, 2), (0.0, 0.0, 0.0)) == 0


def test_a_pipeline_from_its_folder(tmp_path, pipe, only_that_judge):
    """Random weights at 32 pixels, a judge for 16: the scores mean nothing, the test is that it runs."""
    pipe.save_pretrained(tmp_path)
    result = run(tmp_path, num=2)
    assert set(result["per_pair"]["trained"]) == {"hazelnut crack", "hazelnut hole", "tile crack"}
    assert result["weights"] == str(tmp_path)
    assert result["settings"]["w_d"] == pipe.config.w_d
    assert result["seeds"] == [0, 1]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="num is 0"):
        judge_pipeline(Painter(WOOD_AND_TILE), num=0, judge=Reader())
    with pytest.raises(InputError, match="two values above 0"):
        judge_pipeline(Painter(WOOD_AND_TILE), num=1, strengths=(0, 1), judge=Reader())
    with pytest.raises(InputError, match="none of the procedural pairs"):
        judge_pipeline(Painter({"cable": ["cut"]}), num=1, judge=Reader())


def test_only_the_first_pictures_are_swept():
    asked = []

    def source(pairs, strength, num):
        asked.append((strength, num))
        return np.zeros((len(pairs), num, SIZE, SIZE, 3), np.uint8), np.zeros((len(pairs), num, SIZE, SIZE), bool)

    scores = measure(source, [("wood", "hole")], SWEPT + 2, (0.5, 1.0), 2.0, Reader())["wood", "hole"]
    assert asked == [(0.0, SWEPT), (0.5, SWEPT), (1.0, SWEPT), (2.0, SWEPT + 2)]
    assert len(scores["mask_iou"]) == SWEPT + 2
    assert len(scores["judged_good"]) == len(scores["change_outside"]) == SWEPT


def test_the_frame_without_a_defect_is_drawn_once_for_each_product():
    asked = []

    def source(pairs, strength, num):
        asked.extend((strength, pair) for pair in pairs)
        return np.full((len(pairs), num, SIZE, SIZE, 3), int(strength), np.uint8), np.ones(
            (len(pairs), num, SIZE, SIZE), bool
        )

    pairs = [("wood", "hole"), ("wood", "cut"), ("tile", "crack")]
    scores = measure(source, pairs, 1, (), 2.0, Reader())
    assert [product for strength, (product, _) in asked if strength == 0] == ["wood", "tile"]
    assert [pair for strength, pair in asked if strength == 2] == pairs
    assert list(scores) == pairs
