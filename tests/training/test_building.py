"""The paper's path on small random models of the same classes: CLIP, Stable Diffusion's autoencoder, DiT."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiTTransformer2DModel
from helpers import tiny_preset
from transformers import CLIPTextModel

from defectdiffu import DefectDiffuPipeline, InputError
from defectdiffu.prompts import build_text_encoder
from defectdiffu.training.building import load_autoencoder
from defectdiffu.training.run import train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders in the hub's format: text (model and tokenizer), vae, dit."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pretrained")
    tokenizer, text = build_text_encoder(["hazelnut", "tile", "crack", "hole", "good", "industry"], 16, 1, 2)
    tokenizer.save_pretrained(root / "text")
    text.save_pretrained(root / "text")
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    ).save_pretrained(root / "vae")
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    ).save_pretrained(root / "dit")
    return root


def test_a_run_from_pretrained_parts(pretrained, data, tmp_path):
    preset = tiny_preset(
        autoencoder={"pretrained": str(pretrained / "vae")},
        text={"pretrained": str(pretrained / "text")},
        model={"pretrained": str(pretrained / "dit"), "learn_sigma": True},
        training={"steps": 3},
    )
    train(preset, [data], tmp_path / "run")
    assert not (tmp_path / "run" / "autoencoder").exists()  # it is not trained
    pipe = DefectDiffuPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipe.vae, AutoencoderKL)
    assert pipe.transformer.config.learn_sigma
    assert pipe(product="tile", defect="crack").images[0].size == (32, 32)
    # A frozen text encoder is unchanged, except for half precision.
    before = DefectDiffuPipeline.from_pretrained(tmp_path / "run").text_encoder.state_dict()
    for key, value in CLIPTextModel.from_pretrained(pretrained / "text").state_dict().items():
        torch.testing.assert_close(before[key], value, atol=2e-3, rtol=1e-3)


def test_autoencoders_are_told_apart(pretrained, tmp_path):
    assert isinstance(load_autoencoder(str(pretrained / "vae")), AutoencoderKL)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    assert isinstance(load_autoencoder(str(tmp_path / "tiny")), AutoencoderTiny)
    assert isinstance(load_autoencoder("tiny"), AutoencoderTiny)  # the shipped one
    with pytest.raises(InputError, match="DiTTransformer2DModel"):
        load_autoencoder(str(pretrained / "dit"))
