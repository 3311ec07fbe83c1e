"""Names and augmentations of known products: the paper's Table 2 (supplement), and what each product allows.

Table 2 renames the 73 defect types of MVTec AD so that one morphology has one name on every product ("poke" on leather
is a hole, as on a cable); so a defect learned on one product can be generated on another.

How the table is read here. It is printed as two columns of products side by side whose rows do not line up: one row
may hold a defect of the carpet and one of the wood, and a product's name is printed at the middle of its group. The
groups below follow the folders of MVTec AD, and every one of the 73 folders has exactly one row. Names are in folder
spelling; the paper prints spaces, except for "cable_swap" and zipper's "split_teeth".

Unexpected names:
- toothbrush has a single type, "defective", which becomes "bent": most of its images show bent bristles, some show
  bristles missing or smeared.
- zipper: both fabric types become "cut", though "fabric_interior" is as often a worn spot; "squeezed_teeth" becomes
  capsule's "squeeze".
- screw's "thread_side" and "thread_top", damage to the thread that is cut into the metal, become "thread", the name
  of the loose fibre on carpet and grid: one word, two morphologies.
- "glue" becomes "liquid", but tile's "glue_strip" stays; "contamination" and "metal_contamination" stay separate, as
  do hazelnut's "print" and the "faulty_imprint" of capsule and pill.
- "combined" (cable, pill, wood, zipper) and "rough" (tile, zipper) each name several different morphologies.
"""

from dataclasses import dataclass

# product -> {name of the defect's folder: unified name}
UNIFIED: dict[str, dict[str, str]] = {
    "bottle": {
        "broken_large": "broken",
        "broken_small": "broken",
        "contamination": "contamination",
    },
    "cable": {
        "bent_wire": "bent",
        "cable_swap": "cable_swap",
        "combined": "combined",
        "cut_inner_insulation": "cut",
        "cut_outer_insulation": "cut",
        "missing_cable": "missing",
        "missing_wire": "missing",
        "poke_insulation": "hole",
    },
    "capsule": {
        "crack": "crack",
        "faulty_imprint": "faulty_imprint",
        "poke": "hole",
        "scratch": "scratch",
        "squeeze": "squeeze",
    },
    "carpet": {
        "color": "color",
        "cut": "cut",
        "hole": "hole",
        "metal_contamination": "metal_contamination",
        "thread": "thread",
    },
    "grid": {
        "bent": "bent",
        "broken": "broken",
        "glue": "liquid",
        "metal_contamination": "metal_contamination",
        "thread": "thread",
    },
    "hazelnut": {
        "crack": "crack",
        "cut": "cut",
        "hole": "hole",
        "print": "print",
    },
    "leather": {
        "color": "color",
        "cut": "cut",
        "fold": "fold",
        "glue": "liquid",
        "poke": "hole",
    },
    "metal_nut": {
        "bent": "bent",
        "color": "color",
        "flip": "flip",
        "scratch": "scratch",
    },
    "pill": {
        "color": "color",
        "combined": "combined",
        "contamination": "contamination",
        "crack": "crack",
        "faulty_imprint": "faulty_imprint",
        "pill_type": "pill_type",
        "scratch": "scratch",
    },
    "screw": {
        "manipulated_front": "manipulated_front",
        "scratch_head": "scratch",
        "scratch_neck": "scratch",
        "thread_side": "thread",
        "thread_top": "thread",
    },
    "tile": {
        "crack": "crack",
        "glue_strip": "glue_strip",
        "gray_stroke": "color",
        "oil": "liquid",
        "rough": "rough",
    },
    "toothbrush": {
        "defective": "bent",
    },
    "transistor": {
        "bent_lead": "bent",
        "cut_lead": "cut",
        "damaged_case": "damaged_case",
        "misplaced": "misplaced",
    },
    "wood": {
        "color": "color",
        "combined": "combined",
        "hole": "hole",
        "liquid": "liquid",
        "scratch": "scratch",
    },
    "zipper": {
        "broken_teeth": "broken",
        "combined": "combined",
        "fabric_border": "cut",
        "fabric_interior": "cut",
        "rough": "rough",
        "split_teeth": "split",
        "squeezed_teeth": "squeeze",
    },
    # Not in the paper: the magnetic tiles of Huang et al., named by the same rule.
    "magnetic_tile": {
        "blowhole": "hole",
        "break": "broken",
        "crack": "crack",
        "fray": "fray",
        "uneven": "uneven",
    },
}


def unify(product: str, defect: str) -> str:
    """Return the unified name of a product's defect; a pair that is not in the table keeps its own name.

    Unified names map to themselves, so a folder that already uses them is read unchanged.
    """
    return UNIFIED.get(product, {}).get(defect, defect)


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of a product's image and mask that never make an impossible picture.

    flip_h         mirror left and right
    flip_v         mirror top and bottom
    quarter_turns  rotate by 90, 180 and 270 degrees
    shift          largest shift along each axis, as a fraction of the side
    zoom           largest relative change of scale, in and out
    light          largest relative change of brightness, up and down

    The defaults suit an unknown product, which may have print on it or a fixed upright position.
    """

    flip_h: bool = False
    flip_v: bool = False
    quarter_turns: bool = False
    shift: float = 0.01
    zoom: float = 0.02
    light: float = 0.05


_TEXTURE = Augmentation(flip_h=True, flip_v=True, quarter_turns=True, shift=0.05, zoom=0.1, light=0.1)
_GRAINED = Augmentation(flip_h=True, flip_v=True, shift=0.05, zoom=0.1, light=0.1)  # the grain's direction is fixed

AUGMENT: dict[str, Augmentation] = {
    "carpet": _TEXTURE,
    "leather": _TEXTURE,
    "tile": _TEXTURE,
    "grid": _GRAINED,  # the meshes are taller than wide
    "wood": _GRAINED,
    "magnetic_tile": _GRAINED,  # ground along one direction
    "bottle": Augmentation(flip_h=True, flip_v=True, quarter_turns=True),
    "hazelnut": Augmentation(flip_h=True, flip_v=True, quarter_turns=True, shift=0.025, zoom=0.05, light=0.1),
    "metal_nut": Augmentation(quarter_turns=True),  # mirrored, it would be its own defect "flip"
    "screw": Augmentation(shift=0.025),  # mirroring would make the thread left-handed; rotation would move the light
    "toothbrush": Augmentation(flip_h=True),  # the handle is at the bottom
    "transistor": Augmentation(flip_h=True, zoom=0.0),  # legs down; larger shifts would be its defect "misplaced"
    "zipper": Augmentation(flip_h=True, flip_v=True),  # the tape runs from top to bottom
    "cable": Augmentation(),  # mirrored, its colours would be in the order of its defect "cable_swap"
    "capsule": Augmentation(),  # print
    "pill": Augmentation(),  # print
}


def augmentation(product: str) -> Augmentation:
    """Return the augmentations the product allows; for a product not in `AUGMENT`, the conservative default."""
    return AUGMENT.get(product, Augmentation())
