"""Helpers shared by many tests: generated images, a two-layer preset and a pipeline with random weights."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from defectdiffu import PRESETS
from defectdiffu.autoencoder import build_autoencoder
from defectdiffu.prompts import PromptEmbedding
from defectdiffu.training.building import build_pipeline

SIZE = 32
PRODUCTS = ("hazelnut", "tile")
DEFECTS = ("crack", "hole")

# The CPU and one thread, so that sums have a fixed order and results are the same to the bit.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a GPU only for tests that are given one
torch.set_num_threads(1)
# Fork children from a server that has imported everything: a new process takes milliseconds instead of seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["defectdiffu.training.run"])


def write_folder(root: Path, good: int = 4, defective: int = 3) -> Path:
    """Noisy grey pictures of 32 px in MVTec AD's layout, 2 products x 2 defects; a defect is a bright rectangle."""
    rng = np.random.default_rng(0)

    def save(values: np.ndarray, *place: str) -> None:
        path = root.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    def picture(product: str) -> np.ndarray:
        return rng.integers(60, 90, (SIZE, SIZE, 3), dtype=np.uint8) + np.uint8(60 * PRODUCTS.index(product))

    for product in PRODUCTS:
        for i in range(good):
            save(picture(product), product, "train", "good", f"{i:03d}.png")
        for defect in DEFECTS:
            for i in range(defective):
                image, mask = picture(product), np.zeros((SIZE, SIZE), np.uint8)
                row, column = rng.integers(4, 18, 2)
                height, width = (3, 10) if defect == "crack" else (8, 8)
                mask[row : row + height, column : column + width] = 255
                image[mask > 0] = 250
                save(image, product, "test", defect, f"{i:03d}.png")
                save(mask, product, "ground_truth", defect, f"{i:03d}_mask.png")
    return root


def tiny_preset(**changes):
    """One block of each kind, width 32, 16 tokens, a few steps: a run takes seconds."""
    small = {
        "image_size": SIZE,
        "start_from": None,
        "autoencoder": {"downsample": 4, "channels": 32, "latent_channels": 4, "steps": 12, "batch_size": 4},
        "text": {"width": 16, "layers": 1, "heads": 2},
        "model": {
            "width": 32,
            "heads": 2,
            "background_blocks": 1,
            "defect_blocks": 1,
            "fusion_blocks": 1,
            "prediction": "noise",
            "convolution": False,
        },
        "loss": {"mask_weight": 1.0, "mask_by_signal": False},
        "training": {
            "steps": 12,
            "batch_size": 4,
            "warmup_steps": 2,
            "p2": 0.2,
            "variants": 2,
            "checkpoint_every": 4,
            "sample_every": 100,
        },
        "sampling": {"guidance": "double_free", "w_p": 1.0, "w_d": 1.0, "num_inference_steps": 2},
    }
    return PRESETS["tiny"].replace(**small).replace(**changes)


def in_another_process(function, *arguments) -> int:
    """Run the function in another process; return the exit code, -9 if it was killed."""
    process = processes.Process(target=_single_threaded, args=(function, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _single_threaded(function, *arguments) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def stir(module: torch.nn.Module, seed: int = 0) -> None:
    """Change every weight from its initial value: with adaLN-Zero all conditions give the same output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def random_prompts(batch: int, dim: int, length: int = 5) -> PromptEmbedding:
    return PromptEmbedding(
        torch.randn(batch, dim), torch.randn(batch, length, dim), torch.ones(batch, length, dtype=torch.bool)
    )


def random_pipeline(**changes):
    """A pipeline with random weights whose output depends on the conditions."""
    torch.manual_seed(0)
    preset = tiny_preset(**changes)
    vae = build_autoencoder(preset.autoencoder).eval()
    pipe = build_pipeline(preset, vae, {p: list(DEFECTS) for p in PRODUCTS})
    stir(pipe.transformer)
    pipe.transformer.eval()
    return pipe
