"""Names of Table 2, and the augmentations a product allows."""

import dataclasses

import pytest

from defectdiffu.data.catalog import AUGMENT, UNIFIED, Augmentation, augmentation, unify


def test_table_2_holds_15_products_and_73_defects():
    mvtec = {product: names for product, names in UNIFIED.items() if product != "magnetic_tile"}
    assert len(mvtec) == 15
    assert sum(len(names) for names in mvtec.values()) == 73


@pytest.mark.parametrize(
    ("product", "defect", "unified"),
    [
        ("bottle", "broken_large", "broken"),
        ("cable", "poke_insulation", "hole"),
        ("leather", "glue", "liquid"),
        ("screw", "thread_top", "thread"),
        ("tile", "gray_stroke", "color"),
        ("toothbrush", "defective", "bent"),
        ("zipper", "fabric_border", "cut"),
        ("magnetic_tile", "blowhole", "hole"),
    ],
)
def test_unify_reads_the_table(product, defect, unified):
    assert unify(product, defect) == unified


def test_pairs_outside_the_table_keep_their_names():
    assert unify("bottle", "scratch") == "scratch"
    assert unify("gear", "broken_large") == "broken_large"
    assert unify("bottle", "good") == "good"


def test_unified_names_map_to_themselves():
    for product, names in UNIFIED.items():
        for unified in names.values():
            assert unify(product, unified) == unified


def test_every_product_of_the_table_has_its_augmentation():
    assert AUGMENT.keys() == UNIFIED.keys()


def test_augmentations_keep_pictures_possible():
    assert augmentation("tile").quarter_turns and augmentation("tile").flip_v
    assert augmentation("bottle").quarter_turns and augmentation("hazelnut").flip_h
    assert augmentation("zipper").flip_h and not augmentation("zipper").quarter_turns
    for mirrored_is_wrong in ("capsule", "pill", "screw", "metal_nut", "cable"):
        assert not augmentation(mirrored_is_wrong).flip_h
        assert not augmentation(mirrored_is_wrong).flip_v


def test_an_unknown_product_is_only_moved_zoomed_and_lit_a_little():
    unknown = augmentation("gear")
    assert unknown == Augmentation()
    assert not (unknown.flip_h or unknown.flip_v or unknown.quarter_turns)
    assert 0 < max(unknown.shift, unknown.zoom, unknown.light) <= 0.05


def test_augmentation_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augmentation().shift = 0.5
