import numpy as np
import pytest
import torch
from PIL import Image

from defectdiffu import pictures


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture
def mask():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:30, 20:50] = 255
    return Image.fromarray(pixels)


def test_enlarge_keeps_a_mask_binary(image, mask):
    assert pictures.enlarge(image, 192).size == (192, 192)
    assert pictures.enlarge(image, 10).size == image.size
    large = np.asarray(pictures.enlarge(mask, 128))
    assert (large == np.asarray(mask).repeat(2, 0).repeat(2, 1)).all()


def test_overlay_changes_the_image_where_the_mask_is_and_nowhere_else(image, mask):
    before, after, marked = np.asarray(image), np.asarray(pictures.overlay(image, mask)), np.asarray(mask) > 0
    assert (before[~marked] == after[~marked]).all()
    assert (before[marked] != after[marked]).any(axis=1).all()
    assert (after[10, 20:50] == pictures.MASK_COLOUR).all()  # the outline
    assert (after[15, 25] != pictures.MASK_COLOUR).any()  # the fill lets the defect show


def test_overlay_of_an_empty_mask_is_the_image(image):
    assert (np.asarray(pictures.overlay(image, Image.new("L", image.size))) == np.asarray(image)).all()


def test_overlay_refuses_a_mask_of_another_size(image):
    with pytest.raises(ValueError, match="64, 64"):
        pictures.overlay(image, Image.new("L", (32, 32)))


def test_mosaic_has_every_image_in_its_place(image, mask):
    canvas = pictures.mosaic([[image, image], [mask]], gap=4)
    assert canvas.size == (132, 132)
    assert canvas.crop((68, 0, 132, 64)).tobytes() == image.tobytes()
    assert canvas.getpixel((66, 10)) == (255, 255, 255)


def test_bytes_return_from_tensors():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    tensor = pictures.to_tensor(images)
    assert tensor.shape == (2, 3, 8, 8)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert (pictures.to_uint8(tensor) == images).all()
    assert torch.equal(pictures.to_tensor(torch.from_numpy(images)), tensor)
