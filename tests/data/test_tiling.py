"""Tiles: every defect is in one, none is called good that shows some of it, and memory stays small."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from defectdiffu.data.folder import read_folder
from defectdiffu.data.tiling import tile_folder
from defectdiffu.data.validate import examine
from defectdiffu.errors import InputError


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def place(root, box, shape=(100, 260), mode=np.uint8):
    """A dark sheet with one bright dent in the box (left, top, right, bottom), its mask, and a good sheet."""
    left, top, right, bottom = box
    pixels = np.random.default_rng(0).integers(0, 90, shape).astype(mode)
    save(root / "sheet/train/good/000.png", pixels)
    marked = np.zeros(shape, np.uint8)
    marked[top:bottom, left:right] = 255
    pixels[marked > 0] = 200
    save(root / "sheet/test/dent/000.png", pixels)
    save(root / "sheet/ground_truth/dent/000_mask.png", marked)
    return root


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_tiles_of_a_defect_and_good_ones(tmp_path):
    source = place(tmp_path / "in", (30, 40, 36, 46))
    result = tile_folder(source, tmp_path / "out", size=64, overlap=16)
    # 260 pixels: starts 0, 48, 96, 144, 192, 196; 100 pixels: 0, 36
    assert result == {"tiles": {"sheet": {"dent": 1, "good": 22}}, "good_left_out": 0, "slivers_left_out": 1}
    home = tmp_path / "out/sheet"
    assert names(home / "test/dent") == ["dent-000-0-0.png"]
    assert len(names(home / "train/good")) == 12 and len(names(home / "test/good")) == 10
    problems, notices = examine(tmp_path / "out", 64)
    assert problems == []
    assert {n.kind for n in notices} <= {"same picture twice"}  # good tiles of the picture with a dent
    tile = Image.open(home / "test/dent/dent-000-0-0.png")
    mask = np.asarray(Image.open(home / "ground_truth/dent/dent-000-0-0_mask.png"))
    assert tile.mode == "L" and tile.size == (64, 64)
    assert np.array_equal(mask == 255, np.asarray(tile) == 200) and mask.sum() == 36 * 255


def test_a_sliver_is_neither_defect_nor_good(tmp_path):
    source = place(tmp_path / "in", (52, 10, 54, 12))  # tiles 0 to 64 and 48 to 112 share it; the middle is 56
    result = tile_folder(source, tmp_path / "out", size=64, overlap=16)
    assert result["slivers_left_out"] == 1
    assert names(tmp_path / "out/sheet/test/dent") == ["dent-000-0-0.png"]
    assert "dent-000-48-0.png" not in names(tmp_path / "out/sheet/test/good")


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (127, 200), (300, 40)])
@pytest.mark.parametrize("overlap", [0, 7, 63])
def test_every_marked_pixel_is_in_a_tile_of_its_defect(tmp_path, shape, overlap):
    source = place(tmp_path / "in", (0, 0, shape[1], shape[0]), shape)
    if overlap == 63 and shape == (127, 200):
        pytest.skip("thousands of tiles")
    tile_folder(source, tmp_path / "out", size=64, overlap=overlap)
    covered = np.zeros(shape, bool)
    for path in (tmp_path / "out/sheet/test/dent").iterdir():
        left, top = map(int, path.stem.split("-")[2:])
        side = Image.open(path).width
        assert side == min(64, *shape) and left + side <= shape[1] and top + side <= shape[0]
        covered[top : top + side, left : left + side] = True
    assert covered.all()


def test_the_choice_of_good_tiles_is_seeded(tmp_path):
    source = place(tmp_path / "in", (30, 40, 36, 46))
    chosen = []
    for run, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"out{run}"
        result = tile_folder(source, out, size=64, overlap=16, good=5, seed=seed)
        assert result["tiles"]["sheet"]["good"] == 5 and result["good_left_out"] == 17
        chosen.append([path.name for path in sorted(out.rglob("good/*"))])
    assert chosen[0] == chosen[1] != chosen[2]


def test_16_bits_and_turned_pictures(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    source = place(tmp_path / "in", (30, 40, 36, 46), mode=np.uint16)
    for image in source.glob("sheet/*/*/000.png"):
        with Image.open(image) as stored:
            stored = np.asarray(stored)
        save(image, stored * 20, exif=exif)  # up to 4000: 12 bits
    tile_folder(source, tmp_path / "out", size=64, overlap=16)
    (sample,) = (sample for sample in read_folder(tmp_path / "out") if sample.mask)
    pixels, mask = np.asarray(Image.open(sample.image)), np.asarray(Image.open(sample.mask))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels == round(4000 * 255 / 4095), mask == 255)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_pictures_of_any_size_are_cut_in_little_memory(tmp_path):
    """8000 x 2000 in colour take 64 MB as Pillow holds them; numpy, Pillow and Python some 50."""
    home = tmp_path / "in/sheet"
    pixels = np.zeros((2000, 8000, 3), np.uint8)
    save(home / "test/dent/000.png", pixels, compress_level=1)
    marked = np.zeros((2000, 8000), np.uint8)
    marked[900:912, 4000:4012] = 255
    save(home / "ground_truth/dent/000_mask.png", marked, compress_level=1)
    code = (
        "import sys; from pathlib import Path; from defectdiffu.data.tiling import tile_folder\n"
        "tile_folder(sys.argv[1], sys.argv[2], good=2)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"  # KiB; rusage has the parent's
    )
    arguments = [sys.executable, "-c", code, tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000
    assert names(tmp_path / "out/sheet/test/dent") == ["dent-000-3808-672.png"]


def test_bad_input_leaves_nothing(tmp_path):
    source = place(tmp_path / "in", (30, 40, 36, 46))
    for arguments, message in [
        ((source, tmp_path / "in"), "in exists: choose another folder"),
        ((source, tmp_path / "out", 64, 64), "the overlap is 64: it must be from 0 to 63"),
        ((tmp_path / "nowhere", tmp_path / "out"), "there is no such folder"),
    ]:
        with pytest.raises(InputError, match=message):
            tile_folder(*arguments)
    assert names(tmp_path) == ["in"]
