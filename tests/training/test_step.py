import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import random_pipeline, tiny_preset
from torch import nn

from defectdiffu.config import GOOD
from defectdiffu.model import Block
from defectdiffu.training import graph
from defectdiffu.training.denoiser import Denoiser, conditions_told, denoising_step, draw_batch
from defectdiffu.training.latents import Latents
from defectdiffu.training.loop import build_accelerator
from defectdiffu.training.step import TrainingStep, parameter_groups

PRESET = tiny_preset(training={"max_grad_norm": 0.5})
MODEL = {"prediction": "velocity", "convolution": True, "attention_over": "tokens"}


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def training(device: str = "cpu", **changes) -> tuple[TrainingStep, list[dict]]:
    """A step of a new model, and fifty batches for it."""
    pipe = random_pipeline(model=MODEL).to(device)
    torch.manual_seed(0)
    latents = Latents(
        torch.randn(4, 1, 4, 8, 8).half(),
        torch.randn(4, 1, 4, 8, 8).half(),
        torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8),
        ["tile", "tile", "hazelnut", "hazelnut"],
        [GOOD, "crack", GOOD, "hole"],
    ).to(device)
    pairs, told = conditions_told(latents, "industry")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    step = TrainingStep(accelerator, Denoiser(pipe.transformer, pipe.encoder, pairs, PRESET), **changes)
    return step, [draw_batch(latents, told, PRESET, number) for number in range(50)]


def take(step: TrainingStep, batches: list[dict]) -> list[float]:
    losses = []
    for number, batch in enumerate(batches):
        step.set(1e-3 / (1 + number), 1 - 1 / (1 + number))
        losses.append(step(batch)["loss"].clone())  # a graph writes the next one to the same place
    return [float(loss) for loss in losses]


def differences(a: TrainingStep, b: TrainingStep) -> float:
    one, two = a.tensors(), b.tensors()
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_a_recorded_step_is_the_eager_one(monkeypatch):
    """The recording replaced by calls: its warm-up changes nothing, and its batches and rates reach the step."""

    def record(work):
        for _ in range(graph.WARM_UP):
            work()
        return work

    monkeypatch.setattr(graph, "record", record)
    eager, batches = training()
    recorded, _ = training(cuda_graph=True)
    assert take(recorded, batches) == pytest.approx(take(eager, batches), abs=1e-5)
    assert differences(recorded, eager) < 1e-6


def test_a_recording_goes_on_from_what_was_loaded(monkeypatch):
    monkeypatch.setattr(graph, "record", lambda work: work)
    whole, batches = training(cuda_graph=True)
    take(whole, batches[:5])
    resumed, _ = training(cuda_graph=True)
    take(resumed, batches[5:8])  # recorded with another state
    resumed.load({name: value.clone() for name, value in whole.tensors().items()})
    take(whole, batches[5:10])
    take(resumed, batches[5:10])
    assert differences(whole, resumed) == 0


def test_a_failed_recording_is_one_line_and_changes_nothing(monkeypatch, capsys):
    def record(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")

    monkeypatch.setattr(graph, "record", record)
    eager, batches = training()
    fallen, _ = training(cuda_graph=True)
    assert take(fallen, batches[:3]) == take(eager, batches[:3])
    assert differences(fallen, eager) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training.cuda_graph: the step could not be recorded, it runs without (operation not")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_replayed_on_a_gpu_is_the_eager_one(capsys):
    eager, batches = training("cuda")
    recorded, _ = training("cuda", cuda_graph=True)
    assert take(recorded, batches) == pytest.approx(take(eager, batches), rel=1e-3)
    assert capsys.readouterr().err == ""


def test_what_is_undone_leaves_no_trace():
    step, batches = training()
    for taken in (batches[:0], batches[:3]):  # of a new optimiser, and of one that has begun
        take(step, taken)
        before = {name: value.clone() for name, value in step.tensors().items()}
        places = [p.data_ptr() for p in (*step.parameters, *step.average)]
        with step.undone():
            take(step, batches[3:6])
        after = step.tensors()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert not any(value.any() for name, value in after.items() if name not in before)
        assert [p.data_ptr() for p in (*step.parameters, *step.average)] == places


def test_biases_norms_and_embeddings_do_not_decay():
    module = nn.ModuleDict(
        {"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "words": nn.Embedding(5, 3), "conv": nn.Conv2d(1, 1, 3)}
    )
    names = {p: name for name, p in module.named_parameters()}
    decaying, others = parameter_groups(module, 0.1)
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert [names[p] for p in decaying["params"]] == ["linear.weight", "conv.weight"]
    assert len(others["params"]) == 5


def step_with(**settings) -> TrainingStep:
    pipe, preset = random_pipeline(), tiny_preset(training=settings)
    denoiser = Denoiser(pipe.transformer, pipe.encoder, [("tile", "crack")], preset)
    return denoising_step(denoiser, preset, build_accelerator("no"))


def test_what_keeps_a_step_from_being_recorded_is_said(capsys):
    assert not step_with(cuda_graph=True).cuda_graph
    assert capsys.readouterr().err == "training.cuda_graph: steps run without, there is no CUDA device\n"


@pytest.mark.parametrize(
    "settings", [{"accumulate": 2}, {"gradient_checkpointing": True}, {"average_on_cpu": True}, {}]
)
def test_each_obstacle_is_named_by_its_setting(settings):
    class OneGpu:
        device, num_processes, mixed_precision = torch.device("cuda"), 1, "bf16"

    reason = graph.obstacle(tiny_preset(training=settings).training, OneGpu())
    assert reason is None if not settings else next(iter(settings)) in reason


def test_blocks_are_compiled_one_by_one():
    modules = step_with(compile=True).module.modules()
    assert {type(m) for m in modules if m._compiled_call_impl is not None} == {Block}
