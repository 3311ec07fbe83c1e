import re

import pytest
import torch

from defectdiffu.config import GOOD
from defectdiffu.errors import InputError
from defectdiffu.prompts import (
    PromptEmbedding,
    PromptEncoder,
    background_prompt,
    build_text_encoder,
    defect_prompt,
    fusion_prompt,
)

NAMES = ["metal_nut", "tile", "crack", "gray_stroke", GOOD, "industry"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    tokenizer, text_encoder = build_text_encoder(NAMES, width=16, layers=1, heads=2)
    return PromptEncoder(tokenizer, text_encoder.eval())


def test_templates():
    assert background_prompt("metal_nut") == "A photo of metal nut"
    assert defect_prompt("gray_stroke") == "A photo of gray stroke"
    assert fusion_prompt("crack", "metal_nut") == "A photo of crack metal nut"


@torch.no_grad()
def test_shapes_and_what_cross_attention_may_look_at(encoder):
    embedded = encoder(["A photo of crack", "A photo of gray stroke"])
    length = encoder.tokenizer.model_max_length
    assert embedded.pooled.shape == (2, 16)
    assert embedded.tokens.shape == (2, length, 16)
    # start token, three words of the template, the subject, end token
    assert embedded.token_mask.nonzero().tolist() == [[0, 0], [0, 4], [1, 0], [1, 4], [1, 5]]
    assert len(embedded) == 2


@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_neighbours(encoder):
    alone = encoder(["A photo of tile"])
    encoder.forget()
    together = encoder(["A photo of gray stroke", "A photo of tile", "A photo of tile"])
    for row in (1, 2):
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
        torch.testing.assert_close(together.tokens[row], alone.tokens[0])


def test_every_word_of_a_name_is_known_and_told_apart(encoder):
    words = {i for name in NAMES for i in encoder.tokenizer(name.replace("_", " "), add_special_tokens=False).input_ids}
    assert len(words) == 8
    assert encoder.tokenizer.unk_token_id not in words
    assert encoder.tokenizer("Scratch", add_special_tokens=False).input_ids == [encoder.tokenizer.unk_token_id]


def test_conditions_put_each_prompt_in_its_place(encoder):
    with torch.no_grad():
        conditions = encoder.conditions(["tile", "metal_nut"], ["crack", GOOD])
        expected = encoder(["A photo of metal nut", "A photo of good", "A photo of good metal nut"])
    for part, row in (("product", 0), ("defect", 1), ("fusion", 2)):
        torch.testing.assert_close(getattr(conditions, part).pooled[1], expected.pooled[row])


def test_with_gradients_nothing_is_cached_and_the_encoder_learns(encoder):
    embedded = encoder(["A photo of tile"] * 3)
    # Not the plain sum: the sum of a new layer norm is 0 for any input, and so is its gradient except for rounding.
    (embedded.pooled * torch.arange(embedded.pooled.shape[1])).sum().backward()
    assert encoder.text_encoder.embeddings.token_embedding.weight.grad.abs().max() > 1e-3
    with torch.no_grad():
        before = encoder(["A photo of tile"])
        encoder.text_encoder.embeddings.token_embedding.weight.mul_(2)
        torch.testing.assert_close(encoder(["A photo of tile"]).pooled, before.pooled)
        encoder.forget()
        assert not torch.allclose(encoder(["A photo of tile"]).pooled, before.pooled)


def test_names_with_any_sign_are_told_apart():
    tokenizer, text_encoder = build_text_encoder(["screw-M6", "screw-M8", "v1.2", "(B)", "good"], 16, 1, 2)
    encoder = PromptEncoder(tokenizer, text_encoder.eval())
    with torch.no_grad():
        pooled = encoder([background_prompt(name) for name in ("screw-M6", "screw-M8", "v1.2", "(B)")]).pooled
    assert torch.pdist(pooled).min() > 1e-3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["metal_nut", "metal nut"], "'metal_nut' and 'metal nut' are the same words"),
        (["Good", "good"], "'Good' and 'good' are the same words"),
        (["photo", "good"], "'photo' cannot be"),
        (["a", "good"], "'a' cannot be"),
        (["bad <end>"], "'bad <end>' cannot be"),
        (["_"], "'_' cannot be"),
    ],
)
def test_names_that_prompts_cannot_tell_apart_are_refused(names, message):
    with pytest.raises(InputError, match=re.escape(message)):
        build_text_encoder(names, 16, 1, 2)


def test_an_unknown_word_is_an_error(encoder):
    with pytest.raises(InputError, match="never learned"):
        encoder([background_prompt("teapot")])


def test_embeddings_index_and_join():
    a = PromptEmbedding(torch.arange(6.0).view(3, 2))
    assert a[[2, 0]].pooled.tolist() == [[4, 5], [0, 1]]
    assert a[1:].tokens is None
    assert PromptEmbedding.cat([a, a[:1]]).pooled.shape == (4, 2)
