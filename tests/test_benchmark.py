import pytest
import torch
from helpers import tiny_preset

from defectdiffu import InputError
from defectdiffu.benchmark import benchmark, build, training_flop
from defectdiffu.training.denoiser import Denoiser


def test_ours_beside_the_baseline():
    result = benchmark(tiny_preset(), repeats=1, baseline=True)
    assert result["matrix_product_size"] == 2048
    for name in ("training", "sampling"):
        for prefix in ("", "baseline_"):
            speed = result[f"{prefix}{name}_samples_per_second"]
            assert speed > 0
            rate = result["matrix_product_gflops"]
            share, rounded = result[f"{prefix}{name}_gflops"] / rate, 0.05 / rate + 0.0005
            assert result[f"{prefix}{name}_mfu"] == pytest.approx(share, rel=1 / rate, abs=rounded)
            assert result[f"{prefix}{name}_peak_memory_gb"] > 0
        ratio = result[f"{name}_samples_per_second"] / result[f"baseline_{name}_samples_per_second"]
        assert result[f"{name}_speedup"] == pytest.approx(ratio, rel=0.02)


def test_one_part_alone():
    result = benchmark(tiny_preset(), repeats=1, parts=["sample"])
    assert not [key for key in result if "training" in key or "baseline" in key]
    with pytest.raises(InputError, match="unknown part of the benchmark 'smaple': did you mean sample"):
        benchmark(tiny_preset(), parts=["smaple"])


def test_work_is_counted_by_its_formula():
    """2 per weight and token in every product, and the attention's two products; forward three times."""
    preset = tiny_preset(model={"background_blocks": 1, "defect_blocks": 1, "fusion_blocks": 1, "width": 32})
    pipe = build(preset, torch.device("cpu"))
    denoiser = Denoiser(pipe.transformer, pipe.encoder, [("hazelnut", "crack")], preset)
    n = preset.training.batch_size
    batch = {"x": torch.zeros(n, 4, 8, 8), "t": torch.zeros(n), "pair": torch.zeros(n, dtype=torch.long)}
    tokens, width = 16, 32
    blocks = 3 * (2 * 12 * tokens * width**2 + 4 * tokens**2 * width)
    counted = training_flop(denoiser, batch) / len(batch["x"]) / 3
    assert blocks < counted < 2 * blocks  # the rest: modulation, cross-attention, patches, mask head
