"""One training loop for every stage: accelerate, AdamW, EMA, checkpoints that resume."""

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from defectdiffu.errors import InputError
from defectdiffu.files import write_atomically
from defectdiffu.training.checkpoints import (
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)

LOG_EVERY = 50


def build_accelerator(precision: str) -> Accelerator:
    """An accelerator for the launched processes: one, or several with a full copy of the model each."""
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[parallel])


def share_of_process(accelerator: Accelerator, batch: dict) -> dict:
    """This process's share of a batch; all processes have drawn the same batch."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    return {k: v[mine] for k, v in batch.items()}


def fit(
    accelerator: Accelerator,
    module: nn.Module,
    batch_at: Callable[[int], dict],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    ema_decay: float,
    max_grad_norm: float,
    checkpoint_every: int,
    label: str,
    accumulate: int = 1,
    average_on_cpu: bool = False,
    every: int = 0,
    watch: Callable[[int, dict], None] = lambda step, log: None,
) -> nn.Module:
    """Train `module` from its newest checkpoint in `folder` to `steps`; at the end it has its EMA weights.

    The learning rate rises linearly for `warmup_steps` and falls along a cosine to zero at `steps`. A batch is computed
    in `accumulate` equal parts. `watch(step, log)` is called every `every` steps and at the end, while `module` has the
    EMA weights. The average is kept in full precision, with `average_on_cpu` in the CPU's memory.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    checkpoint = load_newest_checkpoint(folder)
    if checkpoint is not None:
        tensors, metadata = checkpoint
        try:
            module.load_state_dict({n: tensors[f"model.{n}"] for n in names}, strict=False)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{folder} holds a checkpoint of another model ({error}): remove it, or choose another --out"
            ) from error
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        learning_rate,
        weight_decay=weight_decay,
        betas=(0.9, 0.99),
        fused=accelerator.device.type == "cuda",
    )
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    parameters = [p for p in module.parameters() if p.requires_grad]
    ema = EMAModel(parameters, decay=ema_decay, foreach=True)
    if average_on_cpu:
        ema.to("cpu")
    start = 0
    if checkpoint is not None:
        start = metadata["step"]
        ema.shadow_params = [tensors[f"ema.{n}"].to(p.device) for n, p in zip(names, ema.shadow_params, strict=True)]
        ema.optimization_step = start
        prefix = "optimizer."
        if accelerator.scaler is not None and "scaler" in metadata:
            accelerator.scaler.load_state_dict(metadata["scaler"])
        load_optimizer_tensors(optimizer, {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        del checkpoint, tensors

    def save(step: int) -> None:
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
        tensors |= {f"ema.{n}": p for n, p in zip(names, ema.shadow_params, strict=True)}
        tensors |= {f"optimizer.{n}": v for n, v in optimizer_tensors(optimizer).items()}
        scaler = accelerator.scaler  # of gradients in fp16, else None
        save_checkpoint(folder, step, tensors, {} if scaler is None else {"scaler": scaler.state_dict()})

    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        """`module` has the averaged weights in this block; its own are restored after it."""
        ema.store(parameters)
        ema.copy_to(parameters)
        yield
        ema.restore(parameters)

    main = accelerator.is_main_process
    log_file = folder.parent / "log.jsonl"
    if main and log_file.is_file():  # drop lines after the checkpoint: they will be logged again
        lines = read_log(log_file)
        kept = [line for line in lines if line["stage"] != label or line["step"] <= start]
        write_atomically(log_file, lambda path: path.write_text("".join(json.dumps(line) + "\n" for line in kept)))
    bar = tqdm(total=steps, initial=start, desc=label, disable=not main, dynamic_ncols=True, mininterval=1)
    tick, done = time.perf_counter(), start
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps, warmup_steps)
        batch = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in batch_at(step).items()}
        terms = take_step(accelerator, wrapped, optimizer, parameters, batch, accumulate, max_grad_norm)
        # diffusers declares parameters, but accepts tensors.
        ema.step([p.to(a.device) for p, a in zip(parameters, ema.shadow_params, strict=True)])  # type: ignore[misc]
        bar.update()

        last = step + 1 == steps
        watched = every and ((step + 1) % every == 0 or last)
        if (step + 1) % LOG_EVERY == 0 or last or watched:
            values = {k: float(accelerator.reduce(v, "mean")) for k, v in terms.items()}
            if not math.isfinite(values["loss"]):
                raise InputError(f"{label}: the loss is {values['loss']} at step {step + 1}; lower learning_rate")
            now = time.perf_counter()
            rate = (step + 1 - done) * len(batch["x"]) * accelerator.num_processes / (now - tick)
            tick, done = now, step + 1
            bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()} | {"samples/s": f"{rate:.0f}"}, refresh=False)
            log = {"stage": label, "step": step + 1, **values, "samples_per_second": round(rate, 1)}
            if watched:
                with averaged():
                    watch(step + 1, log)
            if main:
                with log_file.open("a") as file:
                    file.write(json.dumps(log) + "\n")
        if (step + 1) % checkpoint_every == 0 or last:
            if main:
                save(step + 1)
            accelerator.wait_for_everyone()
    bar.close()
    ema.copy_to(parameters)
    return module


def read_log(file: Path) -> list[dict]:
    """The lines of a log that are whole: a killed run may have written the last one in part."""
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def seconds_per_step(
    accelerator: Accelerator, module: nn.Module, batch_at: Callable[[int], dict], accumulate: int, seconds: float = 8.0
) -> float:
    """Seconds per step of `fit`: measured for about `seconds` on a copy of `module`, which is not changed."""
    trial = copy.deepcopy(module)
    parameters = [p for p in trial.parameters() if p.requires_grad]
    wrapped, optimizer = accelerator.prepare(trial, torch.optim.AdamW(parameters, 1e-5))
    ema = EMAModel(parameters, foreach=True)

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for step in range(steps):
            batch = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in batch_at(step).items()}
            terms = take_step(accelerator, wrapped, optimizer, parameters, batch, accumulate, 1.0)
            ema.step(parameters)
        float(terms["loss"])  # waits for the device
        mean = torch.tensor((time.perf_counter() - start) / steps, device=accelerator.device)
        return float(accelerator.reduce(mean, "mean"))  # so that every process takes the same number of steps

    timed(3)
    rate = timed(max(3, int(seconds / timed(3))))
    accelerator.free_memory()
    return rate


def take_step(
    accelerator: Accelerator,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    batch: dict,
    accumulate: int,
    max_grad_norm: float,
) -> dict[str, Tensor]:
    """One step of the optimiser over a batch, in `accumulate` parts one after another; returns its mean loss terms."""
    terms: dict[str, Tensor] = {}
    parts = split_batch(batch, accumulate)
    for part in parts:
        last = part is parts[-1]  # processes exchange gradients only then
        alone = contextlib.nullcontext() if last else accelerator.no_sync(wrapped)
        with alone, accelerator.autocast(), attention_kernel(accelerator):
            out = wrapped(part)
            accelerator.backward(out["loss"] / accumulate)
        terms = {key: terms.get(key, 0) + value.detach() / accumulate for key, value in out.items()}
    accelerator.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def split_batch(batch: dict, parts: int) -> list[dict]:
    """A batch as equal parts; values that are not lists or tensors of the batch's length go to every part."""
    if parts == 1:
        return [batch]
    size = len(batch["x"])

    def part(value: Any, i: int) -> Any:
        whole_batch = isinstance(value, (list, Tensor)) and len(value) == size
        return value[i * size // parts : (i + 1) * size // parts] if whole_batch else value

    return [{key: part(value, i) for key, value in batch.items()} for i in range(parts)]


def attention_kernel(accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """On a CPU, attention as plain matrix products: with the few tokens of the small presets the fused kernel's
    backward pass takes several times longer."""
    return sdpa_kernel(SDPBackend.MATH) if accelerator.device.type == "cpu" else contextlib.nullcontext()


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the full learning rate at a step: linear warm-up, then a half cosine to zero at the end."""
    warmup_steps = min(warmup_steps, steps // 10)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
