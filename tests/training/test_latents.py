import os
import re
import shutil
import signal
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers import in_another_process, processes, tiny_preset

from defectdiffu import InputError, autoencoder
from defectdiffu.config import GOOD
from defectdiffu.data.catalog import AUGMENT, augmentation
from defectdiffu.data.folder import read_folder
from defectdiffu.masks import to_picture
from defectdiffu.training import latents
from defectdiffu.training.latents import Latents, Pictures, augment, cached_latents


@pytest.fixture
def pictures(data):
    return Pictures.load(read_folder(data), 32)


def small_vae():
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder(tiny_preset().autoencoder).eval()
    vae.register_to_config(scaling_factor=20.0)
    return vae


@pytest.fixture
def vae():
    return small_vae()


def test_pictures_of_a_folder(pictures):
    assert len(pictures) == 20
    images, masks = pictures.tensors(range(20))
    assert images.shape == (20, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    assert set(masks.unique().tolist()) == {0, 1}
    for i, defect in enumerate(pictures.defects):
        assert bool(masks[i].any()) == (defect != GOOD)
        assert (images[i][:, masks[i] > 0] > 0.9).all()  # defects are painted bright


def test_a_broken_picture_is_named(data, tmp_path):
    samples = read_folder(shutil.copytree(data, tmp_path / "data"))
    samples[3].image.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=re.escape(str(samples[3].image))):
        Pictures.load(samples, 32)


def augment_one(image, mask, product, rng):
    """One picture after another: flipped, turned, then shifted and zoomed."""
    allowed = augmentation(product)
    flip_h, flip_v, turn = rng.random(3)
    dx, dy, zoom, light = rng.uniform(-1, 1, 4)
    both = torch.cat([image, mask[None] * 2 - 1])
    if allowed.flip_h and flip_h < 0.5:
        both = both.flip(-1)
    if allowed.flip_v and flip_v < 0.5:
        both = both.flip(-2)
    if allowed.quarter_turns:
        both = both.rot90(int(turn * 4), (-2, -1))
    scale, shift = 1 + zoom * allowed.zoom, 2 * allowed.shift  # a side is 2 long in [-1, 1]
    move = torch.tensor([[[scale, 0, dx * shift], [0, scale, dy * shift]]])
    grid = F.affine_grid(move.to(both), [1, 4, *image.shape[-2:]], align_corners=False)
    both = F.grid_sample(both[None], grid, padding_mode="reflection", align_corners=False)[0]
    return ((both[:3] + 1) * (1 + light * allowed.light) - 1).clamp(-1, 1), (both[3] > -0.2).float()


def test_a_batch_is_augmented_as_its_pictures_one_by_one():
    products = [*AUGMENT, *["unknown"] * 3] * 4
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(products), 3, 24, 24, generator=generator) * 2 - 1
    masks = (torch.rand(len(products), 24, 24, generator=generator) > 0.8).float()
    augmented, moved = augment(images, masks, products, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    single = [augment_one(*one, rng) for one in zip(images, masks, products, strict=True)]
    torch.testing.assert_close(augmented, torch.stack([image for image, _ in single]), atol=1e-5, rtol=0)
    assert (moved != torch.stack([mask for _, mask in single])).float().mean() < 1e-3  # values at the threshold


@pytest.mark.parametrize("product", ["tile", "hazelnut", "metal_nut", "unknown"])
def test_the_mask_moves_with_the_picture(product):
    """A bright square on grey: its mask moves with it."""
    mask = torch.zeros(32, 32)
    mask[5:14, 18:28] = 1
    image = to_picture(mask[None])[0] * 0.8
    moved, masks = augment(
        image.expand(40, -1, -1, -1), mask.expand(40, -1, -1), [product] * 40, np.random.default_rng(0)
    )
    assert set(masks.unique().tolist()) <= {0, 1}
    bright, marked = moved.mean(1) > 0, masks > 0
    assert ((bright & marked).sum((1, 2)) / (bright | marked).sum((1, 2)) > 0.8).all()
    area = masks.mean((1, 2)) / mask.mean()
    assert area.min() > 0.6 and area.max() < 1.6
    places = {tuple((m.nonzero().float().mean(0) > 15.5).tolist()) for m in masks}
    turns = {"tile": 4, "hazelnut": 4, "metal_nut": 4, "unknown": 1}
    assert len(places) == turns[product]


def test_the_light_changes_the_picture_and_not_the_mask(pictures):
    images, masks = pictures.augmented([pictures.defects.index(GOOD)] * 20, np.random.default_rng(0))
    assert images.mean(dim=(1, 2, 3)).std() > 0.01
    assert masks.max() == 0


def test_version_0_is_the_picture_itself(pictures, vae, tmp_path):
    latents = cached_latents(vae, pictures, 3, seed=0, folder=tmp_path)
    images, masks = pictures.tensors(range(20))
    with torch.no_grad():
        expected = autoencoder.encode(vae, images), autoencoder.encode(vae, to_picture(masks))
    assert latents.image.shape == latents.mask.shape == (20, 3, 4, 8, 8)
    assert latents.region.shape == (20, 3, 8, 8)
    for found, value in zip((latents.image, latents.mask), expected, strict=True):
        torch.testing.assert_close(found[:, 0].float(), value, atol=2e-3, rtol=2e-3)
        assert not torch.allclose(found[:, 1].float(), value, atol=0.01)
    for i, defect in enumerate(pictures.defects):
        assert bool(latents.region[i].flatten(1).any(1).all()) == (defect != GOOD)
    cells = masks.unflatten(2, (8, 4)).unflatten(1, (8, 4)).amax(dim=(2, 4))
    assert torch.equal(latents.region[:, 0].float(), cells)


def test_the_second_call_reads_what_the_first_wrote(pictures, vae, tmp_path, monkeypatch):
    first = cached_latents(vae, pictures, 2, seed=0, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(autoencoder, "encode", lambda *_: pytest.fail("encoded again"))
    again = cached_latents(vae, pictures, 2, seed=0, folder=tmp_path)
    assert file.stat().st_mtime_ns == written
    for name in ("image", "mask", "region"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert (again.products, again.defects) == (pictures.products, pictures.defects)


@pytest.mark.parametrize("changed", ["weights", "scale", "image", "mask", "name", "variants", "seed"])
def test_other_contents_have_another_file(pictures, vae, tmp_path, changed):
    cached_latents(vae, pictures, 2, seed=0, folder=tmp_path)
    settings = {"variants": 2, "seed": 0}
    if changed in settings:
        settings[changed] += 1
    elif changed == "weights":
        next(iter(vae.parameters())).data[0] += 1e-3
    elif changed == "scale":
        vae.register_to_config(scaling_factor=2.0)
    elif changed == "name":
        pictures.products[0] = "wood"
    else:
        getattr(pictures, f"{changed}s")[-1, 0, 0] = 3
    cached_latents(vae, pictures, **settings, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_versions_depend_on_the_seed_and_the_picture_alone(pictures, vae, tmp_path):
    some = Pictures(pictures.images[:5], pictures.masks[:5], pictures.products[:5], pictures.defects[:5])
    all_, few = (cached_latents(vae, p, 3, 0, tmp_path) for p in (pictures, some))
    torch.testing.assert_close(few.image, all_.image[:5], atol=2e-3, rtol=2e-3)
    other = cached_latents(vae, some, 3, 1, tmp_path)
    assert not torch.allclose(other.image[:, 1:], few.image[:, 1:], atol=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Killed, and in several processes


def encode(data, folder, rank: int = 0, count: int = 1, port: int = 0, kill_at: int = 0) -> None:
    """One of `count` processes that fill a cache four pictures at a time, two versions of each; it may be
    killed at its `kill_at`-th batch. The indices that it encodes and reads are written next to the cache."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    latents.BATCH = 8
    original, calls = latents._versions, []

    def versions(pictures, i, *settings):
        if i % 4 == 0:
            calls.append(i)
            if len(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with (folder / "encoded").open("a") as file:
                file.write(f"{i}\n")
        return original(pictures, i, *settings)

    latents._versions = versions
    accelerator = Accelerator(mixed_precision="no") if count > 1 else None
    found = cached_latents(
        small_vae(), Pictures.load(read_folder(data), 32), 2, 0, folder / "cache", processes=accelerator
    )
    torch.save((found.image, found.mask, found.region), folder / f"read-{rank}")


def encode_together(data, folder, kill_at: int = 0) -> list[int]:
    """Two processes, the first of which may be killed; their exit codes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    members = [
        processes.Process(target=encode, args=(data, folder, rank, 2, port, kill_at * (1 - rank))) for rank in range(2)
    ]
    for process in members:
        process.start()
    for process in members:
        process.join()
    return [process.exitcode for process in members]


def contents(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def encoded(folder) -> list[int]:
    """The first picture of every batch that was encoded since the last call."""
    lines = (folder / "encoded").read_text().split()
    (folder / "encoded").unlink()
    return sorted(map(int, lines))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """A cache that one process filled."""
    folder = tmp_path_factory.mktemp("alone")
    assert in_another_process(encode, data, folder) == 0
    assert encoded(folder) == [0, 4, 8, 12, 16]
    assert len(contents(folder / "cache")) == 1
    return folder


def test_two_processes_share_the_work(alone, data, tmp_path):
    assert encode_together(data, tmp_path) == [0, 0]
    assert encoded(tmp_path) == [0, 4, 8, 12, 16]
    assert contents(tmp_path / "cache") == contents(alone / "cache")
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"read-{rank}"), torch.load(alone / "read-0"), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("then", [1, 2])
def test_a_killed_build_goes_on_in_any_number_of_processes(alone, data, tmp_path, then):
    codes = encode_together(data, tmp_path, kill_at=3)  # at picture 16: 0 and 8 are there, and so are the other's
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0
    assert encoded(tmp_path) == [0, 4, 8, 12]
    if then == 1:
        assert in_another_process(encode, data, tmp_path) == 0
    else:
        assert encode_together(data, tmp_path) == [0, 0]
    assert encoded(tmp_path) == [16]
    assert contents(tmp_path / "cache") == contents(alone / "cache")


def test_what_a_kill_left_beside_a_finished_cache_is_removed(alone, data, tmp_path):
    shutil.copytree(alone / "cache", tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.with_suffix("").mkdir()
    assert in_another_process(encode, data, tmp_path) == 0
    assert not (tmp_path / "encoded").exists()
    assert list((tmp_path / "cache").iterdir()) == [file]


def test_draws_are_half_defects_however_few():
    defects = [GOOD] * 95 + ["crack"] * 5
    empty = torch.zeros(100, 4, 1, 1, 1)
    latents = Latents(empty, empty, empty[:, :, 0], ["tile"] * 100, defects)
    picture, version = latents.draw(20_000, np.random.default_rng(0))
    assert abs((picture >= 95).mean() - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    counts = np.bincount(picture, minlength=100)
    assert (counts > 0).all()
    assert counts[95:].min() > 0.8 * 2000
    assert np.bincount(version).min() > 0.9 * 5000


@pytest.mark.parametrize("defect", [GOOD, "crack"])
def test_draws_of_one_kind_alone(defect):
    empty = torch.zeros(3, 1, 1, 1, 1)
    picture, _ = Latents(empty, empty, empty[:, :, 0], ["tile"] * 3, [defect] * 3).draw(50, np.random.default_rng(0))
    assert set(picture) == {0, 1, 2}
