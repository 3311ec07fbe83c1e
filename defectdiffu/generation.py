"""Writes generated image-mask pairs as files in the layout of MVTec AD.

Images are kept one by one in a hidden folder until all are complete. So a generation that was killed resumes where it
stopped, and several processes share one generation: process i mod n of n samples batch i.
"""

import hashlib
import importlib.metadata
import json
import shutil
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image

from defectdiffu.config import GOOD
from defectdiffu.errors import InputError, check_folder_name, check_number
from defectdiffu.files import write_atomically, write_json, writing
from defectdiffu.machine import precision
from defectdiffu.memory import sampling_explained
from defectdiffu.pipeline import LARGEST_SCALE, LARGEST_SEED, DefectDiffuPipeline

ATTEMPTS = 8  # at most this many times as many seeds as pairs are tried
BATCH = 8  # images sampled together; a resumed run has the same batches, so that results are the same to the bit


def load_pipeline(weights: str, half: bool = False, offload: bool = False, tiling: bool = False) -> DefectDiffuPipeline:
    """The pipeline of a shipped name, a folder or a hub id, on this process's device, with options to save memory.

    half: in half precision; offload: only the part that computes is on the GPU; tiling: pictures larger than a tile are
    decoded tile by tile. Raises `InputError` for `offload` without a GPU, and if the weights alone do not fit into the
    GPU's memory; the message says how much each option saves.
    """
    on_gpu, dtype = torch.cuda.is_available(), torch.float32
    if offload and not on_gpu:
        raise InputError("--offload saves memory on a GPU, and there is no GPU: leave it out")
    if half:
        dtype = torch.float16 if precision() == "fp16" else torch.bfloat16
    device = PartialState(cpu=not on_gpu).device
    pipe = DefectDiffuPipeline.from_pretrained(weights, dtype=dtype)
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
) -> dict:
    """Write `num` pairs as out/<product>/test/<defect>/NNN.png and .../ground_truth/<defect>/NNN_mask.png.

    Seeds seed, seed + 1, ... are used in turn. A defect image with an empty mask is not a pair: its seed is skipped and
    recorded, so that `out` has no defect labelled as normal. A record is appended to
    out/generation.json and returned. A call that was killed resumes when repeated, and gives the same files.
    batch_size: pairs sampled together. A repeated call may change it: this changes results only by rounding.
    Raises `InputError`, with nothing written, if no seed gives a pair or the folder of this product and defect exists.
    """
    if num < 1:
        raise InputError(f"num is {num}: it must be at least 1")
    # Checked before they are used in a path: names in downloaded weights cannot be trusted.
    pipe.check_names(product, defect)
    check_folder_name("product", product)
    check_folder_name("defect", defect)
    check_number("the last seed that may be tried", seed + ATTEMPTS * num - 1, 0, LARGEST_SEED)
    home, processes, is_new = out / product, PartialState(not torch.cuda.is_available()), not out.exists()
    target, truth = home / "test" / defect, home / "ground_truth" / defect
    defaults = pipe.config
    settings = {
        "w_d": defaults.w_d if w_d is None else w_d,
        "w_p": defaults.w_p if w_p is None else w_p,
        "num_inference_steps": defaults.num_inference_steps if steps is None else steps,
        "guidance": guidance or defaults.guidance,
    }
    for name in ("w_d", "w_p"):
        check_number(name, settings[name], -LARGEST_SCALE, LARGEST_SCALE)
    check_number("steps", settings["num_inference_steps"], 1, pipe.scheduler.config.num_train_timesteps)
    work = out / f".part-{product}-{defect}"
    begin(work, {"num": num, "seed": seed, **settings, "weights": digest(pipe)}, (target, truth), processes)

    def discard() -> None:
        if processes.is_main_process:
            shutil.rmtree(work)
            if is_new:
                out.rmdir()

    pairs, skipped, next_seed = [], [], seed
    try:
        while len(pairs) < num and next_seed < seed + ATTEMPTS * num:
            seeds = list(range(next_seed, next_seed + num - len(pairs)))
            sample(pipe, product, defect, seeds, settings, batch_size, work, processes)
            for s in seeds:
                with Image.open(work / f"{s}_mask.png") as mask:
                    (skipped if defect != GOOD and mask.getbbox() is None else pairs).append(s)
            next_seed = seeds[-1] + 1
    except InputError:
        if not any(work.glob("*.png")):  # for example, a name that the weights do not know
            discard()
        raise
    processes.wait_for_everyone()
    if not pairs:
        discard()
        raise InputError(
            f"none of {len(skipped)} images of {product} with {defect} has a mask: train longer or raise w_d; "
            "nothing was written"
        )

    record = {
        "product": product,
        "defect": defect,
        "seeds": pairs,
        "seeds_without_mask": skipped,
        "trained_pair": defect in pipe.pairs.get(product, ()),
        **settings,
        "weights": str(pipe.config.get("_name_or_path", "")),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    }
    if processes.is_main_process:
        finish(work, {"_mask": truth, "": target} if defect != GOOD else {"": target}, pairs)
        append(out / "generation.json", record)
        shutil.rmtree(work)
    processes.wait_for_everyone()
    return record


def begin(work: Path, settings: dict, results: tuple[Path, ...], processes: PartialState) -> None:
    """Claim `work` for these settings, or resume it. Raises `InputError` if its settings differ or a result exists."""
    file = work / "settings.json"
    if file.is_file():
        there = json.loads(file.read_text())
        if changes := [f"{k}: {there.get(k)!r} there, {v!r} asked" for k, v in settings.items() if there.get(k) != v]:
            raise InputError(
                f"{work} holds a generation that was stopped, with other settings ({'; '.join(changes[:3])}): "
                "finish it with its own settings, remove it, or choose another --out"
            )
    else:
        for result in results:
            if result.exists():
                raise InputError(f"{result} exists: choose another --out")
    processes.wait_for_everyone()
    if processes.is_main_process:
        write_json(file, settings)
    processes.wait_for_everyone()


def sample(
    pipe, product: str, defect: str, seeds: list[int], settings: dict, batch_size: int, work: Path, processes
) -> None:
    """Sample this process's missing batches of `seeds` into `work`; return when all processes are done."""
    for number, start in enumerate(range(0, len(seeds), batch_size)):
        batch = seeds[start : start + batch_size]
        mine = number % processes.num_processes == processes.process_index
        if not mine or all((work / f"{s}.png").is_file() for s in batch):
            continue
        result = pipe(product, defect, num_images=len(batch), seeds=batch, batch_size=len(batch), **settings)
        for s, image, mask in zip(batch, result.images, result.masks, strict=True):
            write_atomically(work / f"{s}_mask.png", partial(mask.save, format="png"))
            write_atomically(work / f"{s}.png", partial(image.save, format="png"))  # last: it marks both as complete
    processes.wait_for_everyone()


def finish(work: Path, results: dict[str, Path], pairs: list[int]) -> None:
    """Move the pairs to their folders, each by one rename; a folder that exists was moved before the run was killed."""
    with writing(work):
        for suffix, result in results.items():
            if result.exists():
                continue
            part = work / f"all{suffix}"
            part.mkdir(exist_ok=True)
            for i, s in enumerate(pairs):
                shutil.copyfile(work / f"{s}{suffix}.png", part / f"{i:03d}{suffix}.png")
            result.parent.mkdir(parents=True, exist_ok=True)
            part.rename(result)


def append(file: Path, record: dict) -> None:
    """Add a record to a JSON list, unless the list has it."""
    records = json.loads(file.read_text()) if file.is_file() else []
    if json.loads(json.dumps(record)) not in records:
        write_json(file, [*records, record])


def digest(pipe: DefectDiffuPipeline) -> str:
    """A hash that identifies the weights."""
    found = hashlib.sha256()
    for part in (pipe.transformer, pipe.text_encoder, pipe.vae):
        for value in part.state_dict().values():
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
