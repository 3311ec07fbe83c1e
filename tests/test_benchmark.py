import time
import weakref

import pytest
import torch
from helpers import tiny_preset

from defectdiffu import InputError
from defectdiffu import benchmark as module
from defectdiffu.benchmark import Work, benchmark, best, build, host_seconds, measured, training_flop
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
            assert result[f"{prefix}{name}_batch_size"] == 4
            for measured_on_a_gpu in ("host_ms_per_step", "device_busy"):
                assert result[f"{prefix}{name}_{measured_on_a_gpu}"] is None
        ratio = result[f"{name}_samples_per_second"] / result[f"baseline_{name}_samples_per_second"]
        assert result[f"{name}_speedup"] == pytest.approx(ratio, rel=0.02)


def test_one_part_alone():
    result = benchmark(tiny_preset(), repeats=1, parts=["sample"])
    assert not [key for key in result if "training" in key or "baseline" in key]
    assert not [key for key in result if "best" in key]  # without a GPU
    with pytest.raises(InputError, match="unknown part of the benchmark 'smaple': did you mean sample"):
        benchmark(tiny_preset(), parts=["smaple"])


def test_the_batch_is_doubled_until_it_is_no_faster_or_does_not_fit(monkeypatch):
    speeds = {2: 20.0, 4: 39.0, 8: 39.1, 16: 80.0}

    def figures(prepare, preset, batch, *_):
        if batch > prepare:  # stands for the largest batch that fits
            raise torch.OutOfMemoryError
        return {"batch_size": batch, "samples_per_second": speeds[batch]}

    monkeypatch.setattr(module, "measured", figures)
    for largest, expected in ((2, 2), (4, 4), (16, 4)):
        found = best({"batch_size": 2, "samples_per_second": 20.0}, largest, tiny_preset(), 1, 1.0)
        assert found == {"batch_size": expected, "samples_per_second": speeds[expected]}


def test_what_a_contender_needed_is_freed_before_the_next():
    class Weights:
        pass

    left = []

    def prepare(preset, batch):
        assert not [weights for weights in left if weights() is not None]
        weights = Weights()
        weights.circle = weights
        left.append(weakref.ref(weights))
        return Work(lambda tick: weights, samples=batch, flop=1.0)

    for batch in (2, 4):
        assert measured(prepare, tiny_preset(), batch, repeats=1, rate=1.0)["batch_size"] == batch
    assert len(left) == 2


def test_the_time_of_the_host_is_that_of_a_step_without_waiting_for_the_gpu(monkeypatch):
    clock = [0.0]

    def later(seconds: float) -> None:
        clock[0] += seconds

    def run(tick):
        for seconds in (50.0, 1.0, 2.0, 1.0):  # the first step begins with what is done once
            later(seconds)
            tick()

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: later(100.0))
    assert host_seconds(Work(run, samples=1, flop=1.0)) == 1.5


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
