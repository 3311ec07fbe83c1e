import diffusers
import numpy as np
import pytest
import torch
from helpers import random_prompts
from PIL import Image

from defectdiffu import InputError
from defectdiffu.inpainting import GivenPicture, Known, around, band, known_prediction
from defectdiffu.losses import picture_of
from defectdiffu.prompts import Conditions
from defectdiffu.weight_files import SCHEDULERS

SIZE = 32


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def place(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Image.Image:
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def square(image: Image.Image, mask: Image.Image | None = None, crop: int | None = None) -> GivenPicture:
    return GivenPicture.prepare(image, mask, SIZE, crop)


# ---------------------------------------------------------------------------------------------------------------------
# What is known outside the region


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_the_known_prediction_says_that_the_picture_is_the_given_one(prediction):
    x_0, x_t = torch.randn(2, 3, 4, 4, 4)
    a_bar = torch.tensor([0.9, 0.5, 0.01])
    known = known_prediction(prediction, x_0, x_t, a_bar)
    torch.testing.assert_close(picture_of(prediction, known, x_t, a_bar), x_0, atol=1e-4, rtol=1e-4)


def test_the_guided_prediction_counts_inside_the_region_only():
    x_0, x_t, guided = torch.randn(3, 1, 4, 4, 4)
    region = torch.zeros(1, 8, 8)
    region[0, 1, 5] = 1  # one pixel: its whole cell of the latent
    a_bar = torch.tensor([0.5])
    predicted = Known(x_0, region, 1.0).predicted("velocity", guided, x_t, a_bar)
    is_guided = (predicted == guided).all(1)[0]
    assert is_guided.nonzero().tolist() == [[0, 2]]
    outside = ~is_guided
    implied = picture_of("velocity", predicted, x_t, a_bar)
    torch.testing.assert_close(implied[0, :, outside], x_0[0, :, outside], atol=1e-5, rtol=1e-5)
    assert Known(x_0, None, 1.0).predicted("velocity", guided, x_t, a_bar) is guided


def test_the_defect_blocks_attend_inside_the_region_only():
    prompts = Conditions(*(random_prompts(2, 8) for _ in range(3)))
    region = torch.zeros(2, 8, 8)
    region[0, 1, 5] = 1
    confined = Known(torch.zeros(2, 4, 4, 4), region, 1.0).confine({"d0": prompts}, side=2)["d0"]
    assert confined.defect.region.tolist() == [[False, True, False, False], [True] * 4]  # no region: everywhere
    assert confined.product.region is None and confined.fusion.region is None and prompts.defect.region is None
    assert Known(torch.zeros(2, 4, 4, 4), None, 1.0).confine({"d0": prompts}, side=2)["d0"] is prompts


# ---------------------------------------------------------------------------------------------------------------------
# The square that is worked on


@pytest.mark.parametrize(
    ("mask", "crop", "window"),
    [
        (None, None, (70, 0, 60)),  # the middle of 200 x 60
        (None, 20, (90, 20, 20)),
        (place(200, 60, 100, 10, 110, 20), None, (75, 0, 60)),  # around the mask
        (place(200, 60, 100, 30, 110, 40), 20, (95, 25, 20)),
        (place(200, 60, 195, 0, 200, 5), 20, (180, 0, 20)),  # inside the picture
        (place(200, 60, 0, 55, 5, 60), None, (0, 0, 60)),
    ],
)
def test_the_square_is_around_the_mask_and_inside_the_picture(mask, crop, window):
    assert square(picture(200, 60), mask, crop).window == window


def test_the_region_is_the_mask_in_the_square():
    given = square(picture(200, 64), place(200, 64, 100, 20, 120, 30))
    assert given.window == (78, 0, 64)
    assert given.region.shape == (SIZE, SIZE)
    rows, columns = np.nonzero(given.region)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 14, 11, 20)
    dot = square(picture(500, 500), place(500, 500, 250, 250, 251, 251))  # a fifteenth of a pixel of the square
    assert dot.region.sum() == 1
    assert square(picture(20, 20), place(20, 20, 5, 5, 15, 15)).region.mean() == pytest.approx(0.25, abs=0.05)
    assert square(picture(64, 64)).region is None


@pytest.mark.parametrize(
    ("image", "mask", "crop", "message"),
    [
        ("a.png", None, None, "it must be a PIL image"),
        (picture(15, 40), None, None, "the picture has 15 x 40 pixels: at least 16"),
        (picture(64, 64), place(32, 64, 0, 0, 9, 9), None, "the mask has 32 x 64 pixels, the picture 64 x 64"),
        (picture(64, 64), place(64, 64, 0, 0, 0, 0), None, "the mask marks nothing"),
        (picture(64, 64), place(64, 64, 0, 0, 40, 9), 32, "spreads over 40 x 9 pixels, the square .* has 32"),
        (picture(64, 40), None, 41, "crop is 41: it must be from 16 to 40"),
    ],
)
def test_a_picture_or_mask_that_cannot_be_used_is_refused(image, mask, crop, message):
    with pytest.raises(InputError, match=message):
        square(image, mask, crop)


# ---------------------------------------------------------------------------------------------------------------------
# What changes


@pytest.mark.parametrize("side", [16, 32, 100, 320])  # the square smaller and larger than the model's pictures
def test_the_difference_is_added_in_the_region_and_nothing_changes_beyond_the_band(side):
    image = Image.new("RGB", (side + 30, side), (100, 100, 100))
    given = GivenPicture(image, (30, 0, side), None)
    region = np.zeros((SIZE, SIZE), bool)
    region[8:16, 8:16] = True
    changed = np.asarray(given.changed(np.full((SIZE, SIZE, 3), 20, np.float32), region)).astype(int) - 100
    at = np.arange(side) * SIZE / side  # of the picture's pixels in the square
    inside = (at >= 9) & (at < 15)
    assert (changed[np.ix_(inside, 30 + np.flatnonzero(inside))] == 20).all()
    beyond = (at < 8 - band(SIZE) - 2) | (at >= 16 + band(SIZE) + 2)
    assert (changed[beyond] == 0).all()
    assert (changed[:, 30 + np.flatnonzero(beyond)] == 0).all()
    assert (changed[:, :30] == 0).all()
    middle = changed[side * 12 // SIZE, 30 + side * 12 // SIZE :, 0]
    assert (np.diff(middle) <= 0).all()  # it fades, and does not ring


def test_no_difference_or_no_region_changes_no_byte():
    given = square(picture(90, 70))
    nothing = np.zeros((SIZE, SIZE, 3), np.float32)
    everywhere, nowhere = np.ones((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool)
    assert given.changed(nothing, everywhere).tobytes() == given.image.tobytes()
    assert given.changed(nothing + 50, nowhere).tobytes() == given.image.tobytes()
    assert (np.asarray(given.changed(nothing + 255, everywhere).crop(given.box)) == 255).all()


def test_a_mask_of_the_square_takes_its_place_in_the_picture():
    given = square(picture(200, 64))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4, 6] = 255
    rows, columns = np.nonzero(np.asarray(given.marked(mask)))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 9, 68 + 12, 68 + 13)


def test_the_chosen_region_is_wider_than_the_mask():
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[0, 30, 30] = 255
    chosen, none = around([*masks])
    assert chosen[30].nonzero()[0].tolist() == [*range(28, 33)]
    assert not none.any()


# ---------------------------------------------------------------------------------------------------------------------
# A call


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_changes_the_place_and_nothing_else(pipe, scheduler):
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    image, mask = picture(100, 80), place(100, 80, 40, 30, 60, 50)
    out = pipe("tile", "crack", image=image, mask=mask, seeds=[3, 4], num_inference_steps=5, strength=0.8)
    for changed, marked in zip(out.images, out.masks, strict=True):
        assert (changed.size, changed.mode, marked.size, marked.mode) == (image.size, "RGB", image.size, "L")
        rows, columns = np.nonzero((np.asarray(changed) != np.asarray(image)).any(-1))
        assert len(rows)
        reach = (band(SIZE) + 6) * 80 / SIZE  # the band, and the pixel of the model's picture that the mask begins in
        assert rows.min() >= 30 - reach and rows.max() < 50 + reach
        assert columns.min() >= 40 - reach and columns.max() < 60 + reach
        assert not (np.asarray(marked) > 0)[:, :37].any()
    assert out.images[0].tobytes() != out.images[1].tobytes()


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(pipe):
    image, mask = picture(64, 64), place(64, 64, 20, 20, 40, 40)
    given = {"image": image, "mask": mask, "num_inference_steps": 3}
    together = pipe("tile", "crack", seeds=[3, 4], **given).images
    alone = pipe("tile", "crack", seeds=[4], **given).images[0]
    assert np.abs(np.asarray(together[1]).astype(int) - np.asarray(alone)).max() <= 1


def test_a_picture_and_a_mask_for_each_image(pipe):
    pictures = [picture(64, 64, seed) for seed in range(2)]
    places = [place(64, 64, 0, 0, 10, 10), place(64, 64, 50, 50, 60, 60)]
    out = pipe("tile", "crack", image=pictures, mask=places, num_inference_steps=2)
    for before, after, corner in zip(pictures, out.images, (0, 63), strict=True):
        differs = (np.asarray(before) != np.asarray(after)).any(-1)
        assert differs[abs(corner - 5), abs(corner - 5)] and not differs[63 - corner, 63 - corner]


def test_without_a_mask_the_model_chooses_by_its_own(pipe, monkeypatch):
    image = picture(64, 64)
    chosen = np.zeros((SIZE, SIZE), np.uint8)
    chosen[16, 16] = 255
    monkeypatch.setattr("defectdiffu.masks.binarise", lambda _: chosen)
    out = pipe("tile", "crack", image=image, num_inference_steps=2)
    differs = (np.asarray(image) != np.asarray(out.images[0])).any(-1)
    assert differs[32, 32] and not differs[0, 0]
    monkeypatch.setattr("defectdiffu.masks.binarise", np.zeros_like)  # it finds no place: no defect, no mask
    out = pipe("tile", "crack", image=image, num_inference_steps=2)
    assert out.images[0].tobytes() == image.tobytes()
    assert out.masks[0].getbbox() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None, "mask": place(64, 64, 0, 0, 9, 9)}, "give image, too"),
        ({"image": None, "crop": 32}, "give image, too"),
        ({"defect": "good"}, "a given picture gets a defect"),
        ({"check": True}, "no check"),
        ({"strength": 0}, "strength is 0: it must be from 0.01 to 1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"image": [picture(64, 64)] * 3, "num_images": 2}, "3 image for 2 images"),
        ({"mask": [place(64, 64, 0, 0, 9, 9)] * 3, "num_images": 2}, "3 mask for 2 images"),
        ({"mask": [place(64, 64, 0, 0, 9, 9), None], "num_images": 2}, "some images have a mask and some have none"),
    ],
)
def test_settings_that_do_not_fit_a_given_picture_are_refused(pipe, changes, message):
    given = {"product": "tile", "defect": "crack", "image": picture(64, 64)}
    with pytest.raises(InputError, match=message):
        pipe(**given | changes)
