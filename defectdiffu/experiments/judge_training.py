"""Training the judge on rendered pictures, and its scores on new ones.

train_judge(size=64, images=20_000, seed=0, out="judges/64")
"""

import json
import time
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from tqdm.auto import tqdm

from defectdiffu.config import GOOD
from defectdiffu.drawn.procedural import PAIRS, render, sensible
from defectdiffu.drawn.workers import spread
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import KINDS, NAMES, Judge, JudgeNetwork
from defectdiffu.pictures import to_tensor

GOOD_SHARE = 0.2
GOOD_KIND = KINDS.index(GOOD)
COUNTERFACTUAL_SHARE = 0.15  # of the training pictures that are shown without their defect
DEGRADED_SHARE = 0.5  # of the training pictures that are shown degraded
# `write_dataset` counts its specimens from 0 in blocks of a million; the judge's seeds are far above those.
TRAINING_SEEDS, TESTING_SEEDS = 10**15, 2 * 10**15
TESTED = 1000  # new pictures for the scores on the card


class Drawn(NamedTuple):
    """images, normals uint8 (N, S, S, 3), with and without the defect; masks uint8 (N, S, S), 0 or 255; products,
    defects int64 (N,) in NAMES and KINDS."""

    images: np.ndarray
    normals: np.ndarray
    masks: np.ndarray
    products: np.ndarray
    defects: np.ndarray


def draw(size: int, count: int, first_seed: int, workers: int = 1) -> Drawn:
    """Render `count` pictures of random products, with a random defect of `PAIRS` in four of five, strength 0.25 to 1.

    Held-out pairs are included: the judge must know the pairs that the generative model has to transfer to. workers:
    processes that render, see `spread`; the pictures do not depend on it.
    """
    tasks = []
    for seed in range(first_seed, first_seed + count):
        rng = np.random.default_rng(seed)
        product = str(rng.choice(NAMES))
        defect = "good" if rng.random() < GOOD_SHARE else str(rng.choice(PAIRS[product]))
        tasks.append((product, defect, rng.uniform(0.25, 1), seed, size))
    drawn = Drawn(
        np.empty((count, size, size, 3), np.uint8),
        np.empty((count, size, size, 3), np.uint8),
        np.empty((count, size, size), np.uint8),
        np.array([NAMES.index(product) for product, *_ in tasks], np.int64),
        np.array([KINDS.index(defect) for _, defect, *_ in tasks], np.int64),
    )
    rendered = spread(render, tasks, sensible(workers, count, size))
    for i, (image, mask, normal) in enumerate(tqdm(rendered, desc="rendering", total=count, unit="image")):
        drawn.images[i], drawn.masks[i], drawn.normals[i] = image, mask, normal
    return drawn


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture uint8 (S, S, 3) with slight blur, noise and JPEG compression, as from lenses, sensors and codecs.

    Generated pictures differ from rendered ones in such ways, which are not defects. A judge trained without them takes
    the faintest compression block or blur for a scratch.
    """
    blur, grain, quality = rng.uniform(0, 1), rng.uniform(0, 4), int(rng.integers(40, 96))
    soft = Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur))
    noisy = np.asarray(soft, np.float32) + rng.normal(0, grain, image.shape).astype(np.float32)
    file = BytesIO()
    Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file))


def fit(network: JudgeNetwork, drawn: Drawn, epochs: int, seed: int, batch_size: int = 64) -> list[float]:
    """Train in place; return the mean loss of every epoch. AdamW, one cycle, bfloat16; deterministic on one device.

    Some pictures are shown without their defect, so that only the defect separates the two, and some are degraded.
    """
    device = next(network.parameters()).device
    products, defects = torch.from_numpy(drawn.products), torch.from_numpy(drawn.defects)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    count = len(drawn.images)
    batches = -(-count // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=epochs * batches)
    network.train()
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for batch in tqdm(torch.randperm(count, generator=generator).split(batch_size), desc=f"epoch {epoch + 1}"):
            normal = rng.random(len(batch)) < COUNTERFACTUAL_SHARE
            rows = batch.numpy()
            shown = np.where(normal[:, None, None, None], drawn.normals[rows], drawn.images[rows])
            for i in np.flatnonzero(rng.random(len(batch)) < DEGRADED_SHARE):
                shown[i] = degrade(shown[i], rng)
            kinds = torch.where(torch.from_numpy(normal), GOOD_KIND, defects[batch]).to(device)
            target = torch.from_numpy((drawn.masks[rows] > 0) & ~normal[:, None, None]).float().to(device)
            with torch.autocast(device.type, torch.bfloat16):
                product, defect, mask, _ = network(to_tensor(shown, device))
            mask = mask.float()
            overlap = (mask.sigmoid() * target).sum((1, 2))
            dice = 1 - (2 * overlap + 1) / (mask.sigmoid().sum((1, 2)) + target.sum((1, 2)) + 1)
            loss = (
                F.cross_entropy(product.float(), products[batch].to(device))
                + F.cross_entropy(defect.float(), kinds)
                + F.binary_cross_entropy_with_logits(mask, target)
                + dice.mean()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / count)
    network.eval()
    return losses


def score(judge: Judge, drawn: Drawn) -> dict[str, float]:
    """product_accuracy, defect_accuracy; mask_iou and defects_seen of defect pictures; false_alarms of good ones."""
    verdict = judge(drawn.images)
    product = np.array([NAMES.index(p) for p in verdict.products])
    defect = np.array([KINDS.index(d) for d in verdict.defects])
    truth, found = drawn.masks > 0, verdict.mask_probs > 0.5
    flawed = drawn.defects != GOOD_KIND
    iou = (truth & found).sum((1, 2)) / np.maximum((truth | found).sum((1, 2)), 1)
    return {
        "product_accuracy": float(np.mean(product == drawn.products)),
        "defect_accuracy": float(np.mean(defect == drawn.defects)),
        "mask_iou": float(iou[flawed].mean()),
        "false_alarms": float(np.mean(defect[~flawed] != GOOD_KIND)),
        "defects_seen": float(np.mean(defect[flawed] != GOOD_KIND)),
    }


def train_judge(
    size: int,
    images: int,
    seed: int,
    out: str | Path,
    epochs: int = 5,
    cache: str | Path | None = None,
    workers: int = 1,
) -> Judge:
    """Train a judge on `images` rendered pictures; write out/judge.safetensors (half precision) and out/judge.json.

    cache: a file (.npz) that keeps the rendered pictures, which take longer than the training. workers: processes that
    render, see `draw`.
    """
    started = time.time()
    cache = Path(cache) if cache else None
    if cache and cache.is_file():
        with np.load(cache) as file:
            drawn = Drawn(**file)
        if drawn.images.shape[:2] != (images, size):
            raise InputError(f"{cache} holds {drawn.images.shape[:2]} (count, size), not {(images, size)}: remove it")
    else:
        drawn = draw(size, images, TRAINING_SEEDS + seed * 10**9, workers)
        if cache:
            np.savez(cache, **drawn._asdict())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = JudgeNetwork(size)
    judge = Judge(network, {"size": size})
    losses = fit(judge.network, drawn, epochs, seed)
    seconds = time.time() - started

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in judge.network.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in weights.items()}, out / "judge.safetensors")
    card = {"size": size, "products": NAMES, "defects": KINDS}
    (out / "judge.json").write_text(json.dumps(card))
    judge = Judge.load(out)
    tested = draw(size, TESTED, TESTING_SEEDS, workers)
    rng = np.random.default_rng(TESTING_SEEDS)
    degraded = tested._replace(images=np.stack([degrade(image, rng) for image in tested.images]))
    card |= {
        "scores": score(judge, tested),
        "scores_degraded": score(judge, degraded),
        "tested_on": {"images": TESTED, "first_seed": TESTING_SEEDS},
        "trained_on": {"images": images, "first_seed": TRAINING_SEEDS + seed * 10**9, "epochs": epochs, "seed": seed},
        "losses": losses,
        "seconds": round(seconds),
        "device": judge.device,
        "torch": version("torch"),
    }
    (out / "judge.json").write_text(json.dumps(card, indent=2) + "\n")
    return Judge.load(out)
