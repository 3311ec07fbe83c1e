"""A second, plain implementation of the released code, against the transformer that reads its checkpoints."""

import math
import types

import pytest
import torch
import torch.nn.functional as F

from defectdiffu import DefectDiffuPipeline, DefectDiffuTransformer, InputError, PromptEmbedding
from defectdiffu.pretrained.released import ReleasedPrompts, ReleasedTransformer, read_released

WIDTH, HEADS, PATCH, SIDE, CHANNELS, TEXT = 32, 4, 2, 4, 4, 12
N, M, K = 2, 2, 1


def layout(embedders: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of the released checkpoints."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = 0.1 * torch.randn(*shape, generator=generator)
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    add("x_embedder.proj", WIDTH, CHANNELS, PATCH, PATCH)
    add("t_embedder.mlp.0", WIDTH, 256)
    add("t_embedder.mlp.2", WIDTH, WIDTH)
    for i in range(embedders):
        add("y_embedders" if embedders == 1 else f"y_embedders.{i}", WIDTH, TEXT)
    for i in range(N + M + K):
        add(f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        add(f"blocks.{i}.attn.proj", WIDTH, WIDTH)
        add(f"blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH)
        add(f"blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH)
        add(f"blocks.{i}.adaLN_modulation.1", 6 * WIDTH, WIDTH)
    for i in range(M):
        for letter in "qkv":
            add(f"cross_defect.{i}.cross_attention.to_{letter}", WIDTH, WIDTH, bias=False)
    add("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    add("final_layer.linear", PATCH**2 * 2 * CHANNELS, WIDTH)
    add("adapt_mask.mlp.1", 24, M * HEADS)
    add("adapt_mask.mlp.2", 20, 24)
    add("adapt_mask.linear", PATCH**2 * CHANNELS, 20)
    state["pos_embed"] = positions()[None]
    return state


def positions() -> torch.Tensor:
    """Sines and cosines of the column in the first half of the channels, of the row in the second."""
    frequencies = 10_000 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    halves = [axis.flatten()[:, None] * frequencies for axis in (column, row)]
    return torch.cat([f(half) for half in halves for f in (torch.sin, torch.cos)], dim=1)


class Reference:
    """One image at a time, one head at a time."""

    def __init__(self, state: dict[str, torch.Tensor], embedders: int):
        self.w = state
        self.text = ["y_embedders"] * 3 if embedders == 1 else [f"y_embedders.{i}" for i in range(3)]

    def linear(self, name: str, x):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    @staticmethod
    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    @staticmethod
    def silu(x):
        return x / (1 + (-x).exp())

    def step(self, t: int):
        angle = t * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        return self.linear(
            "t_embedder.mlp.2", self.silu(self.linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()])))
        )

    def patches(self, x):
        rows = []
        kernel = self.w["x_embedder.proj.weight"].flatten(1)
        for i in range(SIDE):
            for j in range(SIDE):
                patch = x[:, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)]
                rows.append(kernel @ patch.flatten() + self.w["x_embedder.proj.bias"])
        return torch.stack(rows) + self.w["pos_embed"][0]

    def block(self, i: int, x, c, cross: int | None, maps: list):
        name = f"blocks.{i}"
        b1, s1, g1, b2, s2, g2 = self.linear(f"{name}.adaLN_modulation.1", self.silu(c)).split(WIDTH)
        d = WIDTH // HEADS
        q, k, v = self.linear(f"{name}.attn.qkv", self.norm(x) * (1 + s1) + b1).split(WIDTH, dim=1)
        heads = [slice(h * d, (h + 1) * d) for h in range(HEADS)]
        seen = [torch.softmax(q[:, h] @ k[:, h].T / math.sqrt(d), dim=1) @ v[:, h] for h in heads]
        x = x + g1 * self.linear(f"{name}.attn.proj", torch.cat(seen, dim=1))
        if cross is not None:  # one key and one value, the step plus the text; the softmax is over positions
            q, k, v = (
                self.linear(f"cross_defect.{cross}.cross_attention.to_{letter}", y)
                for letter, y in (("q", self.norm(x)), ("k", c), ("v", c))
            )
            shares = [torch.softmax(q[:, h] @ k[h] / math.sqrt(d), dim=0) for h in heads]
            maps.extend(shares)
            x = x + torch.cat([share[:, None] * v[h] for share, h in zip(shares, heads, strict=True)], dim=1)
        hidden = self.linear(f"{name}.mlp.fc1", self.norm(x) * (1 + s2) + b2)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + g2 * self.linear(f"{name}.mlp.fc2", hidden)

    def picture(self, tokens):
        out = torch.empty(tokens.shape[1] // PATCH**2, SIDE * PATCH, SIDE * PATCH)
        for n, token in enumerate(tokens):
            i, j = divmod(n, SIDE)
            out[:, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)] = token.view(PATCH, PATCH, -1).permute(
                2, 0, 1
            )
        return out

    def __call__(self, x, t, product, defect, fusion):
        step, h, maps = self.step(t), self.patches(x), []
        c = [step + self.linear(name, text) for name, text in zip(self.text, (product, defect, fusion), strict=True)]
        for i in range(N + M + K):
            part = 0 if i < N else 1 if i < N + M else 2
            h = self.block(i, h, c[part], i - N if part == 1 else None, maps)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", self.silu(c[2])).split(WIDTH)
        sample = self.linear("final_layer.linear", self.norm(h) * (1 + scale) + shift)
        mask = self.silu(self.norm(torch.stack(maps, dim=1)))
        for name in ("mlp.1", "mlp.2", "linear"):
            mask = self.linear(f"adapt_mask.{name}", mask)
        return self.picture(sample), self.picture(mask)


@pytest.mark.parametrize("embedders", [1, 3])
@pytest.mark.parametrize("wrapped", [False, True])
def test_it_computes_what_the_released_code_is_described_to(tmp_path, embedders, wrapped):
    state = layout(embedders)
    torch.save({"model_state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "released.pt")
    model = read_released(tmp_path / "released.pt", heads=HEADS).eval()
    assert [len(p) for p in (model.background_part, model.defect_part, model.fusion_part)] == [N, M, K]
    model.save_pretrained(tmp_path / "model")  # and it is unchanged after saving and loading
    x, t = torch.randn(3, CHANNELS, SIDE * PATCH, SIDE * PATCH), torch.tensor([0, 470, 999])
    texts = F.normalize(torch.randn(3, 3, TEXT), dim=-1)
    reference = Reference(state, embedders)
    expected = [reference(x[i], int(t[i]), *texts[:, i]) for i in range(3)]
    for each in (model, ReleasedTransformer.from_pretrained(tmp_path / "model").eval()):
        with torch.no_grad():
            out = each(x, t, *(PromptEmbedding(text) for text in texts))
        for i, (sample, mask) in enumerate(expected):
            assert mask.std() > 0.01
            torch.testing.assert_close(out.sample[i], sample, atol=1e-4, rtol=0)
            torch.testing.assert_close(out.mask[i], mask, atol=1e-4, rtol=0)


def test_a_pipeline_with_it_is_saved_and_read_again(tmp_path, pipe):
    torch.save(layout(3), tmp_path / "released.pt")
    pipe.register_modules(transformer=read_released(tmp_path / "released.pt", heads=HEADS).eval())
    pipe.save_pretrained(tmp_path / "pipe")
    again = DefectDiffuPipeline.from_pretrained(tmp_path / "pipe").transformer
    assert isinstance(again, ReleasedTransformer)
    assert again.config.released == [24, 20]
    assert again.config.background_blocks == N
    for key, value in pipe.transformer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("adapt_mask.linear.weight"), "another model: it lacks cross_defect, y_embedders"),
        (lambda s: s.pop("blocks.0.attn.qkv.weight"), "another model than a DiT"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), "unknown tensors.*: extra.weight"),
        (lambda s: s.update({"blocks.0.norm.weight": torch.zeros(2)}), "unknown tensors.*: blocks.0.norm.weight"),
        (lambda s: s.update({"y_embedders.weight": torch.zeros(8, TEXT)}), "product_proj.weight of shape"),
        (lambda s: s.update({"pos_embed": s["pos_embed"] * 2}), "other positions"),
    ],
)
def test_another_model_is_refused(tmp_path, change, message):
    state = layout(1)
    change(state)
    torch.save(state, tmp_path / "released.pt")
    with pytest.raises(InputError, match=message):
        read_released(tmp_path / "released.pt", heads=HEADS)


def test_prompts_are_pooled_and_of_length_one(monkeypatch):
    """With a fake open_clip; without it, an error that says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(InputError, match="needs open_clip: pip install open_clip_torch"):
        ReleasedPrompts()

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.positional_embedding = torch.nn.Parameter(torch.zeros(1))
            self.embedding = torch.nn.Embedding(256, 8)

        def encode_text(self, tokens, normalize):
            pooled = self.embedding(tokens).sum(1)
            return F.normalize(pooled, dim=-1) if normalize else pooled

    stand_in = types.SimpleNamespace(
        create_model=lambda name, pretrained: Clip(),
        get_tokenizer=lambda name: lambda prompts: torch.tensor([[len(p), ord(p[-1])] for p in prompts]),
    )
    monkeypatch.setitem(__import__("sys").modules, "open_clip", stand_in)
    conditions = ReleasedPrompts().conditions(["tile", "hazelnut"], ["crack", "good"])
    assert conditions.fusion.pooled.shape == (2, 8)
    torch.testing.assert_close(conditions.defect.pooled.norm(dim=1), torch.ones(2))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # older open_clip on newer timm
def test_prompts_are_what_open_clip_makes_of_them_by_hand(pipe):
    """With random weights, no network; the activation is the one that OpenAI's weights were trained with."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    prompts = ReleasedPrompts(pretrained=None)
    torch.manual_seed(0)
    clip = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    texts = ["A photo of metal nut", "A photo of crack", "A photo of crack metal nut"]
    with torch.no_grad():
        x = clip.token_embedding(open_clip.tokenize(texts)) + clip.positional_embedding
        for block in clip.transformer.resblocks:
            qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
            q, k, v = (y.unflatten(-1, (8, 64)).transpose(1, 2) for y in qkv.chunk(3, dim=-1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.attn.out_proj(seen.transpose(1, 2).flatten(2))
            hidden = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
        end = open_clip.tokenize(texts).argmax(dim=-1)  # the end token has the greatest number
        expected = F.normalize(clip.ln_final(x)[torch.arange(3), end] @ clip.text_projection, dim=-1)
    conditions = prompts.conditions(["metal_nut"], ["crack"])
    found = torch.cat([conditions.product.pooled, conditions.defect.pooled, conditions.fusion.pooled])
    assert found.shape == (3, 1024)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    pipe.register_modules(transformer=DefectDiffuTransformer(8, width=32, text_dim=1024, trained_on=pipe.pairs))
    pipe.encoder = prompts
    assert pipe("tile", "crack").images[0].size == (32, 32)
