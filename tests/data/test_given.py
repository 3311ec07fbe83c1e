import os

import numpy as np
import pytest
from PIL import Image

from defectdiffu import InputError
from defectdiffu.data.given import given_files


def save(path, mode="RGB", size=(20, 30), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)
    return path


def test_a_picture_alone_and_a_folder_in_the_order_of_its_names(tmp_path):
    files = [save(tmp_path / "pictures" / name) for name in ("b.JPG", "a.png")]
    (tmp_path / "pictures" / "notes.txt").touch()
    save(tmp_path / "pictures" / ".hidden.png")
    assert given_files(files[0], None) == [(files[0], None)]
    assert given_files(tmp_path / "pictures", None) == [(files[1], None), (files[0], None)]


def test_every_picture_gets_its_mask(tmp_path):
    for name in ("a.jpg", "b.png"):
        save(tmp_path / "pictures" / name)
    masks = [save(tmp_path / "masks" / name, "L", value=255) for name in ("a.png", "b_mask.png")]
    assert [g.place for g in given_files(tmp_path / "pictures", tmp_path / "masks")] == masks
    assert [g.place for g in given_files(tmp_path / "pictures", masks[0])] == [masks[0]] * 2


def test_what_is_read(tmp_path):
    picture, mask = save(tmp_path / "a.jpg"), save(tmp_path / "m.png", "L", value=3)
    (given,) = given_files(picture, mask)
    image, place = given.read()
    assert (image.mode, image.size, place.size) == ("RGB", (20, 30), (20, 30))
    assert np.asarray(place).all()
    assert given_files(picture, None)[0].read()[1] is None


def test_the_digest_is_of_the_content(tmp_path):
    picture = save(tmp_path / "a.png")
    before = given_files(picture, None)[0].digest()
    assert given_files(picture, None)[0].digest() == before
    save(picture, value=91)
    assert given_files(picture, None)[0].digest() != before


@pytest.mark.parametrize(
    ("on", "where", "message"),
    [
        ("none", None, "none: there is no such picture or folder"),
        ("empty", None, "empty holds no picture"),
        ("pictures", "none", "none: there is no such mask or folder"),
        ("pictures", "masks", "masks has no mask for b.png"),
        ("pictures", "empty", "empty has no mask for a.png, b.png"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, on, where, message):
    save(tmp_path / "pictures" / "a.png"), save(tmp_path / "pictures" / "b.png"), save(tmp_path / "masks" / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        given_files(tmp_path / on, where and tmp_path / where)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: there is no such picture"):
        given_files(tmp_path / "pipe.png", None)
    with pytest.raises(InputError, match="holds no picture"):
        given_files(tmp_path, None)
    picture = save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"pipe\.png: there is no such mask"):
        given_files(picture, tmp_path / "pipe.png")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png"):
        given_files(tmp_path / "a.png", None)[0].read()
