"""A page to try a model in a browser: product, defect, scales, a picture of one's own and a brush for the place.

Needs the extra [demo], which is gradio.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectdiffu.config import LARGEST_SEED, STRENGTH
from defectdiffu.errors import InputError
from defectdiffu.pictures import overlay, to_png
from defectdiffu.pipeline import DefectDiffuPipeline

try:
    import gradio as gr
except ImportError as error:
    raise InputError('the demo needs gradio: pip install "defectdiffu[demo]"') from error

SIDE = 512  # pixels, of the results on the page


def draw(
    pipe: DefectDiffuPipeline,
    folder: Path,
    product: str,
    defect: str,
    w_d: float,
    w_p: float,
    seed: float,
    steps: float,
    editor: dict[str, Any] | None,
    strength: float,
) -> tuple[Image.Image, Image.Image, str]:
    """What the button does: the picture, the same with its mask, and a new ZIP file in `folder` with the pair.

    editor: the picture of one's own, "background", and what was painted on it, "layers", all RGBA, or None.
    """
    given: dict[str, Any] = {}
    background = editor["background"] if editor else None
    if editor and background is not None and background.getbbox() is not None:  # without a picture it is transparent
        given = {"image": background.convert("RGB"), "strength": strength}
        painted = np.zeros((background.height, background.width), bool)
        for layer in editor["layers"]:
            painted = painted | (np.asarray(layer.convert("RGBA"))[..., 3] > 0)
        if painted.any():
            given["mask"] = Image.fromarray(painted)
    out = pipe(product, defect, w_d=w_d, w_p=w_p, seeds=[int(seed)], num_inference_steps=int(steps), **given)
    (image,), (mask,) = out.images, out.masks
    file = Path(tempfile.mkdtemp(dir=folder)) / f"{product}-{defect}-{int(seed)}.zip"
    with zipfile.ZipFile(file, "w") as pair:
        pair.writestr("image.png", to_png(image))
        pair.writestr("mask.png", to_png(mask))
    return image, overlay(image, mask), str(file)


def page(pipe: DefectDiffuPipeline, folder: Path) -> gr.Blocks:
    """The page; ZIP files go to `folder`."""
    first = next(product for product in pipe.products if pipe.pairs[product])
    config = pipe.config
    shown: dict[str, Any] = {
        "format": "png",
        "height": SIDE,
        "interactive": False,
        "buttons": ["download", "fullscreen"],
    }

    def answer(*values: Any) -> tuple[Image.Image, Image.Image, str]:
        try:
            return draw(pipe, folder, *values)
        except InputError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="DefectDiffu", analytics_enabled=False) as blocks:
        gr.Markdown("# DefectDiffu\nA defect of your choice on a product, or on a picture of your own, with its mask.")
        with gr.Row():
            with gr.Column():
                product = gr.Dropdown(pipe.products, value=first, label="product")
                defect = gr.Dropdown(pipe.defects, value=pipe.pairs[first][0], label="defect")
                w_d = gr.Slider(0, 4, config.w_d, step=0.25, label="w_d: strength of the defect")
                w_p = gr.Slider(0, 4, config.w_p, step=0.25, label="w_p: strength of the product")
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=LARGEST_SEED)
                steps = gr.Slider(1, 100, config.num_inference_steps, step=1, label="denoising steps")
                editor = gr.ImageEditor(
                    label="optional: a defect-free picture; paint where the defect goes",
                    type="pil",
                    format="png",
                    sources=("upload", "clipboard"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=20, colors=["#00BEFF"], color_mode="fixed"),
                )
                strength = gr.Slider(0.1, 1, STRENGTH, step=0.05, label="how much of the painted place may change")
                button = gr.Button("Generate", variant="primary")
            with gr.Column():
                image = gr.Image(label="picture", **shown)
                marked = gr.Image(label="with its mask", **shown)
                download = gr.DownloadButton("Download the pair")
        inputs = [product, defect, w_d, w_p, seed, steps, editor, strength]
        button.click(answer, inputs, [image, marked, download], api_name="generate")
    return blocks


def serve(pipe: DefectDiffuPipeline, port: int, host: str = "127.0.0.1") -> None:
    """Serve the page until the process is stopped, to this machine only unless `host` says otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none from a server
        page(pipe, Path(folder)).launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[folder],
            theme=gr.themes.Default(**fonts),
            footer_links=[],
        )
