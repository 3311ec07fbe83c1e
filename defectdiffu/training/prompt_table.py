"""Every prompt of a run as a row of one table, so that a training step handles numbers instead of names."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from defectdiffu.prompts import (
    Conditions,
    PromptEmbedding,
    PromptEncoder,
    background_prompt,
    defect_prompt,
    fusion_prompt,
)


class PromptTable:
    """The conditions of K pairs (product, defect), tokenised once; a pair is named by its number in `pairs`.

    trained: the text encoder changes, so all prompts are embedded again in every call, as one batch of one shape. Else
    they are embedded once, here. Prompts are padded only to the longest of them.
    """

    def __init__(self, encoder: PromptEncoder, pairs: Sequence[tuple[str, str]], trained: bool):
        self.encoder = encoder
        if encoder.one_prompt:
            parts = [[fusion_prompt(d, p) for p, d in pairs]] * 3
        else:
            parts = [
                [background_prompt(p) for p, _ in pairs],
                [defect_prompt(d) for _, d in pairs],
                [fusion_prompt(d, p) for p, d in pairs],
            ]
        prompts = list(dict.fromkeys(prompt for part in parts for prompt in part))  # M
        row = {prompt: i for i, prompt in enumerate(prompts)}
        self.tokens, self.token_mask = encoder.tokenise(prompts)  # (M, L), (M, L)
        rows = torch.tensor([[row[prompt] for prompt in part] for part in parts])  # (3, K)
        self.rows = rows.to(self.tokens.device)
        self._embedded: PromptEmbedding | None = None
        if not trained:
            with torch.no_grad():
                self._embedded = encoder.embed(self.tokens, self.token_mask)

    def conditions(self, pair: Tensor) -> Conditions:
        """c_p, c_d and c_f of B images, given the number of each one's pair (B,); only c_d has tokens."""
        table = self.encoder.embed(self.tokens, self.token_mask) if self._embedded is None else self._embedded
        assert table.tokens is not None  # as `embed` gives them
        product, defect, fusion = self.rows[:, pair]  # 3 x (B,)
        tokens = F.embedding(defect, table.tokens.flatten(1)).unflatten(1, table.tokens.shape[1:])  # (B, L, D)
        return Conditions(
            PromptEmbedding(F.embedding(product, table.pooled)),
            PromptEmbedding(F.embedding(defect, table.pooled), tokens, self.token_mask[defect]),
            PromptEmbedding(F.embedding(fusion, table.pooled)),
        )
