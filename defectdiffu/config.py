"""Every setting of a run, frozen, with the three presets. Unknown keys are errors, never ignored."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from defectdiffu.errors import InputError, check_choice

GOOD = "good"  # the defect's name for "no defect", c_g in the paper


@dataclass(frozen=True)
class AutoencoderConfig:
    """The image autoencoder: our `PatchAutoencoder`, trained first, or a pretrained one."""

    pretrained: str | None = None  # folder, shipped name or hub id; None: train our own
    downsample: int = 4  # side of the picture over side of the latent, a power of 2
    channels: int = 96
    latent_channels: int = 4
    latent_noise: float = 0.05  # fixed posterior deviation of our VAE, in units of its prior's
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class TextConfig:
    """The text encoder: pretrained and frozen, or a small CLIP text model trained with the transformer."""

    pretrained: str | None = None
    width: int = 64
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class ModelConfig:
    """The transformer (Fig. 2). N, M, K of the paper: `background_blocks`, `defect_blocks`, `fusion_blocks`."""

    pretrained: str | None = None  # a DiT to start from; None: random
    patch_size: int = 2
    width: int = 128
    heads: int = 4
    background_blocks: int = 3
    defect_blocks: int = 3
    fusion_blocks: int = 2
    attention_over: str = "tokens"  # Eq. 5; with "positions", as released, masks are worse (records/ablations.json)
    learn_sigma: bool = False
    prediction: str = "noise"  # Eq. 2; "velocity" for training from scratch: noise leaves the noisiest steps untrained
    convolution: bool = False  # a depthwise convolution in every MLP, for training from scratch: smooths patch borders
    null_product: str = "industry"
    one_prompt: bool = False  # c_f for all three parts: the paper's ablation "OTP"


@dataclass(frozen=True)
class LossConfig:
    """Weights of Eqs. 8 to 11."""

    mask_weight: float = 1.0  # lambda, Eq. 11; the paper has 0.2
    mask_by_signal: bool = False  # weight loss_m by alpha-bar: masks are read at the last steps, not known at the first
    alpha: float = 0.001  # Eq. 8
    ratio_gradient: bool = False  # let loss_d's gradient flow through R
    fixed_ratio: float | None = None  # a constant instead of Eq. 9: the paper's ablation "w/o AAL" is 3


@dataclass(frozen=True)
class TrainingConfig:
    steps: int = 7000
    minutes: float | None = None  # choose the steps from the rate measured at the start, so the run ends in this time
    batch_size: int = 64  # over all processes together
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 500
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    p1: float = 0.2  # Algorithm 1: probability of the null product
    p2: float = 0.2  # Algorithm 1: probability that a defect is replaced by good
    variants: int = 8  # augmented versions of each picture in the latent cache
    hold_out: str | None = None  # pairs never trained on, such as "magnetic_tile/crack,pill/scratch"
    half_split: bool = False  # train on half of each defect type, the paper's protocol on MVTec AD
    seed: int = 0
    checkpoint_every: int = 1000
    sample_every: int = 2000
    compile: bool = False
    accumulate: int = 1  # parts of a batch, computed one after another
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass instead of keeping their activations
    average_on_cpu: bool = False  # keep the moving average in the CPU's memory


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of the pipeline."""

    guidance: str = "double_free"
    w_p: float = 1.0
    w_d: float = 1.0
    num_inference_steps: int = 20


@dataclass(frozen=True)
class Preset:
    name: str
    image_size: int
    start_from: str | None = None  # weights to adapt, with their autoencoder (shipped name, folder); None: from scratch
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def latent_size(self) -> int:
        return self.image_size // self.autoencoder.downsample

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preset":
        """The inverse of `to_dict`; missing keys take their defaults, unknown keys raise `InputError`."""
        return _build(cls, values, "preset")

    def replace(self, **changes: dict) -> "Preset":
        """A copy with some settings changed: `preset.replace(training={"steps": 100}, image_size=64)`."""
        values = self.to_dict()
        for key, change in changes.items():
            check_choice("preset key", key, values)
            values[key] = values[key] | change if isinstance(change, dict) else change
        return Preset.from_dict(values)


def _build(cls, values: dict, where: str):
    if not isinstance(values, dict):
        raise InputError(f"'{where}' must be an object of named settings, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        check_choice(f"{where} key", key, fields)
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            value = _build(kind, value, key)
        else:
            allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            if float in allowed and type(value) is int:
                value = float(value)
            if type(value) not in allowed:
                names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
                raise InputError(f"{where} key '{key}' must be {names}, not {value!r}")
        arguments[key] = value
    missing = [n for n, f in fields.items() if f.default is f.default_factory and n not in arguments]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    return cls(**arguments)


PRESETS = {
    # 64 px, about an hour and a half on one CPU thread that computes in bfloat16; for the tests and the tutorial.
    "tiny": Preset(
        name="tiny",
        image_size=64,
        start_from="tiny",
        autoencoder=AutoencoderConfig(latent_channels=8),
        training=TrainingConfig(steps=8000),
        sampling=SamplingConfig(w_p=2.0, w_d=1.5),
    ),
    # 256 px, meant for ten minutes of one data-centre GPU, not run yet. An untrained autoencoder with 4 channels
    # reconstructs rendered pictures at 24 dB, one with 16 at 27 dB and keeps the masks (records/autoencoders_256.json).
    "book": Preset(
        name="book",
        image_size=256,
        autoencoder=AutoencoderConfig(
            downsample=8, channels=192, latent_channels=16, steps=4500, batch_size=32, learning_rate=5e-4
        ),
        text=TextConfig(width=128),
        model=ModelConfig(
            width=256,
            heads=8,
            background_blocks=4,
            defect_blocks=4,
            fusion_blocks=4,
            prediction="velocity",
            convolution=True,
        ),
        loss=LossConfig(mask_weight=0.5, mask_by_signal=True),
        training=TrainingConfig(
            steps=10_000, batch_size=128, learning_rate=8e-4, ema_decay=0.9995, p2=0.05, variants=16
        ),
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
        raise InputError(f"the preset {name} is its own base: name a base that does not refer back to it")
    try:
        values = json.loads(Path(name).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the preset {name}: {error}") from error
    base = values.pop("base", None) if isinstance(values, dict) else None
    return Preset.from_dict(values) if base is None else load_preset(base, (*_seen, path)).replace(**values)
