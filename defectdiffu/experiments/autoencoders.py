"""How well autoencoders reconstruct pictures and masks: this bounds the quality of everything generated through them.

PSNR does not show which details are lost: a faint stain adds less error than the texture around it. So the judge also
scores rendered pictures as they are, slightly degraded, and reconstructed by each autoencoder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from defectdiffu import autoencoder
from defectdiffu.config import GOOD
from defectdiffu.data.folder import read_folder
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import SHIPPED, Judge
from defectdiffu.evaluation.masks import iou_per_picture
from defectdiffu.evaluation.records import write_record
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.experiments.judge_training import degrade
from defectdiffu.files import write_atomically
from defectdiffu.machine import default_device
from defectdiffu.masks import to_picture
from defectdiffu.pictures import mosaic, to_uint8
from defectdiffu.pipeline import quiet
from defectdiffu.training.building import load_autoencoder
from defectdiffu.training.latents import Pictures

BATCH = 32


def run(names: Sequence[str], data: Sequence[Path], size: int, file: Path, sheet: Path | None = None) -> dict:
    """Compare autoencoders on the pictures of `data`, which none was trained on; write and return the record.

    names: shipped names, folders or hub ids. size: of the pictures, in pixels. sheet: a WebP of one picture per kind of
    defect, the originals in the first row, then one row of reconstructions per autoencoder.
    Scores per autoencoder: "psnr_db"; "mask_kept", the IoU of a mask with its reconstruction; and if the package has a
    judge for `size`, its scores of reconstructed pictures: "defect_accuracy", over all and per kind of defect,
    "judged_good" of those without a defect, and "mask_iou" of its mask with the true one.
    Raises `InputError` for unusable data, unknown names, a size that is not a multiple of the downsampling, and if no
    picture has a defect.
    """
    pictures = Pictures.load(read_folder(*data), size)
    x, true = pictures.tensors(range(len(pictures)))
    flawed = np.array([d != GOOD for d in pictures.defects])
    if not flawed.any():
        raise InputError(f"no picture in {', '.join(map(str, data))} has a defect")
    device = default_device()
    images = to_uint8(x)
    judge = Judge.load(SHIPPED / str(size)) if (SHIPPED / str(size)).is_dir() else None

    runs, shown = [], {}

    def add(name: str, returned: np.ndarray, kept: np.ndarray | None = None) -> None:
        scores = {} if kept is None else {"psnr_db": _psnr(images, returned), "mask_kept": bootstrap(kept)}
        if judge is not None:
            scores |= _judged(judge, returned, pictures.defects, true.numpy())
        runs.append({"name": name, "changes": {"shown": {"pictures": name}}, "seed": 0, "steps": 0, "scores": scores})
        shown[name] = returned

    if judge is not None:
        rng = np.random.default_rng(0)
        add("as they are", images)
        add("degraded", np.stack([degrade(image, rng) for image in images]))
    for name in names:
        with quiet():
            vae = load_autoencoder(name)
            vae.to(device).eval()  # type: ignore[arg-type]  # diffusers' wrapper of `to` has no `self`
        if size % autoencoder.downsampling(vae):
            raise InputError(f"size must be a multiple of {autoencoder.downsampling(vae)} for '{name}', not {size}")
        returned = _through(vae, x)
        drawn = _through(vae, to_picture(true[flawed])).mean(axis=-1) / 255
        add(name, returned, iou_per_picture(drawn, true[flawed].numpy()))
    if sheet is not None:
        firsts = [pictures.defects.index(kind) for kind in sorted(set(pictures.defects) - {GOOD})]
        rows = [[Image.fromarray(row[i]) for i in firsts] for row in (images, *(shown[name] for name in names))]
        write_atomically(sheet, lambda path: mosaic(rows).save(path, "webp", quality=90))
    return write_record(
        file,
        title="What is left of pictures and masks: other pictures, the same judge",
        varied="what comes back through which autoencoder",
        held_fixed={"pictures": len(pictures), "with_a_defect": int(flawed.sum()), "size": size},
        runs=runs,
    )


@torch.no_grad()
def _through(vae: autoencoder.Autoencoder, x: torch.Tensor) -> np.ndarray:
    """Pictures (N, 3, S, S) in [-1, 1] through the autoencoder: uint8 (N, S, S, 3)."""
    batches = x.to(vae.device).split(BATCH)
    return np.concatenate([to_uint8(autoencoder.decode(vae, autoencoder.encode(vae, b))) for b in batches])


def _psnr(images: np.ndarray, returned: np.ndarray) -> dict:
    """PSNR of all pictures together, in dB; the interval is computed from the squared error's."""
    error = bootstrap(((images.astype(np.float32) - returned) ** 2).mean((1, 2, 3)) / 255**2)
    low, mean, high = (-10 * float(np.log10(max(error[k], 1e-10))) for k in ("high", "mean", "low"))
    return {"mean": mean, "low": low, "high": high, "count": error["count"]}


def _judged(judge: Judge, images: np.ndarray, defects: Sequence[str], masks: np.ndarray) -> dict[str, dict]:
    seen, truth = judge(images), np.array(defects)
    right, flawed = np.array(seen.defects) == truth, truth != GOOD
    iou = iou_per_picture(seen.mask_probs[flawed], masks[flawed])
    scores = {"defect_accuracy": bootstrap(right[flawed]), "mask_iou": bootstrap(iou)}
    if not flawed.all():
        scores["judged_good"] = bootstrap(right[~flawed])
    kinds = sorted(set(truth[flawed].tolist()))
    return scores | {f"defect_accuracy of {kind}": bootstrap(right[truth == kind]) for kind in kinds}
