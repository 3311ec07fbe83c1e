import re
import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import random_pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from defectdiffu import PRESETS, InputError
from defectdiffu.autoencoder import build_autoencoder, decode, downsampling
from defectdiffu.config import AutoencoderConfig
from defectdiffu.drawn.procedural import render
from defectdiffu.guidance import branch_conditions, evaluate_branches
from defectdiffu.memory import sampling_memory, sampling_savings
from defectdiffu.training.building import load_autoencoder
from defectdiffu.training.planning import meta_parts


class Alive(TorchDispatchMode):
    """Bytes of the tensors made in this block: the most in memory at once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(v.untyped_storage()) for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)}
        for storage in (v.untyped_storage() for v in tree_leaves(out) if isinstance(v, torch.Tensor)):
            if id(storage) not in given | self.sizes.keys():
                self.sizes[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.free, id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return out

    def free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def stable_diffusion_like(widths=(8, 8, 8), sample_size: int = 32) -> AutoencoderKL:
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    sizes = {"layers_per_block": 2, "norm_num_groups": 4, "latent_channels": 4, "sample_size": sample_size}
    return AutoencoderKL(3, 3, down, up, widths, **sizes).eval()


def own(**changes):
    torch.manual_seed(0)
    return build_autoencoder(AutoencoderConfig(**changes)).eval()


@pytest.mark.parametrize("attention_over", ["positions", "tokens"])
@torch.no_grad()
def test_what_the_transformer_needs_is_what_is_there_at_once(attention_over):
    model = {"width": 128, "background_blocks": 2, "attention_over": attention_over}
    pipe = random_pipeline(image_size=64, model=model)
    conditions = branch_conditions(pipe.encoder, "double_free", ["tile"], ["crack"], "industry")
    with Alive() as alive:
        evaluate_branches(pipe.transformer, torch.randn(4, 4, 16, 16), torch.zeros(4), conditions)
    assert sampling_memory(pipe, 4)["transformer"] == pytest.approx(alive.most / 1e9, rel=0.1)


@pytest.mark.parametrize(
    "vae",
    [
        lambda: own(),
        lambda: own(downsample=8, channels=64),
        lambda: stable_diffusion_like((16, 32, 64, 64), sample_size=256),
    ],
)
@torch.no_grad()
def test_what_the_decoder_needs_is_what_is_there_at_once(vae):
    vae = vae()
    pipe = random_pipeline(image_size=128)
    pipe.register_modules(vae=vae)
    side = 128 // downsampling(vae)
    pipe.transformer.register_to_config(sample_size=side)
    with Alive() as alive:
        decode(vae, torch.randn(2, 4, side, side))
    assert sampling_memory(pipe, 2)["vae"] == pytest.approx(alive.most / 1e9, rel=0.1)


def test_weights_are_counted_exactly_and_each_mode_by_its_rule(pipe):
    parts = [sum(p.numel() for p in part.parameters()) for part in (pipe.transformer, pipe.vae, pipe.text_encoder)]
    plain = sampling_memory(pipe, 8)
    assert plain["weights"] == pytest.approx(4 * sum(parts) / 1e9)
    assert plain["total"] == pytest.approx(plain["weights"] + max(plain["transformer"], plain["vae"]))
    half = sampling_memory(pipe, 8, half=True)
    assert all(half[key] == pytest.approx(value / 2) for key, value in plain.items())
    alone = [sampling_memory(pipe, 8, offload=True)[key] for key in ("transformer", "vae")]
    assert sampling_memory(pipe, 8, offload=True)["total"] == pytest.approx(
        max(4 * parts[0] / 1e9 + alone[0], 4 * parts[1] / 1e9 + alone[1], 4 * parts[2] / 1e9)
    )
    assert sampling_memory(pipe, 8, tiling=True) == plain  # a picture of 32 pixels is one tile
    pipe.vae.tile_sample_min_size = 16
    assert sampling_memory(pipe, 8, tiling=True)["vae"] == pytest.approx(plain["vae"] / 4)
    assert sampling_memory(pipe, 1)["vae"] == pytest.approx(plain["vae"] / 8)


def test_savings_are_named_as_they_are_switched_on():
    paper = meta_parts(PRESETS["paper"])
    saved = sampling_savings(paper, 8)
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    assert set(saved) == {
        "batch_size=1 (--batch-size 1)",
        "dtype=torch.float16 (no --full-precision)",
        "enable_model_cpu_offload() (--offload)",
        "vae.enable_tiling() (--tiling)",
    }
    paper.vae.enable_tiling()
    paper.transformer.to(torch.bfloat16)
    paper.transformer._hf_hook = object()  # as offloading leaves it
    assert sampling_savings(paper, 1) == {}


def test_running_out_of_gpu_memory_says_what_saves_how_much(pipe, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(pipe.vae, "decode", full)
    with pytest.raises(
        InputError, match=r"out of GPU memory: sampling 4 at a time takes about .* GB as comp"
    ) as caught:
        pipe("tile", "crack", num_images=6, batch_size=4)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"batch_size=1 \(--batch-size 1\) saves [0-9.e-]+ GB", message)
    assert re.search(r"dtype=torch.float16 \(no --full-precision\) saves [0-9.e-]+ GB", message)
    assert "tiling" not in message  # these pictures are smaller than a tile
    with pytest.raises(InputError, match="sampling 2 at a time"):
        pipe("tile", "crack", num_images=2)
    monkeypatch.setattr("defectdiffu.memory.sampling_savings", lambda *_: {})
    with pytest.raises(InputError, match="Every setting that saves memory is in use"):
        pipe("tile", "crack")


def test_a_tiled_autoencoder_decodes_almost_the_same():
    """Tiles of the decoder overlap and are blended; where a picture is one tile, nothing changes."""
    vae, latents = stable_diffusion_like(), torch.randn(1, 4, 24, 24)
    with torch.no_grad():
        plain = decode(vae, latents)
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 64
        tiled = decode(vae, latents)
        assert tiled.shape == plain.shape
        assert not torch.equal(tiled, plain)
        assert float((tiled - plain).abs().mean()) < 0.1 * float(plain.std())
        assert torch.equal(decode(vae, latents[..., :8, :8]), decode(stable_diffusion_like(), latents[..., :8, :8]))


@torch.no_grad()
def test_our_own_autoencoder_decodes_almost_the_same_in_tiles(pipe):
    """A picture of four tiles through the shipped autoencoder, a fourth of the picture's side to a latent."""
    image, *_ = render("hazelnut", "crack", strength=0.6, seed=0, size=256)
    vae = type(pipe)(**pipe.components | {"vae": load_autoencoder("tiny").eval()}).vae
    latents = vae.encode(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1).latents
    plain = decode(vae, latents)
    vae.enable_tiling()
    assert torch.equal(decode(vae, latents), plain)  # one tile
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 32
    difference = (decode(vae, latents) - plain).abs() * 127.5
    assert difference.max() > 0
    assert difference.mean() < 0.5  # grey levels of 255
    assert difference.max() < 15


@pytest.mark.parametrize("vae", [own, stable_diffusion_like])
def test_pairs_are_sampled_tiled_and_in_half_precision(pipe, vae):
    pipe = type(pipe)(**pipe.components | {"vae": vae()})
    plain = pipe("tile", "crack", num_images=2)
    pipe.vae.enable_tiling()
    one_tile = pipe("tile", "crack", num_images=2)
    assert [i.tobytes() for i in one_tile.images] == [i.tobytes() for i in plain.images]
    pipe.to(torch.bfloat16)
    half = pipe("tile", "crack", num_images=2)
    assert half.images[0].size == plain.images[0].size
    assert abs(half.mask_probs - plain.mask_probs).mean() < 0.05


def test_offloaded_parts_are_fetched_when_they_are_called(pipe):
    """diffusers' CPU offload adds a hook to each part, which must also fire for the transformer's two halves; and
    the parts are swapped once per batch, for any number of steps."""
    fetched = []

    class Hook:
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            fetched.append(self.name)
            return args, kwargs

    for name in ("transformer", "vae"):
        getattr(pipe, name)._hf_hook = Hook(name)
    pipe("tile", "crack", num_inference_steps=20, num_images=2, batch_size=1)
    assert fetched == (["transformer"] * 40 + ["vae"] * 3) * 2  # two steps' masks, and the picture
    assert pipe.model_cpu_offload_seq == "text_encoder->transformer->vae"


def test_offloading_changes_no_picture_and_leaves_no_part_on_the_gpu(pipe):
    """Here the GPU is the CPU: this tests the hooks, not the memory."""
    plain = pipe("tile", "crack", num_images=3, batch_size=2)
    pipe.enable_model_cpu_offload(device="cpu")
    before = pipe._all_hooks
    offloaded = pipe("tile", "crack", num_images=3, batch_size=2)
    assert [i.tobytes() for i in offloaded.images] == [i.tobytes() for i in plain.images]
    assert pipe._all_hooks is not before  # all were removed and added again
