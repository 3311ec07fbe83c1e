import pytest
import torch
from helpers import random_pipeline

from defectdiffu.config import GOOD
from defectdiffu.errors import InputError
from defectdiffu.prompts import Conditions
from defectdiffu.training.prompt_table import PromptTable

PAIRS = [("tile", "crack"), ("hazelnut", GOOD), ("industry", "hole"), ("tile", "hole")]
DRAWN = torch.tensor([2, 0, 0, 3, 1])


def visible(conditions: Conditions) -> torch.Tensor:
    """What the transformer reads: three vectors per image, and the tokens of c_d that its attention sees."""
    mask = conditions.defect.token_mask
    pooled = [part.pooled.flatten() for part in vars(conditions).values()]
    return torch.cat([*pooled, conditions.defect.tokens[mask].flatten()])


@pytest.mark.parametrize("one_prompt", [False, True])
def test_the_table_gives_what_names_give(one_prompt):
    """Embeddings, and the gradients of every weight of the encoder."""
    encoder = random_pipeline(model={"one_prompt": one_prompt}).encoder
    products, defects = zip(*(PAIRS[i] for i in DRAWN), strict=True)
    parameters = list(encoder.text_encoder.parameters())
    found = []
    for conditions in (
        encoder.conditions(list(products), list(defects)),
        PromptTable(encoder, PAIRS, trained=True).conditions(DRAWN),
        PromptTable(encoder, PAIRS, trained=False).conditions(DRAWN),
    ):
        values = visible(conditions)
        weighted = (values * torch.linspace(-1, 1, len(values))).sum()
        gradients = torch.autograd.grad(weighted, parameters, allow_unused=True) if values.requires_grad else []
        found.append((values.detach(), [g for g in gradients if g is not None]))
    (by_name, gradients), (by_number, theirs), (frozen, none) = found
    torch.testing.assert_close(by_number, by_name, rtol=0, atol=1e-6)
    torch.testing.assert_close(frozen, by_name, rtol=0, atol=1e-6)
    assert none == []
    assert len(gradients) == len(theirs) > 10
    for a, b in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_keys_for_padding_and_the_same_output():
    """The table's prompts are as long as the longest of them, whatever the tokenizer's limit."""
    pipe = random_pipeline(model={"attention_over": "tokens"})
    pipe.tokenizer.model_max_length = 77
    pipe.text_encoder.embeddings.position_embedding.weight.data = torch.randn(77, 16)
    pipe.text_encoder.embeddings.position_ids = torch.arange(77)[None]
    short = PromptTable(pipe.encoder, PAIRS, trained=False).conditions(DRAWN)
    products, defects = zip(*(PAIRS[i] for i in DRAWN), strict=True)
    with torch.no_grad():
        long = pipe.encoder.conditions(list(products), list(defects))
        assert long.defect.tokens.shape[1] == 77
        assert short.defect.tokens.shape[1] == 7  # start, "a photo of hole tile", end
        x, t = torch.randn(5, 4, 8, 8), torch.tensor([1, 10, 100, 500, 999])
        a, b = (pipe.transformer(x, t, **vars(conditions)) for conditions in (short, long))
    for name, value in vars(a).items():
        torch.testing.assert_close(value, getattr(b, name), rtol=1e-5, atol=1e-5)


def test_a_frozen_encoder_is_asked_once():
    encoder = random_pipeline().encoder
    for trained, expected in ((True, 3), (False, 1)):
        calls = []
        hook = encoder.text_encoder.register_forward_hook(lambda module, inputs, out, calls=calls: calls.append(1))
        table = PromptTable(encoder, PAIRS, trained)
        for _ in range(3):
            table.conditions(DRAWN)
        hook.remove()
        assert len(calls) == expected


def test_an_unknown_word_is_named():
    with pytest.raises(InputError, match="'A photo of teapot' has a word that the text encoder never learned"):
        PromptTable(random_pipeline().encoder, [("teapot", "crack")], trained=True)
