"""Training pictures as tensors, their augmented versions, and the cache of their latents.

Encoding would be the same work in every epoch, so it is done once: the autoencoder encodes several augmented versions
of every picture, each with the mask augmented in the same way. The cache is keyed by content: the pictures' bytes, the
autoencoder's weights and the settings. Several processes fill it together, batch by batch.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from defectdiffu import autoencoder
from defectdiffu.config import GOOD, Preset
from defectdiffu.data.catalog import Augmentation, augmentation
from defectdiffu.data.folder import FolderDataset, Sample, read_folder
from defectdiffu.data.splitting import hold_out, parse_pairs, split
from defectdiffu.errors import InputError
from defectdiffu.files import load_tensors, save_tensors
from defectdiffu.masks import resize_mask, to_picture
from defectdiffu.pictures import to_tensor
from defectdiffu.prompts import check_names

BATCH = 64  # pictures encoded together


@dataclass
class Pictures:
    """N training pictures: images (N, S, S, 3) uint8, masks (N, S, S) uint8 0 or 255 (zero for good ones)."""

    images: Tensor
    masks: Tensor
    products: list[str]
    defects: list[str]

    @classmethod
    def load(cls, samples: Sequence[Sample], size: int) -> "Pictures":
        """Read and resize; raises `InputError` at the first file that cannot be used."""
        images = np.empty((len(samples), size, size, 3), np.uint8)
        masks = np.empty((len(samples), size, size), np.uint8)
        for i, item in enumerate(tqdm(FolderDataset(samples, size), "reading pictures", leave=False)):
            images[i], masks[i] = item["image"], item["mask"]
        products, defects = [s.product for s in samples], [s.defect for s in samples]
        return cls(torch.from_numpy(images), torch.from_numpy(masks), products, defects)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "Pictures":
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n picture indices, half of them good, half with a defect."""
        return draw_balanced(self.has_defect, n, rng)

    @cached_property
    def has_defect(self) -> np.ndarray:
        return np.array([d != GOOD for d in self.defects])  # (N,)

    def tensors(self, index: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] and masks (B, S, S) in {0, 1}, without augmentation."""
        rows = torch.as_tensor(index, device=self.images.device)
        return to_tensor(self.images[rows]), (self.masks[rows] > 0).float()

    def augmented(self, index: Sequence[int] | np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same, each picture and its mask randomly augmented within what its product allows (`catalog`)."""
        images, masks = self.tensors(index)
        return augment(images, masks, [self.products[i] for i in index], rng)


def augment(images: Tensor, masks: Tensor, products: Sequence[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One random version of each of B pictures (B, 3, S, S) in [-1, 1] and of its mask (B, S, S) in {0, 1}.

    Flips, quarter turns, a small shift and zoom: one affine map per picture, applied to the batch in one call; and a
    slight change of brightness. Draws seven numbers per picture from `rng`.
    """
    maps, light = (
        torch.from_numpy(drawn).to(images) for drawn in affine_maps([augmentation(p) for p in products], rng)
    )
    both = torch.cat([images, masks[:, None] * 2 - 1], dim=1)  # (B, 4, S, S)
    grid = F.affine_grid(maps, list(both.shape), align_corners=False)
    both = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)
    images = ((both[:, :3] + 1) * light[:, None, None, None] - 1).clamp(-1, 1)
    return images, (both[:, 3] > -0.2).float()


def affine_maps(allowed: Sequence[Augmentation], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random maps (B, 2, 3) from a point (x, y) of the new picture, in [-1, 1], to where it lies in the old one, and
    factors of brightness (B,). A point is first zoomed and shifted, then turned, then flipped."""
    drawn = np.array([[*rng.random(3), *rng.uniform(-1, 1, 4)] for _ in allowed])
    flip_h, flip_v, turn, dx, dy, zoom, light = drawn.T
    may = {name: np.array([getattr(a, name) for a in allowed]) for name in vars(allowed[0])}
    turns = np.where(may["quarter_turns"], np.floor(turn * 4), 0).astype(int)
    cos, sin = np.array([1, 0, -1, 0])[turns], np.array([0, 1, 0, -1])[turns]
    turned = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
    signs = [np.where(may[name] & (coin < 0.5), -1, 1) for name, coin in (("flip_h", flip_h), ("flip_v", flip_v))]
    turned = np.stack(signs, axis=1)[:, :, None] * turned
    scale = (1 + zoom * may["zoom"])[:, None, None]
    shift = (np.stack([dx, dy], axis=1) * 2 * may["shift"][:, None])[:, :, None]  # the side is 2 long in [-1, 1]
    return np.concatenate([turned * scale, turned @ shift], axis=2), 1 + light * may["light"]


def read_samples(preset: Preset, data: list[Path]) -> list[Sample]:
    """The samples of `data` to train on. Raises `InputError` for names that prompts cannot distinguish, and for
    a missing pair to hold out."""
    samples = read_folder(*data)
    products, null = sorted({s.product for s in samples}), preset.model.null_product
    if null in products:
        raise InputError(f"'{null}' stands for no product in particular: rename that folder or set model.null_product")
    check_names([*products, *sorted({s.defect for s in samples}), GOOD, null])
    if preset.training.hold_out is not None:
        samples = hold_out(samples, parse_pairs(preset.training.hold_out))
    if preset.training.half_split:
        samples, _ = split(samples, preset.training.seed)
    return samples


@dataclass
class Latents:
    """V versions of N pictures. image and mask: latents (N, V, C, H, W) in half precision; region: the mask itself
    at the latent's size, (N, V, H, W) uint8 0 or 1."""

    image: Tensor
    mask: Tensor
    region: Tensor
    products: list[str]
    defects: list[str]

    def to(self, device: str | torch.device) -> "Latents":
        return replace(self, **{k: getattr(self, k).to(device) for k in ("image", "mask", "region")})

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n (picture, version) indices, half of them good, half with a defect."""
        return draw_balanced(self.has_defect, n, rng), rng.integers(self.image.shape[1], size=n)

    @cached_property
    def has_defect(self) -> np.ndarray:
        return np.array([d != GOOD for d in self.defects])  # (N,)


def draw_balanced(has_defect: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n indices into `has_defect` (N,): defect and good pictures are equally likely, whatever their numbers."""
    kinds = [k for k in (np.flatnonzero(~has_defect), np.flatnonzero(has_defect)) if len(k)]
    which, place = rng.integers(len(kinds), size=n), rng.random(n)
    drawn = [kind[(place * len(kind)).astype(int)] for kind in kinds]  # one for each kind
    return np.choose(which, drawn)


@torch.no_grad()
def cached_latents(
    vae: autoencoder.Autoencoder,
    pictures: Pictures,
    variants: int,
    seed: int,
    folder: Path,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    processes: Accelerator | None = None,
) -> Latents:
    """Encode `variants` versions of every picture, or read them from `folder` if they are cached.

    Version 0 is the picture without augmentation. The versions of a picture depend only on (seed, its index). autocast:
    a context in which the autoencoder runs, such as accelerate's. processes: share the work, and must all make this
    call. A call that was killed resumes when repeated, with any number of processes.
    """
    rank, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
    wait = processes.wait_for_everyone if processes else lambda: None
    name = f"latents-{_key(vae, pictures, variants, seed)}"
    path, parts = folder / f"{name}.safetensors", folder / name
    per_batch = max(1, BATCH // variants)
    batches = [range(i, min(i + per_batch, len(pictures))) for i in range(0, len(pictures), per_batch)]
    files = [parts / f"{batch.start}-{batch.stop}.safetensors" for batch in batches]
    if not path.is_file():
        mine = list(zip(batches, files, strict=True))[rank::count]
        for batch, file in tqdm(mine, "encoding pictures", leave=False, disable=rank > 0):
            if not file.is_file():
                save_tensors(file, _encode(vae, pictures, batch, variants, seed, autocast), {})
    wait()  # every process must wait equally often, whatever it found on the disk
    if rank == 0:
        if not path.is_file():
            found = [load_tensors(file)[0] for file in files]
            save_tensors(path, {key: torch.cat([tensors[key] for tensors in found]) for key in found[0]}, {})
        shutil.rmtree(parts, ignore_errors=True)
    wait()
    try:
        tensors, _ = load_tensors(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and it will be made again") from error
    return Latents(**tensors, products=pictures.products, defects=pictures.defects)


def _encode(
    vae: autoencoder.Autoencoder,
    pictures: Pictures,
    batch: Sequence[int],
    variants: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    """The tensors of `Latents` for a batch of pictures, by field name."""
    versions = [_versions(pictures, i, variants, seed) for i in batch]
    images, masks = (torch.cat(v) for v in zip(*versions, strict=True))
    with autocast():
        image = autoencoder.encode(vae, images.to(vae.device, vae.dtype))
        mask = autoencoder.encode(vae, to_picture(masks).to(vae.device, vae.dtype))
    region = resize_mask(masks, image.shape[-2:]).to(torch.uint8)
    found = {"image": image.half(), "mask": mask.half(), "region": region}
    return {name: value.unflatten(0, (len(batch), variants)) for name, value in found.items()}


def _versions(pictures: Pictures, i: int, variants: int, seed: int) -> tuple[Tensor, Tensor]:
    image, mask = pictures.tensors([i])
    if variants == 1:
        return image, mask
    images, masks = pictures.augmented([i] * (variants - 1), np.random.default_rng([seed, i]))
    return torch.cat([image, images]), torch.cat([mask, masks])


def _key(vae: autoencoder.Autoencoder, pictures: Pictures, variants: int, seed: int) -> str:
    digest = hashlib.sha256(
        f"{variants} {seed} {vae.config['scaling_factor']} {pictures.products} {pictures.defects}".encode()
    )
    for value in (pictures.images, pictures.masks, *vae.state_dict().values()):
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
