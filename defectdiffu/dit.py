"""Begin from a class-conditional DiT, as the paper does: its blocks become background, defect and fusion blocks."""

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer

# Names in diffusers' DiT -> ours. Every block of diffusers' format repeats the same embedding of the step.
OUTSIDE = {
    "pos_embed.proj": "patch_embed.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "time_embed.linear_1",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "time_embed.linear_2",
    "proj_out_1": "final_adaln",
    "proj_out_2": "final",
}
BLOCK = {
    "norm1.linear": "adaln",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.2",
}


def load_dit(transformer: DefectDiffuTransformer, name: str) -> list[str]:
    """Copy the weights of the DiT `name` (folder or hub id, diffusers' format) into `transformer`, in place.

    The class embedding is dropped. Returns the parameters that stay as they were: text projections, cross-attention,
    mask head. Raises `InputError` if the DiT is not of the transformer's size.
    """
    dit = DiTTransformer2DModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
    parts = ("background_part", "defect_part", "fusion_part")
    blocks = [f"{part}.{i}" for part in parts for i in range(len(getattr(transformer, part)))]
    if len(dit.transformer_blocks) != len(blocks):
        raise InputError(f"{name} has {len(dit.transformer_blocks)} blocks, this transformer {len(blocks)}")
    state = convert(dit.state_dict(), blocks)
    own = transformer.state_dict()
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise InputError(
                f"{name} has {key} of shape {tuple(value.shape)}, this transformer {tuple(own[key].shape)}"
            )
    transformer.load_state_dict(state, strict=False)
    return sorted(own.keys() - state.keys())


def convert(theirs: dict[str, Tensor], blocks: list[str]) -> dict[str, Tensor]:
    """The tensors of diffusers' DiT under our names; blocks[i] is our name of its i-th block."""
    ours = {}
    for kind in ("weight", "bias"):
        for source, target in OUTSIDE.items():
            ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]
        for i, block in enumerate(blocks):
            there = f"transformer_blocks.{i}"
            for source, target in BLOCK.items():
                ours[f"{block}.{target}.{kind}"] = theirs[f"{there}.{source}.{kind}"]
            qkv = [theirs[f"{there}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            ours[f"{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return ours
