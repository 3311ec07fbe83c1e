import pickle

import pytest
import torch
from diffusers import AutoencoderTiny, DiTTransformer2DModel
from helpers import stir

from defectdiffu import DefectDiffuTransformer, InputError, PromptEmbedding
from defectdiffu.pretrained.dit import from_dit, load_dit


def dit(heads: int, width: int, layers: int, patch: int) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        num_layers=layers,
        sample_size=8,
        patch_size=patch,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    )
    for parameter in model.parameters():  # a zero weight could hide an error
        torch.nn.init.normal_(parameter, std=0.05)
    first = model.transformer_blocks[0].norm1.emb.state_dict()  # in a real DiT every block holds the same embedding
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
        # Our condition is step + text, theirs step + class: with class and text at zero both are the step.
        torch.nn.init.zeros_(block.norm1.emb.class_embedder.embedding_table.weight)
    return model.eval()


def original(model: DiTTransformer2DModel) -> dict[str, torch.Tensor]:
    """The same weights under the original checkpoints' names."""
    state, out = model.state_dict(), {}
    outside = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    inside = {
        "adaLN_modulation.1": "norm1.linear",
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    for kind in ("weight", "bias"):
        out |= {f"{name}.{kind}": state[f"{there}.{kind}"] for name, there in outside.items()}
        for i in range(len(model.transformer_blocks)):
            there = f"transformer_blocks.{i}"
            out |= {f"blocks.{i}.{name}.{kind}": state[f"{there}.{source}.{kind}"] for name, source in inside.items()}
            qkv = [state[f"{there}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
    out["y_embedder.embedding_table.weight"] = torch.zeros(11, model.inner_dim)
    out["pos_embed"] = model.pos_embed.pos_embed
    return out


def is_new(name: str) -> bool:
    return name.startswith(("product_proj", "defect_proj", "fusion_proj", "mask_head")) or "cross_attention" in name


def assert_same(ours: DefectDiffuTransformer, theirs: DiTTransformer2DModel) -> None:
    nothing = PromptEmbedding(torch.zeros(3, ours.config.text_dim))
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=torch.zeros(3, dtype=torch.long)).sample
        result = ours.eval()(x, t, nothing, nothing, nothing).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


SIZES = [(2, 32, (1, 1, 1), 2), (4, 64, (2, 1, 2), 4), (3, 96, (2, 3, 1), 1)]


@pytest.mark.parametrize(("heads", "width", "parts", "patch"), SIZES)
def test_a_converted_dit_computes_what_the_dit_computes(tmp_path, heads, width, parts, patch):
    theirs = dit(heads, width, sum(parts), patch)
    theirs.save_pretrained(tmp_path)
    blocks = dict(zip(("background_blocks", "defect_blocks", "fusion_blocks"), parts, strict=True))
    ours, new = from_dit(tmp_path, text_dim=8, **blocks)
    assert ours.config.learn_sigma
    assert [len(p) for p in (ours.background_part, ours.defect_part, ours.fusion_part)] == list(parts)
    assert new == sorted(name for name in ours.state_dict() if is_new(name))
    assert_same(ours, theirs)


@pytest.mark.parametrize("wrapped", [None, "ema", "model_state_dict"])
def test_an_original_checkpoint_computes_what_the_dit_computes(tmp_path, wrapped):
    theirs = dit(4, 64, 5, 2)
    state = original(theirs)
    torch.save(state if wrapped is None else {wrapped: state}, tmp_path / "dit.pt")
    ours, _ = from_dit(tmp_path / "dit.pt", text_dim=8, heads=4)
    assert ours.config.learn_sigma
    assert ours.config.frequency_shift == 0  # the original's frequencies of the step; diffusers' are others
    frequencies = 10_000 ** (-torch.arange(128) / 128)
    angle = 500 * frequencies
    expected = torch.cat([angle.cos(), angle.sin()])
    torch.testing.assert_close(ours.time_features(torch.tensor([500]))[0], expected, atol=2e-4, rtol=0)
    theirs_features = [block.norm1.emb.time_proj for block in theirs.transformer_blocks]
    for features in theirs_features:
        features.downscale_freq_shift = 0
    assert_same(ours, theirs)


def test_it_is_found_within_a_pipeline_and_saved_again(tmp_path):
    theirs = dit(2, 32, 3, 2)
    theirs.save_pretrained(tmp_path / "transformer")
    ours, _ = from_dit(tmp_path, text_dim=8)
    stir(ours)
    ours.save_pretrained(tmp_path / "ours")
    again = DefectDiffuTransformer.from_pretrained(tmp_path / "ours")
    assert again.config.learn_sigma
    for key, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def transformer(**changes) -> DefectDiffuTransformer:
    sizes = {"sample_size": 8, "width": 32, "heads": 2, "text_dim": 8, "learn_sigma": True}
    sizes |= {"background_blocks": 1, "defect_blocks": 1, "fusion_blocks": 1}
    return DefectDiffuTransformer(**sizes | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_blocks": 2}, "has 3 blocks, this transformer 4"),
        ({"width": 64}, "has patch_embed.proj.weight of shape .*, this transformer"),
        ({"sample_size": 16}, "made for latents of side 8, this transformer has 16: choose the DiT of your resolution"),
    ],
)
def test_a_dit_of_another_size_is_refused(tmp_path, changes, message):
    theirs = dit(2, 32, 3, 2)
    theirs.save_pretrained(tmp_path)
    torch.save(original(theirs), tmp_path / "dit.pt")
    for name in (tmp_path, tmp_path / "dit.pt"):
        with pytest.raises(InputError, match=message):
            load_dit(transformer(**changes), str(name))


def test_what_is_no_dit_is_refused(tmp_path):
    AutoencoderTiny().save_pretrained(tmp_path / "vae")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    for name, message in {
        "vae": "checkpoint of another model .AutoencoderTiny., not of a DiT",
        "other.pt": r"checkpoint of another model than a DiT: it lacks x_embedder\.proj\.weight",
        "tensor.pt": "another model: it is not a plain dictionary of tensors",
        "text.pt": "text.pt",
        "nowhere": "no DiT '.*nowhere'",
        "nowhere.pt": "there is no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_dit(transformer(), str(tmp_path / name))


def test_a_truncated_checkpoint_is_named(tmp_path):
    file = tmp_path / "dit.pt"
    torch.save(original(dit(2, 32, 3, 2)), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"dit\.pt is damaged, cut short or not a PyTorch checkpoint"):
        load_dit(transformer(), str(file))


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    write({"x_embedder.proj.weight": Dangerous(str(tmp_path / "ran"))}, tmp_path / "dit.pt")
    with pytest.raises(InputError, match="holds more than tensors, and reading it could run code: it is not read"):
        load_dit(transformer(), str(tmp_path / "dit.pt"))
    assert not (tmp_path / "ran").exists()
