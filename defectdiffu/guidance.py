"""Double-free: Algorithm 1 for training, Eqs. 3, 4 and 12 for sampling, and the two forms of the released code.

Branches are named by their two conditions: d for the defect or g for good, then p for the product or 0 for none. So
"d0" is epsilon(x_t, t, c_d, null), the defect on no product in particular.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from defectdiffu.config import GOOD
from defectdiffu.errors import check_choice
from defectdiffu.prompts import Conditions, PromptEmbedding, PromptEncoder


def drop_conditions(
    has_defect: np.ndarray, p1: float, p2: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1: which of B training images lose their product and which their defect; all arrays are (B,) bool.

    With probability p1 the product becomes the null product. If the image has a defect, then with probability p2 the
    defect becomes good, and with probability p1 the product becomes null (again). Line 4 is read as printed, on
    the level of line 3, so a defect image loses its product with probability 1 - (1 - p1)^2, independently of p2.
    Always draws three numbers per image from `rng`.
    """
    first, second, third = rng.random((len(has_defect), 3)).T
    return (first < p1) | has_defect & (third < p1), has_defect & (second < p2)


def double_free(e: dict[str, Tensor], w_p: float, w_d: float | Tensor) -> Tensor:
    """Eqs. 4 and 12: the defect's direction is taken without any product.

    In Eq. 3 the paper swaps the scales (w_p on F_d, w_d on F_p); Eq. 4 has them right.
    """
    F_p = e["gp"] - e["g0"]
    F_d = e["d0"] - e["g0"]
    return e["g0"] + w_p * F_p + w_d * F_d


def defect_only(e: dict[str, Tensor], w_p: float, w_d: float | Tensor) -> Tensor:
    """The released code's default: two branches, both conditioned on the product, so w_p has no effect."""
    return e["gp"] + w_d * (e["dp"] - e["gp"])


def product_aware(e: dict[str, Tensor], w_p: float, w_d: float | Tensor) -> Tensor:
    """The three-branch form, never called in the released code: the defect's direction on this product.

    With w_p = 1 it is `defect_only`.
    """
    return e["g0"] + w_p * (e["gp"] - e["g0"]) + w_d * (e["dp"] - e["gp"])


@dataclass(frozen=True)
class Guidance:
    """A form of guidance: its branches, how it combines their predictions, and which two differ only in the defect."""

    branches: tuple[str, ...]
    combine: Callable[[dict[str, Tensor], float, Tensor], Tensor]
    good: str
    defect: str


GUIDANCES = {
    "double_free": Guidance(("gp", "g0", "d0"), double_free, good="g0", defect="d0"),
    "defect_only": Guidance(("gp", "dp"), defect_only, good="gp", defect="dp"),
    "product_aware": Guidance(("g0", "gp", "dp"), product_aware, good="gp", defect="dp"),
}


@dataclass
class Branches:
    """The transformer's output per branch: noise or velocity and mask, both (B, C, H, W), attention (B, h, w)."""

    predicted: dict[str, Tensor]
    mask: dict[str, Tensor]
    attention: dict[str, Tensor]


def branch_conditions(
    encoder: PromptEncoder, guidance: str, products: Sequence[str], defects: Sequence[str], null_product: str
) -> dict[str, Conditions]:
    """The prompts of every branch that `guidance` needs, for B images with these products and defects."""
    check_choice("guidance", guidance, GUIDANCES)
    n = len(products)
    names = {"p": list(products), "0": [null_product] * n, "d": list(defects), "g": [GOOD] * n}
    return {b: encoder.conditions(names[b[1]], names[b[0]]) for b in GUIDANCES[guidance].branches}


class Transformer(Protocol):
    """What this module uses of `DefectDiffuTransformer`, without importing it: its two halves, run in turn."""

    config: Any

    def background(self, x: Tensor, t: Tensor, product: PromptEmbedding) -> Tensor: ...

    def defect_and_fusion(self, h: Tensor, t: Tensor, defect: PromptEmbedding, fusion: PromptEmbedding) -> Any: ...


def evaluate_branches(transformer: Transformer, x: Tensor, t: Tensor, conditions: dict[str, Conditions]) -> Branches:
    """Run every branch on the same noisy latents x (B, C, H, W) at steps t (B,); conditions: one per image, or one for
    all.

    The background blocks are conditioned only on the product, so (g, null) and (d, null) are equal after them: they run
    once for each distinct product. The other blocks run as one batch over the branches.
    """
    return prepare_branches(transformer, conditions, len(x), x.device)(x, t)


def prepare_branches(
    transformer: Transformer, conditions: dict[str, Conditions], batch: int, device: torch.device
) -> Callable[[Tensor, Tensor], Branches]:
    """`evaluate_branches` as a function of x and t alone, its prompts laid out once: for many steps of B images."""

    def stack(prompts: list[PromptEmbedding]) -> PromptEmbedding:
        # Prompts are embedded on the text encoder's device, which may be the CPU when it is offloaded.
        return PromptEmbedding.cat([p.map(lambda v: v.to(device).expand(batch, *v.shape[1:])) for p in prompts])

    # With one prompt for all parts the background blocks are also conditioned on the defect: no pass is shared.
    product = {branch: branch if transformer.config.one_prompt else branch[1] for branch in conditions}
    products = {product[branch]: c.product for branch, c in conditions.items()}
    of_products = stack(list(products.values()))
    defects, fusions = stack([c.defect for c in conditions.values()]), stack([c.fusion for c in conditions.values()])

    def evaluate(x: Tensor, t: Tensor) -> Branches:
        n = len(products)
        states = transformer.background(x.repeat(n, 1, 1, 1), t.repeat(n), of_products)  # (n B, T, D)
        hidden = dict(zip(products, states.chunk(n), strict=True))
        n = len(conditions)
        joined = torch.cat([hidden[product[branch]] for branch in conditions])  # (n B, T, D)
        out = transformer.defect_and_fusion(joined, t.repeat(n), defects, fusions)
        # A learned variance (the second half of the channels) is neither guided nor used: samplers have a fixed one.
        parts = (out.sample[:, : x.shape[1]], out.mask, out.attention)
        return Branches(*(dict(zip(conditions, part.chunk(n), strict=True)) for part in parts))

    return evaluate


def guide(branches: Branches, guidance: str, w_p: float, w_d: Tensor) -> tuple[Tensor, Tensor]:
    """Guided prediction and mask, both (B, C, H, W), all channels guided. w_d (B, 1, 1, 1): the scale of each image.

    The scales of every form sum to one, and the velocity is a multiple of the noise plus a term in x_t: so guiding
    either gives the same result.

    The mask comes from the branch that is conditioned on the defect. Below w_d = 1 it is mixed with the mask of the
    branch that differs only in the defect: at w_d = 0 the picture has no defect, so the mask must not have one.
    """
    form = GUIDANCES[guidance]
    good, defect = branches.mask[form.good], branches.mask[form.defect]
    return form.combine(branches.predicted, w_p, w_d), good + w_d.clamp(0, 1) * (defect - good)
