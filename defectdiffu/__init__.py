"""DefectDiffu: few-shot defect image generation based on consistency modeling, explained, runnable and measured."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Names and where they are. They are imported when first used (PEP 562): the command line's help needs no torch.
_PLACES = {
    "PRESETS": "config",
    "DefectDiffuPipeline": "pipeline",
    "DefectDiffuTransformer": "model",
    "InputError": "errors",
    "PromptEmbedding": "prompts",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
