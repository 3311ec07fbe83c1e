from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from defectdiffu import viz


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture
def mask():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:30, 20:50] = 255
    return Image.fromarray(pixels)


class Elements(HTMLParser):
    """Every start tag with its attributes; end tags must match."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_enlarge_keeps_a_mask_binary(image, mask):
    assert viz.enlarge(image, 192).size == (192, 192)
    assert viz.enlarge(image, 10).size == image.size
    large = np.asarray(viz.enlarge(mask, 128))
    assert (large == np.asarray(mask).repeat(2, 0).repeat(2, 1)).all()


def test_overlay_changes_the_image_where_the_mask_is_and_nowhere_else(image, mask):
    before, after, marked = np.asarray(image), np.asarray(viz.overlay(image, mask)), np.asarray(mask) > 0
    assert (before[~marked] == after[~marked]).all()
    assert (before[marked] != after[marked]).any(axis=1).all()
    assert (after[10, 20:50] == viz.MASK_COLOUR).all()  # the outline
    assert (after[15, 25] != viz.MASK_COLOUR).any()  # the fill lets the defect show


def test_overlay_of_an_empty_mask_is_the_image(image):
    assert (np.asarray(viz.overlay(image, Image.new("L", image.size))) == np.asarray(image)).all()


def test_overlay_refuses_a_mask_of_another_size(image):
    with pytest.raises(ValueError, match="64, 64"):
        viz.overlay(image, Image.new("L", (32, 32)))


def test_mosaic_has_every_image_in_its_place(image, mask):
    canvas = viz.mosaic([[image, image], [mask]], gap=4)
    assert canvas.size == (132, 132)
    assert canvas.crop((68, 0, 132, 64)).tobytes() == image.tobytes()
    assert canvas.getpixel((66, 10)) == (255, 255, 255)


def test_grid_and_sheet_have_one_axis_per_image(image, mask):
    figure = viz.grid([[image] * 3, [mask] * 3], ["image", "mask"], ["0", "1", "2"])
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:3]] == ["0", "1", "2"]
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["image", "mask"]
    out = SimpleNamespace(images=[image, image], masks=[mask, mask])
    assert len(viz.sheet({"tile, crack": out, "wood, hole": out}).axes) == 8


def test_static_slider_is_sound_html_with_every_frame_inside(image):
    page = Elements(viz.static_slider([image] * 5, [0, 0.5, 1, 1.5, 2], 'w"<', alt="tile & crack", start=2).data)
    frames = page.all("img")
    assert len(frames) == 5
    assert all(frame["src"].startswith("data:image/webp;base64,") for frame in frames)
    assert [frame["style"].startswith("display:block") for frame in frames] == [False, False, True, False, False]
    assert frames[1]["data-text"] == 'w"< = 0.5'
    assert frames[1]["alt"] == 'tile & crack w"< = 0.5'
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "4", "2")
    assert slider["aria-label"] == 'w"<'
    assert slider["aria-valuetext"] == 'w"< = 1'


def test_static_sliders_share_a_page_and_load_nothing(image):
    text = 2 * viz.static_slider([image], [1]).data
    assert "http" not in text
    assert not [attrs for _, attrs in Elements(text).found if "id" in attrs]


@pytest.mark.parametrize(("frames", "values"), [(0, []), (2, [1])])
def test_static_slider_wants_one_value_per_frame(image, frames, values):
    with pytest.raises(ValueError, match="frames"):
        viz.static_slider([image] * frames, values)


def test_live_slider_draws_once_per_setting(image, mask):
    calls = []

    def pipe(**settings):
        calls.append(settings)
        return SimpleNamespace(images=[image], masks=[mask])

    pipe.products, pipe.defects = ["tile", "wood"], ["crack"]
    pipe.config = SimpleNamespace(w_d=1.0, w_p=2.0, num_inference_steps=3)
    controls, picture = viz.live_slider(pipe, product="wood").children
    first = {"product": "wood", "defect": "crack", "w_d": 1.0, "w_p": 2.0, "seeds": [0], "num_inference_steps": 3}
    assert calls == [first]
    assert picture.value[8:12] == b"WEBP"
    w_d = next(control for control in controls.children if control.description == "w_d")
    w_d.value = 2.0
    w_d.value = 1.0
    assert calls == [first, first | {"w_d": 2.0}]
    assert controls.children[-1].value.startswith("a frame takes")
