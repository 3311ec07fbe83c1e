"""The machine: its device, the device's name and precision, and random numbers."""

import platform
from pathlib import Path

import numpy as np
import torch


def default_device() -> str:
    """ "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"


def precision() -> str:
    """bf16 if the device supports it, fp16 on older GPUs, else full precision ("no")."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def stream(device: torch.device, *numbers: int) -> tuple[np.random.Generator, torch.Generator]:
    """Random generators that depend only on `numbers`, for numpy and for tensors on `device`."""
    rng = np.random.default_rng(numbers)
    return rng, torch.Generator(device).manual_seed(int(rng.integers(2**62)))
