"""Folders in the MVTec AD layout: what is read, how it becomes arrays, and what is refused with which message."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from defectdiffu.data.catalog import UNIFIED
from defectdiffu.data.folder import FolderDataset, read_folder
from defectdiffu.data.image_files import Problem, load_image, load_mask
from defectdiffu.errors import InputError

SHARED = Path(os.environ.get("DEFECTDIFFU_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def image(path, shape=(12, 16, 3), value=120):
    return save(path, np.full(shape, value, np.uint8))


def mask(path, shape=(12, 16)):
    pixels = np.zeros(shape, np.uint8)
    pixels[3:5, 6:9] = 255
    return save(path, pixels)


def make_pairs(root, product="bottle", defect="broken_large", count=3):
    for i in range(count):
        image(root / product / "test" / defect / f"{i:03}.png")
        mask(root / product / "ground_truth" / defect / f"{i:03}_mask.png")


@pytest.fixture
def root(tmp_path):
    """Two products in the layout: 3 + 1 defect images, 2 good ones to train on and 1 to test on."""
    make_pairs(tmp_path)
    make_pairs(tmp_path, "gear", "dent", 1)
    image(tmp_path / "bottle" / "train" / "good" / "000.png")
    image(tmp_path / "bottle" / "train" / "good" / "001.png")
    image(tmp_path / "bottle" / "test" / "good" / "000.png")
    return tmp_path


def refusal(call, *arguments):
    """The message of the `InputError` that a call raises, checked to be one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading ------------------------------------------------------------------------------------------------------------


def test_reads_products_defects_and_good_images(root):
    samples = read_folder(root)
    assert [(s.product, s.subset, s.original_defect, s.defect, s.image.name) for s in samples] == [
        ("bottle", "test", "broken_large", "broken", "000.png"),
        ("bottle", "test", "broken_large", "broken", "001.png"),
        ("bottle", "test", "broken_large", "broken", "002.png"),
        ("bottle", "train", "good", "good", "000.png"),
        ("bottle", "train", "good", "good", "001.png"),
        ("bottle", "test", "good", "good", "000.png"),
        ("gear", "test", "dent", "dent", "000.png"),
    ]
    assert samples[0].mask == root / "bottle" / "ground_truth" / "broken_large" / "000_mask.png"
    assert samples[3].mask is None


def test_a_root_may_be_one_product(root, monkeypatch):
    bottle = [s for s in read_folder(root) if s.product == "bottle"]
    assert read_folder(root / "bottle") == bottle
    monkeypatch.chdir(root / "bottle")
    assert [(s.product, s.image.name) for s in read_folder(".")] == [(s.product, s.image.name) for s in bottle]


def test_roots_are_joined_and_a_shared_file_comes_once(root):
    assert read_folder(root / "gear", root / "bottle") == read_folder(root)
    assert read_folder(root, root / "bottle") == read_folder(root)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".tif", ".TIFF", ".webp"])
@pytest.mark.parametrize("mask_name", ["a b_mask.png", "a b.png", "a b_mask.tif", "a b.BMP"])
def test_suffixes_and_mask_names(tmp_path, suffix, mask_name):
    image(tmp_path / "gear" / "test" / "dent" / f"a b{suffix}")
    expected = mask(tmp_path / "gear" / "ground_truth" / "dent" / mask_name)
    (sample,) = read_folder(tmp_path)
    assert sample.mask == expected


def test_what_lies_beside_the_images_is_passed_over(root):
    before = read_folder(root)
    (root / "license.txt").write_text("terms")
    (root / "bottle" / "test" / "broken_large" / "Thumbs.db").write_bytes(b"x")
    (root / "bottle" / "test" / "broken_large" / "._000.png").write_bytes(b"x")
    image(root / "overview" / "all.png")
    save(root / "bottle" / "ground_truth" / "good" / "000_mask.png", np.zeros((12, 16), np.uint8))
    assert read_folder(root) == before


def test_dataset_gives_arrays(root):
    dataset = FolderDataset(read_folder(root), size=8)
    assert len(dataset) == 7
    defect, good = dataset[0], dataset[3]
    assert (defect["product"], defect["defect"], good["defect"]) == ("bottle", "broken", "good")
    assert defect["image"].shape == (8, 8, 3) and defect["image"].dtype == np.uint8
    assert defect["mask"].shape == (8, 8) and set(np.unique(defect["mask"])) == {0, 255}
    assert not good["mask"].any()


# Images -------------------------------------------------------------------------------------------------------------


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("grey.png", "grey.tif"):
        loaded = load_image(save(tmp_path / name, ramp), 16)
        assert np.array_equal(loaded, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


def test_the_white_of_16_bits_is_found_over_a_product(tmp_path):
    """A camera of 12 bits, one picture dark, and one of 16 bits; pictures of 8 bits have no white."""
    for product, name, value in [("a", "0", 200), ("a", "1", 2600), ("b", "0", 9000), ("b", "1", 50000)]:
        save(tmp_path / product / "train" / "good" / f"{name}.png", np.full((4, 4), value, np.uint16))
    image(tmp_path / "c" / "train" / "good" / "0.png")
    samples = read_folder(tmp_path)
    assert [s.white for s in samples] == [4095, 4095, 65535, 65535, None]
    values = [item["image"][0, 0, 0] for item in FolderDataset(samples, 4)]
    assert values == [round(200 * 255 / 4095), round(2600 * 255 / 4095), 35, 195, 120]


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 10, 30, 255)
    loaded = load_image(save(tmp_path / "a.png", pixels), 4)
    assert (loaded[0] == (200, 10, 30)).all() and (loaded[3] == 255).all()


def test_palette_grey_two_level_and_cmyk_become_rgb(tmp_path):
    colour = Image.new("RGB", (4, 4), (255, 0, 0))
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.bmp")
    Image.new("1", (4, 4), 1).save(tmp_path / "two.png")
    for name, expected in [("palette.png", (255, 0, 0)), ("cmyk.tif", (255, 0, 0)), ("grey.bmp", 77), ("two.png", 255)]:
        loaded = load_image(tmp_path / name, 4)
        assert loaded.shape == (4, 4, 3) and loaded.dtype == np.uint8
        assert (loaded == expected).all(), name


def test_shrinking_averages(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    loaded = load_image(save(tmp_path / "a.png", stripes), 8)
    assert np.abs(loaded.astype(int) - 127).max() < 12


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_turns_the_image_and_the_size_that_its_mask_must_have(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: show it turned clockwise
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # stored left, seen at the top
    path = save(tmp_path / "gear" / "test" / "dent" / f"a{suffix}", pixels, exif=exif)
    loaded = load_image(path, 8)
    assert loaded[1].min() > 200 and loaded[6].max() < 50

    mask_path = tmp_path / "gear" / "ground_truth" / "dent" / "a.png"
    mask(mask_path, shape=(16, 8))
    assert len(read_folder(tmp_path)) == 1
    mask(mask_path, shape=(8, 8))
    assert "the mask is 8 x 8 (width x height), its image a" in refusal(read_folder, tmp_path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_stored_pixels_is_turned_with_its_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    marked = np.zeros((8, 16), np.uint8)
    marked[:2, :3] = 255
    save(tmp_path / "gear" / "test" / "dent" / "a.png", marked, exif=exif)
    save(tmp_path / "gear" / "ground_truth" / "dent" / "a.png", marked)
    (item,) = FolderDataset(read_folder(tmp_path), 16)
    assert np.array_equal(item["image"][..., 0] > 127, item["mask"] > 127)


# Masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 16, 50, 64])
def test_a_thin_defect_survives(tmp_path, size):
    pixels = np.zeros((100, 130), np.uint8)
    pixels[37, :] = 1  # one pixel high, and 1 counts as much as 255
    pixels[90, 128] = 1
    loaded = load_mask(save(tmp_path / "m.png", pixels), size)
    assert loaded.dtype == np.uint8 and set(np.unique(loaded)) == {0, 255}
    assert (loaded[37 * size // 100] == 255).all()
    assert loaded[90 * size // 100, 128 * size // 130] == 255


def test_a_block_is_defect_if_any_pixel_in_it_is(tmp_path):
    pixels = np.random.default_rng(0).random((24, 24)) < 0.05
    blocks = pixels.reshape(8, 3, 8, 3).any(axis=(1, 3))
    loaded = load_mask(save(tmp_path / "m.png", pixels), 8)
    assert np.array_equal(loaded == 255, blocks)


def test_a_mask_of_the_right_size_or_enlarged_keeps_its_shape(tmp_path):
    path = mask(tmp_path / "m.png", shape=(12, 12))
    same = load_mask(path, 12)
    assert same.sum() == 6 * 255
    assert np.array_equal(load_mask(path, 24), same.repeat(2, axis=0).repeat(2, axis=1))


def test_masks_of_any_depth_and_colour(tmp_path):
    marked = np.zeros((4, 4), bool)
    marked[1, 2] = True
    red = np.where(marked[..., None], np.uint8([128, 0, 0]), np.uint8(0))
    drawn = np.where(marked[..., None], np.uint8([255, 255, 255, 255]), np.uint8(0))  # on a transparent background
    palette = Image.fromarray((~marked).astype(np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    palette.save(tmp_path / "palette.png")
    for name, pixels in {"two": marked, "deep": marked * np.uint16(40000), "red": red, "drawn": drawn}.items():
        save(tmp_path / f"{name}.png", pixels)
    for name in ("two", "deep", "red", "drawn", "palette"):
        assert np.array_equal(load_mask(tmp_path / f"{name}.png", 4), marked * np.uint8(255)), name


def blurred(size=64):
    """A square of 20 pixels, white on black, its edges 8 pixels wide."""
    distance = np.abs(np.arange(size) - size / 2)
    line = np.clip((14 - distance) / 8, 0, 1)
    return np.round(255 * np.minimum.outer(line, line)).astype(np.uint8)


def test_soft_masks_are_cut_at_half_their_brightest_value(tmp_path):
    pixels = blurred()
    for name in ("soft.png", "soft.jpg", "soft.webp"):
        loaded = load_mask(save(tmp_path / name, pixels), 64)
        assert (loaded == 255).sum() == pytest.approx((pixels >= 128).sum(), rel=0.05), name
    colour = save(tmp_path / "colour.jpg", np.repeat(pixels[..., None], 3, axis=2))
    assert load_mask(colour, 64).any()


def test_kinds_of_defect_and_photographs_are_no_soft_masks(tmp_path):
    kinds = np.zeros((16, 16), np.uint8)
    kinds[0, :3] = (85, 170, 255)
    photograph = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    for pixels in (kinds, photograph):
        message = refusal(load_mask, save(tmp_path / "m.png", pixels), 8)
        assert "values, not 0 (normal) and one other (defect)" in message and "--binarise" in message


# Bad input ----------------------------------------------------------------------------------------------------------


def test_folder_that_does_not_exist(tmp_path):
    assert refusal(read_folder, tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: there is no such folder"


def test_a_file_instead_of_a_folder(tmp_path):
    path = image(tmp_path / "a.png")
    assert refusal(read_folder, path) == f"{path}: is a file, not a folder"


def test_empty_folder(tmp_path):
    assert refusal(read_folder, tmp_path).startswith(f"{tmp_path}: the folder is empty; the layout is <product>/train")


def test_folder_in_another_layout_is_told_the_layout(tmp_path):
    image(tmp_path / "images" / "a.png")
    message = refusal(read_folder, tmp_path)
    assert message.startswith(f"{tmp_path}: not in the MVTec AD layout; the layout is <product>/train/good/NNN.png")
    assert "<product>/ground_truth/<defect>/NNN_mask.png" in message


def test_images_directly_in_test(root):
    image(root / "bottle" / "test" / "a.png")
    assert refusal(read_folder, root).startswith(f"{root / 'bottle' / 'test'}: images are directly in it")


def test_defects_in_train(root):
    image(root / "bottle" / "train" / "dent" / "a.png")
    assert f"move it to {root / 'bottle' / 'test' / 'dent'}" in refusal(read_folder, root)


def test_folder_without_images(root):
    (root / "bottle" / "test" / "scratch").mkdir()
    expected = f"{root / 'bottle' / 'test' / 'scratch'}: no images in it; allowed are .png .jpg"
    assert refusal(read_folder, root).startswith(expected)


def test_missing_mask_names_the_path_looked_for(root):
    missing = root / "bottle" / "ground_truth" / "broken_large" / "001_mask.png"
    missing.unlink()
    path = root / "bottle" / "test" / "broken_large" / "001.png"
    assert refusal(read_folder, root) == f"{path}: no mask; looked for {missing}"


def test_no_masks_at_all(tmp_path):
    image(tmp_path / "gear" / "test" / "dent" / "a.png")
    assert f"looked for {tmp_path / 'gear' / 'ground_truth' / 'dent' / 'a_mask.png'}" in refusal(read_folder, tmp_path)


def test_mask_of_another_size(root):
    path = mask(root / "gear" / "ground_truth" / "dent" / "000_mask.png", shape=(16, 12))
    message = f"{path}: the mask is 12 x 16 (width x height), its image 000.png is 16 x 12"
    assert refusal(read_folder, root) == message


def test_empty_mask(root):
    path = save(root / "gear" / "ground_truth" / "dent" / "000_mask.png", np.zeros((12, 16), np.uint8))
    for call, argument in [(read_folder, (root,)), (load_mask, (path, 8))]:
        assert refusal(call, *argument).startswith(f"{path}: the mask is empty")


def test_mask_that_is_not_two_valued(root):
    ramp = np.arange(192, dtype=np.uint8).reshape(12, 16)
    path = save(root / "gear" / "ground_truth" / "dent" / "000_mask.png", ramp)
    for call, argument in [(read_folder, (root,)), (load_mask, (path, 8))]:
        assert refusal(call, *argument).startswith(f"{path}: the mask has 192 values, not 0 (normal) and one other")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_truncated_image(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[:-3000])
    message = refusal(load_image, path, 8)
    assert message.startswith(f"{path}: ") and ("truncated" in message or "not an image" in message)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_not_an_image(root, content):
    path = root / "bottle" / "train" / "good" / "001.png"
    path.write_bytes(content)
    for call, argument in [(read_folder, (root,)), (load_image, (path, 8))]:
        assert refusal(call, *argument).startswith(f"{path}: not a readable image; allowed are .png")


def test_a_picture_beyond_the_limit_is_told_its_size_and_the_cure(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself would call 12 x 300 a bomb
    path = save(root / "bottle" / "train" / "good" / "001.png", np.zeros((300, 12), np.uint8))
    assert load_image(path, 8).shape == (8, 8, 3)
    with pytest.raises(Problem, match=r"12 x 300 pixels .* too many to be read at once: .*`defectdiffu data tile"):
        read_folder(root, limit=3000)
    assert len(read_folder(root, limit=None)) == 7
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_named_and_not_waited_for(root):
    pipe, folder = root / "bottle" / "train" / "good" / "002.png", root / "gear" / "train" / "good" / "a.png"
    os.mkfifo(pipe)
    folder.mkdir(parents=True)
    for path in (pipe, folder):
        assert refusal(load_image, path, 8).startswith(f"{path}: not a regular file")
    assert refusal(read_folder, root).startswith(f"{pipe}: not a regular file")


def test_missing_file(tmp_path):
    assert refusal(load_image, tmp_path / "a.png", 8) == f"{tmp_path / 'a.png'}: there is no such file"


def test_float_image_has_no_known_range(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((4, 4), np.float32))
    assert refusal(load_image, path, 4) == f"{path}: 32-bit images have no known range, save it with 8 or 16 bits"


def test_no_permission_to_read_a_file(root, monkeypatch):
    path = root / "gear" / "test" / "dent" / "000.png"
    really_open = builtins.open

    def locked(file, *arguments, **options):
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return really_open(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", locked)
    for call, argument in [(read_folder, (root,)), (load_image, (path, 8))]:
        assert refusal(call, *argument) == f"{path}: no permission to read it"


def test_no_permission_to_list_a_folder(root, monkeypatch):
    really_list = Path.iterdir

    def locked(folder):
        if folder == locked_folder:
            raise PermissionError(13, "Permission denied", str(folder))
        return really_list(folder)

    monkeypatch.setattr(Path, "iterdir", locked)
    for locked_folder in (root, root / "gear" / "test", root / "gear" / "ground_truth" / "dent"):
        assert refusal(read_folder, root) == f"{locked_folder}: no permission to read it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_for_real(root):
    path = root / "gear" / "test" / "dent" / "000.png"
    path.chmod(0)
    assert refusal(read_folder, root) == f"{path}: no permission to read it"
    (root / "gear").chmod(0)
    try:
        assert refusal(read_folder, root) == f"{root / 'gear' / 'train'}: no permission to read it"
    finally:
        (root / "gear").chmod(0o755)


# Real images --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "mvtec").is_dir(), reason="needs MVTec AD images")
def test_real_mvtec_is_read_whole():
    samples = read_folder(SHARED / "mvtec")
    pairs = {(s.product, s.original_defect) for s in samples if s.defect != "good"}
    assert pairs == {(p, d) for p, names in UNIFIED.items() if p != "magnetic_tile" for d in names}
    assert all(s.mask for s in samples if s.defect != "good")
    for sample in samples[:: len(samples) // 20]:
        item = FolderDataset([sample], size=64)[0]
        assert item["image"].std() > 0
        assert item["mask"].any() == (sample.defect != "good")


@pytest.mark.skipif(not (SHARED / "magnetic_tile").is_dir(), reason="needs images of magnetic tiles")
def test_real_magnetic_tiles_are_read():
    samples = read_folder(SHARED / "magnetic_tile")
    assert {s.original_defect for s in samples} == {"good", *UNIFIED["magnetic_tile"]}
    assert {s.defect for s in samples} == {"good", "hole", "broken", "crack", "fray", "uneven"}
