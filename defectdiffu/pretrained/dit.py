"""Start from a class-conditional DiT, as the paper does: its blocks become background, defect and fusion blocks.

Two forms of file are read: diffusers' folder (or hub id), and the original `.pt` checkpoint.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin")
WRAPPINGS = ("ema", "model_state_dict", "state_dict", "model")  # names under which training code keeps the weights

# Names in diffusers' DiT -> ours. Every block of diffusers' format repeats the same embedding of the step.
DIFFUSERS_OUTSIDE = {
    "pos_embed.proj": "patch_embed.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "time_embed.linear_1",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "time_embed.linear_2",
    "proj_out_1": "final_adaln",
    "proj_out_2": "final",
}
DIFFUSERS_BLOCK = {
    "norm1.linear": "adaln",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.expand",
    "ff.net.2": "mlp.contract",
}

# Names in the original checkpoints -> ours.
OUTSIDE = {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.linear_1",
    "t_embedder.mlp.2": "time_embed.linear_2",
    "final_layer.adaLN_modulation.1": "final_adaln",
    "final_layer.linear": "final",
}
BLOCK = {
    "adaLN_modulation.1": "adaln",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.contract",
}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of DiT-S, B, L and XL, by width: a checkpoint does not have the number


def load_dit(transformer: DefectDiffuTransformer, name: str) -> list[str]:
    """Copy the weights of the DiT `name` (folder or hub id of diffusers' format, or `.pt` file) into `transformer`.

    The class embedding is dropped. Returns the names of the parameters left unchanged: text projections,
    cross-attention, mask head. Raises `InputError` if `name` is not a DiT, or has another size or resolution.
    """
    return copy_dit(transformer, name, *read_dit(name))


def from_dit(name: str | Path, text_dim: int = 768, **settings: Any) -> tuple[DefectDiffuTransformer, list[str]]:
    """A transformer that starts from a class-conditional DiT, and the names of the parameters that are new.

    name: a folder or hub id of diffusers' format ("facebook/DiT-XL-2-512"), or an original `.pt` checkpoint, of which
    only tensors are read. The class embedding is dropped, a learned sigma is kept. settings: of the transformer,
    if they differ from the DiT's; by default the blocks are divided as the paper divides 28, into
    10, 10 and 8. Raises `InputError` if `name` is not a DiT.
    """
    name = str(name)
    found, convert = read_dit(name)
    layers = found["layers"]
    sizes = {key: value for key, value in found.items() if key != "layers"} | settings
    if sizes["heads"] is None:
        raise InputError(f"{name} does not contain the number of its attention heads: give heads=")
    first = round(layers * 10 / 28)
    blocks = {"background_blocks": first, "defect_blocks": first, "fusion_blocks": layers - 2 * first}
    transformer = DefectDiffuTransformer(**blocks | sizes, text_dim=text_dim)
    return transformer, copy_dit(transformer, name, found, convert)


def copy_dit(transformer: DefectDiffuTransformer, name: str, found: dict, convert: Callable) -> list[str]:
    """Copy the result of `read_dit` into `transformer`; see `load_dit`."""
    if found["layers"] != (layers := len(block_names(transformer))):
        raise InputError(f"{name} has {found['layers']} blocks, this transformer {layers}")
    if found["sample_size"] != transformer.config.sample_size:
        raise InputError(
            f"{name} is made for latents of side {found['sample_size']}, this transformer has "
            f"{transformer.config.sample_size}: choose the DiT of your resolution, or change image_size"
        )
    transformer.time_features.downscale_freq_shift = found["frequency_shift"]
    transformer.register_to_config(frequency_shift=found["frequency_shift"])
    return fill(transformer, convert(transformer), name)


def read_dit(name: str) -> tuple[dict, Callable[[DefectDiffuTransformer], dict[str, Tensor]]]:
    """The sizes of the DiT `name`, and a function that returns its tensors under a transformer's names."""
    if Path(name).suffix in CHECKPOINTS:
        state = read_checkpoint(Path(name))
        return original_settings(state, name), lambda transformer: convert_original(state, transformer)
    dit = load_diffusers(name)
    config = dit.config
    settings = {
        "sample_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "patch_size": config["patch_size"],
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "heads": config["num_attention_heads"],
        "layers": len(dit.transformer_blocks),
        "learn_sigma": config["out_channels"] == 2 * config["in_channels"],
        "frequency_shift": 1,
    }
    return settings, lambda transformer: convert_diffusers(dit.state_dict(), block_names(transformer))


def load_diffusers(name: str) -> DiTTransformer2DModel:
    """diffusers' DiT from the folder or hub id of a DiT or a pipeline. Of a `.bin` only tensors are read."""
    for folder in ("transformer", None):  # "facebook/DiT-XL-2-512" is a pipeline
        try:
            kind = DiTTransformer2DModel.load_config(name, subfolder=folder).get("_class_name")
            if kind == DiTTransformer2DModel.__name__:
                return DiTTransformer2DModel.from_pretrained(name, subfolder=folder, dtype=torch.float32)
        except OSError:
            continue
        raise InputError(f"{name} is a checkpoint of another model ({kind}), not of a DiT")
    raise InputError(f"no DiT '{name}': it must be a folder or hub id of diffusers' format, or a .pt file")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint, also from inside the usual wrapping dictionaries; only tensors are read.

    Raises `InputError` for a file that is missing, damaged, or a pickle of other objects, which could run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors, and reading it could run code: it is not read") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged, cut short or not a PyTorch checkpoint") from error
    while isinstance(state, dict):
        inner = next((state[w] for w in WRAPPINGS if isinstance(state.get(w), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} is a checkpoint of another model: it is not a plain dictionary of tensors")
    return {key.removeprefix("module."): value.float() for key, value in state.items()}


def original_settings(state: dict[str, Tensor], name: str) -> dict:
    """Sizes of the model in an original checkpoint. Raises `InputError` if it is another kind of model."""
    needed = [f"{k}.weight" for k in OUTSIDE] + [f"blocks.0.{k}.weight" for k in BLOCK] + ["pos_embed"]
    if missing := [key for key in needed if key not in state]:
        raise InputError(f"{name} is a checkpoint of another model than a DiT: it lacks {', '.join(missing[:3])}")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    side = round(state["pos_embed"].shape[1] ** 0.5)
    return {
        "sample_size": side * patch,
        "in_channels": channels,
        "patch_size": patch,
        "width": width,
        "heads": HEADS.get(width),
        "layers": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "learn_sigma": len(state["final_layer.linear.weight"]) == 2 * patch**2 * channels,
        "frequency_shift": 0,
    }


def block_names(transformer: DefectDiffuTransformer) -> list[str]:
    """Our names of the blocks, in the order of a DiT's."""
    parts = ("background_part", "defect_part", "fusion_part")
    return [f"{part}.{i}" for part in parts for i in range(len(getattr(transformer, part)))]


def fill(transformer: DefectDiffuTransformer, state: dict[str, Tensor], name: str) -> list[str]:
    """Copy `state` into the transformer; return the names of its other parameters, which are left unchanged."""
    own = transformer.state_dict()
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise InputError(
                f"{name} has {key} of shape {tuple(value.shape)}, this transformer {tuple(own[key].shape)}"
            )
    transformer.load_state_dict(state, strict=False)
    return sorted(own.keys() - state.keys())


def convert_diffusers(theirs: dict[str, Tensor], blocks: list[str]) -> dict[str, Tensor]:
    """The tensors of diffusers' DiT under our names; blocks[i] is our name for its i-th block."""
    ours = {}
    for kind in ("weight", "bias"):
        for source, target in DIFFUSERS_OUTSIDE.items():
            ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]
        for i, block in enumerate(blocks):
            there = f"transformer_blocks.{i}"
            for source, target in DIFFUSERS_BLOCK.items():
                ours[f"{block}.{target}.{kind}"] = theirs[f"{there}.{source}.{kind}"]
            qkv = [theirs[f"{there}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            ours[f"{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return ours


def original_names(blocks: list[str]) -> dict[str, str]:
    """Names in an original DiT checkpoint -> ours; blocks[i] is our name for its i-th block."""
    names = OUTSIDE | {f"blocks.{i}.{a}": f"{block}.{b}" for i, block in enumerate(blocks) for a, b in BLOCK.items()}
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}


def convert_original(theirs: dict[str, Tensor], transformer: DefectDiffuTransformer) -> dict[str, Tensor]:
    """The tensors of an original DiT checkpoint under our names. Raises `InputError` if its positions differ."""
    positions = transformer.patch_embed.get_buffer("pos_embed")
    if positions.shape == theirs["pos_embed"].shape and not torch.allclose(positions, theirs["pos_embed"], atol=1e-3):
        raise InputError("not a DiT: the checkpoint has other positions than a DiT's sines and cosines")
    return {ours: theirs[name] for name, ours in original_names(block_names(transformer)).items()}
