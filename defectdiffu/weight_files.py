"""A folder of weights, checked before anything is built from it: its files decide nothing that is not checked here.

No code in the folder is run, no pickle is loaded, and no memory is allocated by a number from one of its files.
"""

import inspect
import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from defectdiffu.autoencoder import PatchAutoencoder
from defectdiffu.config import SamplingConfig
from defectdiffu.errors import InputError, check_choice
from defectdiffu.model import DefectDiffuTransformer

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LIBRARIES = {  # part of the pipeline: the libraries, or the classes of a library, that it may come from
    "transformer": ("defectdiffu.model", "defectdiffu.pretrained.released"),
    "vae": ("defectdiffu.autoencoder", "diffusers"),
    "text_encoder": ("transformers",),
    "tokenizer": ("transformers",),
    "scheduler": ("diffusers",),
}
CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
SCHEDULERS = (  # of diffusers: those that sample latents from the model's prediction in as many steps as are asked for
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)
AUTOENCODERS = {kind.__name__: kind for kind in (PatchAutoencoder, AutoencoderKL, AutoencoderTiny)}
LARGEST = 10**6  # of the whole numbers in a configuration: more than any vocabulary, width or number of steps
MOST_LAYERS = 512


def check_weights(folder: Path) -> None:
    """Raise an `InputError` that names the file and what is wrong, unless `folder` is a pipeline of this package.

    Every part must be there, be of a known class and have a sensible configuration; weights must be safetensors that
    can be read, and be the tensors that their configuration needs.
    """
    index = read_object(folder / "model_index.json", f"{folder} is not a folder of weights of this package")
    for part, libraries in LIBRARIES.items():
        found = index.get(part)
        if not (isinstance(found, list) and len(found) == 2 and found[0] in libraries and isinstance(found[1], str)):
            raise InputError(
                f"{folder / 'model_index.json'}: {part} is {found!r}, not a class of {' or '.join(libraries)}"
            )
        check_configuration(folder / part / CONFIGS[part])
    check_choice(f"scheduler in {folder / 'model_index.json'}", index["scheduler"][1], SCHEDULERS)
    tokenizer = getattr(transformers, index["tokenizer"][1], None)
    if not (inspect.isclass(tokenizer) and issubclass(tokenizer, transformers.PreTrainedTokenizerBase)):
        raise InputError(f"{folder / 'model_index.json'}: {index['tokenizer'][1]} is no tokenizer of transformers")
    check_defaults(folder / "model_index.json", index)
    check_pairs(folder / "transformer" / "config.json")
    for part in ("transformer", "vae", "text_encoder"):
        check_tensors(folder / part, read_shapes(folder / part), empty_model(folder / part, *index[part]))


def read_object(file: Path, what: str) -> dict[str, Any]:
    """The JSON object in `file`. Raises `InputError`, which begins with `what`, if there is none."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(f"{what}: {file.name} cannot be read ({reason})") from error
    if not isinstance(values, dict) or not values:
        raise InputError(f"{what}: {file.name} must be an object with names, not {type(values).__name__}")
    return values


def check_configuration(file: Path) -> None:
    """Raise `InputError` unless `file` holds a configuration whose numbers a model can have."""

    def check(key: str, value: object) -> None:
        most = MOST_LAYERS if key.endswith(("blocks", "layers")) else LARGEST
        if isinstance(value, int) and abs(value) > most:
            raise InputError(f"{file}: {key} is {value}, more than {most}")
        for inner in value if isinstance(value, list) else ():
            check(key, inner)
        for name, inner in value.items() if isinstance(value, dict) else ():
            check(name, inner)

    check("", read_object(file, str(file.parent)))


def check_defaults(file: Path, index: dict[str, Any]) -> None:
    """Raise `InputError` unless the pipeline's own settings in `index` can be those of a call."""
    try:
        SamplingConfig.from_dict({name: index[name] for name in SamplingConfig.model_fields if name in index})
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def check_pairs(file: Path) -> None:
    """Raise `InputError` unless `trained_on` of the transformer's configuration names defects for each product."""
    pairs = read_object(file, str(file.parent)).get("trained_on") or {}
    if not isinstance(pairs, dict) or not all(
        isinstance(defects, list) and all(isinstance(defect, str) for defect in defects) for defects in pairs.values()
    ):
        raise InputError(f"{file}: trained_on must name the defects of each product, as {{product: [defect, ...]}}")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{tensor: its shape} of the safetensors in `folder`, from their headers alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLES]
        found = f"{pickles[0]} is a pickle, which can run code when loaded" if pickles else "none found"
        raise InputError(f"{folder}: weights must be .safetensors; {found}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is not a regular file")
        try:
            with safe_open(file, "pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is damaged or cut short: {error}") from error
    return shapes


def empty_model(folder: Path, library: str, name: str) -> nn.Module:
    """The model that the configuration in `folder` describes, without its numbers."""
    known: dict[str, Any] = AUTOENCODERS | {"CLIPTextModel": CLIPTextModel}  # Any: diffusers' have `from_config`
    if library.startswith("defectdiffu."):
        found = getattr(import_module(library), name, None)
        if inspect.isclass(found) and issubclass(found, (DefectDiffuTransformer, PatchAutoencoder)):
            known[name] = found
    if name not in known:
        raise InputError(f"{folder}: this package does not have {library}.{name}")
    settings = read_object(folder / "config.json", str(folder))
    try:
        with torch.device("meta"):
            if name == "CLIPTextModel":
                return CLIPTextModel(CLIPTextConfig(**settings))
            return known[name].from_config(settings)
    except Exception as error:  # whatever a constructor raises for settings that make no model
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder / 'config.json'} describes no {name}: {reason}") from error


def check_tensors(folder: Path, shapes: dict[str, tuple[int, ...]], model: nn.Module) -> None:
    """Raise `InputError` unless `shapes` are those of the model's tensors."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if isinstance(model, CLIPTextModel):  # transformers names its tensors differently from version to version
        for shape in Counter(expected.values()) - Counter(shapes.values()):
            raise InputError(f"{folder}: its configuration needs a tensor of shape {shape}, there is none")
        return
    for what, names in (("lacks", expected.keys() - shapes.keys()), ("has unknown", shapes.keys() - expected.keys())):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise InputError(f"{folder} {what} {len(names)} tensor(s): {some}{', ...' if len(names) > 3 else ''}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InputError(f"{folder}: {name} has shape {shapes[name]}, its configuration needs {shape}")


def check_finite(model: nn.Module, name: str) -> None:
    """Raise `InputError` if a weight is not a finite number: such weights generate black pictures."""
    for parameter, value in model.named_parameters():
        if not value.isfinite().all():
            raise InputError(f"{name}: {parameter} has values that are not finite numbers")
