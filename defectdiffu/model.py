"""The Text-guided Disentangled Integrated Architecture (Fig. 2): a diffusion transformer in three parts.

    tokens -> N background blocks (c_p) -> M defect blocks (c_d) -> K fusion blocks (c_f) -> noise
                                               |
                                               +-> cross-attention maps -> mask head -> latent of the mask

Every block is a transformer block whose normalisation is modulated by its condition (adaLN-Zero): the embedding of
the step t plus the projected text embedding of its part's prompt. Defect blocks also attend to their prompt.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import PatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from defectdiffu.errors import InputError, check_choice
from defectdiffu.losses import attention_map
from defectdiffu.prompts import PromptEmbedding

ATTENTION_OVER = ("tokens", "positions")
PREDICTIONS = ("noise", "velocity")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]  # (B, T, D)


def layer_norm(x: Tensor) -> Tensor:
    """Without affine parameters: adaLN supplies scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, heads, T, D / heads)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x).chunk(3, dim=-1))  # (B, heads, T, D / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, T, D)


class PositionAttention(nn.Module):
    """Cross-attention with a single key, the block's condition; the softmax is over the T image positions.

    Each head distributes one unit of attention over the picture, so its map says *where* the defect is. The paper's
    released code computes this. The value projection starts at zero, so that a new model starts as a plain DiT.
    """

    def __init__(self, width: int, text_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, c: Tensor, prompt: PromptEmbedding) -> tuple[Tensor, Tensor]:
        q = split_heads(self.to_q(layer_norm(x)), self.heads)  # (B, heads, T, d)
        k = split_heads(self.to_k(c)[:, None], self.heads)  # (B, heads, 1, d)
        v = split_heads(self.to_v(c)[:, None], self.heads)  # (B, heads, 1, d)
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()  # (B, heads, T, 1)
        if prompt.region is not None:
            scores = scores.masked_fill(~prompt.region[:, None, :, None], -torch.inf)
        attention = scores.softmax(dim=-2)
        out = attention.to(v.dtype) * v  # (B, heads, T, d)
        return out.transpose(1, 2).flatten(2), attention.squeeze(-1)  # (B, T, D), (B, heads, T)

    def zero_output(self) -> None:
        nn.init.zeros_(self.to_v.weight)


class TokenAttention(nn.Module):
    """Cross-attention to the prompt's tokens, Eq. 5: every position distributes one unit over the tokens.

    A head's map is a position's attention to the words of the subject; the rest goes to the start token. Some heads
    attend to the defect more than to the rest, others less.
    """

    def __init__(self, width: int, text_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text_dim, width, bias=False)
        self.to_v = nn.Linear(text_dim, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor, prompt: PromptEmbedding) -> tuple[Tensor, Tensor]:
        if prompt.tokens is None or prompt.token_mask is None:
            raise InputError("attention over tokens needs the defect prompt's `tokens` and `token_mask`")
        q = split_heads(self.to_q(layer_norm(x)), self.heads)  # (B, heads, T, d)
        k = split_heads(self.to_k(prompt.tokens), self.heads)  # (B, heads, L, d)
        v = split_heads(self.to_v(prompt.tokens), self.heads)  # (B, heads, L, d)
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()  # (B, heads, T, L)
        seen = prompt.token_mask[:, None, None]  # (B, 1, 1, L)
        if prompt.region is not None:  # elsewhere all attention goes to the start token
            is_start = torch.arange(seen.shape[-1], device=seen.device) == 0
            seen = seen & (prompt.region[:, None, :, None] | is_start)  # (B, 1, T, L)
        attention = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        out = attention.to(v.dtype) @ v  # (B, heads, T, d)
        out = self.to_out(out.transpose(1, 2).flatten(2))  # (B, T, D)
        return out, 1 - attention[..., 0]  # (B, T, D), (B, heads, T)

    def zero_output(self) -> None:
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)


CROSS_ATTENTION = {"positions": PositionAttention, "tokens": TokenAttention}


class MLP(nn.Module):
    """Two linear layers; with `convolution` also a 3 x 3 depthwise convolution between them, added to its input.

    The convolution makes neighbouring patches consistent. A DiT trained on a million pictures does not need it; a model
    trained from scratch without it shows the borders of its patches.
    """

    def __init__(self, width: int, convolution: bool = False):
        super().__init__()
        hidden = 4 * width
        self.expand = nn.Linear(width, hidden)
        self.neighbours = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if convolution else None
        self.gelu = nn.GELU(approximate="tanh")
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.expand(x)  # (B, T, 4D)
        if self.neighbours is not None:
            side = math.isqrt(x.shape[1])
            grid = h.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, 4D, h, w)
            h = h + self.neighbours(grid).permute(0, 2, 3, 1).flatten(1, 2)  # (B, T, 4D)
        return self.contract(self.gelu(h))  # (B, T, D)


class Block(nn.Module):
    """A DiT block; with `cross_attention` a defect block, which also returns its maps."""

    def __init__(
        self,
        width: int,
        heads: int,
        cross_attention: nn.Module | None = None,
        convolution: bool = False,
    ):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.cross_attention = cross_attention
        self.mlp = MLP(width, convolution)
        self.adaln = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor, prompt: PromptEmbedding) -> tuple[Tensor, Tensor | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(F.silu(c)).chunk(6, dim=-1)  # 6 x (B, D)
        x = x + gate1[:, None] * self.attn(modulate(layer_norm(x), shift1, scale1))  # (B, T, D)
        maps = None
        if self.cross_attention is not None:
            seen, maps = self.cross_attention(x, c, prompt)  # (B, T, D), (B, heads, T)
            x = x + seen
        x = x + gate2[:, None] * self.mlp(modulate(layer_norm(x), shift2, scale2))  # (B, T, D)
        return x, maps


class MaskHead(nn.Module):
    """From the attention maps of all defect blocks and heads to the latent of the mask (Sec. 3.4).

    Its only input is the maps, so a mask can only be right if some of them set the defect apart, bright or dark. The
    3 x 3 convolutions let a token use its neighbours' maps: a token covers several pixels, and its neighbours show on
    which side the defect continues.
    """

    def __init__(self, maps: int, width: int, out_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(maps, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, out_channels, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


@dataclass
class TransformerOutput:
    """sample (B, C, H, W), the predicted noise or velocity, or with learned sigma (B, 2C, H, W); mask (B, C, H, W);
    attention (B, h, w), Eq. 7; maps (B, M, heads, h, w), one per block and head."""

    sample: Tensor
    mask: Tensor
    attention: Tensor
    maps: Tensor


class DefectDiffuTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # their `config_name`s differ
    """Predicts the noise (or velocity) in a latent and the latent of the defect's mask, from three prompts (Fig. 2).

    sample_size: side of the latent; in_channels: its channels C; text_dim: width of the text embeddings.
    background_blocks, defect_blocks, fusion_blocks: N, M and K of the paper.
    attention_over: "positions" (as released) or "tokens" (Eq. 5).
    prediction: "noise" (Eq. 2) or "velocity" (`losses.velocity`); the pipeline sets its scheduler to it.
    convolution: a 3 x 3 depthwise convolution in every block's MLP, for models trained from scratch.
    frequency_shift: 1 if the step's frequencies fall as i / 127, as in diffusers' DiT; 0 if they fall as i / 128, as in
    the original.
    null_product: the word for no product in particular in prompts.
    one_prompt: whether all three parts were given c_f (the paper's ablation "OTP").
    trained_on: {product: its defects}, the pairs that the weights were trained on.
    The last three are used to write prompts; they are saved with the weights and have no effect here.
    """

    config: Any  # its attributes are the arguments of `__init__`; diffusers declares a plain dict
    _supports_gradient_checkpointing = True
    _repeated_blocks = ("Block",)  # type: ignore[assignment]  # compiled one by one; diffusers declares a list

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 4,
        patch_size: int = 2,
        width: int = 128,
        heads: int = 4,
        background_blocks: int = 3,
        defect_blocks: int = 3,
        fusion_blocks: int = 2,
        text_dim: int = 64,
        attention_over: str = "positions",
        learn_sigma: bool = False,
        prediction: str = "noise",
        convolution: bool = False,
        frequency_shift: int = 1,
        null_product: str = "industry",
        one_prompt: bool = False,
        trained_on: dict[str, list[str]] | None = None,
    ):
        super().__init__()
        check_choice("attention_over", attention_over, ATTENTION_OVER)
        check_choice("prediction", prediction, PREDICTIONS)
        if learn_sigma and prediction != "noise":
            raise InputError('learn_sigma needs prediction "noise": the bound that trains the variance uses the noise')
        if sample_size % patch_size or width % heads or width % 4:
            raise InputError(
                f"sample_size {sample_size} must be a multiple of patch_size {patch_size}, "
                f"and width {width} of heads {heads} and of 4"
            )
        self.side = sample_size // patch_size  # tokens along one side of the picture
        self.patch_embed = PatchEmbed(sample_size, sample_size, patch_size, in_channels, width)
        self.time_features = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=frequency_shift)
        self.time_embed = TimestepEmbedding(256, width)
        self.product_proj = nn.Linear(text_dim, width)
        self.defect_proj = nn.Linear(text_dim, width)
        self.fusion_proj = nn.Linear(text_dim, width)

        self.gradient_checkpointing = False  # switched by `enable_gradient_checkpointing`
        cross = CROSS_ATTENTION[attention_over]

        def block(cross_attention: nn.Module | None = None) -> Block:
            return Block(width, heads, cross_attention, convolution)

        self.background_part = nn.ModuleList(block() for _ in range(background_blocks))
        self.defect_part = nn.ModuleList(block(cross(width, text_dim, heads)) for _ in range(defect_blocks))
        self.fusion_part = nn.ModuleList(block() for _ in range(fusion_blocks))

        patch = patch_size**2
        self.final_adaln = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch * in_channels * (2 if learn_sigma else 1))
        self.mask_head: nn.Module = MaskHead(defect_blocks * heads, width, patch * in_channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.time_embed.linear_1, self.time_embed.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.get_parameter("bias"))
        # adaLN-Zero: gates, cross-attention and output start at zero, so every block starts as the identity; its
        # convolution also starts without effect.
        for block in [*self.background_part, *self.defect_part, *self.fusion_part]:
            nn.init.zeros_(block.adaln.weight)
            if block.cross_attention is not None:
                block.cross_attention.zero_output()
            if block.mlp.neighbours is not None:
                nn.init.zeros_(block.mlp.neighbours.weight)
                nn.init.zeros_(block.mlp.neighbours.bias)
        for layer in (self.final_adaln, self.final):
            nn.init.zeros_(layer.weight)

    @apply_forward_hook
    def background(self, x: Tensor, t: Tensor, product: PromptEmbedding) -> Tensor:
        """The N background blocks: x (B, C, H, W), t (B,) -> hidden (B, T, D). They see c_p alone, so guidance
        branches that share a product condition can share this pass."""
        c = self._embed_time(t) + self.product_proj(product.pooled)  # (B, D)
        h = self.patch_embed(x)  # (B, T, D)
        for block in self.background_part:
            h, _ = self._run(block, h, c, product)
        return h

    @apply_forward_hook
    def defect_and_fusion(
        self, h: Tensor, t: Tensor, defect: PromptEmbedding, fusion: PromptEmbedding
    ) -> TransformerOutput:
        """The M defect blocks, the K fusion blocks and both heads: hidden (B, T, D), t (B,) -> output."""
        time = self._embed_time(t)
        c = time + self.defect_proj(defect.pooled)  # (B, D)
        of_blocks = []
        for block in self.defect_part:
            h, block_maps = self._run(block, h, c, defect)
            assert block_maps is not None  # a defect block returns maps
            of_blocks.append(block_maps)
        c = time + self.fusion_proj(fusion.pooled)  # (B, D)
        for block in self.fusion_part:
            h, _ = self._run(block, h, c, fusion)
        shift, scale = self.final_adaln(F.silu(c)).chunk(2, dim=-1)
        patches = self.final(modulate(layer_norm(h), shift, scale))  # (B, T, p * p * C)

        maps = torch.stack(of_blocks, dim=1).unflatten(-1, (self.side, self.side))  # (B, M, heads, h, w)
        mask = self.mask_head(self.head_input(maps).to(self.dtype))  # (B, p * p * C, h, w)
        return TransformerOutput(
            sample=self._unpatchify(patches.transpose(1, 2).unflatten(-1, (self.side, self.side))),
            mask=self._unpatchify(mask),
            attention=attention_map(maps.flatten(1, 2)),
            maps=maps,
        )

    def head_input(self, maps: Tensor) -> Tensor:
        """The mask head's input from maps (B, M, heads, h, w): scaled to about 1, (B, M * heads, h, w)."""
        scale = self.side**2 if self.config.attention_over == "positions" else 2.0
        return maps.flatten(1, 2) * scale - 1

    def forward(
        self, x: Tensor, t: Tensor, product: PromptEmbedding, defect: PromptEmbedding, fusion: PromptEmbedding
    ) -> TransformerOutput:
        """x (B, C, H, W) noisy latents, t (B,) steps, three prompts of B each -> `TransformerOutput`."""
        return self.defect_and_fusion(self.background(x, t, product), t, defect, fusion)

    def _run(self, block: nn.Module, h: Tensor, c: Tensor, prompt: PromptEmbedding) -> tuple[Tensor, Tensor | None]:
        """Run the block; with gradient checkpointing its activations are not kept but recomputed."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, h, c, prompt)  # type: ignore[misc]  # None until it is enabled
        return block(h, c, prompt)

    def _embed_time(self, t: Tensor) -> Tensor:
        return self.time_embed(self.time_features(t).to(self.dtype))  # (B, D)

    def _unpatchify(self, x: Tensor) -> Tensor:
        p = self.config.patch_size
        x = x.unflatten(1, (p, p, -1))  # (B, p, p, C, h, w)
        return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)  # (B, C, h * p, w * p)
