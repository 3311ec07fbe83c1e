"""Read a checkpoint of the paper's released training code.

That code differs from the paper where it matters for its weights; `ReleasedTransformer` computes the same as the code:
attention over positions whose only key and value is the step's embedding plus the text's, an ungated residual
around it, an exact GELU, and another mask head.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (pipelines are loaded by it)
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer, layer_norm
from defectdiffu.pretrained.dit import (
    block_names,
    convert_original,
    fill,
    original_names,
    original_settings,
    read_checkpoint,
)
from defectdiffu.prompts import PromptEmbedding, PromptEncoder

MASK_HEAD = {"adapt_mask.mlp.1": "layers.1", "adapt_mask.mlp.2": "layers.2", "adapt_mask.linear": "layers.3"}
TEXT = ("product_proj", "defect_proj", "fusion_proj")


class ReleasedMaskHead(nn.Module):
    """The mask head of the paper's released code: each token separately, its maps normalised over blocks and heads.

    widths: of its two hidden layers. There is no nonlinearity between the three linear layers.
    """

    def __init__(self, maps: int, widths: tuple[int, int], out_channels: int):
        super().__init__()
        first, second = widths
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Linear(maps, first), nn.Linear(first, second), nn.Linear(second, out_channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(layer_norm(maps.movedim(1, -1))).movedim(-1, 1)  # (B, maps, h, w) -> (B, out, h, w)


class ReleasedTransformer(DefectDiffuTransformer):
    """The transformer of the released code. released: hidden widths of its mask head; settings: of the base class."""

    def __init__(self, released: tuple[int, int] = (512, 256), **settings: Any):
        super().__init__(**settings)
        self.register_to_config(released=list(released))
        config = self.config
        for block in [*self.background_part, *self.defect_part, *self.fusion_part]:
            block.mlp.gelu = nn.GELU()
        maps = config.defect_blocks * config.heads
        self.mask_head = ReleasedMaskHead(maps, released, config.patch_size**2 * config.in_channels)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """The settings that diffusers reads from a saved config: those of both classes."""
        return ConfigMixin._get_init_keys(DefectDiffuTransformer) | ConfigMixin._get_init_keys(input_class)

    def head_input(self, maps: Tensor) -> Tensor:
        return maps.flatten(1, 2)  # (B, M * heads, h, w)


def read_released(path: str | Path, heads: int = 16, **settings: Any) -> ReleasedTransformer:
    """The transformer of the checkpoint at `path`, with sizes from its tensors, all of which must be used.

    heads: number of attention heads, which the tensors do not show. The first blocks are background blocks, as many as
    there are defect blocks, unless `settings` has `background_blocks`. Raises `InputError` for a checkpoint of another
    model.
    """
    name = str(path)
    state = read_checkpoint(Path(path))
    found = original_settings(state, name)
    layers = found.pop("layers")
    defect = len({key.split(".")[1] for key in state if key.startswith("cross_defect.")})
    text = [key for key in state if key.startswith("y_embedders.") and key.endswith("weight")]
    if not defect or len(text) not in (1, len(TEXT)) or any(f"{k}.weight" not in state for k in MASK_HEAD):
        raise InputError(
            f"{name} is a checkpoint of another model: it lacks cross_defect, y_embedders (1 or 3) or adapt_mask"
        )
    background = settings.pop("background_blocks", defect)
    found |= {"heads": heads, "text_dim": state[text[0]].shape[1]}
    found |= {"background_blocks": background, "defect_blocks": defect, "fusion_blocks": layers - background - defect}
    found["released"] = tuple(len(state[f"adapt_mask.mlp.{i}.weight"]) for i in (1, 2))
    transformer = ReleasedTransformer(**found | settings)

    names = {}  # theirs -> ours, for the parts that a DiT does not have
    for i in range(defect):
        for letter in "qkv":
            there, here = f"cross_defect.{i}.cross_attention.to_{letter}", f"cross_attention.to_{letter}"
            names[f"{there}.weight"] = f"defect_part.{i}.{here}.weight"
    for kind in ("weight", "bias"):
        names |= {f"{there}.{kind}": f"mask_head.{here}.{kind}" for there, here in MASK_HEAD.items()}
    ours = convert_original(state, transformer) | {here: state[there] for there, here in names.items()}
    for target, source in zip(TEXT, sorted(text) * (len(TEXT) // len(text)), strict=True):
        ours[f"{target}.weight"] = state[source]
        ours[f"{target}.bias"] = state[source.removesuffix("weight") + "bias"]
    known = {"pos_embed", *names, *original_names(block_names(transformer))}
    if unknown := [key for key in state if key not in known and not key.startswith("y_embedders.")]:
        raise InputError(f"{name} has unknown tensors, so it is of another model: {', '.join(unknown[:3])}")
    if new := fill(transformer, ours, name):
        raise InputError(f"{name} lacks {', '.join(new[:3])}")
    return transformer


class ReleasedPrompts(PromptEncoder):
    """Prompts embedded as in the released code: CLIP RN50's pooled text embedding, of length 1. Needs open_clip.

    Set it as `pipe.encoder` of a pipeline whose transformer was read by `read_released`.
    """

    # open_clip's own modules, without types
    tokenizer: Any
    text_encoder: Any

    def __init__(self, pretrained: str | None = "openai"):
        try:
            import open_clip
        except ImportError as error:
            raise InputError("CLIP RN50 needs open_clip: pip install open_clip_torch") from error
        # OpenAI's weights were trained with the quick GELU, which open_clip does not use in the model "RN50".
        clip = open_clip.create_model("RN50-quickgelu", pretrained=pretrained)
        self.text_encoder = clip.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer("RN50")
        self.one_prompt = False

    def forget(self) -> None:
        """Does nothing: no embeddings are cached, and these weights do not change."""

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> PromptEmbedding:
        """Embed B prompts: pooled (B, 1024)."""
        tokens = self.tokenizer(prompts).to(self.text_encoder.positional_embedding.device)
        return PromptEmbedding(self.text_encoder.encode_text(tokens, normalize=True))
