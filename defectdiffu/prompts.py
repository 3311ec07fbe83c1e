"""The three single-object prompts of TDIA and the text encoder that embeds them (Sec. 3.2).

c_p  "A photo of {product}"            for the background blocks: what this product looks like
c_d  "A photo of {defect}"             for the defect blocks: what this defect looks like, on any product
c_f  "A photo of {defect} {product}"   for the fusion blocks: how product and defect combine
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from defectdiffu.errors import InputError

PREFIX = "A photo of"
SPECIAL = ("<pad>", "<start>", "<unknown>", "<end>")


def background_prompt(product: str) -> str:
    return f"{PREFIX} {_words(product)}"


def defect_prompt(defect: str) -> str:
    return f"{PREFIX} {_words(defect)}"


def fusion_prompt(defect: str, product: str) -> str:
    return f"{PREFIX} {_words(defect)} {_words(product)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


@dataclass
class PromptEmbedding:
    """Embeddings of B prompts::

        pooled      (B, D) one vector per prompt, the condition of adaLN-Zero
        tokens      (B, L, D) one vector per token, needed only by cross-attention over tokens
        token_mask  (B, L) bool, the tokens that cross-attention sees: the start token and the words of the subject
        region      (B, T) bool, the positions of the picture that may attend to the subject; None: all

    The template's words are masked (the causal encoder includes them in the subject's embeddings). The start token is
    the same for every prompt; positions without the subject attend to it.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    region: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> "PromptEmbedding":
        """Apply the function `f` to each tensor that is not None."""
        return PromptEmbedding(**{name: f(value) for name, value in vars(self).items() if value is not None})

    def __getitem__(self, index: slice | list[int]) -> "PromptEmbedding":
        return self.map(lambda v: v[index])

    def __len__(self) -> int:
        return len(self.pooled)

    @staticmethod
    def cat(parts: list["PromptEmbedding"]) -> "PromptEmbedding":
        there = [name for name, value in vars(parts[0]).items() if value is not None]
        return PromptEmbedding(**{name: torch.cat([getattr(p, name) for p in parts]) for name in there})


@dataclass
class Conditions:
    """Conditions of the three parts of the transformer, for B images: `transformer(x, t, **vars(conditions))`."""

    product: PromptEmbedding  # c_p
    defect: PromptEmbedding  # c_d
    fusion: PromptEmbedding  # c_f

    def __getitem__(self, index: slice | list[int]) -> "Conditions":
        return Conditions(self.product[index], self.defect[index], self.fusion[index])


class PromptEncoder:
    """A tokenizer and a CLIP text model as one function from prompts to `PromptEmbedding`.

    Prompts repeat (a data set has a few dozen), so each distinct prompt is embedded once per call; without gradients
    its embedding is cached for later calls, as for a frozen encoder. Call `forget` when the weights have changed.
    one_prompt: `conditions` gives c_f to all three parts, the paper's ablation of the single-object prompts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_encoder: CLIPTextModel, one_prompt: bool = False):
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.one_prompt = one_prompt
        self._prefix_length = len(tokenizer(PREFIX, add_special_tokens=False).input_ids)
        self._unknown = tokenizer.get_vocab().get(SPECIAL[2], -1)  # pretrained tokenizers know every word
        self._cache: dict[str, PromptEmbedding] = {}

    def forget(self) -> None:
        self._cache.clear()

    def __call__(self, prompts: list[str]) -> PromptEmbedding:
        """Embed B prompts: pooled (B, D), tokens (B, L, D) and token_mask (B, L), on the encoder's device."""
        distinct = list(dict.fromkeys(prompts))
        if torch.is_grad_enabled():
            place = {prompt: i for i, prompt in enumerate(distinct)}
            return self._encode(distinct)[[place[p] for p in prompts]]
        new = [p for p in distinct if p not in self._cache]
        if new:
            embedded = self._encode(new).map(lambda v: v.cpu())
            self._cache.update((p, embedded[i : i + 1]) for i, p in enumerate(new))
        device, dtype = self.text_encoder.device, self.text_encoder.dtype  # both may have changed since
        embedded = PromptEmbedding.cat([self._cache[p] for p in prompts])
        return embedded.map(lambda v: v.to(device, dtype if v.is_floating_point() else v.dtype))

    def _encode(self, prompts: list[str]) -> PromptEmbedding:
        # One length for all prompts, so that a prompt's embedding never depends on others in the batch.
        return self.embed(*self.tokenise(prompts, "max_length"))

    def tokenise(self, prompts: list[str], padding: str = "longest") -> tuple[Tensor, Tensor]:
        """The tokens' numbers (B, L) of B prompts and their `token_mask` (B, L), on the encoder's device.

        padding: to the "longest" of these prompts or to the tokenizer's "max_length". Raises `InputError` for a word
        that the text encoder never learned.
        """
        length = self.tokenizer.model_max_length
        batch = self.tokenizer(prompts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
        unknown = (batch.input_ids == self._unknown).any(1)
        if unknown.any():
            raise InputError(f"'{prompts[int(unknown.int().argmax())]}' has a word that the text encoder never learned")
        position = torch.arange(batch.input_ids.shape[1])
        end = batch.attention_mask.sum(1, keepdim=True) - 1
        subject = (position > self._prefix_length) & (position < end)
        device = self.text_encoder.device
        return batch.input_ids.to(device), (subject | (position == 0)).to(device)

    def embed(self, tokens: Tensor, token_mask: Tensor) -> PromptEmbedding:
        """Embed what `tokenise` gives, with gradients if they are enabled."""
        out = self.text_encoder(input_ids=tokens)  # causal: no token sees the padding after it
        return PromptEmbedding(out.pooler_output, out.last_hidden_state, token_mask)

    def conditions(self, products: list[str], defects: list[str]) -> Conditions:
        """c_p, c_d and c_f for B images, given the product's and the defect's name of each."""
        fusion = [fusion_prompt(d, p) for d, p in zip(defects, products, strict=True)]
        if self.one_prompt:
            embedded = self(fusion)
            return Conditions(embedded, embedded, embedded)
        prompts = [background_prompt(p) for p in products] + [defect_prompt(d) for d in defects]
        embedded = self(prompts + fusion)
        n = len(products)
        return Conditions(embedded[:n], embedded[n : 2 * n], embedded[2 * n :])


def check_names(names: Iterable[str]) -> None:
    """Raise `InputError` for names that prompts cannot distinguish, or that the template or the tokenizer uses."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        words = " ".join(_words(name).lower().split())
        if not words or words in (*PREFIX.lower().split(), PREFIX.lower()) or set(words.split()) & set(SPECIAL):
            raise InputError(f"'{name}' cannot be a product's or defect's name, the prompts use it: rename its folder")
        if words in seen:
            raise InputError(f"'{seen[words]}' and '{name}' are the same words in a prompt: rename one of the folders")
        seen[words] = name


def build_text_encoder(
    names: Iterable[str], width: int, layers: int, heads: int
) -> tuple[PreTrainedTokenizerFast, CLIPTextModel]:
    """A small CLIP text model whose vocabulary is the words in `names`, to be trained with the transformer.

    names: products and defects, including the null product and "good". Tokens are whole words: "scratch" is one
    token wherever it occurs, so that a defect's name can mean the same on every product. Raises `InputError` as
    `check_names` does.
    """
    names = list(names)
    check_names(names)
    words = sorted({w for name in [PREFIX, *names] for w in _words(name).lower().split()})
    vocabulary = {w: i for i, w in enumerate([*SPECIAL, *words])}
    longest = max(len(_words(name).split()) for name in names)
    length = 2 + len(PREFIX.split()) + 2 * longest
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), WhitespaceSplit()  # as `words` is split
    special = [(t, vocabulary[t]) for t in ("<start>", "<end>")]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
        pad_token="<pad>",
        model_max_length=length,
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    encoder = CLIPTextModel(config)
    # CLIP's initial embeddings (deviation 0.02) suit long training; here words must be distinct from the start.
    nn.init.normal_(encoder.embeddings.token_embedding.weight, std=1.0)
    return fast, encoder
