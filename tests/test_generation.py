import json
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_another_process, processes, random_pipeline
from PIL import Image

from defectdiffu import InputError, generation
from defectdiffu.data.folder import read_folder
from defectdiffu.data.validate import check_folder
from defectdiffu.files import locked
from defectdiffu.generation import generate_folder, load_pipeline, weakness
from defectdiffu.pipeline import DefectDiffuOutput, DefectDiffuPipeline


@pytest.fixture
def drawing(pipe, monkeypatch):
    """A pipeline that paints instead of sampling: image s is grey s, and odd seeds have no mask."""
    calls = []

    def call(self, product, defect, *, num_images, seeds, callback, **settings):
        calls.append({"seeds": seeds, **settings})
        masks = [np.full((32, 32), 0 if s % 2 else 255, np.uint8) * (np.arange(32) < 8) for s in seeds]
        images = [Image.new("RGB", (32, 32), (s, s, s)) for s in seeds]
        masks = [m.astype(np.uint8) for m in masks]
        return DefectDiffuOutput(images, [Image.fromarray(m) for m in masks], np.stack(masks) / 255, list(seeds))

    monkeypatch.setattr(type(pipe), "__call__", call)
    return pipe, calls


def test_pairs_are_in_the_layout_that_others_read(drawing, tmp_path):
    pipe, _ = drawing
    generate_folder(pipe, tmp_path, "hazelnut", "crack", num=3, seed=10)
    assert not check_folder(tmp_path)
    samples = read_folder(tmp_path)
    assert [(s.product, s.defect, s.image.name) for s in samples] == [
        ("hazelnut", "crack", f"{i:03d}.png") for i in range(3)
    ]
    # Odd seeds have no mask, so the pairs are of the even ones, in order.
    assert [np.asarray(Image.open(s.image))[0, 0, 0] for s in samples] == [10, 12, 14]
    (record,) = json.loads((tmp_path / "generation.json").read_text())
    assert record["seeds"] == [10, 12, 14]
    assert record["seeds_without_mask"] == [11, 13]
    assert record["trained_pair"] is True
    assert {"w_d", "w_p", "num_inference_steps", "guidance", "versions", "weights"} <= record.keys()


def test_good_images_need_no_mask(drawing, tmp_path):
    pipe, _ = drawing
    record = generate_folder(pipe, tmp_path, "tile", "good", num=3)
    assert record["seeds"] == [0, 1, 2]
    assert not (tmp_path / "tile" / "ground_truth").exists()
    assert not check_folder(tmp_path)


def test_good_images_are_to_train_on_and_to_test_on(drawing, tmp_path):
    """Loaders of MVTec AD's layout look for train/good."""
    pipe, _ = drawing
    generate_folder(pipe, tmp_path, "tile", "good", num=12)
    kept = {part: sorted((tmp_path / "tile" / part / "good").iterdir()) for part in ("train", "test")}
    grey = {part: [np.asarray(Image.open(f))[0, 0, 0] for f in files] for part, files in kept.items()}
    assert grey == {"test": [0, 5, 10], "train": [1, 2, 3, 4, 6, 7, 8, 9, 11]}


def test_a_second_pair_is_added_and_the_same_one_refused(drawing, tmp_path):
    pipe, _ = drawing
    generate_folder(pipe, tmp_path, "tile", "crack", num=1)
    generate_folder(pipe, tmp_path, "tile", "hole", num=1)
    assert len(json.loads((tmp_path / "generation.json").read_text())) == 2
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"tile/ground_truth/hole exists: choose another --out, or add"):
        generate_folder(pipe, tmp_path, "tile", "hole", num=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_masks_that_are_there_are_not_touched(drawing, tmp_path):
    pipe, _ = drawing
    kept = tmp_path / "tile" / "ground_truth" / "crack" / "mine.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"tile/ground_truth/crack exists"):
        generate_folder(pipe, tmp_path, "tile", "crack", num=1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]


def test_what_is_asked_for_reaches_the_pipeline_and_the_record(drawing, tmp_path):
    pipe, calls = drawing
    asked = {"w_d": 2.5, "w_p": 1.5, "steps": 7, "guidance": "defect_only"}
    record = generate_folder(pipe, tmp_path, "tile", "crack", num=1, **asked)
    settings = {"w_d": 2.5, "w_p": 1.5, "num_inference_steps": 7, "guidance": "defect_only", "check": 0.0}
    assert calls[0] == {"seeds": [0], "batch_size": 1, **settings}
    assert [record[k] for k in ("w_d", "w_p", "num_inference_steps", "guidance")] == [2.5, 1.5, 7, "defect_only"]


def test_nothing_is_written_where_no_image_has_a_mask(pipe, monkeypatch, tmp_path):
    def call(self, product, defect, *, num_images, seeds, **settings):
        blank = np.zeros((num_images, 32, 32), np.uint8)
        return DefectDiffuOutput(
            [Image.new("RGB", (32, 32))] * num_images, [Image.fromarray(b) for b in blank], blank, list(seeds)
        )

    monkeypatch.setattr(type(pipe), "__call__", call)
    with pytest.raises(InputError, match=r"none of 16 images of tile with crack has a mask.*nothing was written"):
        generate_folder(pipe, tmp_path / "out", "tile", "crack", num=2)
    assert not (tmp_path / "out").exists()


def test_pairs_are_added_to_those_that_are_there(drawing, tmp_path):
    pipe, calls = drawing
    generate_folder(pipe, tmp_path, "tile", "crack", num=2)  # of the seeds 0 and 2
    before = files(tmp_path / "tile")
    calls.clear()
    record = generate_folder(pipe, tmp_path, "tile", "crack", num=2, append=True)
    assert calls[0]["seeds"] == [3, 4]
    assert record["seeds"] == [4, 6]
    after = files(tmp_path / "tile")
    assert {name: after[name] for name in before} == before
    assert [Path(name).name for name in after if "test" in name] == ["000.png", "001.png", "002.png", "003.png"]
    assert not check_folder(tmp_path)


def test_pairs_are_added_to_real_ones(drawing, tmp_path):
    pipe, _ = drawing
    for name in ("test/crack/017.png", "ground_truth/crack/017_mask.png"):
        (tmp_path / "tile" / name).parent.mkdir(parents=True)
        Image.new("RGB" if "test" in name else "L", (32, 32), 9).save(tmp_path / "tile" / name)
    generate_folder(pipe, tmp_path, "tile", "crack", num=1, append=True)
    assert [f.name for f in sorted((tmp_path / "tile" / "test" / "crack").iterdir())] == ["017.png", "018.png"]


@pytest.fixture
def checking(pipe, monkeypatch):
    """A pipeline whose image s has the ratio s, and whose odd seeds have no mask."""

    def call(self, product, defect, *, num_images, seeds, check, **settings):
        kept = [s for s in seeds if s >= check]
        marks = [np.full((32, 32), 0 if s % 2 else 255, np.uint8) for s in kept]
        images = [Image.new("RGB", (32, 32), (s, s, s)) for s in kept]
        ratios = [float(s) for s in seeds]
        return DefectDiffuOutput(images, [Image.fromarray(m) for m in marks], np.zeros(1), kept, ratios)

    monkeypatch.setattr(type(pipe), "__call__", call)
    return pipe


def test_pairs_that_fail_their_check_are_left_out_and_written_down(checking, tmp_path):
    record = generate_folder(checking, tmp_path, "tile", "crack", num=2, check=3.0)
    assert record["seeds"] == [4, 6]
    assert record["ratios"] == {s: float(s) for s in range(7)}
    (written,) = json.loads((tmp_path / "generation.json").read_text())
    assert (written["check"], written["ratios"]["2"]) == (3.0, 2.0)
    assert [np.asarray(Image.open(s.image))[0, 0, 0] for s in read_folder(tmp_path)] == [4, 6]


def test_no_more_seeds_are_checked_than_allowed(checking, tmp_path):
    with pytest.raises(InputError, match=r"none of 6 images of tile with crack passes; nothing was written"):
        generate_folder(checking, tmp_path / "out", "tile", "crack", num=2, check=200.0, attempts=3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="'good' cannot be checked"):
        generate_folder(checking, tmp_path / "out", "tile", "good", num=2, check=2.0)
    with pytest.raises(InputError, match="check is 300"):
        generate_folder(checking, tmp_path / "out", "tile", "crack", num=2, check=300.0)


def test_two_calls_do_not_write_the_same_pairs(drawing, tmp_path):
    pipe, _ = drawing
    with (
        locked(tmp_path / ".part-tile-crack", "generates these pairs"),
        pytest.raises(InputError, match=r"another process generates these pairs in .*part-tile-crack"),
    ):
        generate_folder(pipe, tmp_path, "tile", "crack", num=1)
    generate_folder(pipe, tmp_path, "tile", "crack", num=1)


def test_a_damaged_record_is_named_before_anything_is_sampled(drawing, tmp_path):
    pipe, calls = drawing
    (tmp_path / "generation.json").write_text('[{"product": "ti')
    with pytest.raises(InputError, match=r"generation\.json is damaged"):
        generate_folder(pipe, tmp_path, "tile", "crack", num=1)
    assert not calls and [f.name for f in tmp_path.iterdir()] == ["generation.json"]


@pytest.mark.parametrize("record", ['{"product": 1}', '[{"product": "tile"}]', "[1]"])
def test_a_record_of_something_else_is_named(drawing, tmp_path, record):
    (tmp_path / "generation.json").write_text(record)
    with pytest.raises(InputError, match=r"generation\.json is not a list of records with defect, product, seeds"):
        generate_folder(drawing[0], tmp_path, "tile", "crack", num=1)
    assert [f.name for f in tmp_path.iterdir()] == ["generation.json"]


def test_damaged_settings_of_a_stopped_generation_are_named(drawing, tmp_path):
    work = tmp_path / ".part-tile-crack"
    work.mkdir()
    for name in ("settings.json", "0.png"):
        (work / name).write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is damaged .*: remove .*\.part-tile-crack"):
        generate_folder(drawing[0], tmp_path, "tile", "crack", num=1)
    assert sorted(f.name for f in work.iterdir()) == ["0.png", "settings.json"]


def test_what_the_weights_cannot_do_is_said(pipe, tmp_path):
    pair = {"product_accuracy": 0.98, "defect_accuracy": 0.125, "mask_iou": 0.02}
    good = {"product_accuracy": 0.98, "defect_accuracy": 0.9, "mask_iou": 0.5}
    pipe.register_to_config(_name_or_path=str(tmp_path))
    assert weakness(pipe, "tile", "crack") is None
    record = {"seeds": [0] * 50, "settings": {"w_d": 1.5}}
    record["per_pair"] = {"trained": {"tile crack": pair, "tile hole": good}, "held_out": {}, "rendered_held_out": {}}
    (tmp_path / "oracle.json").write_text(json.dumps(record))
    assert weakness(pipe, "tile", "hole") is None
    assert weakness(pipe, "tile", "bent") is None
    assert "of 50 pictures at w_d = 1.5 the judge named the product in 98%, the defect in 12%" in weakness(
        pipe, "tile", "crack"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Killed, and in several processes


def files(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def generate(out, num: int = 20, **settings) -> None:
    pipe = random_pipeline()
    generate_folder(pipe, out, "tile", "good", num, steps=1, **settings)
    generate_folder(pipe, out, "hazelnut", "good", 2, steps=1, **settings)


def killed(out, place: str, count: int) -> None:
    """The process dies when `generation.<place>` is called for the `count`-th time."""
    owner, _, name = place.rpartition(".")
    owner = getattr(generation, owner) if owner else generation
    original, calls = getattr(owner, name), [0]

    def wrapper(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)
    generate(out)


# ---------------------------------------------------------------------------------------------------------------------
# A defect on given pictures


def given_pictures(folder: Path, number: int = 2) -> Path:
    folder.mkdir()
    for i in range(number):
        Image.new("RGB", (40, 32), (100 + i,) * 3).save(folder / f"{i}.png")
    return folder


def test_given_pictures_are_used_in_turn(drawing, tmp_path):
    pipe, calls = drawing
    place = tmp_path / "place.png"
    Image.fromarray(np.eye(32, 40, dtype=np.uint8)).save(place)
    on = given_pictures(tmp_path / "on")
    record = generate_folder(
        pipe, tmp_path / "out", "tile", "hole", 3, seed=4, on=on, where=place, strength=0.4, crop=32, batch_size=3
    )
    (first, *_) = calls
    assert [image.getpixel((0, 0))[0] for image in first["image"]] == [100, 101, 100]
    assert [np.asarray(mask).sum() for mask in first["mask"]] == [32] * 3
    assert (first["strength"], first["crop"]) == (0.4, 32)
    assert record["pictures"] == {4: "0.png", 6: "0.png", 8: "0.png"}  # odd seeds have no mask
    assert "pictures" not in generate_folder(pipe, tmp_path / "out", "tile", "crack", 1)


def test_without_a_place_the_pipeline_is_given_none(drawing, tmp_path):
    pipe, calls = drawing
    generate_folder(pipe, tmp_path / "out", "tile", "hole", 1, on=given_pictures(tmp_path / "on"))
    assert calls[0]["mask"] is None


def test_a_real_call_changes_the_place_alone(pipe, tmp_path, monkeypatch):
    place = np.zeros((32, 40), np.uint8)
    place[12:20, 16:24] = 255
    Image.fromarray(place).save(tmp_path / "place.png")
    on = given_pictures(tmp_path / "on", 1)
    monkeypatch.setattr("defectdiffu.masks.binarise", lambda p: np.where(p > 0, 255, 0).astype(np.uint8))
    generate_folder(pipe, tmp_path / "out", "tile", "hole", 1, on=on, where=tmp_path / "place.png", steps=2)
    image = np.asarray(Image.open(tmp_path / "out/tile/test/hole/000.png"))
    assert image.shape == (32, 40, 3)
    assert (image[0] == 100).all()
    assert (image[12:20, 16:24] != 100).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defect": "good"}, "a given picture gets a defect"),
        ({"check": 2.0}, "no check"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"on": None, "where": Path("place.png")}, "name the picture, too"),
        ({"on": None, "crop": 32}, "name the picture, too"),
        ({"crop": 33}, "crop is 33: it must be from 16 to 32"),
        ({"where": Path("none.png")}, "none.png: there is no such mask"),
    ],
)
def test_given_pictures_that_cannot_be_used_leave_nothing(pipe, tmp_path, changes, message):
    asked = {"product": "tile", "defect": "hole", "num": 1, "on": given_pictures(tmp_path / "on")}
    with pytest.raises(InputError, match=message):
        generate_folder(pipe, tmp_path / "out", **asked | changes)
    assert not (tmp_path / "out").exists()


def test_a_stopped_generation_on_other_pictures_is_refused(drawing, tmp_path, monkeypatch):
    pipe, _ = drawing
    on = given_pictures(tmp_path / "on")
    monkeypatch.setattr(generation, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        generate_folder(pipe, tmp_path / "out", "tile", "hole", 1, on=on)
    Image.new("RGB", (40, 32)).save(on / "0.png")
    with pytest.raises(InputError, match="pictures: "):
        generate_folder(pipe, tmp_path / "out", "tile", "hole", 1, on=on)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    assert in_another_process(generate, out) == 0
    return out


def test_a_killed_generation_goes_on_where_it_stopped(finished, tmp_path):
    out = tmp_path / "out"
    deaths = [("DefectDiffuPipeline.__call__", 2), ("write_atomically", 24), ("shutil.copyfile", 7), ("add_record", 1)]
    for place, count in [*deaths, ("shutil.rmtree", 1)]:
        assert in_another_process(killed, out, place, count) == -signal.SIGKILL
        for part, count in ("train", 16), ("test", 4):
            folder = out / "tile" / part / "good"
            assert not folder.exists() or len(list(folder.iterdir())) == count
    assert in_another_process(generate, out) == 0
    assert files(out) == files(finished)


def test_images_that_are_there_are_not_made_again(drawing, tmp_path):
    pipe, calls = drawing
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(generation, "finish", interrupted)
        generate_folder(pipe, tmp_path, "tile", "crack", num=10)
    made = len(calls)
    assert made > 1
    with pytest.raises(
        InputError, match=r"stopped, with other settings \(num: 10 there, 11 asked; w_d: .* there, 3.0 asked"
    ):
        generate_folder(pipe, tmp_path, "tile", "crack", num=11, w_d=3.0)
    record = generate_folder(pipe, tmp_path, "tile", "crack", num=10)
    assert len(calls) == made
    assert record["seeds"] == list(range(0, 20, 2))
    assert not list(tmp_path.glob(".part*"))


def test_a_stopped_generation_goes_on_in_smaller_batches(drawing, tmp_path):
    """As after a GPU's memory ran out: finished images are kept."""
    pipe, calls = drawing
    draw = type(pipe).__call__

    def full(self, *args, **kwargs):
        if calls:
            raise InputError("out of GPU memory")
        return draw(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="out of GPU memory"):
        patch.setattr(type(pipe), "__call__", full)
        generate_folder(pipe, tmp_path, "tile", "good", num=20)
    generate_folder(pipe, tmp_path, "tile", "good", num=20, batch_size=4)
    assert [call["seeds"][0] for call in calls] == [0, 8, 12, 16]
    assert [len(call["seeds"]) for call in calls] == [call["batch_size"] for call in calls] == [8, 4, 4, 4]


# ---------------------------------------------------------------------------------------------------------------------
# In little memory


def test_the_pipeline_is_loaded_as_asked(saved):
    plain = load_pipeline(saved)
    assert (plain.transformer.dtype, plain.vae.use_tiling) == (torch.float32, False)
    assert load_pipeline(saved, tiling=True).vae.use_tiling
    with pytest.raises(InputError, match=r"--offload .* there is no GPU"):
        load_pipeline(saved, offload=True)


@pytest.mark.parametrize(
    ("asked", "supported", "dtype"),
    [
        ({}, "bf16", torch.bfloat16),
        ({}, "fp16", torch.float16),
        ({"full_precision": True}, "bf16", torch.float32),
    ],
)
def test_a_gpu_computes_in_half_precision_unless_asked(saved, monkeypatch, asked, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(generation, "PartialState", lambda cpu: type("State", (), {"device": torch.device("cuda:0")}))
    monkeypatch.setattr(generation, "precision", lambda: supported)
    monkeypatch.setattr(DefectDiffuPipeline, "to", lambda *_: None)  # there is no GPU to move to
    pipe = load_pipeline(saved, **asked)
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)} == {dtype}


def test_offloading_replaces_moving_to_the_gpu(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(generation, "precision", lambda: "bf16")
    monkeypatch.setattr(generation, "PartialState", lambda cpu: type("State", (), {"device": torch.device("cuda:1")}))
    monkeypatch.setattr(DefectDiffuPipeline, "enable_model_cpu_offload", lambda self, device: asked.append(device))
    monkeypatch.setattr(DefectDiffuPipeline, "to", lambda *_: pytest.fail("all of it moved"))
    load_pipeline(saved, offload=True)
    assert asked == [torch.device("cuda:1")]


def test_weights_that_do_not_fit_are_explained(saved, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(DefectDiffuPipeline, "to", full)
    with pytest.raises(InputError, match=r"out of GPU memory: sampling 1 at a time .*\(no --full-precision\) saves"):
        load_pipeline(saved)


@pytest.mark.parametrize("name", ["a/../../victim", "../victim", "hazelnut/crack", "", ".", "C:x", "a\nb"])
def test_no_name_leads_out_of_the_folder(pipe, tmp_path, name):
    """Neither a requested name nor a name in others' weights; a folder outside is not changed."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    out = tmp_path / "deep" / "out"
    with pytest.raises(InputError, match="unknown product"):
        generate_folder(pipe, out, name, "crack", num=1)
    pipe.transformer.register_to_config(trained_on={name: ["crack"], "tile": [name or "x"]})
    for asked in ((name, "crack"), ("tile", name or ".")):
        with pytest.raises(InputError):
            generate_folder(pipe, out, *asked, num=1)
    assert (victim / "kept").is_file() and not out.exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"w_d": float("nan")}, "w_d is nan"),
        ({"w_p": float("inf")}, "w_p is inf"),
        ({"w_d": 1e30}, "w_d is 1e[+]30"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"seed": -1, "num": 1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"num": 10**9}, "num is 1000000000"),
        ({"attempts": 0}, "attempts is 0"),
    ],
)
def test_bad_numbers_are_named_and_leave_nothing(pipe, tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        generate_folder(pipe, tmp_path / "out", "tile", "crack", **{"num": 2} | asked)
    assert not (tmp_path / "out").exists()
    generate_folder(pipe, tmp_path / "out", "tile", "good", num=1)  # the same folder, once the value is right


def test_a_name_that_is_not_known_leaves_nothing(pipe, tmp_path):
    with pytest.raises(InputError, match="unknown defect 'crak': did you mean crack"):
        generate_folder(pipe, tmp_path / "out", "tile", "crak", num=1)
    assert not (tmp_path / "out").exists()


def member(rank: int, port: int, out) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    generate(out)
    assert generation.PartialState().num_processes == 2


def test_two_processes_share_the_work(finished, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    members = [processes.Process(target=member, args=(rank, port, tmp_path / "out")) for rank in range(2)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    assert [process.exitcode for process in members] == [0, 0]
    assert files(tmp_path / "out") == files(finished)
