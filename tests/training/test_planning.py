import pytest
import torch
from helpers import random_pipeline, tiny_preset

from defectdiffu import PRESETS
from defectdiffu.training.planning import memory_table, meta_parts, plan, savings, training_memory


def test_larger_presets_are_said_to_take_more(data):
    plans = [
        plan(PRESETS[name].replace(training={"batch_size": 8}, start_from=None), [data])
        for name in ("tiny", "book", "paper")
    ]
    for key in ("memory_gb", "minutes"):
        values = [p[key] for p in plans]
        assert 0 < values[0] < values[1] < values[2]


def test_twice_the_steps_take_twice_the_time(data, monkeypatch):
    monkeypatch.setattr("defectdiffu.training.planning.matrix_rate", lambda: 1e11)
    preset = PRESETS["tiny"].replace(training={"batch_size": 8})  # starts from weights: no autoencoder stage
    once, twice = (plan(preset.replace(training={"steps": n}), [data])["minutes"] for n in (50_000, 100_000))
    assert abs(twice / once - 2) < 0.05


def test_what_the_optimiser_keeps_is_counted_exactly():
    """Weights, gradients and moments of a real model after a step, against the computed ones."""
    preset = tiny_preset(text={"width": 16})
    transformer = random_pipeline().transformer
    optimizer = torch.optim.AdamW(transformer.parameters())
    for parameter in transformer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    memory = training_memory(preset, "no")
    numbers = sum(p.numel() for p in transformer.parameters())
    moments = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.dim())
    assert memory["weights"] == memory["gradients"] == pytest.approx(4 * numbers / 1e9)
    assert memory["optimiser"] == pytest.approx(4 * moments / 1e9)
    assert memory["total"] == pytest.approx(sum(v for k, v in memory.items() if k != "total"))


def test_activations_are_what_backward_keeps():
    """Bytes that autograd saves for the backward pass, against the computed ones: within a factor of 1.6."""
    preset = tiny_preset(image_size=64, model={"width": 128, "background_blocks": 3}, training={"batch_size": 8})
    pipe = random_pipeline(image_size=64, model={"width": 128, "background_blocks": 3})
    conditions = pipe.encoder.conditions(["tile"] * 8, ["crack"] * 8)
    for saving in (False, True):
        if saving:
            pipe.transformer.enable_gradient_checkpointing()
        kept, own = {}, {p.untyped_storage().data_ptr() for p in pipe.transformer.parameters()}

        def keep(value, kept=kept, own=own):
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = pipe.transformer(torch.randn(8, 4, 16, 16), torch.zeros(8), **vars(conditions))
        computed = training_memory(preset.replace(training={"gradient_checkpointing": saving}), "no")["activations"]
        if saving:  # the inside of one block is there only while it is computed again
            assert sum(kept.values()) / 1e9 < computed
        else:
            assert computed / 1.6 < sum(kept.values()) / 1e9 < computed * 1.6
        del out


def test_every_option_saves_and_is_named_once():
    preset = PRESETS["paper"]
    saved = savings(preset, "bf16")
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    assert {name.split(":")[0] for name in saved} == {"gradient_checkpointing", "average_on_cpu", "accumulate"}
    assert all(value > 0 for value in saved.values())
    used = preset.replace(training={"gradient_checkpointing": True, "average_on_cpu": True, "accumulate": 32})
    assert savings(used, "bf16") == {}
    assert training_memory(preset, "bf16", processes=8)["activations"] < training_memory(preset, "bf16")["activations"]


def test_the_table_grows_with_size_and_batch():
    rows = memory_table([PRESETS["tiny"], PRESETS["paper"]], [256, 512], [2, 32])
    assert len(rows) == 8
    by = {(r["preset"], r["image_size"], r["batch_size"]): r for r in rows}
    for preset in ("tiny", "paper"):
        assert by[preset, 256, 2]["gb"] < by[preset, 256, 32]["gb"] < by[preset, 512, 32]["gb"]
    assert all(r["gb_saving"] < r["gb"] and r["sampling_gb_saving"] < r["sampling_gb"] for r in rows)
    assert all(r["sampling_gb"] < r["gb"] for r in rows if r["batch_size"] == 32)


def test_the_parts_of_a_preset_are_those_of_its_pipeline():
    preset = tiny_preset()
    ours = meta_parts(preset)
    pipe = random_pipeline()
    for name in ("transformer", "vae"):
        sizes = [{k: v.shape for k, v in getattr(p, name).state_dict().items()} for p in (ours, pipe)]
        assert sizes[0] == sizes[1]
    paper = meta_parts(PRESETS["paper"])
    numbers = [sum(p.numel() for p in part.parameters()) for part in (paper.vae, paper.text_encoder)]
    assert numbers == [83_653_863, 123_060_480]  # of sd-vae-ft-mse, and of ViT-L/14's text model
