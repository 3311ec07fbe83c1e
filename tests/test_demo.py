"""The page of `defectdiffu demo`: what its button does, and the real server used in a browser without network."""

import io
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason='the demo is not tested: pip install "defectdiffu[demo]"')
from defectdiffu import InputError, demo

SETTINGS = {"w_d": 1.0, "w_p": 1.0, "seed": 3, "steps": 2, "strength": 0.5}


def editor(painted: bool, width: int = 50, height: int = 40) -> dict:
    layer = Image.new("RGBA", (width, height))
    if painted:
        layer.paste((0, 190, 255, 255), (5, 5, 15, 15))
    return {"background": Image.new("RGBA", (width, height), (90, 80, 70, 255)), "layers": [layer], "composite": None}


@pytest.mark.parametrize("empty", [None, {"background": None, "layers": []}])
def test_without_a_picture_one_is_generated(pipe, tmp_path, empty):
    image, marked, file = demo.draw(pipe, tmp_path, "tile", "crack", editor=empty, **SETTINGS)
    (expected,) = pipe("tile", "crack", w_d=1.0, w_p=1.0, seeds=[3], num_inference_steps=2).images
    assert image.tobytes() == expected.tobytes()
    assert marked.size == image.size
    with zipfile.ZipFile(file) as pair:
        assert pair.namelist() == ["image.png", "mask.png"]
        assert Image.open(io.BytesIO(pair.read("image.png"))).tobytes() == image.tobytes()
        assert Image.open(io.BytesIO(pair.read("mask.png"))).mode == "L"


def test_what_is_painted_is_the_place(pipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(pipe), "__call__", lambda self, *names, **given: asked.append(given) or self.unpatched(*names, **given)
    )
    pipe.unpatched = lambda *_, **given: _output(given["image"])
    for painted in (True, False):
        demo.draw(pipe, tmp_path, "tile", "crack", editor=editor(painted), **SETTINGS)
    with_place, without = asked
    assert np.asarray(with_place["mask"]).sum() == 100
    assert (with_place["image"].mode, with_place["image"].size, with_place["strength"]) == ("RGB", (50, 40), 0.5)
    assert "mask" not in without


def _output(image: Image.Image):
    from defectdiffu.pipeline import DefectDiffuOutput

    return DefectDiffuOutput([image], [Image.new("L", image.size)], np.zeros((1, 32, 32)), [3])


def test_bad_input_is_an_error_of_one_line(pipe, tmp_path):
    with pytest.raises(InputError, match="unknown defect 'rust'"):
        demo.draw(pipe, tmp_path, "tile", "rust", editor=None, **SETTINGS)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def address():
    """A real server of the shipped weights `tiny`, started by the command line, on a free port."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "defectdiffu", "demo", "--weights", "tiny", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    while f"127.0.0.1:{port}" not in said:
        line = server.stdout.readline()
        assert line, f"the server ended: {said}"
        said += line
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


@pytest.mark.skipif(not CHROMIUM, reason="the page is not opened: no Chromium")
def test_a_defect_is_painted_on_a_picture_and_downloaded(address, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is not opened: pip install playwright")
    before = Image.fromarray(np.random.default_rng(0).integers(60, 90, (200, 200, 3), dtype=np.uint8))
    before.save(tmp_path / "picture.png")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(120_000)  # milliseconds: a busy machine is slow
        elsewhere = []
        tab.on("request", lambda r: re.match(r"(http://127\.0\.0\.1|data:|blob:)", r.url) or elsewhere.append(r.url))
        tab.goto(address)
        tab.get_by_role("button", name="Generate").wait_for()
        tab.locator("input[type=file]").first.set_input_files(tmp_path / "picture.png")
        canvas = tab.locator("canvas").first
        canvas.wait_for()
        tab.wait_for_timeout(3000)  # the picture is drawn on the canvas
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x + 20, y + 20, steps=8)
        tab.mouse.up()
        tab.get_by_role("button", name="Generate").click()
        tab.locator("img[src*='image']").nth(1).wait_for()  # the second result: both are there
        with tab.expect_download() as download:
            tab.get_by_text("Download the pair").click()
        with zipfile.ZipFile(download.value.path()) as pair:
            after = np.asarray(Image.open(io.BytesIO(pair.read("image.png")))).astype(int)
        browser.close()
    changed = (after != np.asarray(before)).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[100, 100] or len(rows) > 100  # something is drawn, about the middle
    assert rows.min() > 40 and rows.max() < 160 and columns.min() > 40 and columns.max() < 160  # and nothing elsewhere
    assert not elsewhere
