"""Saves the diagram of chapter 3, as its executed notebook shows it, for other pages: figures/architecture.webp."""

import base64
import io
from pathlib import Path

import jupytext
from PIL import Image

BOOK = Path(__file__).parent
CHAPTER = BOOK.parent / "notebooks" / "03_prompts_and_tdia.ipynb"

cells = jupytext.read(CHAPTER).cells
(diagram,) = (
    cell for cell in cells if cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").startswith("Diagram")
)
(drawn,) = (out.data["image/jpeg"] for out in diagram.outputs if "image/jpeg" in out.get("data", {}))
Image.open(io.BytesIO(base64.b64decode(drawn))).save(BOOK / "figures" / "architecture.webp", quality=80, method=6)
