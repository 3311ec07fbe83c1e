"""The card that is saved with a pipeline: what the weights know, how to load them, and what is not known of them."""

import json
from pathlib import Path

CARD = """---
library_name: diffusers
license: other
license_name: unknown
tags: [defectdiffu, defect-generation, anomaly-detection]
---

# Defect pictures with their masks

Weights of `defectdiffu`, which generates pictures of a product with a defect, {side} x {side}, each with its mask:

```python
from defectdiffu import DefectDiffuPipeline

pipe = DefectDiffuPipeline.from_pretrained(NAME)  # this folder, or its name on the hub
out = pipe({example})  # out.images, out.masks
```

Or by diffusers alone, with `defectdiffu` installed: `pipeline.py`, the code that must be trusted, is one import:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(NAME, custom_pipeline=NAME, trust_remote_code=True)
```

## Licence

Not known to the program that wrote this card. Weights inherit the conditions of the pictures they were trained on;
those of MVTec AD, for example, forbid commercial use. Fill in `license` above before publishing.

## Trained on

| product | defects |
|---|---|
{pairs}

## Scores

{scores}
"""
NOT_MEASURED = "Not measured. `defectdiffu evaluate all` compares generated pairs with real ones."
MEASURED = ("product_accuracy", "defect_accuracy", "mask_iou")


def model_card(pairs: dict[str, list[str]], side: int, oracle: Path | None) -> str:
    """A card in Markdown. pairs: {product: its defects}; side: of a picture; oracle: a record of `evaluate oracle`."""
    example = ", ".join(f'"{name}"' for product in list(pairs)[:1] for name in (product, *pairs[product][:1]))
    rows = "\n".join(f"| {product} | {', '.join(defects)} |" for product, defects in pairs.items())
    try:
        scores = NOT_MEASURED if oracle is None else _scores(json.loads(oracle.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        scores = f"{NOT_MEASURED} (The record that lay beside the weights could not be read.)"
    return CARD.format(side=side, example=example, pairs=rows, scores=scores)


def _scores(record: dict) -> str:
    """The judge's scores as a table."""
    lines = ["By the judge of rendered products (`defectdiffu evaluate oracle`), means over pictures.", ""]
    lines += ["| | trained pairs | held-out pairs |", "|---|---|---|"]
    for score in MEASURED:
        trained, held_out = (f"{record[part][score]['mean']:.2f}" for part in ("trained", "held_out"))
        lines.append(f"| {score.replace('_', ' ')} | {trained} | {held_out} |")
    return "\n".join(lines)
