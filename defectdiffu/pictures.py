"""Pictures: conversion between tensors in [-1, 1] and bytes, mask overlays, mosaics, and WebP."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from defectdiffu.errors import InputError

MASK_COLOUR = (0, 190, 255)  # a blue that no product has


def to_tensor(images: np.ndarray | Tensor, device: str | torch.device | None = None) -> Tensor:
    """uint8 (N, S, S, 3) to float32 (N, 3, S, S) in [-1, 1], on `device`, by default the device of `images`."""
    return torch.as_tensor(images, device=device).permute(0, 3, 1, 2) / 127.5 - 1


def to_uint8(pictures: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`: (N, 3, S, S) in [-1, 1] to uint8 (N, S, S, 3)."""
    return ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def enlarge(image: Image.Image, side: int = 192) -> Image.Image:
    """Return the image enlarged by an integer factor, so that its longer side is about `side` pixels.

    Colour by bicubic interpolation; masks (mode "L" or "1") by repeating pixels, so that they keep their two values.
    """
    times = max(1, round(side / max(image.size)))
    how = Image.Resampling.NEAREST if image.mode in ("L", "1") else Image.Resampling.BICUBIC
    return image.resize((image.width * times, image.height * times), how)


def overlay(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the RGB image with the mask on it: a thin outline just inside its border, a light fill, no change outside.

    image (H, W) in any mode; mask (H, W), every nonzero value is marked. Raises `InputError` if their sizes differ.
    """
    if image.size != mask.size:
        raise InputError(f"the image has {image.size} pixels and the mask {mask.size}")
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)  # (H, W, 3)
    marked = np.asarray(mask.convert("L")) > 0  # (H, W)
    outline = marked & ~binary_erosion(marked, iterations=max(1, round(max(image.size) / 128)), border_value=1)
    opacity = np.where(outline, 1.0, np.where(marked, 0.2, 0.0))[..., None]
    return Image.fromarray((pixels * (1 - opacity) + np.array(MASK_COLOUR) * opacity).round().astype(np.uint8))


def mosaic(rows: Sequence[Sequence[Image.Image]], gap: int = 4) -> Image.Image:
    """Return one RGB image of rows of images of equal size, with `gap` white pixels between them."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            canvas.paste(image, (j * (width + gap), i * (height + gap)))
    return canvas


def to_webp(image: Image.Image) -> bytes:
    """Return the image as the bytes of a WebP file, about a tenth of the PNG's size."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=6)
    return buffer.getvalue()


def to_png(image: Image.Image) -> bytes:
    """Return the image as the bytes of a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
