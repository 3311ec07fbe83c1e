"""Every setting of a run, frozen and checked, with the three presets. Unknown keys are errors, never ignored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from defectdiffu.errors import InputError, check_choice, hint

GOOD = "good"  # the defect's name for "no defect", c_g in the paper
STRENGTH = 0.8  # of a defect on a given picture: the share of the denoising steps that are taken
LARGEST_SCALE = 100.0  # of w_p and w_d: far beyond what gives a picture
LARGEST_SEED = 2**63 - 1
MOST_STEPS = 1000  # of sampling: the noise levels of training

# The bounds refuse what cannot be meant (nothing, negative numbers, more than any machine holds), not what is unusual.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=16_384)]
Layers = Annotated[int, Field(ge=0, le=256)]
Rate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(ge=0, le=10**6)]
Probability = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=-LARGEST_SCALE, le=LARGEST_SCALE)]


class Settings(BaseModel):
    """Named settings: frozen, of the given types and ranges, and none beside those that are listed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """The inverse of `model_dump`; missing keys take their defaults.

        Raises `InputError`, naming the key and what it may be, for unknown keys and values out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(map(_message, error.errors()))) from error


class AttentionSettings(Settings):
    width: Size
    heads: Size

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class AutoencoderConfig(Settings):
    """The image autoencoder. One of ours (`PatchAutoencoder`, trained first) or a pretrained one."""

    pretrained: str | None = None  # folder, shipped name or hub id; None: train our own
    downsample: Literal[1, 2, 4, 8, 16, 32] = 4  # side of the picture over side of the latent
    channels: Size = 96
    latent_channels: Size = 4
    latent_noise: Weight = 0.05  # fixed posterior deviation of our VAE, in units of its prior's
    steps: Count = 3000
    batch_size: Count = 16
    learning_rate: Rate = 1e-3


class TextConfig(AttentionSettings):
    """The text encoder: pretrained and frozen, or a small CLIP text model trained along with the transformer."""

    pretrained: str | None = None
    width: Size = 64
    layers: Annotated[Layers, Field(ge=1)] = 2
    heads: Size = 4


class ModelConfig(AttentionSettings):
    """The transformer (Fig. 2). N, M, K of the paper: `background_blocks`, `defect_blocks`, `fusion_blocks`."""

    pretrained: str | None = None  # a DiT to start from; None: random
    patch_size: Annotated[Size, Field(le=64)] = 2
    width: Size = 128
    heads: Size = 4
    background_blocks: Layers = 3
    defect_blocks: Layers = 3
    fusion_blocks: Layers = 2
    attention_over: Literal["tokens", "positions"] = "tokens"  # Eq. 5; "positions", as released, gives worse masks
    learn_sigma: bool = False
    prediction: Literal["noise", "velocity"] = "noise"  # Eq. 2; from scratch, noise leaves early steps untrained
    convolution: bool = False  # depthwise, in every MLP: from scratch it softens the borders of patches
    null_product: Annotated[str, Field(min_length=1)] = "industry"
    one_prompt: bool = False  # c_f to all three parts: the paper's ablation "OTP"


class LossConfig(Settings):
    """Weights of Eqs. 8 to 11."""

    mask_weight: Weight = 1.0  # lambda, Eq. 11; the paper has 0.2
    mask_by_signal: bool = False  # weight loss_m by alpha-bar: where noise hides the defect, no mask can be known
    alpha: Weight = 0.001  # Eq. 8
    ratio_gradient: bool = False  # let loss_d's gradient flow through R
    fixed_ratio: Weight | None = None  # a constant instead of Eq. 9: the paper's ablation "w/o AAL" is 3


class TrainingConfig(Settings):
    steps: Count = 7000
    minutes: Annotated[float, Field(gt=0, le=10**6)] | None = None  # plan the steps by the measured rate to end in time
    batch_size: Count = 64  # over all processes together
    learning_rate: Rate = 1e-3
    weight_decay: Annotated[Weight, Field(le=10)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 500
    ema_decay: Annotated[Probability, Field(lt=1)] = 0.999
    max_grad_norm: Annotated[Weight, Field(gt=0)] = 1.0
    p1: Probability = 0.2  # Algorithm 1: probability of the null product
    p2: Probability = 0.2  # Algorithm 1: probability that a defect is called good
    variants: Annotated[Count, Field(le=10_000)] = 8  # augmented versions of each picture in the latent cache
    hold_out: str | None = None  # pairs never trained on, such as "magnetic_tile/crack,pill/scratch"
    half_split: bool = False  # train on half of each defect type, the paper's protocol on MVTec AD
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    checkpoint_every: Count = 1000
    sample_every: Annotated[int, Field(ge=0, le=10**9)] = 2000  # 0: never
    compile: bool = False  # every block of the transformer
    cuda_graph: bool = False  # record a step once and replay it, where there is one GPU
    accumulate: Count = 1  # parts in which a batch is computed, one after another
    gradient_checkpointing: bool = False  # compute blocks again in the backward pass instead of keeping them
    average_on_cpu: bool = False  # keep the moving average in the CPU's memory


class SamplingConfig(Settings):
    """Defaults of the pipeline."""

    guidance: Literal["double_free", "defect_only", "product_aware"] = "double_free"
    w_p: Scale = 1.0
    w_d: Scale = 1.0
    num_inference_steps: Annotated[Count, Field(le=MOST_STEPS)] = 20


class Preset(Settings):
    name: Annotated[str, Field(min_length=1)]
    image_size: Size
    start_from: str | None = None  # weights to adapt, autoencoder and all (shipped name or folder); None: from scratch
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def patches_fill_the_picture(self) -> Self:
        patch = self.autoencoder.downsample * self.model.patch_size
        if self.image_size % patch:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {patch} (autoencoder.downsample x model.patch_size)"
            )
        return self

    @property
    def latent_size(self) -> int:
        return self.image_size // self.autoencoder.downsample

    def to_dict(self) -> dict:
        return self.model_dump()

    def replace(self, **changes: Any) -> "Preset":
        """A copy with some settings changed: `preset.replace(training={"steps": 100}, image_size=64)`."""
        values = self.to_dict()
        for key, change in changes.items():
            both = isinstance(change, dict) and isinstance(values.get(key), dict)
            values[key] = values[key] | change if both else change
        return Preset.from_dict(values)


def _message(error: Mapping[str, Any]) -> str:
    """What pydantic found, in one line: the key's path, its value, and what it may be."""
    *parents, key = error["loc"] or ["preset"]
    path, where = ".".join(map(str, error["loc"])), parents[0] if parents else "preset"
    if error["type"] == "extra_forbidden":
        settings: Any = Preset.model_fields[where].annotation if parents else Preset
        return f"unknown {where} key '{key}': {hint(key, settings.model_fields)}"
    if error["type"] == "missing":
        return f"preset lacks {path}"
    if error["type"] == "value_error":
        return f"{path or 'preset'}: {error['ctx']['error']}"
    found = repr(error["input"])
    found = found if len(found) < 60 else f"{found[:56]} ..."
    return f"{path or 'preset'} is {found}: {error['msg'].replace('Input should', 'it should')}"


PRESETS = {
    # 64 px, about an hour and a half on two CPU cores; the tests' and the tutorial's model. Velocity, convolution, many
    # small batches and the weighted mask loss are what a model needs that is trained from scratch in so little time
    # (records/recipes.json).
    "tiny": Preset(
        name="tiny",
        image_size=64,
        start_from="tiny",
        autoencoder=AutoencoderConfig(latent_channels=8),
        model=ModelConfig(prediction="velocity", convolution=True),
        loss=LossConfig(mask_weight=0.5, mask_by_signal=True),
        training=TrainingConfig(steps=16_000, batch_size=16, warmup_steps=200, p2=0.05),
        sampling=SamplingConfig(w_p=2.0, w_d=1.5),
    ),
    # 256 px, nine minutes on one data-centre GPU. Without the convolution: there it nearly doubles the time of a block
    # (2.4 ms instead of 1.3 ms forward and backward, on an H200). An autoencoder with 16 channels, because one with 4
    # loses details and masks (records/autoencoders_256.json). p2 = 0: with 0.05 more pictures at w_d = 0 have a
    # defect (records/unasked.json).
    "book": Preset(
        name="book",
        image_size=256,
        start_from="book",
        autoencoder=AutoencoderConfig(
            downsample=8, channels=192, latent_channels=16, steps=4500, batch_size=32, learning_rate=5e-4
        ),
        text=TextConfig(width=128),
        model=ModelConfig(
            width=256, heads=8, background_blocks=4, defect_blocks=4, fusion_blocks=4, prediction="velocity"
        ),
        loss=LossConfig(mask_weight=0.5, mask_by_signal=True),
        training=TrainingConfig(
            steps=24_000,
            batch_size=128,
            learning_rate=8e-4,
            ema_decay=0.9995,
            p2=0.0,
            variants=16,
            cuda_graph=True,
        ),
        sampling=SamplingConfig(w_p=2.0, w_d=1.5),
    ),
    # The paper's: DiT-XL/2 at 512 px, CLIP ViT-L/14 and Stable Diffusion's autoencoder, both frozen.
    "paper": Preset(
        name="paper",
        image_size=512,
        autoencoder=AutoencoderConfig(pretrained="stabilityai/sd-vae-ft-mse", downsample=8),
        text=TextConfig(pretrained="openai/clip-vit-large-patch14", width=768),
        model=ModelConfig(
            pretrained="facebook/DiT-XL-2-512",
            width=1152,
            heads=16,
            background_blocks=10,
            defect_blocks=10,
            fusion_blocks=8,
            learn_sigma=True,
        ),
        training=TrainingConfig(
            steps=200_000, batch_size=32, learning_rate=1e-5, weight_decay=1e-8, ema_decay=0.9999, half_split=True
        ),
        loss=LossConfig(mask_weight=0.2),
        sampling=SamplingConfig(num_inference_steps=50),
    ),
}


def load_preset(name: str, _seen: tuple[Path, ...] = ()) -> Preset:
    """A preset by name, or from a JSON file that names its base and what it changes.

    The file holds `{"base": "tiny", "training": {"steps": 100}}`, or a whole preset as `to_dict` gives it.
    """
    if not name.endswith(".json"):
        return PRESETS[check_choice("preset", name, PRESETS)]
    path = Path(name).resolve()
    if path in _seen:
        raise InputError(f"the preset {name} is its own base: name a base that does not lead back to it")
    try:
        values = json.loads(Path(name).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the preset {name}: {error}") from error
    base = values.pop("base", None) if isinstance(values, dict) else None
    if not isinstance(base, str | None):
        raise InputError(f"the preset {name} has the base {base!r}: it must be the name of a preset or of a JSON file")
    return Preset.from_dict(values) if base is None else load_preset(base, (*_seen, path)).replace(**values)
