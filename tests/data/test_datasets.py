"""Small versions of MVTec AD, VisA and KolektorSDD2 in their owners' layouts become folders that pass the check."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from defectdiffu import InputError
from defectdiffu.data import datasets
from defectdiffu.data.datasets import SOURCES, convert, download, notice
from defectdiffu.data.folder import read_folder
from defectdiffu.data.splitting import split
from defectdiffu.data.validate import check_folder


def picture(path, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 12, 3), value, np.uint8)).save(path)


def mask(path, *values):
    """Black, with one square for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((20, 12), np.uint8)
    for i, value in enumerate(values):
        pixels[4 * i + 1 : 4 * i + 4, 2:6] = value
    Image.fromarray(pixels).save(path)


def mvtec(root):
    for i in range(2):
        picture(root / f"leather/train/good/{i:03}.png", i)
        picture(root / f"leather/test/poke/{i:03}.png", 50 + i)
        mask(root / f"leather/ground_truth/poke/{i:03}_mask.png", 255)
    picture(root / "leather/test/good/000.png")
    (root / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


def visa(root):
    rows, labels = ["object,split,label,image,mask"], ["image,label,mask"]
    for subset, name in (("train", "0000"), ("train", "0001"), ("test", "0002")):
        picture(root / f"candle/Data/Images/Normal/{name}.JPG")
        rows.append(f"candle,{subset},normal,candle/Data/Images/Normal/{name}.JPG,")
        labels.append(f"candle/Data/Images/Normal/{name}.JPG,normal,")
    kinds = {"000": "different colour spot", "001": '"chunk of wax missing,other"', "002": "Weird Candle Wick"}
    for i, (name, label) in enumerate(kinds.items()):
        image, truth = f"candle/Data/Images/Anomaly/{name}.JPG", f"candle/Data/Masks/Anomaly/{name}.png"
        picture(root / image)
        mask(root / truth, *range(1, i + 2))  # VisA numbers the kinds: 1, 2, 3
        rows.append(f"candle,test,anomaly,{image},{truth}")
        labels.append(f"{image},{label},{truth}")
    (root / "candle/image_anno.csv").write_text("\r\n".join(labels))
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\r\n".join(rows))
    return root


def ksdd2(root):
    for subset, number, values in (
        ("train", 10000, ()),
        ("train", 10001, (255,)),
        ("test", 20000, ()),
        ("test", 20001, (255, 255)),
    ):
        picture(root / f"{subset}/{number}.png")
        mask(root / f"{subset}/{number}_GT.png", *values)
    for name in ("10001", "10001_GT"):  # as in the owners' archive
        shutil.copy(root / f"train/{name}.png", root / f"train/{name} (copy).png")
    return root


MADE = {
    "mvtec": (mvtec, {"leather": {"good": 3, "poke": 2}}),
    "visa": (visa, {"candle": {"combined": 1, "different_colour_spot": 1, "good": 3, "weird_candle_wick": 1}}),
    "ksdd2": (ksdd2, {"kolektor_surface": {"defect": 2, "good": 2}}),
}


def packed(root, archive):
    if archive.suffix == ".zip":
        shutil.make_archive(archive.with_suffix(""), "zip", root.parent, root.name)
    else:
        with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w") as tar:
            for child in root.iterdir():
                tar.add(child, child.name)
    return archive


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", MADE)
def test_folder_and_archive_become_the_same_sound_folder(tmp_path, name):
    make, expected = MADE[name]
    theirs = make(tmp_path / "theirs")
    before = contents(theirs)
    assert convert(name, theirs, tmp_path / "from_folder") == expected
    archive = packed(theirs, tmp_path / SOURCES[name].archive)
    assert convert(name, archive, tmp_path / "from_archive") == expected

    assert contents(tmp_path / "from_folder") == contents(tmp_path / "from_archive")
    assert contents(theirs) == before and archive.is_file()
    assert check_folder(tmp_path / "from_folder") == []
    left = {p.name for p in tmp_path.iterdir()} - {"theirs", "from_folder", "from_archive", archive.name}
    assert not left


def test_a_folder_around_the_data_is_looked_into(tmp_path):
    for name, (make, expected) in MADE.items():
        make(tmp_path / name / "inner")
        assert convert(name, tmp_path / name, tmp_path / f"{name}-out") == expected


def test_defects_have_unified_names_and_are_halved(tmp_path):
    convert("mvtec", mvtec(tmp_path / "theirs"), tmp_path / "out")
    samples = read_folder(tmp_path / "out")
    assert {s.defect for s in samples} == {"good", "hole"}  # Table 2: leather's poke is a hole
    training, evaluation = ([s.defect for s in half].count("hole") for half in split(samples))
    assert training == evaluation == 1


def test_images_stay_byte_for_byte_and_masks_become_0_and_255(tmp_path):
    theirs = visa(tmp_path / "theirs")
    convert("visa", theirs, tmp_path / "out")
    image = tmp_path / "out/candle/test/combined/001.JPG"
    assert image.read_bytes() == (theirs / "candle/Data/Images/Anomaly/001.JPG").read_bytes()
    values = np.asarray(Image.open(tmp_path / "out/candle/ground_truth/combined/001_mask.png"))
    original = np.asarray(Image.open(theirs / "candle/Data/Masks/Anomaly/001.png"))
    assert set(np.unique(original)) == {0, 1, 2}
    np.testing.assert_array_equal(values, np.where(original > 0, 255, 0))


def test_visa_keeps_its_owners_split_of_good_images(tmp_path):
    convert("visa", visa(tmp_path / "theirs"), tmp_path / "out")
    assert [p.name for p in sorted((tmp_path / "out/candle/train/good").iterdir())] == ["0000.JPG", "0001.JPG"]
    assert [p.name for p in (tmp_path / "out/candle/test/good").iterdir()] == ["0002.JPG"]


def spoil_visa(root, old, new, file="split_csv/1cls.csv"):
    path = root / file
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("visa", lambda r: spoil_visa(r, "object,", "thing,"), "lacks the column object"),
        ("visa", lambda r: (r / "split_csv/1cls.csv").unlink(), "there is no split_csv/1cls.csv"),
        ("visa", lambda r: (r / "candle/image_anno.csv").unlink(), "image_anno.csv: cannot be read"),
        ("visa", lambda r: spoil_visa(r, "Images/Normal/0001.JPG", "../../../secret.JPG"), "lies outside"),
        ("visa", lambda r: spoil_visa(r, "Images/Normal/0001.JPG", "0\0.JPG"), "which no file can be called"),
        ("visa", lambda r: spoil_visa(r, "Images/Normal/0001.JPG", "0" * 5000), "which no file can be called"),
        ("visa", lambda r: spoil_visa(r, "candle,train", "../candle,train"), "'../candle', 'train'"),
        ("visa", lambda r: spoil_visa(r, "candle,train", ",train"), "'', 'train'"),
        ("visa", lambda r: spoil_visa(r, "candle,train", "candle" * 30_000 + ",train"), "CSV table: field larger"),
        ("visa", lambda r: (r / "split_csv/1cls.csv").write_bytes(b"object,\xe4"), "is not UTF-8 at byte 7"),
        ("visa", lambda r: (r / "candle/Data/Images/Anomaly/001.JPG").unlink(), "but the table names it"),
        ("visa", lambda r: spoil_visa(r, "Weird Candle Wick", "", "candle/image_anno.csv"), "no label for"),
        ("ksdd2", lambda r: (r / "test/20001_GT.png").unlink(), "20001_GT.png: there is no such file"),
        ("ksdd2", lambda r: (r / "train").rename(r / "training"), "there is no train"),
        ("mvtec", lambda r: (r / "leather/ground_truth/poke/001_mask.png").unlink(), "001.png: no mask"),
    ],
)
def test_a_layout_with_a_fault_is_refused_and_nothing_is_left(tmp_path, name, spoil, words):
    theirs = MADE[name][0](tmp_path / "theirs")
    (tmp_path / "secret.JPG").write_bytes(b"")
    spoil(theirs)
    with pytest.raises(InputError) as caught:
        convert(name, theirs, tmp_path / "out")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"theirs", "secret.JPG"}


def test_another_data_set_is_refused(tmp_path):
    ksdd2(tmp_path / "theirs")
    with pytest.raises(InputError, match="VisA"):
        convert("visa", tmp_path / "theirs", tmp_path / "out")
    with pytest.raises(InputError, match="did you mean visa"):
        convert("viso", tmp_path / "theirs", tmp_path / "out")


def test_a_folder_that_is_there_and_a_source_that_is_not_are_refused(tmp_path):
    mvtec(tmp_path / "theirs")
    with pytest.raises(InputError, match="exists"):
        convert("mvtec", tmp_path / "theirs", tmp_path / "theirs")
    with pytest.raises(InputError, match="no such file"):
        convert("mvtec", tmp_path / "absent", tmp_path / "out")


@pytest.mark.parametrize("name", SOURCES)
def test_a_notice_has_licence_citation_and_the_way_by_hand(name):
    text = notice(name)
    for part in ("CC BY", "cite:", SOURCES[name].page, SOURCES[name].sha256, f"convert {name} {SOURCES[name].archive}"):
        assert part in text


def test_the_licence_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(datasets, "fetch", lambda url, path, sha256: events.append((url, sha256)) or path)
    path = download("visa", tmp_path, say=lambda text: events.append(text))
    assert path == tmp_path / "VisA_20220922.tar"
    assert events == [notice("visa"), (SOURCES["visa"].url, SOURCES["visa"].sha256)]


def test_mvtec_is_fetched_by_hand(tmp_path):
    with pytest.raises(InputError, match=r"accept its licence on .*data convert mvtec"):
        download("mvtec", tmp_path, say=lambda _: None)
