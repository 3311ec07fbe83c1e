"""Which images are trained on and which are tested on, as lists and as folders."""

import shutil

import pytest
from test_folder import image, make_pairs

from defectdiffu.data.folder import read_folder
from defectdiffu.data.splitting import hold_out, parse_pairs, split, split_few, write_split
from defectdiffu.errors import InputError


def test_split_halves_each_defect_and_keeps_good_images_where_they_are(tmp_path):
    make_pairs(tmp_path, "bottle", "broken_large", 5)
    make_pairs(tmp_path, "bottle", "broken_small", 4)  # the same unified name, but split separately
    image(tmp_path / "bottle" / "train" / "good" / "000.png")
    image(tmp_path / "bottle" / "test" / "good" / "000.png")
    samples = read_folder(tmp_path)
    train, evaluate = split(samples)
    assert sorted(train + evaluate, key=samples.index) == samples
    for part, large, small in [(train, 3, 2), (evaluate, 2, 2)]:
        assert sum(s.original_defect == "broken_large" for s in part) == large
        assert sum(s.original_defect == "broken_small" for s in part) == small
        assert sum(s.defect == "good" for s in part) == 1
    assert {s.subset for s in train if s.defect == "good"} == {"train"}


def test_pairs_are_held_out_by_their_unified_names(tmp_path):
    make_pairs(tmp_path, "bottle", "broken_large", 2)
    make_pairs(tmp_path, "bottle", "contamination", 2)
    samples = read_folder(tmp_path)
    pairs = parse_pairs("bottle/broken, bottle/contamination")
    assert pairs == [("bottle", "broken"), ("bottle", "contamination")]
    assert {s.defect for s in hold_out(samples, pairs[:1])} == {"contamination"}
    assert len(samples) == 4
    with pytest.raises(InputError, match="no bottle with scratch to hold out: there is broken, contamination"):
        hold_out(samples, [("bottle", "scratch")])
    for text in ("bottle", "bottle/broken/large", "bottle/", ""):
        with pytest.raises(InputError, match="pairs must be comma-separated product/defect"):
            parse_pairs(text)


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path):
    make_pairs(tmp_path / "here", "gear", "dent", 10)
    make_pairs(tmp_path / "there", "gear", "dent", 10)
    make_pairs(tmp_path / "there", "gear", "scratch", 3)
    here, there = read_folder(tmp_path / "here"), read_folder(tmp_path / "there")

    def chosen(samples, seed):
        return [s.image.stem for s in split(samples, seed)[0] if s.original_defect == "dent"]

    assert chosen(here, 0) == chosen(here[::-1], 0)[::-1] == chosen(there, 0)
    assert chosen(here, 0) == ["000", "004", "006", "007", "009"]  # the rule of the docstring, written out once
    assert len({tuple(chosen(here, seed)) for seed in range(5)}) == 5


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))


def test_a_few_and_the_rest_are_copied_with_their_masks(tmp_path):
    source = tmp_path / "source"
    make_pairs(source, "bottle", "broken_large", 5)
    for i in range(3):
        image(source / "bottle" / "train" / "good" / f"{i:03d}.png")
    few, rest = tmp_path / "few", tmp_path / "rest"
    counts = write_split(source, few, rest, per_defect=2, good=1)
    assert counts == {str(few): 3, str(rest): 5}
    assert sorted(files(few) + files(rest)) == files(source)
    for part, pairs, good in [(few, 2, 1), (rest, 3, 2)]:
        samples = read_folder(part)  # raises if an image lacks its mask
        assert sum(s.defect == "broken" for s in samples) == pairs
        assert sum(s.defect == "good" for s in samples) == good
        for file in files(part):
            assert (part / file).read_bytes() == (source / file).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "rest", "source"]


def test_the_few_are_the_first_of_the_half(tmp_path):
    make_pairs(tmp_path, "gear", "dent", 10)
    samples = read_folder(tmp_path)
    few = {s.image for s in split_few(samples, 3, 0)[0]}
    assert len(few) == 3
    assert few < {s.image for s in split(samples)[0]}


def test_bad_splits_are_refused_and_nothing_is_written(tmp_path):
    source = tmp_path / "source"
    make_pairs(source, "bottle", "broken_large", 3)
    with pytest.raises(InputError, match=r"bottle has 3 images of broken_large: with 3 of them .* none is left"):
        write_split(source, tmp_path / "few", tmp_path / "rest", per_defect=3)
    with pytest.raises(InputError, match="few is given for both parts: name two folders"):
        write_split(source, tmp_path / "few", tmp_path / "source" / ".." / "few", per_defect=1)
    (tmp_path / "rest").mkdir()
    with pytest.raises(InputError, match="rest exists: choose another folder"):
        write_split(source, tmp_path / "few", tmp_path / "rest", per_defect=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rest", "source"]


def test_a_full_disk_leaves_no_folder_by_its_name(tmp_path, monkeypatch):
    source = tmp_path / "source"
    make_pairs(source, "bottle", "broken_large", 3)
    real, copied = shutil.copyfile, []

    def copyfile(file, copy):
        copied.append(copy)
        if "rest" in str(copy):
            raise OSError("No space left on device")
        return real(file, copy)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(InputError, match=r"could not write .*rest.*No space left"):
        write_split(source, tmp_path / "few", tmp_path / "rest", per_defect=1, good=1)
    assert copied and not (tmp_path / "few").exists() and not (tmp_path / "rest").exists()
    monkeypatch.undo()
    write_split(source, tmp_path / "few", tmp_path / "rest", per_defect=1, good=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "rest", "source"]
