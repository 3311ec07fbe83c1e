"""The judge of rendered data: one network that names product and defect of a picture and marks the defect.

It is trained on thousands of rendered pictures (`experiments/judge_training.py`), none of which a generative model is
trained on, and so can assess generated pictures. Its card states its errors on new rendered pictures; they limit the
accuracy of its measurements.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from defectdiffu.drawn.procedural import DEFECTS, PRODUCTS
from defectdiffu.errors import InputError
from defectdiffu.machine import default_device
from defectdiffu.pictures import to_tensor

SHIPPED = Path(__file__).parent / "judges"
NAMES = tuple(PRODUCTS)
KINDS = ("good", *DEFECTS)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int = 1):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class JudgeNetwork(nn.Module):
    """A U-Net on patches, down to a grid of 8 x 8. The defect head also pools features where the mask head marks."""

    def __init__(self, size: int):
        super().__init__()
        patch = 2 if size < 128 else 4
        grids = [g for g in (64, 32, 16, 8) if g <= size // patch]
        if size // patch != grids[0]:
            raise InputError(f"a judge is for pictures of 16, 32, 64 or 256 pixels, not {size}")
        widths = [{64: 32, 32: 48, 16: 96, 8: 192}[g] for g in grids]
        steps = list(pairwise(widths))
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, widths[0], 3, 1, 1))
        self.down = nn.ModuleList([ResidualBlock(widths[0], widths[0]), *(ResidualBlock(a, b, 2) for a, b in steps)])
        self.up = nn.ModuleList([ResidualBlock(a + b, a) for a, b in reversed(steps)])
        self.mask = nn.Sequential(nn.Conv2d(widths[0], patch**2, 1), nn.PixelShuffle(patch))
        self.product = nn.Linear(widths[-1], len(NAMES))
        self.defect = nn.Linear(2 * widths[-1] + 2 * widths[0], len(KINDS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, 3, S, S) in [-1, 1] to logits (B, 12), (B, 11) and (B, S, S), and features (B, 192)."""
        x = self.stem(x)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        deepest = skips.pop()  # (B, 192, 8, 8)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1))
        mask = self.mask(x)  # (B, 1, S, S)
        marked = F.interpolate(mask.sigmoid(), x.shape[-2:], mode="area")
        at_the_defect = (x * marked).sum((2, 3)) / (marked.sum((2, 3)) + 1)
        features = deepest.mean((2, 3))
        seen = torch.cat([features, deepest.amax((2, 3)), at_the_defect, x.amax((2, 3))], dim=1)
        return self.product(features), self.defect(seen), mask[:, 0], features


class Verdict(NamedTuple):
    """products, defects: names, one per picture; mask_probs float32 (N, S, S); features float32 (N, 192)."""

    products: list[str]
    defects: list[str]
    mask_probs: np.ndarray
    features: np.ndarray


class Judge:
    """judge(images uint8 (N, S, S, 3)) -> Verdict. `card` holds the judge's scores, seeds and counts."""

    def __init__(self, network: JudgeNetwork, card: dict):
        self.device = default_device()
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.card = card
        self.size = card["size"]

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Load a judge that `train_judge` wrote. Raises `InputError` if there is none."""
        folder = Path(folder)
        if not (folder / "judge.json").is_file() or not (folder / "judge.safetensors").is_file():
            raise InputError(f"no judge in {folder}: it needs judge.json and judge.safetensors")
        card = json.loads((folder / "judge.json").read_text())
        network = JudgeNetwork(card["size"])
        network.load_state_dict(load_file(folder / "judge.safetensors"))  # half precision becomes single here
        return cls(network, card)

    @classmethod
    def shipped(cls, size: int) -> "Judge":
        """The shipped judge for pictures of `size` pixels: the one with the largest size up to `size`."""
        sizes = [int(p.parent.name) for p in SHIPPED.glob("*/judge.json")]
        if not any(s <= size for s in sizes):
            raise InputError(f"no judge for {size} pixels; the smallest shipped size is {min(sizes, default='none')}")
        return cls.load(SHIPPED / str(max(s for s in sizes if s <= size)))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, batch_size: int = 64) -> Verdict:
        if images.ndim != 4 or images.shape[1:] != (self.size, self.size, 3) or images.dtype != np.uint8:
            raise InputError(
                f"this judge reads uint8 pictures (N, {self.size}, {self.size}, 3), not {images.dtype} {images.shape}"
            )
        products, defects, masks, features = [], [], [], []
        for start in range(0, len(images), batch_size):
            outputs = self.network(to_tensor(images[start : start + batch_size], self.device))
            product, defect, mask, feature = (output.float().cpu() for output in outputs)
            products += [NAMES[i] for i in product.argmax(1)]
            defects += [KINDS[i] for i in defect.argmax(1)]
            masks.append(mask.sigmoid().numpy())
            features.append(feature.numpy())
        return Verdict(products, defects, np.concatenate(masks), np.concatenate(features))
