import pytest
import torch
from diffusers import DiTTransformer2DModel

from defectdiffu import DefectDiffuTransformer, InputError, PromptEmbedding
from defectdiffu.dit import load_dit


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
    for parameter in model.parameters():  # nothing may be hidden behind a zero
        torch.nn.init.normal_(parameter, std=0.05)
    first = model.transformer_blocks[0].norm1.emb.state_dict()  # in a real DiT every block holds the same embedding
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model.eval()


@pytest.mark.parametrize(("heads", "width", "parts", "patch"), [(2, 32, (1, 1, 1), 2), (4, 64, (2, 1, 2), 4)])
def test_a_converted_dit_computes_what_the_dit_computes(tmp_path, heads, width, parts, patch):
    theirs = dit(heads, width, sum(parts), patch)
    theirs.save_pretrained(tmp_path)
    names = ("background_blocks", "defect_blocks", "fusion_blocks")
    ours = DefectDiffuTransformer(
        sample_size=8,
        patch_size=patch,
        width=width,
        heads=heads,
        text_dim=8,
        learn_sigma=True,
        **dict(zip(names, parts, strict=True)),
    ).eval()
    new = load_dit(ours, str(tmp_path))
    assert all(n.startswith(("product_proj", "defect_proj", "fusion_proj", "mask_head")) or "cross" in n for n in new)

    # Our condition is step + text, theirs step + class: with class and text at zero both are the step.
    for block in theirs.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.emb.class_embedder.embedding_table.weight)
    nothing = PromptEmbedding(torch.zeros(3, 8))
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=torch.zeros(3, dtype=torch.long)).sample
        result = ours(x, t, nothing, nothing, nothing).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_a_dit_of_another_size_is_refused(tmp_path):
    dit(2, 32, 3, 2).save_pretrained(tmp_path)
    ours = DefectDiffuTransformer(
        sample_size=8, width=32, heads=2, background_blocks=1, defect_blocks=1, fusion_blocks=2, text_dim=8
    )
    with pytest.raises(InputError, match="has 3 blocks, this transformer 4"):
        load_dit(ours, str(tmp_path))
