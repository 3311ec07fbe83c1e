"""What is doubtful about a folder is said with its file and its cure, and hinders nothing."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from defectdiffu.data.folder import read_folder
from defectdiffu.data.validate import examine
from defectdiffu.data.warnings import find, summary, warn


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(seed, shape=(64, 64, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def square(shape=(64, 64), top=20, side=12):
    marked = np.zeros(shape, np.uint8)
    marked[top : top + side, 8 : 8 + side] = 255
    return marked


@pytest.fixture
def gear(tmp_path):
    """A product with two dents and two good pictures, about which nothing is doubtful."""
    for i in range(2):
        save(tmp_path / f"gear/train/good/{i}.png", noise(i))
        save(tmp_path / f"gear/test/dent/{i}.png", noise(10 + i))
        save(tmp_path / f"gear/ground_truth/dent/{i}_mask.png", square())
    return tmp_path / "gear"


def found(folder, size=32):
    """[(kind, path in the folder)], and that each is one line with its path, no problem and also what training sees."""
    problems, notices = examine(folder, size)
    assert problems == []
    assert set(notices) == set(find(read_folder(folder), size))
    assert all(str(n).startswith(f"{n.path}: ") and "\n" not in str(n) for n in notices)
    return [(n.kind, str(n.path.relative_to(folder))) for n in notices]


def test_a_sound_folder_has_none(gear, capsys):
    assert found(gear) == []
    warn(read_folder(gear), 32)
    assert capsys.readouterr().err == ""


def test_a_defect_too_small_to_be_seen(gear):
    save(gear / "test/dent/0.png", noise(10, (300, 400, 3)))
    dot, hair = square((300, 400), side=3), np.zeros((300, 400), np.uint8)
    hair[150] = 255
    for marked in (dot, hair):
        save(gear / "ground_truth/dent/0_mask.png", marked)
        assert found(gear, 32) == [("defect smaller than a pixel", "test/dent/0.png")]
        assert found(gear, 256) == []
    (notice,) = find(read_folder(gear), 32)
    assert (
        "the defect covers at most 0.11 of one" in notice.message
        and "data tile SOURCE OUT --size 32`" in notice.message
    )


def test_squeezed_pictures(gear):
    save(gear / "train/good/0.png", noise(0, (64, 200, 3)))
    save(gear / "train/good/1.png", noise(0, (64, 128, 3)))  # 2 : 1 is let pass
    assert found(gear) == [("squeezed picture", "train/good/0.png")]
    (notice,) = find(read_folder(gear), 32)
    assert notice.message.startswith("200 x 64 pixels are squeezed 3.1 : 1 into a square: cut the set into tiles")


def test_few_bits_in_16(gear):
    for path in gear.glob("*/*/*.png"):
        if "truth" not in str(path):
            save(path, np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16)
    assert found(gear) == [("16-bit pictures of fewer bits", ".")]
    (notice,) = find(read_folder(gear), 32)
    assert notice.message.startswith("12 bits hold all values of its 16-bit pictures, so 4095 is taken as white")


@pytest.mark.parametrize("turn", [3, 6])
def test_a_mask_beside_a_turned_square(gear, turn):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    save(gear / "test/dent/0.png", noise(10), exif=exif)
    save(gear / "train/good/0.png", noise(0), exif=exif)  # has no mask
    assert found(gear) == [("mask of a turned picture", "ground_truth/dent/0_mask.png")]
    save(gear / "test/dent/0.png", noise(10, (48, 64, 3)), exif=exif)
    for shape in {(48, 64), (64, 48) if turn == 6 else (48, 64)}:  # the sizes can tell
        save(gear / "ground_truth/dent/0_mask.png", square(shape))
        assert len(found(gear)) == (turn == 3)


def test_soft_and_inverted_masks(gear):
    soft = Image.fromarray(square()).resize((16, 16)).resize((64, 64), Image.Resampling.BICUBIC)
    save(gear / "ground_truth/dent/0_mask.png", np.asarray(soft))
    save(gear / "ground_truth/dent/1_mask.png", 255 - square())
    assert found(gear) == [
        ("mask with soft edges", "ground_truth/dent/0_mask.png"),
        ("mask of most of the picture", "ground_truth/dent/1_mask.png"),
    ]


def test_copies(gear):
    for copy, original in [("test/dent/0", "train/good/0"), ("train/good/2", "train/good/1")]:
        (gear / f"{copy}.png").write_bytes((gear / f"{original}.png").read_bytes())
    assert sorted(found(gear)) == [
        ("same picture good and with a defect", "test/dent/0.png"),
        ("same picture twice", "train/good/2.png"),
    ]


def test_a_broken_file_hides_no_warning_of_others(gear):
    save(gear / "train/good/0.png", noise(0, (64, 200, 3)))
    (gear / "train/good/1.png").write_text("no image")
    (gear / "ground_truth/dent/0_mask.png").unlink()
    problems, notices = examine(gear)
    assert len(problems) == 2
    assert [n.kind for n in notices] == ["squeezed picture"]


def test_each_kind_is_one_line_with_its_count(gear):
    for i in range(2):
        save(gear / f"train/good/{i}.png", noise(i, (64, 200, 3)))
    save(gear / "ground_truth/dent/1_mask.png", 255 - square())
    lines = summary(find(read_folder(gear), 32))
    assert len(lines) == 2
    assert f"warning: squeezed picture (2), such as {gear / 'train/good/0.png'}: 200 x 64 pixels" in lines[1]
