"""The procedural benchmark: the same to the byte, an exact counterfactual, stronger means larger."""

import subprocess
import sys
from zlib import crc32

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from defectdiffu.drawn import procedural
from defectdiffu.drawn.procedural import DEFECTS, HELD_OUT, PAIRS, PRODUCTS, render, write_dataset
from defectdiffu.errors import InputError

ALL_PAIRS = [(product, defect) for product in PRODUCTS for defect in PAIRS[product]]
FINGERPRINT = """
from zlib import crc32
from defectdiffu.drawn.procedural import PRODUCTS, PAIRS, render
print([crc32(b"".join(a.tobytes() for a in render(p, PAIRS[p][-1], 0.6, 3, 64))) for p in PRODUCTS])
"""


def difference(a, b):
    return np.abs(a.astype(int) - b).mean(-1)


def block_mean(picture, size=64):
    k = len(picture) // size
    return picture.reshape(size, k, size, k, -1).mean((1, 3)).squeeze()


def test_same_bytes_in_another_process():
    other = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    here = [crc32(b"".join(a.tobytes() for a in render(p, PAIRS[p][-1], 0.6, 3, 64))) for p in PRODUCTS]
    assert other.stdout.strip() == str(here)


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_has_no_defect_and_seeds_differ(product):
    image, mask, normal = render(product, "good", seed=1)
    assert image.shape == normal.shape == (256, 256, 3) and mask.shape == (256, 256)
    assert image.dtype == mask.dtype == normal.dtype == np.uint8
    assert np.array_equal(image, normal) and not mask.any()
    assert difference(image, render(product, "good", seed=2).image).mean() > 3


@pytest.mark.parametrize(("product", "defect"), ALL_PAIRS)
def test_pair(product, defect):
    results = [render(product, defect, strength, seed=5) for strength in (0.0, 0.5, 1.0)]
    areas = [np.count_nonzero(r.mask) for r in results]
    assert areas == sorted(areas) and areas[-1] > 1.5 * areas[0] > 0
    for image, mask, normal in results[::2]:
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(normal, results[0].normal)
        change = difference(image, normal)
        near = binary_dilation(mask > 0, iterations=14)
        assert change[~near].mean() < 0.3
        assert change[mask > 0].mean() > 10  # visible: levels of 255
        blocks, share = block_mean(image) - block_mean(normal), block_mean(mask / 255)
        assert np.abs(blocks).mean(-1)[share >= min(0.35, share.max())].mean() > 6  # and still at 64 pixels


@pytest.mark.parametrize("size", [32, 100])
def test_small_masks_are_never_empty(size):
    for product, defect in (("screw", "scratch"), ("grid", "thread"), ("capsule", "crack")):
        image, mask, _ = render(product, defect, 0.0, seed=0, size=size)
        assert image.shape == (size, size, 3) and mask.any()


def test_one_scene_at_every_size():
    for product, defect in (("leather", "color"), ("hazelnut", "hole"), ("pill", "broken")):
        usual, small, large = (render(product, defect, 0.5, 0, size) for size in (256, 64, 512))
        assert np.abs(small.image - block_mean(usual.image)).max() <= 1.01
        assert np.array_equal(small.mask > 0, block_mean(usual.mask / 255) >= 0.35)
        a, b = usual.mask > 0, block_mean(large.mask / 255, 256) >= 0.5
        assert (a & b).sum() / (a | b).sum() > 0.9


def test_any_defect_can_be_put_on_any_product():
    for k, product in enumerate(PRODUCTS):
        for defect in list(DEFECTS)[k % 3 :: 3]:
            assert render(product, defect, 0.5, 0, 64).mask.any()


def test_pairs():
    assert list(PAIRS) == list(PRODUCTS)
    for product, names in PAIRS.items():
        assert 4 <= len(names) <= 6 and set(names) <= set(DEFECTS), product
    for defect in DEFECTS:
        assert sum(defect in names for names in PAIRS.values()) >= 4, defect
    for product, defect in HELD_OUT:
        assert defect in PAIRS[product]
        trained = [p for p in PRODUCTS if defect in PAIRS[p] and (p, defect) not in HELD_OUT]
        assert len(trained) >= 3, defect


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hazlenut", "crack"), "unknown product 'hazlenut': did you mean hazelnut"),
        (("hazelnut", "crak"), "unknown defect 'crak': did you mean crack"),
        (("hazelnut", "crack", 1.5), "strength is 1.5"),
        (("hazelnut", "crack", 0.5, -1), "seed is -1"),
        (("hazelnut", "crack", 0.5, 0, 8), "size is 8"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        render(*arguments)


def test_write_dataset(tmp_path):
    out = tmp_path / "set"
    write_dataset(out, products=["screw", "zipper"], defects=["bent", "thread"], per_pair=2, size=32)
    files = sorted(str(f.relative_to(out)) for f in out.rglob("*.png"))
    expected = [f"{p}/train/good/{i:03d}.png" for p in ("screw", "zipper") for i in range(20)]
    for product, defect in (("screw", "bent"), ("screw", "thread"), ("zipper", "bent")):  # zipper thread is held out
        expected += [f"{product}/test/{defect}/{i:03d}.png" for i in range(2)]
        expected += [f"{product}/ground_truth/{defect}/{i:03d}_mask.png" for i in range(2)]
    assert files == sorted(expected)
    assert len({f.read_bytes() for f in out.rglob("*.png")}) == len(files)
    mask = Image.open(out / "screw/ground_truth/bent/001_mask.png")
    assert mask.mode == "L" and mask.size == (32, 32) and set(np.unique(mask)) == {0, 255}

    more = tmp_path / "more"
    write_dataset(more, products=["screw"], defects=["bent"], per_pair=1, size=32, good=3)
    assert len(list(more.rglob("*.png"))) == 3 + 2
    for name in ("train/good/002.png", "test/bent/000.png"):  # the same specimens, however many there are
        assert (more / "screw" / name).read_bytes() == (out / "screw" / name).read_bytes()

    with pytest.raises(InputError, match="not empty"):
        write_dataset(out)
    write_dataset(tmp_path / "unseen", products=["zipper"], per_pair=1, size=32, held_out=True)
    written = {f.relative_to(tmp_path / "unseen").parts[1:3] for f in (tmp_path / "unseen").rglob("*.png")}
    assert written == {("test", "thread"), ("ground_truth", "thread")}
    with pytest.raises(InputError, match="no pair to write"):
        write_dataset(tmp_path / "none", products=["bottle"], defects=["bent"])


def test_a_rendering_that_was_stopped_resumes(tmp_path, monkeypatch):
    asked = {"products": ["screw"], "defects": ["bent"], "per_pair": 2, "size": 32, "good": 2}
    write_dataset(tmp_path / "whole", **asked)
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(procedural, "render", dies)
        write_dataset(tmp_path / "out", **asked)
    with pytest.raises(InputError, match="was stopped, with other settings"):
        write_dataset(tmp_path / "out", **asked | {"good": 3})
    write_dataset(tmp_path / "out", **asked)
    assert len(calls) == 4
    contents = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()}
        for n in ("whole", "out")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 2 + 2 * 2


def test_workers_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(procedural, "FEW", 0)
    for workers in (1, 2):
        write_dataset(tmp_path / str(workers), ["screw"], ["bent"], per_pair=2, size=32, good=3, workers=workers)
    contents = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()} for n in "12"
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 3 + 2 * 2


def test_few_pictures_start_no_workers():
    assert procedural.sensible(8, count=procedural.FEW, size=64) == 1
    assert procedural.sensible(8, count=procedural.FEW + 1, size=64) == 8
    assert procedural.sensible(8, count=procedural.FEW // 2, size=512) == 8


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 0}, "workers is 0: it must be from 1"),
        ({"size": 10**6}, "size is 1000000: it must be from 16 to 4096"),
        ({"per_pair": 10**9}, "per_pair is 1000000000"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range_write_nothing(tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        write_dataset(tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_contact_sheet(monkeypatch):
    monkeypatch.setattr(procedural, "PRODUCTS", {name: PRODUCTS[name] for name in ("tile", "zipper")})
    asked = []
    sheet = procedural.contact_sheet(lambda *pair: asked.append(pair) or Image.new("RGB", (96, 32), "red"))
    assert asked == [(p, d) for p in ("tile", "zipper") for d in ("good", *procedural.PAIRS[p])]
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1).sum()
    assert red == len(asked) * 96 * 32
    assert sheet.width > 11 * 96 and sheet.height > 2 * 32
