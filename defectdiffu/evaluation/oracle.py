"""Measures possible only with rendered data: does a generated picture show the product, defect and strength asked for?

Nothing is selected: every pair gets the seeds 0 to n - 1. The judge's own errors count against the generator, so the
same scores of rendered pictures are given as the ceiling.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from skimage.transform import resize_local_mean
from tqdm.auto import tqdm

from defectdiffu.data.folder import Pair
from defectdiffu.drawn.procedural import PAIRS, render
from defectdiffu.errors import InputError
from defectdiffu.evaluation.judge import Judge, Verdict
from defectdiffu.evaluation.statistics import bootstrap
from defectdiffu.machine import default_device, precision
from defectdiffu.pipeline import DefectDiffuPipeline

# (P pairs, strength, num) to images uint8 (P, num, S, S, 3) and masks bool (P, num, S, S), seeds 0 to num - 1 each
Source = Callable[[Sequence[Pair], float, int], tuple[np.ndarray, np.ndarray]]
TOGETHER = 16  # pictures sampled in one batch, from several pairs if needed

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
SWEPT = 8  # at most this many pictures per pair are sampled at every strength: the sweep takes most of the time
RENDERED_STRENGTHS, RENDERED_STRENGTH = (0.0, 0.25, 0.5, 0.75, 1.0), 0.75
RENDERED_SEEDS = 3 * 10**15  # specimens that neither a generative model nor the judge has seen


def run(weights: str | Path, num: int = 8, strengths: Sequence[float] = STRENGTHS, judge: Judge | None = None) -> dict:
    """Judge `num` pictures of every procedural pair that the weights know, at their own w_d.

    The first `SWEPT` of them are also swept over `strengths`, including 0.
    weights: shipped name, folder or hub id. Returns "trained", "held_out" and "rendered_held_out" (the ceiling), each
    {score: {mean, low, high, count}} with the scores of `measure`, and "per_pair", the means of every pair.
    Raises `InputError` if the weights know none of the pairs.
    """
    pipeline = silent_pipeline(weights)
    return {"weights": str(weights), **judge_pipeline(pipeline, num, strengths, judge)}


def judge_pipeline(
    pipeline: DefectDiffuPipeline, num: int = 8, strengths: Sequence[float] = STRENGTHS, judge: Judge | None = None
) -> dict:
    """`run` for a pipeline in memory, or any object with `pairs`, `products`, `defects`, `size`, `config` and call."""
    if num < 1:
        raise InputError(f"num is {num}: at least 1 picture per pair is needed")
    if len(set(strengths) | {0.0}) < 3:
        raise InputError("strengths must have at least two values above 0 for a rank correlation")
    trained, held_out = known_pairs(pipeline)
    if not trained and not held_out:
        raise InputError(f"the weights know none of the procedural pairs: their products are {pipeline.products}")
    judge = judge or Judge.shipped(pipeline.size)
    generated = sampler(pipeline)

    def rendered(pairs: Sequence[Pair], strength: float, num: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = [[render(*pair, strength, RENDERED_SEEDS + i, judge.size) for i in range(num)] for pair in pairs]
        images = np.array([[d.normal if strength == 0 else d.image for d in row] for row in drawn])
        return images, np.array([[d.mask > 0 for d in row] for row in drawn])

    w_d = float(pipeline.config.w_d)
    scores = {
        "trained": measure(generated, trained, num, strengths, w_d, judge),
        "held_out": measure(generated, held_out, num, strengths, w_d, judge),
        "rendered_held_out": measure(rendered, held_out, num, RENDERED_STRENGTHS, RENDERED_STRENGTH, judge),
    }
    return {
        "settings": {
            name: getattr(pipeline.config, name) for name in ("guidance", "w_p", "w_d", "num_inference_steps")
        },
        "strengths": list(strengths),
        "rendered": {"strengths": RENDERED_STRENGTHS, "strength": RENDERED_STRENGTH, "first_seed": RENDERED_SEEDS},
        "seeds": list(range(num)),
        "swept_seeds": list(range(min(num, SWEPT))),
        "judge": judge.card,
        **{name: {key: bootstrap(values) for key, values in pooled(s).items()} for name, s in scores.items()},
        "per_pair": {
            name: {f"{p} {d}": {key: float(np.mean(v)) for key, v in row.items()} for (p, d), row in s.items()}
            for name, s in scores.items()
        },
    }


def silent_pipeline(weights: str | Path) -> DefectDiffuPipeline:
    """The pipeline of some weights on this machine's device, without progress bars."""
    pipeline = DefectDiffuPipeline.from_pretrained(weights)
    pipeline.to(default_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_trained(weights: str | Path) -> tuple[DefectDiffuPipeline, list[Pair]]:
    """`silent_pipeline`, and the procedural pairs that it was trained on.

    Raises `InputError` if there are none.
    """
    pipeline = silent_pipeline(weights)
    trained, _ = known_pairs(pipeline)
    if not trained:
        raise InputError(f"the weights know none of the procedural pairs: their products are {pipeline.products}")
    return pipeline, trained


def known_pairs(pipeline: DefectDiffuPipeline) -> tuple[list[Pair], list[Pair]]:
    """The procedural pairs whose two names the weights know: the trained pairs, and the others (zero-shot)."""
    known = [(p, d) for p in PAIRS for d in PAIRS[p] if p in pipeline.products and d in pipeline.defects]
    trained = [(p, d) for p, d in known if d in pipeline.pairs[p]]
    return trained, [pair for pair in known if pair not in trained]


def sampler(pipeline: DefectDiffuPipeline, first_seed: int = 0) -> Source:
    """A pipeline as a `Source`, seeds from `first_seed` on; other settings are those of its config.

    In bfloat16 if the device supports it, as in training: pictures differ by half a grey level on average.
    """
    device = default_device()

    def generated(pairs: Sequence[Pair], w_d: float, num: int) -> tuple[np.ndarray, np.ndarray]:
        products, defects = ([pair[i] for pair in pairs for _ in range(num)] for i in (0, 1))
        seeds = [*range(first_seed, first_seed + num)] * len(pairs)
        with torch.autocast(device, torch.bfloat16, enabled=precision() == "bf16"):
            out = pipeline(product=products, defect=defects, w_d=w_d, seeds=seeds, batch_size=TOGETHER)
        images, masks = np.array([np.asarray(i) for i in out.images]), np.array([np.asarray(m) for m in out.masks]) > 0
        shape = (len(pairs), num)
        return images.reshape(*shape, *images.shape[1:]), masks.reshape(*shape, *masks.shape[1:])

    return generated


def measure(
    source: Source, pairs: Iterable[Pair], num: int, strengths: Sequence[float], strength: float, judge: Judge
) -> dict[Pair, dict[str, np.ndarray]]:
    """Score `num` pictures of every pair; each score is an array with one value per picture, `monotony` and
    `judge_distance` per pair.

    At `strength`:
      product_accuracy, defect_accuracy  whether the judge names the product and the defect that were asked for
      defect_seen    whether the judge sees any defect
      mask_iou       the picture's mask against the judge's; 0 where both are empty, for a defect was asked for
      Of the first `SWEPT` pictures alone:
      change_outside mean absolute difference, 0 to 1, to the frame of the same seed at strength 0, outside the mask
      judged_good    whether the judge calls the frame at strength 0 good
      monotony       Spearman's rank correlation of strength and the judge's defect area (mean over the seeds); 0 where
                     the area never changes
      area_at_S, product_at_S  the share of the picture that the judge marks at strength S, and whether it names the
                     product that was asked for; for each of `strengths` and 0
    judge_distance   mean distance of the judge's features between two of the pictures; only where num > 1
    """
    swept = sorted({0.0, *strengths})
    levels = sorted({*swept, strength})
    scores = {}
    pairs, counts = list(pairs), [num if s == strength else min(num, SWEPT) for s in levels]
    per_draw = max(1, TOGETHER // num)
    without: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of each product: at strength 0 all its pairs are the same
    for number, (product, defect) in enumerate(tqdm(pairs, "judging", unit="pair", leave=False, disable=None)):
        if number % per_draw == 0:
            ahead = pairs[number : number + per_draw]
            new = list({p: (p, d) for p, d in ahead if p not in without}.values())
            if new:
                without |= dict(zip((p for p, _ in new), zip(*source(new, 0.0, counts[0]), strict=True), strict=True))
            frames = [source(ahead, s, n) for s, n in zip(levels[1:], counts[1:], strict=True)]
        drawn = [without[product], *((part[0][number % per_draw], part[1][number % per_draw]) for part in frames)]
        images, masks = zip(*(at_size(frame, judge.size) for frame in drawn), strict=True)
        verdicts = [judge(frames) for frames in images]
        at = levels.index(strength)
        seen, verdict, mask = images[at], verdicts[at], masks[at]
        outside = ~mask[:SWEPT]
        change = np.abs(seen[:SWEPT].astype(float) - images[0]).mean(-1) / 255
        areas = [(verdicts[levels.index(s)].mask_probs[:SWEPT] > 0.5).mean((1, 2)) for s in swept]
        scores[product, defect] = {
            **judged(verdict, mask, [(product, defect)] * len(mask)),
            "defect_seen": np.array([d != "good" for d in verdict.defects], float),
            "change_outside": (change * outside).sum((1, 2)) / np.maximum(outside.sum((1, 2)), 1),
            "judged_good": np.array([d == "good" for d in verdicts[0].defects], float),
            "monotony": np.array([rank_correlation(swept, [area.mean() for area in areas])]),
            **{f"area_at_{s:g}": area for s, area in zip(swept, areas, strict=True)},
            **{
                f"product_at_{s:g}": np.array([p == product for p in verdicts[levels.index(s)].products[:SWEPT]], float)
                for s in swept
            },
        }
        if num > 1:
            scores[product, defect]["judge_distance"] = np.array([pdist(verdict.features).mean()])
    return scores


def judged(verdict: Verdict, masks: np.ndarray, wanted: Sequence[Pair]) -> dict[str, np.ndarray]:
    """product_accuracy, defect_accuracy and mask_iou of `measure`, (N,) each, of pictures of the pairs `wanted`; masks
    bool (N, S, S), of the judge's size."""
    marked = verdict.mask_probs > 0.5
    return {
        "product_accuracy": np.array([a == p for a, (p, _) in zip(verdict.products, wanted, strict=True)], float),
        "defect_accuracy": np.array([a == d for a, (_, d) in zip(verdict.defects, wanted, strict=True)], float),
        "mask_iou": (marked & masks).sum((1, 2)) / np.maximum((marked | masks).sum((1, 2)), 1),
    }


def rank_correlation(strengths: Sequence[float], areas: Sequence[float]) -> float:
    """Spearman's, from -1 to 1; 0 where the area never changes."""
    return float(spearmanr(strengths, areas).statistic) if np.ptp(areas) else 0.0


def pooled(scores: dict[Pair, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{score: its values of all pairs}, of what `measure` gives; empty where there are no pairs.

    At strength 0 every defect of a product is the same picture: `judged_good` counts it once.
    """
    keys = next(iter(scores.values()), {})
    first = {product: (product, defect) for product, defect in reversed(scores)}
    return {
        key: np.concatenate(
            [row[key] for pair, row in scores.items() if key != "judged_good" or first[pair[0]] == pair]
        )
        for key in keys
    }


def at_size(frames: tuple[np.ndarray, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks scaled down to the judge's size; a mask pixel is kept if at least half of it is marked."""
    images, masks = frames
    if images.shape[1] == size:
        return images, masks
    images = np.stack([resize_local_mean(i.astype(float), (size, size)).round().astype(np.uint8) for i in images])
    return images, np.stack([resize_local_mean(m.astype(float), (size, size)) >= 0.5 for m in masks])
