"""Folders as people have them become folders that the check finds sound, and it is said what was taken for what."""

import os

import numpy as np
import pytest
from PIL import Image

from defectdiffu.data.adopt import adopt
from defectdiffu.data.folder import read_folder
from defectdiffu.data.validate import check_folder
from defectdiffu.errors import InputError


def picture(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (20, 24, 3), np.uint8)).save(path)


def mask(path, *tops, value=255, ground=0):
    """Black, with one square from each of the rows `tops` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((20, 24), ground, np.uint8)
    for top in tops:
        pixels[top : top + 3, 4:8] = value
    Image.fromarray(pixels).save(path)


def btech(root):
    picture(
        root / "01/train/ok/0.bmp", root / "01/train/ok/1.bmp", root / "01/test/ok/0.bmp", root / "01/test/ko/0.bmp"
    )
    mask(root / "01/ground_truth/ko/0.png", 4)
    return {"01": {"good": 3, "ko": 1}}


def flat(root):
    picture(root / "good/0.png", root / "bad/0.png", root / "bad/b1.png")
    mask(root / "mask/0.png", 4)
    mask(root / "mask/b1.png", 4)
    return {"in": {"bad": 2, "good": 1}}


def windows(root):
    picture(root / "Part/Train/Good/0.png", root / "Part/Test/Scratch/0.png", root / "Part/Test/Dent/0.png")
    mask(root / "Part/Ground_Truth/scratch/0_Mask.png", 4)
    mask(root / "Part/Ground_Truth/dent/0_Mask.png", 8)
    return {"Part": {"Dent": 1, "Scratch": 1, "good": 1}}


def deep(root):
    for product in ("nut", "cap"):
        picture(root / f"set/v1/{product}/train/good/0.png", root / f"set/v1/{product}/test/dent/0.png")
        mask(root / f"set/v1/{product}/ground_truth/dent/0_mask.png", 4)
    return {"cap": {"dent": 1, "good": 1}, "nut": {"dent": 1, "good": 1}}


def several(root):
    picture(root / "nut/test/dent/0.png", root / "nut/test/dent/1.png", root / "nut/train/good/0.png")
    for name in ("0_mask_1", "0_mask_2", "1_1", "1_2_mask"):
        mask(root / f"nut/ground_truth/dent/{name}.png", 4 if "1" in name[1:] and name != "1_2_mask" else 12)
    return {"nut": {"dent": 2, "good": 1}}


def folders(root):
    picture(root / "nut/test/dent/000.png", root / "nut/test/dent/001.png", root / "nut/train/good/000.png")
    for image in ("000", "001"):
        mask(root / f"nut/ground_truth/dent/{image}/000.png", 4)
        mask(root / f"nut/ground_truth/dent/{image}/001.png", 12)
    return {"nut": {"dent": 2, "good": 1}}


def beside(root):
    picture(root / "train/10.png", root / "train/11.png", root / "test/20.png")
    mask(root / "train/10_GT.png")
    mask(root / "train/11_GT.png", 4)
    mask(root / "test/20_label.bmp", 4)
    return {"in": {"defect": 2, "good": 1}}


@pytest.mark.parametrize("make", [btech, flat, windows, deep, several, folders, beside])
def test_layouts(tmp_path, make):
    expected = make(tmp_path / "in")
    result = adopt(tmp_path / "in", tmp_path / "out")
    assert result["pictures"] == expected
    assert result["left_out"] == {}
    assert sum(int(line.split()[0]) for entry in result["taken"].values() for line in entry.split("; ")) == len(
        [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    )
    assert check_folder(tmp_path / "out") == []
    marked = [int((np.asarray(Image.open(s.mask)) > 0).sum()) for s in read_folder(tmp_path / "out") if s.mask]
    assert set(marked) == ({24} if make in (several, folders) else {12})


def test_says_what_was_taken_for_what(tmp_path):
    flat(tmp_path / "in")
    mask(tmp_path / "in/mask/lost.png", 4)
    assert adopt(tmp_path / "in", tmp_path / "out") == {
        "pictures": {"in": {"bad": 2, "good": 1}},
        "taken": {"bad": "2 pictures of in: bad", "good": "1 pictures of in: good", "mask": "3 masks of in"},
        "masks": {"masks named as their picture": 2},
        "left_out": {str(tmp_path / "in/mask/lost.png"): "a mask of no picture with a defect"},
    }


def test_masks_are_binarised_and_inverted(tmp_path):
    flat(tmp_path / "in")
    soft = np.zeros((20, 24), np.uint8)
    soft[4:7, 4:16] = np.linspace(10, 255, 12)  # 6 columns from half of white on
    Image.fromarray(soft).save(tmp_path / "in/mask/0.png")
    kinds = np.zeros((20, 24), np.uint8)
    kinds[0, :3] = (1, 2, 3)
    Image.fromarray(kinds).save(tmp_path / "in/mask/b1.png")
    with pytest.raises(InputError, match=r"mask.0.png: the mask has 13 values, .* --binarise cuts soft edges"):
        adopt(tmp_path / "in", tmp_path / "out")
    for invert, expected in [(False, [18, 3]), (True, [480 - 18, 480 - 3])]:
        out = tmp_path / f"out{invert}"
        adopt(tmp_path / "in", out, binarise=True, invert=invert)
        assert [int((np.asarray(Image.open(s.mask)) > 0).sum()) for s in read_folder(out) if s.mask] == expected


def test_16_bits_become_8(tmp_path):
    flat(tmp_path / "in")
    Image.fromarray(np.full((20, 24), 4095, np.uint16)).save(tmp_path / "in/bad/0.png")
    adopt(tmp_path / "in", tmp_path / "out", white=4095)
    image = Image.open(tmp_path / "out/in/test/bad/0.png")
    assert image.mode == "L" and image.getextrema() == (255, 255)
    theirs, ours = tmp_path / "in/bad/b1.png", tmp_path / "out/in/test/bad/b1.png"
    assert theirs.read_bytes() == ours.read_bytes()


def test_what_cannot_be_told_is_named_and_nothing_is_written(tmp_path):
    def refused(message):
        with pytest.raises(InputError, match=message):
            adopt(tmp_path / "in", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    (tmp_path / "in").mkdir()
    refused("in: no pictures below it")
    picture(tmp_path / "in/a.png")
    refused(r"a\.png: neither in a folder named good, ok, normal nor with a mask")
    (tmp_path / "in/a.png").unlink()
    flat(tmp_path / "in")
    (tmp_path / "in/mask/0.png").unlink()
    refused(r"bad.0\.png: no mask; they are looked for in folders named ground_truth")
    mask(tmp_path / "in/mask/0.png")
    refused(r"mask.0\.png: the mask is empty")
    picture(tmp_path / "in/scratch/0.png")
    refused(r"mask.0\.png: fits two pictures, .*bad.0\.png and .*scratch.0\.png")


def test_links_in_a_circle_are_passed_over_and_listed(tmp_path):
    flat(tmp_path / "in/a/set")
    (tmp_path / "in/a/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/self").symlink_to("self")
    (tmp_path / "in/a/set/good/9.png").symlink_to("9.png")
    summary = adopt(tmp_path / "in", tmp_path / "out")
    assert summary["pictures"] == {"set": {"bad": 2, "good": 1}}
    assert summary["left_out"] == {str(tmp_path / "in/a/set/good/9.png"): "not a regular file"}


@pytest.mark.parametrize("name", ["nu\nt", os.fsdecode(b"nu\xf6t")])
def test_names_that_are_not_one_line_of_utf_8_are_refused(tmp_path, name):
    flat(tmp_path / name)
    with pytest.raises(InputError, match="cannot be a folder's name"):
        adopt(tmp_path / name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no such folder; an archive must be unpacked first"):
        adopt(tmp_path / "nowhere", tmp_path / "out")
