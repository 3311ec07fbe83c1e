"""DefectDiffu: few-shot defect image generation based on consistency modeling, explained, runnable and measured."""

from defectdiffu.config import PRESETS
from defectdiffu.errors import InputError
from defectdiffu.model import DefectDiffuTransformer
from defectdiffu.pipeline import DefectDiffuPipeline
from defectdiffu.prompts import PromptEmbedding

__all__ = ["PRESETS", "DefectDiffuPipeline", "DefectDiffuTransformer", "InputError", "PromptEmbedding"]
__version__ = "0.1.0"
