import pytest
import torch
from helpers import random_prompts, stir

from defectdiffu import PRESETS, DefectDiffuTransformer, InputError, PromptEmbedding
from defectdiffu.prompts import Conditions

BOTH = pytest.mark.parametrize("attention_over", ["positions", "tokens"])


def small(**changes) -> DefectDiffuTransformer:
    torch.manual_seed(0)
    settings = {"sample_size": 8, "width": 32, "heads": 2, "text_dim": 16}
    blocks = {"background_blocks": 1, "defect_blocks": 2, "fusion_blocks": 1}
    return DefectDiffuTransformer(**settings | blocks | changes).eval()


def inputs(batch: int = 3, dim: int = 16, size: int = 8) -> dict:
    conditions = Conditions(*(random_prompts(batch, dim) for _ in range(3)))
    return {"x": torch.randn(batch, 4, size, size), "t": torch.randint(1000, (batch,)), **vars(conditions)}


@BOTH
@pytest.mark.parametrize("name", PRESETS)
def test_shapes_of_every_preset(name, attention_over):
    """The real sizes on the meta device: nothing is allocated, computed or downloaded."""
    preset = PRESETS[name].replace(model={"attention_over": attention_over})
    settings = {k: v for k, v in vars(preset.model).items() if k != "pretrained"}
    size, dim = preset.latent_size, preset.text.width
    with torch.device("meta"):
        model = DefectDiffuTransformer(sample_size=size, text_dim=dim, **settings).to("meta")
        out = model(**inputs(2, dim, size))
    side = size // preset.model.patch_size
    assert out.sample.shape == (2, 8 if preset.model.learn_sigma else 4, size, size)
    assert out.mask.shape == (2, 4, size, size)
    assert out.attention.shape == (2, side, side)
    assert out.maps.shape == (2, preset.model.defect_blocks, preset.model.heads, side, side)
    blocks = [len(part) for part in (model.background_part, model.defect_part, model.fusion_part)]
    assert blocks == [preset.model.background_blocks, preset.model.defect_blocks, preset.model.fusion_blocks]


def test_sizes_of_the_presets():
    """DiT-XL/2 has 675 M parameters; the paper's parts add cross-attention and three projections."""
    sizes = {}
    for name, preset in PRESETS.items():
        settings = {k: v for k, v in vars(preset.model).items() if k != "pretrained"}
        with torch.device("meta"):
            model = DefectDiffuTransformer(sample_size=preset.latent_size, text_dim=preset.text.width, **settings)
        sizes[name] = model.num_parameters() / 1e6
    assert 1 < sizes["tiny"] < 4
    assert 12 < sizes["book"] < 20
    assert 675 < sizes["paper"] < 775


@torch.no_grad()
def test_the_convolution_starts_without_effect_and_reaches_the_eight_neighbours():
    plain, model = small(), small(convolution=True)
    given = inputs()
    stir(plain)
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(model(**given).sample, plain(**given).sample, atol=1e-6, rtol=0)
    mlp = model.background_part[0].mlp
    stir(mlp)
    x = torch.zeros(1, 16, 32)  # 4 x 4 tokens
    other = x.clone()
    other[0, 5] = 1  # row 1, column 1
    changed = (mlp(other) - mlp(x)).abs().amax(-1).view(4, 4) > 1e-6
    assert changed[:3, :3].all() and not changed[3].any() and not changed[:, 3].any()


def test_learned_sigma_needs_the_noise():
    with pytest.raises(InputError, match="learn_sigma"):
        small(prediction="velocity", learn_sigma=True)


@BOTH
@torch.no_grad()
def test_a_new_transformer_changes_nothing(attention_over):
    """adaLN-Zero: every block starts as the identity, the output at zero."""
    model, given = small(attention_over=attention_over), inputs()
    hidden = model.patch_embed(given["x"])
    assert torch.equal(model.background(given["x"], given["t"], given["product"]), hidden)
    for block in [*model.background_part, *model.defect_part, *model.fusion_part]:
        after, _ = block(hidden, torch.randn(3, 32), given["defect"])
        assert torch.equal(after, hidden)
    assert model(**given).sample.abs().max() == 0


@torch.no_grad()
def test_tokens_and_blocks_by_hand():
    """A token is a patch through one linear layer plus its position; a block is two gated, modulated residuals."""
    model, given = small(), inputs()
    embed = model.patch_embed
    patches = torch.nn.functional.unfold(given["x"], 2, stride=2).transpose(1, 2)  # (B, T, C * p * p)
    tokens = patches @ embed.proj.weight.flatten(1).T + embed.proj.bias + embed.pos_embed
    torch.testing.assert_close(embed(given["x"]), tokens)

    stir(model)
    (block,), c = model.background_part, torch.randn(3, 32)
    b1, s1, gate1, b2, s2, gate2 = block.adaln(c * c.sigmoid())[:, None].chunk(6, -1)

    def norm(h):
        variance, mean = torch.var_mean(h, -1, correction=0, keepdim=True)
        return (h - mean) / (variance + 1e-6).sqrt()

    h = tokens + gate1 * block.attn(norm(tokens) * (1 + s1) + b1)
    h = h + gate2 * block.mlp(norm(h) * (1 + s2) + b2)
    torch.testing.assert_close(block(tokens, c, given["product"])[0], h)


@BOTH
@torch.no_grad()
def test_every_input_matters(attention_over):
    """Every input changes the noise; every input except the fusion prompt changes the maps and the mask, too."""
    model, given = small(attention_over=attention_over), inputs()
    stir(model)
    out = model(**given)
    for name in ("x", "t", "product", "defect", "fusion"):
        value = random_prompts(3, 16) if name in ("product", "defect", "fusion") else given[name].flip(0)
        other = model(**given | {name: value})
        assert not torch.allclose(other.sample, out.sample, atol=1e-4), name
        assert torch.allclose(other.maps, out.maps) == (name == "fusion"), name
        assert torch.allclose(other.mask, out.mask) == (name == "fusion"), name


@BOTH
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(attention_over):
    model, given = small(attention_over=attention_over), inputs()
    stir(model)
    out, row = model(**given), model(**{k: v[1:2] for k, v in given.items()})
    for name in ("sample", "mask", "attention", "maps"):
        torch.testing.assert_close(getattr(row, name)[0], getattr(out, name)[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_over_positions_shares_out_one_unit_a_map():
    model = small(attention_over="positions")
    stir(model)
    out = model(**inputs())
    torch.testing.assert_close(out.maps.sum(dim=(-2, -1)), torch.ones(3, 2, 2))
    torch.testing.assert_close(out.attention, out.maps.mean(dim=(1, 2)))


@torch.no_grad()
def test_attention_over_tokens_looks_where_the_mask_allows():
    model, given = small(attention_over="tokens"), inputs()
    stir(model)
    out = model(**given)
    assert out.maps.min() >= 0
    assert out.maps.max() <= 1
    defect = given["defect"]
    defect.token_mask[:, 3:] = False
    masked = model(**given).maps
    defect.tokens[:, 3:] = 100.0
    torch.testing.assert_close(model(**given).maps, masked)
    defect.token_mask[:, 1:] = False  # the start token alone: nothing of the subject to look at
    assert model(**given).maps.abs().max() < 1e-6


@BOTH
@torch.no_grad()
def test_patches_return_to_their_places(attention_over):
    """A model whose last layer outputs the index of each value within its patch and channel."""
    model = small(attention_over=attention_over)
    model.final.bias.copy_(torch.arange(16.0))
    picture = model(**inputs(1)).sample[0]
    for channel, row, column in ((0, 0, 0), (3, 0, 1), (1, 1, 0), (2, 1, 1)):
        cells = picture[channel, row::2, column::2]
        assert (cells == (row * 2 + column) * 4 + channel).all()


def test_positions_need_no_tokens_and_tokens_do():
    given = inputs() | {"defect": PromptEmbedding(torch.randn(3, 16))}
    small(attention_over="positions")(**given)
    with pytest.raises(InputError, match="token_mask"):
        small(attention_over="tokens")(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_over": "position"}, "unknown attention_over 'position': did you mean positions"),
        ({"sample_size": 9}, "sample_size 9 must be a multiple of patch_size 2"),
        ({"heads": 3}, "width 32 of heads 3"),
    ],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


@BOTH
@torch.no_grad()
def test_saved_and_loaded_it_says_the_same(attention_over, tmp_path):
    model, given = small(attention_over=attention_over, trained_on={"tile": ["crack"]}), inputs()
    stir(model)
    model.save_pretrained(tmp_path)
    again = DefectDiffuTransformer.from_pretrained(tmp_path)
    assert again.config.trained_on == {"tile": ["crack"]}
    assert torch.equal(again(**given).sample, model(**given).sample)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_runs(attention_over, dtype):
    model = small(attention_over=attention_over).to(dtype)
    given = inputs()
    half = {k: v.map(lambda u: u if u.dtype == torch.bool else u.to(dtype)) for k, v in given.items() if k not in "xt"}
    out = model(given["x"].to(dtype), given["t"], **half)
    assert out.sample.dtype == dtype
    assert out.mask.isfinite().all()
