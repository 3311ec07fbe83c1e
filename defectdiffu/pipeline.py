"""From (product, defect) to image-mask pairs: the sampling loop as a diffusers pipeline."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from defectdiffu import autoencoder, inpainting, masks
from defectdiffu.config import GOOD, LARGEST_SCALE, LARGEST_SEED, MOST_STEPS, STRENGTH
from defectdiffu.errors import InputError, check_choice, check_number
from defectdiffu.guidance import GUIDANCES, Branches, branch_conditions, guide, prepare_branches
from defectdiffu.inpainting import GivenPicture, Known
from defectdiffu.memory import sampling_explained
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.model_card import model_card
from defectdiffu.pictures import to_tensor, to_uint8
from defectdiffu.prompts import Conditions, PromptEncoder
from defectdiffu.selfcheck import LARGEST_RATIO, PASS, change_ratio
from defectdiffu.weight_files import SCHEDULERS, check_finite, check_weights

PREDICTION_TYPES = {"noise": "epsilon", "velocity": "v_prediction"}  # their names in diffusers
SHIPPED = Path(__file__).parent / "weights"

Callback = Callable[[int, Tensor, Tensor, Branches], object]  # step, t, latents, branches


@dataclass
class DefectDiffuOutput(BaseOutput):
    """images: PIL RGB; masks: PIL "L", 0 or 255; mask_probs: float32 (len(images), S, S) before the threshold, of given
    pictures of the square that was worked on; seeds: of each image; ratios: of a call with `check`,
    `selfcheck.change_ratio` of every image asked for, kept or not."""

    images: list[Image.Image]
    masks: list[Image.Image]
    mask_probs: np.ndarray
    seeds: list[int] = field(default_factory=list)
    ratios: list[float] | None = None


class DefectDiffuPipeline(DiffusionPipeline):
    """Generates defect images with their masks::

        pipe = DefectDiffuPipeline.from_pretrained("tiny")
        out = pipe(product="hazelnut", defect="crack", w_d=1.5, num_images=4, seeds=[0, 1, 2, 3])

    `scheduler`, made by `from_config(pipe.scheduler.config)`, is set to the transformer's prediction. These of
    diffusers work: DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler, UniPCMultistepScheduler; others are
    refused. guidance, w_p, w_d, num_inference_steps: the defaults of a call.
    """

    transformer: DefectDiffuTransformer
    vae: autoencoder.Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: ConfigMixin  # the schedulers have no common class that declares `step`
    config: Any  # its attributes are the arguments of `__init__`; diffusers declares a plain dict
    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]  # None in the base class

    def __init__(
        self,
        transformer: DefectDiffuTransformer,
        vae: autoencoder.Autoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: ConfigMixin,
        guidance: str = "double_free",
        w_p: float = 1.0,
        w_d: float = 1.0,
        num_inference_steps: int = 20,
    ):
        super().__init__()
        autoencoder.fix_tiling(vae)
        follow(scheduler, transformer.config.prediction)  # so that it is saved with it
        # Loaded by transformers alone it would keep the precision of the file, unlike the other parts.
        text_encoder.to(transformer.dtype)  # type: ignore[arg-type]  # its wrapper hides the types of `Module.to`
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(guidance=guidance, w_p=w_p, w_d=w_d, num_inference_steps=num_inference_steps)
        self.encoder = PromptEncoder(tokenizer, text_encoder, transformer.config.one_prompt)

    @property
    def pairs(self) -> dict[str, list[str]]:
        """{product: its defects}: the pairs trained on. Other combinations of these names are zero-shot."""
        return self.transformer.config.trained_on or {}

    @property
    def products(self) -> list[str]:
        return list(self.pairs)

    @property
    def defects(self) -> list[str]:
        return sorted({d for defects in self.pairs.values() for d in defects})

    @property
    def size(self) -> int:
        """S, the side of the pictures in pixels."""
        return self.transformer.config.sample_size * autoencoder.downsampling(self.vae)

    @property
    def oracle(self) -> Path | None:
        """The record of `evaluate oracle` that lies beside the weights, where there is one."""
        name = str(self.config.get("_name_or_path", ""))
        files = (folder / name / "oracle.json" for folder in (SHIPPED, Path()) if name)
        return next((file for file in files if file.is_file()), None)

    def check_names(self, product: str, defect: str) -> None:
        """Raise `InputError`, with the most similar names, for names that the weights do not know."""
        check_choice("product", product, [*self.products, self.transformer.config.null_product])
        check_choice("defect", defect, [*self.defects, GOOD])

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> Self:  # type: ignore[override]  # renamed
        """Load by shipped name ("tiny"), local folder or hub id. Weights are read from safetensors only."""
        folder = SHIPPED / str(name) if (SHIPPED / str(name) / "model_index.json").is_file() else Path(name)
        if folder.is_dir():
            with quiet():
                check_weights(folder)
        elif len(folder.parts) != 2 or str(name).startswith((".", "/")):
            shipped = sorted(p.parent.name for p in SHIPPED.glob("*/model_index.json"))
            raise InputError(
                f"no weights '{name}': neither a folder nor shipped with the package ({', '.join(shipped) or 'none'})"
            )
        if "torch_dtype" in kwargs:  # its older name
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        kwargs = {"dtype": torch.float32} | kwargs
        with quiet():
            try:
                pipe = super().from_pretrained(str(folder), **kwargs, use_safetensors=True)
            except Exception as error:  # whatever the libraries raise for files that they cannot use
                if folder.is_dir():
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    raise InputError(f"the weights in {folder} cannot be loaded ({reason[:300]})") from error
                if not isinstance(error, OSError):
                    raise
                raise InputError(
                    f"no weights '{name}': not a folder, and the hub cannot be reached or has no weights of that name"
                ) from error
        for part in ("transformer", "vae", "text_encoder"):
            check_finite(getattr(pipe, part), f"the {part} of '{name}'")
        pipe.register_to_config(_name_or_path=str(name))
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with a model card, and with the file that lets diffusers alone find this class."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text("from defectdiffu.pipeline import DefectDiffuPipeline\n")
        self._write_card(folder)
        super().save_pretrained(str(folder), *args, **kwargs)

    def _write_card(self, folder: Path) -> None:
        (folder / "README.md").write_text(model_card(self.pairs, self.size, self.oracle))

    def _upload_folder(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        self._write_card(Path(working_dir))  # `push_to_hub` has replaced it by an empty one
        return super()._upload_folder(working_dir, *args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        product: str | Sequence[str],
        defect: str | Sequence[str] = GOOD,
        w_d: float | Sequence[float] | None = None,
        w_p: float | None = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        seeds: Sequence[int] | None = None,
        guidance: str | None = None,
        batch_size: int = 8,
        check: bool | float = False,
        callback: Callback | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float = STRENGTH,
        crop: int | None = None,
    ) -> DefectDiffuOutput:
        """Generate `num_images` pairs, or put a defect on given pictures.

        product, defect: one name for all images or one per image. w_d: strength of the defect, likewise; w_p: strength
        of the product. num_images: as many as there are of what is given per image, else 1. seeds: one per image,
        0, 1, 2, ... unless given; image i depends on seeds[i] alone, so a sweep over w_d starts every frame from the
        same noise. check: keep only pairs whose change from the twin at w_d = 0 is this many times larger inside the
        mask than outside (`selfcheck`; True: 2 times), which doubles the time; the result's `seeds` are those of the
        pairs kept, its `ratios` those of every image. callback(step, t, latents, branches) is called after every step
        with the batch's noisy latents and what each branch predicted.

        image: a picture of the product without a defect, of any size, or one per image: the result is this picture with
        the defect, unchanged elsewhere (`inpainting`). mask: where the defect goes, of the picture's size; without it
        the model chooses, in a first pass that doubles the time. strength: the share of the steps that are taken; fewer
        keep more of what the picture has in that place. crop: side in pixels of the square that is worked on, by
        default the picture's shorter side.

        Raises `InputError` for names the model does not know, and where the GPU's memory runs out, saying what saves
        how much.
        """
        config = self.config
        guidance = check_choice("guidance", guidance or config.guidance, GUIDANCES)
        w_p = config.w_p if w_p is None else w_p
        w_d = config.w_d if w_d is None else w_d
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        per_image: dict[str, Any] = {"product": product, "defect": defect, "w_d": w_d, "seeds": seeds}
        if num_images is None:
            counted = [v for v in (*per_image.values(), image, mask) if isinstance(v, Sequence | np.ndarray)]
            num_images = max((len(v) for v in counted if not isinstance(v, str)), default=1)
        if num_images < 1 or batch_size < 1:
            raise InputError("num_images and batch_size must be at least 1")
        check_number("num_inference_steps", steps, 1, MOST_STEPS)
        per_image["seeds"] = range(num_images) if seeds is None else seeds
        for what, values in per_image.items():
            per_image[what] = [values] * num_images if np.isscalar(values) else list(values)
            if len(per_image[what]) != num_images:
                raise InputError(f"{len(per_image[what])} {what} for {num_images} images: give one per image")
        products, defects = per_image["product"], per_image["defect"]
        w_d, seeds = [float(w) for w in per_image["w_d"]], [int(s) for s in per_image["seeds"]]
        null = self.transformer.config.null_product
        for pair in dict.fromkeys(zip(products, defects, strict=True)):
            self.check_names(*pair)
        for w in (w_p, *w_d):
            check_number("a scale of guidance", w, -LARGEST_SCALE, LARGEST_SCALE)
        for seed in seeds:
            check_number("seed", seed, 0, LARGEST_SEED)

        check = PASS if check is True else check
        check_number("check", check, 0, LARGEST_RATIO)
        if check and GOOD in defects:
            raise InputError(f"check compares a defect with its absence: '{GOOD}' cannot be checked")
        given = self._given(image, mask, num_images, strength, crop)
        if given and (check or GOOD in defects):
            raise InputError(
                f"a given picture gets a defect, which is not checked: no check and no '{GOOD}' with image"
            )
        taken = steps if given is None else inpainting.steps_taken(steps, strength)
        passes = 2 if check or (given and mask is None) else 1
        images: list[Image.Image] = []
        probabilities: list[np.ndarray] = []
        ratios: list[float] = []
        with (
            sampling_explained(self, min(batch_size, num_images)),
            self.progress_bar(total=-(-num_images // batch_size) * taken * passes) as bar,
        ):
            for start in range(0, num_images, batch_size):
                batch = slice(start, start + batch_size)
                conditions = branch_conditions(self.encoder, guidance, products[batch], defects[batch], null)
                sample = partial(
                    self._sample, conditions, guidance, w_p, seeds=seeds[batch], steps=steps, tick=bar.update
                )
                if given:
                    changed, probability = self._change(given[batch], strength, partial(sample, w_d[batch]), callback)
                    images += changed
                else:
                    picture, probability = sample(w_d[batch], callback=callback)
                    images += [Image.fromarray(p) for p in picture]
                probabilities.append(probability)
                if check:
                    twin, twin_probability = sample([0.0] * len(picture))
                    marked = [np.stack([masks.binarise(m) for m in p]) > 0 for p in (probability, twin_probability)]
                    ratios += change_ratio(picture, twin, *marked).tolist()
                self.maybe_free_model_hooks()  # offloaded parts leave the GPU before the next batch
        kept = [i for i in range(num_images) if not check or ratios[i] >= check]
        mask_probs = np.concatenate(probabilities)[kept]
        binary = [masks.binarise(p) for p in mask_probs]
        return DefectDiffuOutput(
            images=[images[i] for i in kept],
            masks=[given[i].marked(m) if given else Image.fromarray(m) for i, m in zip(kept, binary, strict=True)],
            mask_probs=mask_probs,
            seeds=[seeds[i] for i in kept],
            ratios=ratios if check else None,
        )

    def _given(
        self,
        image: Image.Image | Sequence[Image.Image] | None,
        mask: Image.Image | Sequence[Image.Image] | None,
        number: int,
        strength: float,
        crop: int | None,
    ) -> list[GivenPicture] | None:
        """The given pictures of a call, if it has any."""
        if image is None:
            if mask is not None or crop is not None:
                raise InputError("mask and crop say where on a given picture: give image, too")
            return None
        check_number("strength", strength, 0.01, 1)
        return inpainting.prepare(image, mask, number, self.size, crop)

    def _change(
        self,
        given: list[GivenPicture],
        strength: float,
        sample: Callable[..., tuple[np.ndarray, np.ndarray]],
        callback: Callback | None,
    ) -> tuple[list[Image.Image], np.ndarray]:
        """One batch of given pictures with their defects, and the maps of their masks, 0 outside the regions."""
        pictures = to_tensor(np.stack([g.seen(self.size) for g in given])).to(self._execution_device, self.vae.dtype)
        latents = autoencoder.encode(self.vae, pictures).float()
        regions = [g.region for g in given if g.region is not None]
        if not regions:
            _, probability = sample(known=Known(latents, None, strength))
            regions = [*inpainting.around([masks.binarise(p) for p in probability])]
        region = np.stack(regions)
        known = Known(latents, torch.from_numpy(region).float().to(latents.device), strength)
        drawn, probability = sample(known=known, callback=callback)
        difference = drawn.astype(np.float32) - to_uint8(self._decode(latents))
        changed = [g.changed(d, r) for g, d, r in zip(given, difference, region, strict=True)]
        return changed, probability * region

    def _sample(
        self,
        conditions: dict[str, Conditions],
        guidance: str,
        w_p: float,
        w_d: list[float],
        seeds: list[int],
        steps: int,
        tick: Callable[[], object],
        callback: Callback | None = None,
        known: Known | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One batch: uint8 pictures (B, S, S, 3) and mask maps float32 (B, S, S)."""
        device, dtype = self._execution_device, self.transformer.dtype
        size, channels = self.transformer.config.sample_size, self.transformer.config.in_channels
        # Noise is drawn image by image on the CPU: the same on every device and in every batch.
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        latents = torch.stack([torch.randn(channels, size, size, generator=g) for g in generators]).to(device)
        strength = torch.tensor(w_d, device=device).view(-1, 1, 1, 1)

        follow(self.scheduler, self.transformer.config.prediction)
        self.scheduler.set_timesteps(steps, device=device)
        taken = steps if known is None else inpainting.steps_taken(steps, known.strength)
        timesteps = self.scheduler.timesteps[steps - taken :]
        if hasattr(self.scheduler, "set_begin_index"):  # else the first step would read its number from the device
            self.scheduler.set_begin_index(steps - taken)
        if known is None:
            latents = latents * self.scheduler.init_noise_sigma
        else:
            conditions = known.confine(conditions, self.transformer.side)
            latents = self.scheduler.add_noise(known.latents, latents, timesteps[:1].expand(len(latents)))
            a_bars = self.scheduler.alphas_cumprod.to(device)
        extra = self._noise_of_steps(generators, latents, taken)
        evaluate = prepare_branches(self.transformer, conditions, len(latents), latents.device)
        last = min(masks.averaged_steps(steps), taken)
        seen = []  # decoded at the end, so that with offloading transformer and autoencoder are swapped only once
        for i, t in enumerate(timesteps):
            x = self.scheduler.scale_model_input(latents, t)
            branches = evaluate(x.to(dtype), t.expand(len(x)))
            predicted, mask = guide(branches, guidance, w_p, strength)
            if known is not None:
                a_bar = a_bars[t.long()].expand(len(x))
                predicted = known.predicted(self.transformer.config.prediction, predicted.float(), x, a_bar)
            latents = self.scheduler.step(predicted.float(), t, latents, **extra[i]).prev_sample
            if i >= taken - last:
                seen.append(mask)
            if callback is not None:
                callback(i, t, latents, branches)
            tick()
        probability = sum((masks.to_probability(self._decode(mask)) / last for mask in seen), start=torch.zeros(()))
        return to_uint8(self._decode(latents)), probability.cpu().numpy()

    def _noise_of_steps(self, generators: list[torch.Generator], latents: Tensor, steps: int) -> list[dict[str, Any]]:
        """What `scheduler.step` is given in each of its steps, so that its noise is that of each image's seed.

        Where it takes noise, the noise of all steps is drawn first and copied once, so no step waits for the CPU.
        """
        scheduler, taken = self.scheduler, inspect.signature(self.scheduler.step).parameters
        if "variance_noise" in taken and scheduler.config.get("algorithm_type", "").startswith("sde"):
            drawn = [torch.randn(steps, *latents.shape[1:], generator=g) for g in generators]
            return [{"variance_noise": noise} for noise in torch.stack(drawn, dim=1).to(latents.device)]  # (B, C, H, W)
        return [{"generator": generators} if "generator" in taken else {}] * steps

    def _decode(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, latents.to(self.vae.dtype)).float()


def follow(scheduler: ConfigMixin, prediction: str) -> None:
    """Set a scheduler to the transformer's prediction, and switch off its clipping to [-1, 1], which is for pixels.

    Raises `InputError` for a scheduler that is none of `SCHEDULERS`.
    """
    check_choice("scheduler", type(scheduler).__name__, SCHEDULERS)
    scheduler.register_to_config(prediction_type=PREDICTION_TYPES[prediction], clip_sample=False)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars for files of a few megabytes, and no warnings about settings that the libraries wrote."""
    levels = [library.get_verbosity() for library in (diffusers_logging, transformers_logging)]
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip((diffusers_logging, transformers_logging), levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
