"""One training loop for every stage: schedule, log, checkpoints that resume."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import AutocastKwargs
from torch import Tensor
from tqdm import tqdm

from defectdiffu.errors import InputError
from defectdiffu.files import write_atomically
from defectdiffu.training.checkpoints import load_newest_checkpoint, save_checkpoint
from defectdiffu.training.step import TrainingStep

LOG_EVERY = 50


def build_accelerator(precision: str) -> Accelerator:
    """An accelerator for the launched processes: one, or several with a full copy of the model each."""
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    autocast = AutocastKwargs(cache_enabled=False)  # every weight is read once, and a CUDA graph must own its casts
    return Accelerator(mixed_precision=precision, kwargs_handlers=[parallel, autocast])


def share_of_process(accelerator: Accelerator, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's share of a batch; all processes have drawn the same batch."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    return {k: v[mine] for k, v in batch.items()}


def fit(
    step: TrainingStep,
    batch_at: Callable[[int], dict[str, Tensor]],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    ema_decay: float,
    checkpoint_every: int,
    label: str,
    every: int = 0,
    watch: Callable[[int, dict], None] = lambda number, log: None,
) -> None:
    """Take the steps from the newest checkpoint in `folder` to `steps`; at the end the module has its averaged weights.

    The learning rate rises linearly for `warmup_steps` and falls along a cosine to zero at `steps`. `batch_at` gives
    the batch of a step, on the device. `watch(number, log)` is called every `every` steps and at the end, while the
    module has the averaged weights. Losses are read from the device only where they are logged.
    """
    accelerator = step.accelerator
    scaler = accelerator.scaler  # of gradients in fp16, else None
    start = 0
    if (checkpoint := load_newest_checkpoint(folder)) is not None:
        tensors, metadata = checkpoint
        start = metadata["step"]
        try:
            step.load(tensors)
        except (LookupError, RuntimeError) as error:
            raise InputError(
                f"{folder} holds a checkpoint of another model ({error}): remove it, or choose another --out"
            ) from error
        if scaler is not None and "scaler" in metadata:
            scaler.load_state_dict(metadata["scaler"])
        del checkpoint, tensors

    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        """The module has the averaged weights in this block; its own are restored after it."""
        own = [p.detach().clone() for p in step.parameters]
        step.averaged_weights()
        yield
        with torch.no_grad():
            for parameter, value in zip(step.parameters, own, strict=True):
                parameter.copy_(value)

    main = accelerator.is_main_process
    log_file = folder.parent / "log.jsonl"
    if main:
        resume_log(log_file, label, start)
    bar = tqdm(total=steps, initial=start, desc=label, disable=not main, dynamic_ncols=True, mininterval=1)
    tick, done = time.perf_counter(), start
    for number in range(start, steps):
        step.set(learning_rate * schedule(number, steps, warmup_steps), average_decay(number, ema_decay))
        batch = batch_at(number)
        terms = step(batch)
        bar.update()

        last = number + 1 == steps
        watched = every and ((number + 1) % every == 0 or last)
        if (number + 1) % LOG_EVERY == 0 or last or watched:
            values = {k: float(accelerator.reduce(v, "mean")) for k, v in terms.items()}
            if not math.isfinite(values["loss"]):
                raise InputError(f"{label}: the loss is {values['loss']} at step {number + 1}; lower learning_rate")
            now = time.perf_counter()
            rate = (number + 1 - done) * len(batch["x"]) * accelerator.num_processes / (now - tick)
            tick, done = now, number + 1
            bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()} | {"samples/s": f"{rate:.0f}"}, refresh=False)
            log = {"stage": label, "step": number + 1, **values, "samples_per_second": round(rate, 1)}
            if watched:
                with averaged():
                    watch(number + 1, log)
            if main:
                add_to_log(log_file, log)
        if (number + 1) % checkpoint_every == 0 or last:
            if main:
                metadata = {} if scaler is None else {"scaler": scaler.state_dict()}
                save_checkpoint(folder, number + 1, step.tensors(), metadata)
            accelerator.wait_for_everyone()
    bar.close()
    step.averaged_weights()


def resume_log(file: Path, label: str, start: int) -> None:
    """Drop a stage's lines after step `start`, the newest checkpoint's: they will be logged again."""
    if file.is_file():
        kept = [line for line in read_log(file) if line["stage"] != label or line["step"] <= start]
        write_atomically(file, lambda path: path.write_text("".join(json.dumps(line) + "\n" for line in kept)))


def add_to_log(file: Path, line: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")


def read_log(file: Path) -> list[dict]:
    """The lines of a log that are whole: a killed run may have written the last one in part."""
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def seconds_per_step(step: TrainingStep, batch_at: Callable[[int], dict[str, Tensor]], seconds: float = 8.0) -> float:
    """Seconds per step of `fit`: measured for about `seconds`, after which weights and averages are as before."""

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for number in range(steps):
            terms = step(batch_at(number))
        float(terms["loss"])  # waits for the device
        mean = torch.tensor((time.perf_counter() - start) / steps, device=step.accelerator.device)
        return float(step.accelerator.reduce(mean, "mean"))  # so that every process takes the same number of steps

    with step.undone():
        step.set(1e-5, 0.999)
        timed(3)
        return timed(max(3, int(seconds / timed(3))))


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the full learning rate at a step: linear warm-up, then a half cosine to zero at the end."""
    warmup_steps = min(warmup_steps, steps // 10)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def average_decay(step: int, ema_decay: float) -> float:
    """Decay of the weights' moving average at a step: a short average at first, which soon forgets the start."""
    return min(ema_decay, (1 + step) / (10 + step)) if step else 0.0
