"""A defect on a given picture: outside a region the picture is known, inside it the model draws.

The sampler's prediction outside the region is replaced by the one that says "this is the picture" (`known_prediction`).
So every solver draws a defect that fits its surroundings, and its last latent is the picture's own outside the region.
The defect blocks attend to their prompt in the region alone, so that the defect goes there (`Known.confine`).
What changed in the region is then added to the picture's pixels (`GivenPicture.changed`): all others stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from defectdiffu.errors import InputError, check_number
from defectdiffu.losses import velocity
from defectdiffu.masks import resize_mask
from defectdiffu.prompts import Conditions

MARGIN = 32  # the region that the model chooses is wider than its first mask by S / MARGIN pixels
BAND = 64  # over S / BAND pixels beyond the region a change fades out
SMALLEST = 16  # pixels, side of a picture


def known_prediction(prediction: str, x_0: Tensor, x_t: Tensor, a_bar: Tensor) -> Tensor:
    """The "noise" or "velocity" (B, C, H, W) that says of the noisy x_t that its picture is x_0; a_bar (B,)."""
    factor = a_bar.view(-1, 1, 1, 1)
    noise = (x_t - factor.sqrt() * x_0) / (1 - factor).sqrt()
    return noise if prediction == "noise" else velocity(x_0, noise, a_bar)


def steps_taken(steps: int, strength: float) -> int:
    """How many of a schedule's steps, the last ones, are taken: at least one."""
    return max(1, round(steps * strength))


@dataclass(frozen=True)
class Known:
    """What a batch's sampling is given: latents (B, C, H, W) of its pictures; region (B, S, S), not 0 where the
    model draws (None: everywhere); strength: sampling begins at this share of the steps from the end."""

    latents: Tensor
    region: Tensor | None
    strength: float

    def confine(self, conditions: dict[str, Conditions], side: int) -> dict[str, Conditions]:
        """The conditions with the defect blocks' attention kept inside the region; side: of the tokens."""
        if self.region is None:
            return conditions
        region = resize_mask(self.region, (side, side)).flatten(1) > 0  # (B, T)
        region = region | ~region.any(1, keepdim=True)  # a softmax over no position is not defined
        return {branch: replace(c, defect=replace(c.defect, region=region)) for branch, c in conditions.items()}

    def predicted(self, prediction: str, guided: Tensor, x_t: Tensor, a_bar: Tensor) -> Tensor:
        """The guided prediction inside the region, the known one outside; all but a_bar (B,) are (B, C, H, W)."""
        if self.region is None:
            return guided
        known = known_prediction(prediction, self.latents, x_t, a_bar)
        inside = resize_mask(self.region, guided.shape[2:])[:, None] > 0  # (B, 1, H, W)
        return torch.where(inside, guided, known)


@dataclass(frozen=True)
class GivenPicture:
    """A picture of any size and the square of it that the model works on.

    image: RGB; window: left, top and side of the square in its pixels; region: bool (S, S), where in the square the
    defect goes, or None, where the model chooses. S is the side of the model's pictures.
    """

    image: Image.Image
    window: tuple[int, int, int]
    region: np.ndarray | None

    @classmethod
    def prepare(
        cls, image: Image.Image, mask: Image.Image | None, size: int, crop: int | None = None
    ) -> "GivenPicture":
        """Choose the square, `crop` pixels wide, around the mask or, without one, in the picture's middle.

        By default the largest that fits: products are known to the model as whole pictures of them. mask: where the
        defect goes, every value but 0. Raises `InputError` for a mask of another size, or without a mark, or wider than
        `crop`; for pictures smaller than `SMALLEST`.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"image is a {type(image).__name__}: it must be a PIL image, or a list of them")
        largest = min(image.size)
        if largest < SMALLEST:
            raise InputError(f"the picture has {image.width} x {image.height} pixels: at least {SMALLEST} are needed")
        side = largest if crop is None else int(check_number("crop", crop, SMALLEST, largest))
        box = (0, 0, *image.size)
        if mask is not None:
            if mask.size != image.size:
                raise InputError(
                    f"the mask has {mask.width} x {mask.height} pixels, the picture {image.width} x {image.height}: "
                    "give a mask of the picture's size"
                )
            mask = mask if mask.mode == "L" else mask.convert("L")
            marked = mask.getbbox()
            if marked is None:
                raise InputError("the mask marks nothing: give one that is not 0 where the defect goes")
            box = marked
            if max(box[2] - box[0], box[3] - box[1]) > side:
                raise InputError(
                    f"the mask spreads over {box[2] - box[0]} x {box[3] - box[1]} pixels, the square that is worked on "
                    f"has {side}: mark a smaller place"
                )
        # The square's corner: the box is in its middle, unless that is beyond the picture.
        corner = [min(max((box[i] + box[i + 2] - side) // 2, 0), full - side) for i, full in enumerate(image.size)]
        given = cls(image if image.mode == "RGB" else image.convert("RGB"), (corner[0], corner[1], side), None)
        if mask is None:
            return given
        window = mask.crop(given.box).point(lambda value: 255 * (value > 0))  # any mark under a pixel counts
        small = window.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.NEAREST)
        return cls(given.image, given.window, np.asarray(small) > 0)

    @property
    def box(self) -> tuple[int, int, int, int]:
        left, top, side = self.window
        return left, top, left + side, top + side

    def seen(self, size: int) -> np.ndarray:
        """The square as the model sees it, uint8 (S, S, 3)."""
        return np.asarray(self.image.resize((size, size), Image.Resampling.LANCZOS, box=self.box))

    def changed(self, difference: np.ndarray, region: np.ndarray) -> Image.Image:
        """The picture with a difference of the square's colours, float32 (S, S, 3), added inside region, bool (S, S).

        Over a `band` of the square beyond the region the difference fades out; farther away no byte changes.
        """
        if not region.any():
            return self.image
        size, (left, top, side) = len(region), self.window
        distance = distance_transform_edt(~region)
        opacity = np.clip(1 - (distance - 1) / band(size), 0, 1)  # 1 in the region and at its border
        rows, columns = (np.flatnonzero((opacity > 0).any(axis)) for axis in (1, 0))
        # The part of the square that changes: in cells of the square, one more on each side, and in pixels.
        first, last = (np.array([columns[i], rows[i]]) for i in (0, -1))
        cells = np.concatenate([np.maximum(first - 1, 0), np.minimum(last + 2, size)])
        pixels = np.concatenate([cells[:2] * side // size, -(-cells[2:] * side // size)])
        width, height = (int(n) for n in pixels[2:] - pixels[:2])
        x0, y0, x1, y1 = (float(n) for n in pixels * size / side)
        added = np.stack(
            [
                np.asarray(
                    Image.fromarray((opacity * channel).astype(np.float32)).resize(
                        (width, height), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)
                    )
                )
                for channel in np.moveaxis(difference, -1, 0)
            ],
            axis=-1,
        )
        place = (left + int(pixels[0]), top + int(pixels[1]))
        before = np.asarray(self.image.crop((*place, place[0] + width, place[1] + height)), np.float32)
        result = self.image.copy()
        result.paste(Image.fromarray((before + added).round().clip(0, 255).astype(np.uint8)), place)
        return result

    def marked(self, mask: np.ndarray) -> Image.Image:
        """A mask of the square, uint8 (S, S), as one of the whole picture, "L", 0 or 255."""
        left, top, side = self.window
        result = Image.new("L", self.image.size)
        result.paste(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST), (left, top))
        return result


def prepare(
    image: Image.Image | Sequence[Image.Image],
    mask: Image.Image | Sequence[Image.Image] | None,
    number: int,
    size: int,
    crop: int | None,
) -> list[GivenPicture]:
    """`number` given pictures of one image, or of one for each; the mask likewise."""
    images = [image] * number if isinstance(image, Image.Image) else list(image)
    places = [mask] * number if mask is None or isinstance(mask, Image.Image) else list(mask)
    for what, given in (("image", images), ("mask", places)):
        if len(given) != number:
            raise InputError(f"{len(given)} {what} for {number} images: give one, or one per image")
    if mask is not None and any(place is None for place in places):
        raise InputError("some images have a mask and some have none: give one per image, or none at all")
    made: dict[tuple[int, int], GivenPicture] = {}  # one picture for many seeds is prepared once
    for pair in zip(images, places, strict=True):
        key = (id(pair[0]), id(pair[1]))
        made[key] = made.get(key) or GivenPicture.prepare(*pair, size, crop)
    return [made[id(i), id(m)] for i, m in zip(images, places, strict=True)]


def around(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The regions of B masks (S, S): wider by S / `MARGIN` pixels, bool. Where a mask is empty its region is, too."""
    return np.stack([m.any() & (distance_transform_edt(m == 0) <= len(m) / MARGIN) for m in masks])


def band(size: int) -> int:
    """Pixels beyond the region over which a change fades out, in a square of `size` pixels."""
    return max(1, size // BAND)
