"""Every problem of a folder is listed, each with its file."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectdiffu.data.validate import check_folder

SHARED = Path(os.environ.get("DEFECTDIFFU_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def gear(tmp_path):
    """A valid product with four images of one defect and a good image."""
    folder = tmp_path / "gear"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    marked = np.zeros((32, 32), np.uint8)
    marked[4:6, 4:9] = 255
    for name in "abcd":
        save(folder / "test" / "dent" / f"{name}.png", noise)
        save(folder / "ground_truth" / "dent" / f"{name}_mask.png", marked)
    save(folder / "train" / "good" / "a.png", noise)
    return folder


def found(root):
    """Problems as "path in the product: first words"."""
    return [(str(p.path.relative_to(root)), p.message) for p in check_folder(root)]


def test_a_sound_folder_has_no_problems(gear):
    assert check_folder(gear) == check_folder(gear.parent) == []


def test_one_image_of_a_defect_is_no_problem(gear):
    for name in "bcd":
        (gear / "test" / "dent" / f"{name}.png").unlink()
        (gear / "ground_truth" / "dent" / f"{name}_mask.png").unlink()
    assert check_folder(gear) == []


def test_lists_every_problem_not_only_the_first(gear):
    images, masks = gear / "test" / "dent", gear / "ground_truth" / "dent"
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:-1000])  # truncated, and its mask missing as well
    (masks / "a_mask.png").unlink()
    save(masks / "b_mask.png", np.zeros((32, 32), np.uint8))
    save(masks / "c_mask.png", np.arange(1024).astype(np.uint8).reshape(32, 32))
    save(masks / "d_mask.png", np.full((16, 16), 255, np.uint8))
    (gear / "train" / "good" / "a.png").write_text("no image")
    (gear / "test" / "scratch").mkdir()

    expected = [
        ("train/good/a.png", "not a readable image"),
        ("test/dent/a.png", "no mask; looked for"),
        ("test/dent/a.png", "the image is truncated or damaged"),
        ("ground_truth/dent/b_mask.png", "the mask is empty"),
        ("ground_truth/dent/c_mask.png", "the mask has 256 values"),
        ("ground_truth/dent/d_mask.png", "the mask is 16 x 16 (width x height), its image d.png is 32 x 32"),
        ("test/scratch", "no images in it"),
    ]
    problems = found(gear)
    assert len(problems) == len(expected)
    for (path, message), (expected_path, start) in zip(problems, expected, strict=True):
        assert path == expected_path and message.startswith(start)


def test_mask_without_image(gear):
    (gear / "test" / "dent" / "d.png").unlink()
    expected = f"mask without an image; looked for {gear / 'test' / 'dent' / 'd.png'}"
    assert found(gear) == [("ground_truth/dent/d_mask.png", expected)]


def test_masks_without_a_folder_of_images(gear):
    (gear / "ground_truth" / "dent").rename(gear / "ground_truth" / "Dent")
    problems = dict(found(gear))
    assert problems["ground_truth/Dent"] == f"masks without images: there is no folder {gear / 'test' / 'Dent'}"
    assert problems["test/dent/a.png"].startswith("no mask; looked for")


def test_two_images_of_one_name(gear):
    save(gear / "test" / "dent" / "a.bmp", np.zeros((32, 32, 3), np.uint8))
    assert found(gear) == [("test/dent/a.png", "same name as a.bmp: which of the two does the mask belong to?")]


def test_two_masks_of_one_image(gear):
    masks = gear / "ground_truth" / "dent"
    (masks / "a.png").write_bytes((masks / "a_mask.png").read_bytes())
    assert found(gear) == [("test/dent/a.png", f"two masks, a_mask.png and a.png in {masks}: keep one")]


def test_a_locked_folder_does_not_hide_the_problems_of_others(gear, monkeypatch):
    really_list = Path.iterdir

    def locked(folder):
        if folder == gear / "train" / "good":
            raise PermissionError(13, "Permission denied", str(folder))
        return really_list(folder)

    monkeypatch.setattr(Path, "iterdir", locked)
    (gear / "ground_truth" / "dent" / "a_mask.png").unlink()
    assert [path for path, _ in found(gear)] == ["train/good", "test/dent/a.png"]


def test_absent_empty_and_foreign_folders_are_one_problem(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "foreign" / "images" / "a.png", np.zeros((4, 4), np.uint8))
    for name, start in [
        ("absent", "there is no such folder"),
        ("empty", "the folder is empty; the layout is"),
        ("foreign", "not in the MVTec AD layout; the layout is"),
    ]:
        (problem,) = check_folder(tmp_path / name)
        assert problem.path == tmp_path / name and problem.message.startswith(start)


def test_a_folder_that_is_a_link_to_itself_is_one_problem(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (problem,) = check_folder(tmp_path / "loop")
    assert problem.message.startswith("cannot be read (Too many levels of symbolic links")


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"a\xf6b")])
def test_names_that_are_not_one_line_of_utf_8(gear, name):
    (gear / "test" / "dent").rename(gear / "test" / name)
    (gear / "ground_truth" / "dent").rename(gear / "ground_truth" / name)
    (gear / "test" / name / "a.png").rename(gear / "test" / name / f"{name}.png")
    (gear / "ground_truth" / name / "a_mask.png").rename(gear / "ground_truth" / name / f"{name}_mask.png")
    (gear.rename(gear.with_name(name)))
    messages = [problem.message for problem in check_folder(gear.with_name(name))]
    assert [("cannot be a folder's name" in m, "its name has" in m) for m in messages] == [
        (True, False),
        (True, False),
        (False, True),
        (False, True),
    ]


def test_a_problem_reads_as_one_line_that_names_its_file(gear):
    (gear / "ground_truth" / "dent" / "a_mask.png").unlink()
    (problem,) = check_folder(gear)
    assert str(problem) == f"{problem.path}: {problem.message}"


@pytest.mark.parametrize("name", ["mvtec", "magnetic_tile"])
def test_real_images_have_no_problems(name):
    if not (SHARED / name).is_dir():
        pytest.skip("needs real images")
    assert check_folder(SHARED / name) == []
