"""Builds a pipeline for training from a preset, and saves it."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DPMSolverMultistepScheduler
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from defectdiffu.autoencoder import Autoencoder, PatchAutoencoder
from defectdiffu.config import GOOD, Preset
from defectdiffu.errors import InputError
from defectdiffu.files import writing
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.pipeline import SHIPPED, DefectDiffuPipeline, quiet
from defectdiffu.pretrained.dit import load_dit
from defectdiffu.prompts import build_text_encoder

TRAIN_STEPS = 1000  # T of Eq. 1


def build_pipeline(preset: Preset, vae: Autoencoder, trained_on: dict[str, list[str]]) -> DefectDiffuPipeline:
    """A pipeline whose transformer (and small text encoder) are new, or start from the preset's pretrained weights."""
    model = {k: v for k, v in vars(preset.model).items() if k != "pretrained"}
    tokenizer: PreTrainedTokenizerBase
    if preset.text.pretrained is None:
        defects = {d for defects in trained_on.values() for d in defects}
        names = [*trained_on, *defects, GOOD, preset.model.null_product]
        sizes = {k: v for k, v in vars(preset.text).items() if k != "pretrained"}
        tokenizer, text_encoder = build_text_encoder(names, **sizes)
    else:
        tokenizer = AutoTokenizer.from_pretrained(preset.text.pretrained)
        text_encoder = CLIPTextModel.from_pretrained(preset.text.pretrained, dtype=torch.float32)
    transformer = DefectDiffuTransformer(
        sample_size=preset.latent_size,
        in_channels=vae.config["latent_channels"],
        text_dim=text_encoder.config.hidden_size,
        trained_on=trained_on,
        **model,
    )
    if preset.model.pretrained is not None:
        load_dit(transformer, preset.model.pretrained)
    # Stochastic: the noise of later steps removes errors of earlier ones. Deterministic solvers keep them.
    scheduler = DPMSolverMultistepScheduler(TRAIN_STEPS, algorithm_type="sde-dpmsolver++")
    pipe = DefectDiffuPipeline(transformer, vae, text_encoder, tokenizer, scheduler, **vars(preset.sampling))
    pipe.set_progress_bar_config(disable=True)
    if preset.start_from is not None:
        copy_weights(DefectDiffuPipeline.from_pretrained(preset.start_from), pipe)
    return pipe


def copy_weights(source: DefectDiffuPipeline, target: DefectDiffuPipeline) -> None:
    """Copy the transformer and small text encoder of `source` into `target`, which may know other names.

    Words that both know keep their embeddings, so `target` knows the defects learned by `source`. Raises `InputError`
    if the two models differ in size.
    """
    try:
        target.transformer.load_state_dict(source.transformer.state_dict())
        theirs, ours = source.text_encoder.state_dict(), target.text_encoder.state_dict()
        words, known = target.tokenizer.get_vocab(), source.tokenizer.get_vocab()
        for name, value in theirs.items():
            if name.endswith("token_embedding.weight"):
                for word in words.keys() & known.keys():
                    ours[name][words[word]] = value[known[word]]
            elif name.endswith("position_embedding.weight"):
                shared = min(len(value), len(ours[name]))
                ours[name][:shared] = value[:shared]
            else:
                ours[name] = value
        target.text_encoder.load_state_dict(ours)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(f"the weights to start from are of another size: {detail}") from error


def load_autoencoder(name: str) -> Autoencoder:
    """An autoencoder by shipped name, folder or hub id: ours, or a pretrained `AutoencoderKL` / `AutoencoderTiny`.

    Raises `InputError` if there is none, or if it is of another class.
    """
    folder = str(SHIPPED / name / "vae") if (SHIPPED / name / "vae").is_dir() else name
    for kind in (PatchAutoencoder, AutoencoderKL, AutoencoderTiny):
        try:
            config = kind.load_config(folder)
        except OSError as error:
            raise InputError(f"no autoencoder '{name}': it is neither shipped, a folder nor on the hub") from error
        if config.get("_class_name", "AutoencoderKL") == kind.__name__:
            return kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    raise InputError(f"autoencoder '{name}' is a {config['_class_name']}, not an AutoencoderKL or AutoencoderTiny")


def export(pipe: DefectDiffuPipeline, out: Path) -> None:
    """Save the pipeline into `out` in half precision, in shards small enough for a repository; its index last."""
    with quiet():
        pipe = pipe.to("cpu", torch.float16, silence_dtype_warnings=True)
    for left_by_a_killed_run in out.glob(".export-*"):
        shutil.rmtree(left_by_a_killed_run)
    with quiet(), writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        pipe.save_pretrained(folder, safe_serialization=True, max_shard_size="14MB")
        for file in Path(folder).rglob("*.json"):  # strip local paths before publishing
            settings = json.loads(file.read_text())
            if settings.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(settings, indent=2) + "\n")
        for item in sorted(Path(folder).iterdir(), key=lambda p: p.is_file()):
            if (out / item.name).is_dir():
                shutil.rmtree(out / item.name)
            item.replace(out / item.name)
