"""Weights that are divided among processes (FSDP), and whole tensors in files: checkpoints know of no processes."""

import os

from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor


def build_accelerator(precision: str) -> Accelerator:
    """The processes and devices as they were launched: alone, in parallel (DDP), or with sharded weights (FSDP).

    Sharded weights are gathered in full precision, and autocast does the rest: so losses and gradients are what they
    are without sharding.
    """
    plugin = None
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[parallel], fsdp_plugin=plugin)


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def whole(value: Tensor) -> Tensor:
    """The tensor of which `value` is this process's shard, on the CPU; what is no shard is returned as it is.

    Every process must call it.
    """
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: `value` divided, and placed, as `like` is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
