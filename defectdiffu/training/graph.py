"""A function of tensors recorded once as a CUDA graph: the GPU then repeats it without waiting for Python."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from defectdiffu.config import TrainingConfig

WARM_UP = 4  # calls before the recording, in which kernels are compiled and chosen


class Graphed:
    """`work(batch)` for batches of one shape: each is copied to where the recorded kernels read theirs.

    What `work` returns stays in the same memory, so a call overwrites the result of the one before.
    """

    def __init__(self, work: Callable[[dict[str, Tensor]], Any], batch: dict[str, Tensor]):
        self.batch = {name: value.clone() for name, value in batch.items()}
        self.replay = record(lambda: work(self.batch))

    def __call__(self, batch: dict[str, Tensor]) -> Any:
        for name, value in self.batch.items():
            value.copy_(batch[name])
        return self.replay()


def record(work: Callable[[], Any]) -> Callable[[], Any]:
    """Call `work` a few times, record it, and return the function that replays it. The recording runs no kernel."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):  # what is set up on the default stream could not be recorded
            for _ in range(WARM_UP):
                work()
    finally:
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def obstacle(settings: TrainingConfig, accelerator: Accelerator) -> str | None:
    """Why a step with these settings cannot be recorded, or None if it can."""
    found = {
        "there is no CUDA device": accelerator.device.type != "cuda",
        "several processes exchange gradients": accelerator.num_processes > 1,
        "fp16 scales gradients by what it finds in them": accelerator.mixed_precision == "fp16",
        "training.accumulate is above 1": settings.accumulate > 1,
        "training.gradient_checkpointing is on": settings.gradient_checkpointing,
        "training.average_on_cpu is on": settings.average_on_cpu,
    }
    return next((reason for reason, holds in found.items() if holds), None)
