"""Writes generated image-mask pairs as files in the layout of MVTec AD.

Images are kept one by one in a hidden folder until all are complete. So a generation that was killed resumes where it
stopped, and several processes share one generation: process i mod n of n samples batch i.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
from collections import ChainMap
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from defectdiffu.config import GOOD, LARGEST_SCALE, LARGEST_SEED, STRENGTH
from defectdiffu.data.given import Given, given_files
from defectdiffu.errors import InputError, check_folder_name, check_number
from defectdiffu.files import locked, read_json, write_atomically, write_json, writing
from defectdiffu.inpainting import steps_taken
from defectdiffu.machine import precision
from defectdiffu.memory import sampling_explained
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.selfcheck import LARGEST_RATIO

ATTEMPTS = 8  # at most this many times as many seeds as pairs are tried
MOST_PAIRS = 10**6
IN_RECORDS = {"product", "defect", "seeds", "seeds_without_mask"}  # that a later call needs
GOOD_TESTED = 5  # one defect-free picture in so many is for testing
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} pictures [{elapsed}<{remaining}]"
BATCH = 8  # images sampled together; a resumed run has the same batches, so that results are the same to the bit


def load_pipeline(
    weights: str, full_precision: bool = False, offload: bool = False, tiling: bool = False
) -> DefectDiffuPipeline:
    """The pipeline of a shipped name, a folder or a hub id, on this process's device, with options to save memory.

    A GPU computes in half precision (bfloat16, or float16 where it has none) unless full_precision is set; a CPU always
    in float32. offload: only the part that computes is on the GPU; tiling: pictures larger than a tile are decoded tile
    by tile. Raises `InputError` for `offload` without a GPU, and if the weights alone do not fit into the GPU's memory;
    the message says how much each option saves.
    """
    on_gpu, dtype = torch.cuda.is_available(), torch.float32
    if offload and not on_gpu:
        raise InputError("--offload saves memory on a GPU, and there is no GPU: leave it out")
    if on_gpu and not full_precision:
        dtype = torch.float16 if precision() == "fp16" else torch.bfloat16
    device = PartialState(cpu=not on_gpu).device
    pipe = DefectDiffuPipeline.from_pretrained(weights, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)  # a folder's progress is over all its pictures
    if tiling:
        pipe.vae.enable_tiling()
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        with sampling_explained(pipe, batch_size=1):
            pipe.to(device)
    return pipe


def generate_folder(
    pipe: DefectDiffuPipeline,
    out: Path,
    product: str,
    defect: str,
    num: int,
    seed: int = 0,
    *,
    w_d: float | None = None,
    w_p: float | None = None,
    steps: int | None = None,
    guidance: str | None = None,
    batch_size: int = BATCH,
    check: float = 0.0,
    attempts: int = ATTEMPTS,
    append: bool = False,
    on: Path | None = None,
    where: Path | None = None,
    strength: float = STRENGTH,
    crop: int | None = None,
) -> dict:
    """Write `num` pairs as out/<product>/test/<defect>/NNN.png and .../ground_truth/<defect>/NNN_mask.png.

    Of defect-free pictures, one in `GOOD_TESTED` goes into test/good, the others go into train/good.
    Seeds seed, seed + 1, ... are used in turn, at most `attempts` times as many as pairs. A defect image with an empty
    mask is not a pair: its seed is skipped and recorded, so that `out` has no defect labelled as normal.
    check: also skip every pair with a smaller `selfcheck.change_ratio`; 0: check nothing. append: add to the pictures
    of this product and defect, with seeds that they do not have. A record is appended to out/generation.json and
    returned. A call that was killed resumes when repeated, and gives the same files.
    on: a picture of the product without a defect, or a folder of such pictures, used in turn, seed by seed: the defect
    is put on them. where: the mask of the place, or a folder of masks with the pictures' names. strength, crop: as in
    the pipeline's call.
    batch_size: pairs sampled together. A repeated call may change it: this changes results only by rounding.
    Raises `InputError`, with nothing written, if no seed gives a pair, if another process generates the same pairs, and
    unless `append` is set, if the folder of this product and defect exists.
    """
    # Checked before they are used in a path: names in downloaded weights cannot be trusted.
    pipe.check_names(product, defect)
    check_folder_name("product", product)
    check_folder_name("defect", defect)
    check_number("num", num, 1, MOST_PAIRS)
    check_number("attempts", attempts, 1, MOST_PAIRS)
    check_number("the last seed that may be tried", seed + attempts * num - 1, 0, LARGEST_SEED)
    if check and defect == GOOD:
        raise InputError(f"check compares a defect with its absence: '{GOOD}' cannot be checked")
    defaults = pipe.config
    settings: dict[str, Any] = {
        "w_d": defaults.w_d if w_d is None else w_d,
        "w_p": defaults.w_p if w_p is None else w_p,
        "num_inference_steps": defaults.num_inference_steps if steps is None else steps,
        "guidance": guidance or defaults.guidance,
        "check": check,
    }
    given = given_files(on, where) if on is not None else []
    if given:
        if check or defect == GOOD:
            raise InputError(f"a given picture gets a defect, which is not checked: no check and no '{GOOD}' with it")
        check_number("strength", strength, 0.01, 1)
        settings |= {"strength": strength, "crop": crop}
    elif where is not None or crop is not None:
        raise InputError("a place and a crop are those of a given picture: name the picture, too")
    for name in ("w_d", "w_p"):
        check_number(name, settings[name], -LARGEST_SCALE, LARGEST_SCALE)
    check_number("check", check, 0, LARGEST_RATIO)
    check_number("steps", settings["num_inference_steps"], 1, pipe.scheduler.config["num_train_timesteps"])

    processes, is_new = PartialState(not torch.cuda.is_available()), not out.exists()
    main = processes.is_main_process
    work = out / f".part-{product}-{defect}"

    def discard() -> None:
        if main:
            shutil.rmtree(work)
            if is_new:
                out.rmdir()

    with locked(work, "generates these pairs") if main else nullcontext():
        try:
            asked = {"product": product, "defect": defect, "num": num, "seed": seed, "attempts": attempts}
            inputs = {"weights": digest(pipe), "pictures": [g.digest() for g in given]}
            begun = begin(work, asked | settings | inputs, append, processes)
            used = set(begun["used_seeds"])
            seeds = islice((s for s in count(seed) if s not in used), attempts * num)
            found: dict[int, dict] = {}  # seed: what `sample` wrote down about it
            with tqdm(total=num, desc=f"{product} {defect}", disable=None if main else True, bar_format=BAR) as bar:
                while batch := list(islice(seeds, num - len(pairs_of(found)))):
                    pictures = [given[(s - seed) % len(given)] for s in batch] if given else []
                    sample(pipe, product, defect, batch, pictures, settings, batch_size, work, processes, bar)
                    found |= {s: read_json(work / f"{s}.json", f"remove {work}") for s in batch}
                    bar.total = min(len(found) + num - len(pairs_of(found)), attempts * num)
        except InputError:
            if not any(work.glob("*.png")):  # nothing is lost, and the next call may have other settings
                discard()
            raise
        processes.wait_for_everyone()
        if not pairs_of(found):
            discard()
            raise InputError(
                f"none of {len(found)} images of {product} with {defect} {'passes' if check else 'has a mask'}; "
                "nothing was written"
            )
        record = {
            "product": product,
            "defect": defect,
            "seeds": pairs_of(found),
            "seeds_without_mask": [s for s, outcome in found.items() if not outcome["mask"]],
            **({"ratios": {s: outcome["ratio"] for s, outcome in found.items()}} if check else {}),
            **(
                {"pictures": {s: given[(s - seed) % len(given)].picture.name for s in pairs_of(found)}} if given else {}
            ),
            "trained_pair": defect in pipe.pairs.get(product, ()),
            **settings,
            "weights": str(pipe.config.get("_name_or_path", "")),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        }
        processes.wait_for_everyone()
        if main:
            finish(work, out / product, defect, pairs_of(found), begun["first"], append)
            add_record(out, record)
            shutil.rmtree(work)
    processes.wait_for_everyone()
    return record


def pairs_of(found: dict[int, dict]) -> list[int]:
    """The seeds that gave a pair."""
    return [s for s, outcome in found.items() if outcome["kept"]]


def results(home: Path, defect: str, seeds: Sequence[int] = ()) -> list[tuple[Path, str, Sequence[int]]]:
    """(folder, what its files' names have after their number, the seeds of its files) of a product's folder."""
    if defect == GOOD:
        train = [s for i, s in enumerate(seeds) if i % GOOD_TESTED]
        return [(home / "train" / GOOD, "", train), (home / "test" / GOOD, "", seeds[::GOOD_TESTED])]
    return [(home / "ground_truth" / defect, "_mask", seeds), (home / "test" / defect, "", seeds)]


def begin(work: Path, settings: dict[str, Any], append: bool, processes: PartialState) -> dict[str, Any]:
    """Claim `work` for these settings, or resume what a killed call with the same settings left there.

    Returns the settings with "first", the number of the first file in each folder of `results`, and "used_seeds", those
    of the pictures that are there. Raises `InputError` if its settings differ, or if a result exists and is not to be
    added to.
    """
    file = work / "settings.json"
    if file.is_file() and any(work.glob("*.png")):
        begun = read_json(file, f"remove {work}, whose pictures are of unknown settings, or choose another --out")
        if changes := [f"{k}: {begun.get(k)!r} there, {v!r} asked" for k, v in settings.items() if begun.get(k) != v]:
            raise InputError(
                f"{work} holds a generation that was stopped, with other settings ({'; '.join(changes[:3])}): "
                "finish it with its own settings, remove it, or choose another --out"
            )
    else:
        product, defect = settings["product"], settings["defect"]
        folders = [folder for folder, *_ in results(work.parent / product, defect)]
        if not append and (there := [folder for folder in folders if folder.exists()]):
            raise InputError(f"{there[0]} exists: choose another --out, or add to it with --append")
        # A picture and its mask have one number, so the folders of a defect go on from the largest of both.
        groups = [[folder] for folder in folders] if defect == GOOD else [folders] * len(folders)
        records = [r for r in read_records(work.parent) if (r["product"], r["defect"]) == (product, defect)]
        begun = settings | {
            "first": {str(folder): next_number(group) for folder, group in zip(folders, groups, strict=True)},
            "used_seeds": [s for r in records for s in r["seeds"] + r["seeds_without_mask"]],
        }
    processes.wait_for_everyone()
    if processes.is_main_process:
        write_json(file, begun)
    processes.wait_for_everyone()
    return begun


def next_number(folders: Sequence[Path]) -> int:
    """The number after the largest with which a file's name in `folders` begins."""
    numbers = [int(m[0]) for folder in folders for file in folder.glob("*") if (m := re.match(r"\d+", file.name))]
    return max(numbers, default=-1) + 1


def sample(
    pipe: DefectDiffuPipeline,
    product: str,
    defect: str,
    seeds: list[int],
    given: Sequence[Given],
    settings: dict,
    batch_size: int,
    work: Path,
    processes: PartialState,
    bar: tqdm,
) -> None:
    """Sample this process's batches of `seeds` into `work`, except those that are there; returns when all have.

    given: of each seed the picture that gets the defect; none where pictures are generated.

    Of every seed, <seed>.json says whether the pair is kept, whether it has a mask, and the ratio of its check.
    """
    for number, start in enumerate(range(0, len(seeds), batch_size)):
        batch = seeds[start : start + batch_size]
        if number % processes.num_processes != processes.process_index:
            continue
        if all((work / f"{s}.json").is_file() for s in batch):
            bar.update(min(len(batch), bar.total - bar.n))
            continue
        pictures: dict[str, Any] = {}
        steps = settings["num_inference_steps"]
        if given:
            images, places = zip(*(g.read() for g in given[start : start + batch_size]), strict=True)
            pictures = {"image": images, "mask": None if None in places else places}
            steps = steps_taken(steps, settings["strength"])
        share = len(batch) * processes.num_processes / steps  # that a step is of the bar
        result = pipe(
            product,
            defect,
            num_images=len(batch),
            seeds=batch,
            batch_size=len(batch),
            callback=lambda *_, share=share: bar.update(min(share, bar.total - bar.n)),
            **pictures,
            **settings,
        )
        for s, image, mask in zip(result.seeds, result.images, result.masks, strict=True):
            write_atomically(work / f"{s}_mask.png", partial(mask.save, format="png"))
            write_atomically(work / f"{s}.png", partial(image.save, format="png"))
        marked = {s for s, mask in zip(result.seeds, result.masks, strict=True) if mask.getbbox() is not None}
        for i, s in enumerate(batch):  # last: it says that the pictures are there
            kept = s in result.seeds and (defect == GOOD or s in marked)
            ratio = None if result.ratios is None else result.ratios[i]
            write_json(work / f"{s}.json", {"kept": kept, "mask": kept or s in marked, "ratio": ratio})
    processes.wait_for_everyone()


def finish(
    work: Path,
    home: Path,
    defect: str,
    seeds: Sequence[int],
    first: dict[str, int],
    append: bool,
    masked: bool = True,
) -> None:
    """Move the pairs to their folders, each by one rename; a folder that exists was moved before the run was killed.

    With `append`, move file by file into the folders that exist. masked: whether the pictures have masks.
    """
    with writing(work):
        for folder, suffix, chosen in results(home, defect, seeds):
            if not chosen or (suffix and not masked) or (folder.exists() and not append):
                continue
            part = work / f"all-{folder.parent.name}"
            part.mkdir(exist_ok=True)
            for number, s in enumerate(chosen, first[str(folder)]):
                shutil.copyfile(work / f"{s}{suffix}.png", part / f"{number:03d}{suffix}.png")
            if append:
                folder.mkdir(parents=True, exist_ok=True)
                for file in part.iterdir():
                    file.replace(folder / file.name)
            else:
                folder.parent.mkdir(parents=True, exist_ok=True)
                part.rename(folder)


def read_records(out: Path) -> list[dict]:
    """What out/generation.json holds: a record of each call. Raises `InputError` where it is damaged."""
    file, cure = out / "generation.json", "repair it, move it away, or choose another --out"
    records = read_json(file, cure) if file.exists() else []
    if not isinstance(records, list) or any(not isinstance(r, dict) or not r.keys() >= IN_RECORDS for r in records):
        raise InputError(f"{file} is not a list of records with {', '.join(sorted(IN_RECORDS))}: {cure}")
    return records


def add_record(out: Path, record: dict) -> None:
    """Append a record to out/generation.json, unless it is there."""
    records = read_records(out)
    if (record := json.loads(json.dumps(record))) not in records:
        write_json(out / "generation.json", [*records, record])


def weakness(pipe: DefectDiffuPipeline, product: str, defect: str) -> str | None:
    """A warning where the weights' own record (oracle.json beside them) says that they cannot do this pair, else None.

    Pairs that were not measured, and weights without a record, give none.
    """
    file = pipe.oracle
    if file is None:
        return None
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return f"{file} cannot be read: how well these weights draw {product} with {defect} is not known"
    pair = ChainMap(*(record["per_pair"][part] for part in ("trained", "held_out"))).get(f"{product} {defect}")
    if pair is None or (min(pair["product_accuracy"], pair["defect_accuracy"]) >= 0.5 and pair["mask_iou"] >= 0.1):
        return None
    return (
        f"{product} with {defect} is a weak pair of these weights: of {len(record['seeds'])} pictures at w_d = "
        f"{record['settings']['w_d']:g} the judge named the product in {pair['product_accuracy']:.0%}, the defect in "
        f"{pair['defect_accuracy']:.0%}, and the masks met it with an IoU of {pair['mask_iou']:.2f}"
    )


def digest(pipe: DefectDiffuPipeline) -> str:
    """A hash that identifies the weights."""
    found = hashlib.sha256()
    for part in (pipe.transformer, pipe.text_encoder, pipe.vae):
        for value in part.state_dict().values():
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
