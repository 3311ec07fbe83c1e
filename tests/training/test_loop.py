from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from defectdiffu import InputError
from defectdiffu.machine import precision
from defectdiffu.training.loop import fit, schedule, seconds_per_step
from defectdiffu.training.step import TrainingStep


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": ((self.linear(batch["x"]) - batch["y"]).square() * batch["scale"]).mean()}


def toy_batch(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, generator=generator)
    return {"x": x, "y": x.sum(1, keepdim=True), "scale": torch.ones(8, 1)}


def toy_step(toy: Toy | None = None) -> TrainingStep:
    return TrainingStep(Accelerator(mixed_precision=precision()), toy or Toy())


def fit_toy(folder: Path, batch_at=toy_batch, **changes) -> Toy:
    settings = {"steps": 30, "learning_rate": 0.1, "warmup_steps": 3, "ema_decay": 0.9}
    settings |= {"checkpoint_every": 10, "label": "toy"}
    step = toy_step()
    fit(step, batch_at, folder / "checkpoints", **settings | changes)
    return step.module


@pytest.fixture
def after_each_step():
    """(learning rate, parameters) after every step of any optimiser."""
    seen = []

    def record(optimizer, *_):
        groups = optimizer.param_groups
        seen.append((float(groups[0]["lr"]), [p.detach().clone() for group in groups for p in group["params"]]))

    handle = register_optimizer_step_post_hook(record)
    yield seen
    handle.remove()


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_moving_average_is_its_closed_form(tmp_path, after_each_step, decay):
    """diffusers' rule: update k decays by min(decay, (1 + s) / (10 + s)) with s = k - 1, the first by 0."""
    module = fit_toy(tmp_path, ema_decay=decay)
    steps = [parameters for _, parameters in after_each_step]
    decays = [0.0] + [min(decay, (1 + s) / (10 + s)) for s in range(1, 30)]
    for i, parameter in enumerate(module.parameters()):
        expected = sum((1 - decays[k]) * np.prod(decays[k + 1 :]) * steps[k][i].double() for k in range(30))
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(parameter, steps[-1][i], atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(step, 1000, 100) for step in range(1000)]
    assert rates[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert rates[100] == 1
    assert rates[550] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert 0 < rates[-1] < 1e-4
    assert schedule(1000, 1000, 100) == 0
    assert max(schedule(step, 20, 500) for step in range(20)) == 1  # a short run is not all warm-up


def test_the_loop_follows_the_schedule(tmp_path, after_each_step):
    fit_toy(tmp_path)
    assert [rate for rate, _ in after_each_step] == pytest.approx([0.1 * schedule(s, 30, 3) for s in range(30)])


def test_a_finished_loop_does_nothing_more(tmp_path, after_each_step):
    first = fit_toy(tmp_path)
    again = fit_toy(tmp_path)
    assert len(after_each_step) == 30
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_watched_with_averaged_weights_that_are_put_back(tmp_path, after_each_step):
    seen = []
    watched = fit_toy(tmp_path / "watched", steps=100, every=50, watch=lambda step, log: seen.append(step))
    plain = fit_toy(tmp_path / "plain", steps=100)
    assert seen == [50, 100]
    for (_, a), (_, b) in zip(after_each_step[:100], after_each_step[100:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(watched.linear.weight, plain.linear.weight)


def test_a_loss_that_is_no_number_is_named(tmp_path):
    with pytest.raises(InputError, match=r"toy: the loss is .* at step 30; lower learning_rate"):
        fit_toy(tmp_path, batch_at=lambda step: toy_batch(step) | {"scale": torch.full((8, 1), float("inf"))})


def test_measuring_the_rate_leaves_the_training_as_it_is(tmp_path):
    step = toy_step()
    before = {name: value.clone() for name, value in step.tensors().items()}
    assert 0 < seconds_per_step(step, toy_batch, seconds=0.05) < 1
    after = step.tensors()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.any() for name, value in after.items() if name not in before)  # moments, all zero
