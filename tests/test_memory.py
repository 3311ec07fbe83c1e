import pytest
import torch
from diffusers import AutoencoderKL
from helpers import random_pipeline, tiny_preset

from defectdiffu import PRESETS
from defectdiffu.autoencoder import decode
from defectdiffu.memory import memory_table, savings, training_memory


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
    assert all(r["gb_saving"] < r["gb"] for r in rows)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling in little memory


def stable_diffusion_like() -> AutoencoderKL:
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    return AutoencoderKL(3, 3, down, up, (8, 8, 8), norm_num_groups=4, latent_channels=4, sample_size=32)


def test_a_tiled_autoencoder_decodes_almost_the_same():
    """Tiles of the decoder overlap and are blended; where a picture is one tile, nothing changes."""
    vae, latents = stable_diffusion_like().eval(), torch.randn(1, 4, 24, 24)
    with torch.no_grad():
        plain = decode(vae, latents)
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 64
        tiled = decode(vae, latents)
        assert tiled.shape == plain.shape
        assert not torch.equal(tiled, plain)
        assert float((tiled - plain).abs().mean()) < 0.1 * float(plain.std())
        assert torch.equal(
            decode(vae, latents[..., :8, :8]), decode(stable_diffusion_like().eval(), latents[..., :8, :8])
        )


def test_pairs_are_sampled_tiled_and_in_half_precision(pipe):
    pipe.register_modules(vae=stable_diffusion_like().eval())
    plain = pipe("tile", "crack", seeds=[0])
    pipe.vae.enable_tiling()
    assert pipe("tile", "crack", seeds=[0]).images[0].tobytes() == plain.images[0].tobytes()  # one tile
    pipe.to(torch.bfloat16)
    half = pipe("tile", "crack", seeds=[0])
    assert half.images[0].size == plain.images[0].size
    assert abs(half.mask_probs - plain.mask_probs).mean() < 0.05


def test_offloaded_parts_are_fetched_when_they_are_called(pipe):
    """diffusers' CPU offload puts a hook on each part, which must fire for the transformer's two halves as well."""
    fetched = []

    class Hook:
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            fetched.append(self.name)
            return args, kwargs

    for name in ("transformer", "vae"):
        getattr(pipe, name)._hf_hook = Hook(name)
    pipe("tile", "crack", num_inference_steps=1)
    assert fetched[:3] == ["transformer", "transformer", "vae"]
    assert pipe.model_cpu_offload_seq == "text_encoder->transformer->vae"
