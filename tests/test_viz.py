from html.parser import HTMLParser
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from defectdiffu import viz
from defectdiffu.config import GOOD
from defectdiffu.drawn.procedural import PAIRS
from defectdiffu.errors import InputError


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

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_grid_and_sheet_have_one_axis_per_image(image, mask):
    figure = viz.grid([[image] * 3, [mask] * 3], ["image", "mask"], ["0", "1", "2"])
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:3]] == ["0", "1", "2"]
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["image", "mask"]
    out = SimpleNamespace(images=[image, image], masks=[mask, mask])
    assert len(viz.sheet({"tile, crack": out, "wood, hole": out}).axes) == 8


def test_static_slider_is_valid_html_with_every_frame_inside(image):
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
    assert "background:white;color:black" in page.all("figure")[0]["style"]  # readable on a dark page


def test_static_sliders_share_a_page_and_load_nothing(image):
    text = 2 * viz.static_slider([image], [1]).data
    assert "http" not in text
    assert not [attrs for _, attrs in Elements(text).found if "id" in attrs]


@pytest.mark.parametrize(("frames", "values"), [(0, []), (2, [1])])
def test_static_slider_wants_one_value_per_frame(image, frames, values):
    with pytest.raises(ValueError, match="frames"):
        viz.static_slider([image] * frames, values)


class Pipe:
    """A fake pipeline: records its calls and returns one pair for each seed."""

    products, defects = ("tile", "wood"), ("crack",)
    config: ClassVar = {"w_d": 1.0, "w_p": 2.0, "num_inference_steps": 3}

    def __init__(self, image, mask):
        self.pair, self.calls = (image, mask), []

    def __call__(self, *names, seeds, num_images=None, **settings):
        assert num_images in (None, len(seeds))
        self.calls.append({"seeds": list(seeds), **dict(zip(("product", "defect"), names, strict=False)), **settings})
        image, mask = self.pair
        return SimpleNamespace(images=[image] * len(seeds), masks=[mask] * len(seeds))


@pytest.fixture
def pipe(image, mask):
    return Pipe(image, mask)


def test_pairs_show_every_image_above_itself_with_its_mask(pipe, image, mask):
    picture = viz.pairs(pipe(seeds=[0, 1], num_images=2), side=64)
    assert picture.size == (132, 132)
    assert picture.crop((68, 0, 132, 64)).tobytes() == image.tobytes()
    assert picture.crop((68, 68, 132, 132)).tobytes() == viz.overlay(image, mask).tobytes()


def test_slider_draws_a_frame_per_value_and_changes_nothing_else(pipe):
    page = Elements(viz.slider(pipe, "wood", "crack", values=[0, 1, 2], seeds=[4, 5], w_p=1.5).data)
    common = {"product": "wood", "defect": "crack", "w_p": 1.5, "seeds": [4, 5]}
    assert pipe.calls == [common | {"w_d": w_d} for w_d in (0, 1, 2)]
    assert [frame["data-text"] for frame in page.all("img")] == ["w_d = 0", "w_d = 1", "w_d = 2"]
    assert "wood, crack" in page.all("img")[0]["alt"]


def test_slider_moves_names_as_well_as_numbers(pipe):
    page = Elements(viz.slider(pipe, over="product", values=pipe.products, seeds=[0]).data)
    assert [call["product"] for call in pipe.calls] == ["tile", "wood"]
    assert [frame["data-text"] for frame in page.all("img")] == ["product = tile", "product = wood"]


def test_slider_names_what_it_can_move(pipe):
    with pytest.raises(InputError, match="w_p"):
        viz.slider(pipe, over="strength")


def test_explorer_has_a_frame_for_each_two_strengths(pipe):
    page = Elements(viz.explorer(pipe, "wood", "crack", w_p=[0, 1], w_d=[0, 1.5, 3], seed=4, start=(1, 2)).data)
    common = {"product": "wood", "defect": "crack", "w_d": [0, 1.5, 3], "seeds": [4, 4, 4]}
    assert pipe.calls == [common | {"w_p": w_p} for w_p in (0, 1)]
    frames = page.all("img")
    assert [frame["data-text"] for frame in frames] == [
        f"w_p = {p}, w_d = {d}" for p in "01" for d in ("0", "1.5", "3")
    ]
    assert "wood, crack" in frames[0]["alt"]
    assert [frame["style"].startswith("display:block") for frame in frames] == [False] * 5 + [True]
    controls = [(c["aria-label"], c["max"], c["value"], c["aria-valuetext"]) for c in page.all("input")]
    assert controls == [("w_p", "1", "1", "w_p = 1, w_d = 3"), ("w_d", "2", "2", "w_p = 1, w_d = 3")]
    assert "--at-0:1;--at-1:2" in page.all("figure")[0]["style"]
    (plane,) = page.all("svg")
    assert "touch-action:none" in plane["style"]  # a finger drags the point and does not scroll the page


def test_explorer_loads_nothing_and_has_no_ids(image):
    text = viz.static_explorer([[image, image]], [1], [0, 1]).data
    assert "http" not in text
    assert not [attrs for _, attrs in Elements(text).found if "id" in attrs]


@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (1, 2), (2, 3)])
def test_explorer_wants_one_frame_per_two_values(image, rows, columns):
    with pytest.raises(InputError, match="frames"):
        viz.static_explorer([[image] * columns] * rows, [0, 1], [0, 1])


def test_live_slider_draws_once_per_setting(pipe):
    left, picture = viz.slider(pipe, "wood", seeds=[7], w_p=1.5, guidance="product_aware", live=True).children
    first = {"product": "wood", "defect": "crack", "w_d": 1.0, "w_p": 1.5, "seeds": [7], "num_inference_steps": 3}
    first["guidance"] = "product_aware"
    assert pipe.calls == [first]
    assert picture.value[8:12] == b"WEBP"
    *controls, status = left.children
    assert [control.description for control in controls] == ["product", "defect", "w_d", "w_p", "seed", "steps"]
    controls[2].value = 2.0
    controls[2].value = 1.0
    assert pipe.calls == [first, first | {"w_d": 2.0}]
    assert status.value.startswith("a frame takes")
    for control, value in zip(controls, ("tile", "good", 0.5, 3.0, 1, 9), strict=True):
        control.value = value
    new = {"product": "tile", "defect": "good", "w_d": 0.5, "w_p": 3.0, "seeds": [1], "num_inference_steps": 9}
    assert pipe.calls[-1] == first | new
    assert len(pipe.calls) == 8


def test_a_live_slider_on_a_picture_of_ones_own(pipe):
    image = Image.new("RGB", (40, 32))
    viz.live_slider(pipe, "wood", image=image)
    assert pipe.calls[0]["image"] is image


def test_a_sheet_of_weights_shows_every_pair_at_every_strength(pipe):
    sheet = viz.weights_sheet(pipe, strengths=(1, 2), seed=5)
    assert sheet.width > 11 * 2 * 64 and sheet.height > 12 * 2 * 64
    (call,) = pipe.calls  # all in one
    asked = list(zip(*(call[name] for name in ("product", "defect", "w_d", "seeds")), strict=True))
    expected = []
    for product, found in PAIRS.items():
        expected += [(product, GOOD, 0, 5), (product, GOOD, 0, 6)]
        expected += [(product, defect, w_d, 5) for defect in found for w_d in (1, 2)]
    assert asked == expected


def test_code_is_shown_without_its_documentation(capsys):
    viz.show_code(viz.show_code)
    out = capsys.readouterr().out
    assert out.startswith("def show_code(") and "getsource" in out and "Print functions" not in out
