"""Functions for the book's figures: enlarging, overlays, grids, and sliders with and without a kernel."""

import base64
import html
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from defectdiffu.config import GOOD
from defectdiffu.drawn.procedural import PAIRS, contact_sheet
from defectdiffu.errors import InputError, check_choice
from defectdiffu.pictures import enlarge, mosaic, overlay, to_webp

if TYPE_CHECKING:  # what only draws need not load the model's libraries
    from defectdiffu.pipeline import DefectDiffuOutput, DefectDiffuPipeline

# Okabe and Ito's palette, distinguishable under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PRODUCT, DEFECT, FUSION = COLOURS[:3]  # the same meaning in every figure, equation and diagram


def use_style() -> None:
    """Set matplotlib's style for all figures. The background is white, so figures are readable on a dark page."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": 120,
            "savefig.facecolor": "white",
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 88})  # a third of a PNG's size


def show_code(*functions: Callable) -> None:
    """Print functions without their documentation."""
    for function in functions:
        before, *rest = inspect.getsource(function).split('"""')
        print(before.rstrip() + "".join(rest[1:]).rstrip() + "\n")


def grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    inches: float = 1.1,
) -> Figure:
    """Return a figure of rows of images, labels to the left and above; `inches` is the side of one image."""
    columns = max(len(row) for row in rows)
    margin = 0.075 * max((len(label) for label in row_labels), default=0)  # space for the longest label
    size = (margin + columns * inches, len(rows) * inches)
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout=layout)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, line in zip(rows, axes, strict=True):
        for image, axis in zip(row, line, strict=False):
            axis.imshow(enlarge(image), cmap="gray", vmin=0, vmax=255)
    for label, axis in zip(row_labels, axes[:, 0], strict=False):
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    for label, axis in zip(column_labels, axes[0], strict=False):
        axis.set_title(label)
    plt.close(figure)  # shown once, as the value of the cell
    return figure


def sheet(outputs: Mapping[str, "DefectDiffuOutput"], column_labels: Sequence[str] = ()) -> Figure:
    """Return a figure with two rows for each output of the pipeline: its images, and the same with their masks.

    outputs: label -> output, for example {"hazelnut, crack": pipe(product="hazelnut", defect="crack")}.
    """
    rows, labels = [], []
    for label, out in outputs.items():
        images = [enlarge(image) for image in out.images]
        masks = [enlarge(mask) for mask in out.masks]
        rows += [images, [overlay(image, mask) for image, mask in zip(images, masks, strict=True)]]
        labels += [label, "with mask"]
    return grid(rows, labels, column_labels)


def pairs(out: "DefectDiffuOutput", side: int = 192) -> Image.Image:
    """Return an output of the pipeline as one picture: its images, and below each the same image with its mask."""
    images = [enlarge(image, side) for image in out.images]
    masks = [enlarge(mask, side) for mask in out.masks]
    return mosaic([images, [overlay(image, mask) for image, mask in zip(images, masks, strict=True)]])


def slider(
    pipe: "DefectDiffuPipeline",
    product: str | None = None,
    defect: str | None = None,
    over: str = "w_d",
    values: Sequence = (0, 0.5, 1, 1.5, 2, 2.5, 3),
    seeds: Sequence[int] = (0, 1, 2, 3),
    live: bool = False,
    **settings: Any,
) -> HTML | ipywidgets.Widget:
    """Return the slider of a pipeline: frames stored in the page or, with `live`, widgets that call the kernel.

    over: the argument of the pipeline that the static slider changes, through `values`; every frame shows the same
    `seeds`, above without masks, below with masks. settings: other arguments of the pipeline, such as "w_p". The live
    slider has a control for each argument and starts with the values given here and the first seed.
    Raises `InputError` if `over` is not such an argument.
    """
    check_choice("over", over, ("product", "defect", "w_d", "w_p", "num_inference_steps", "guidance"))
    asked = {"product": product or pipe.products[0], "defect": defect or pipe.defects[0], **settings}
    if live:
        return live_slider(pipe, seed=seeds[0], **asked)
    frames = [pairs(pipe(**asked | {over: v}, seeds=seeds, num_images=len(seeds))) for v in values]
    named = ", ".join(asked[name] for name in ("product", "defect") if name != over)
    label = "steps" if over == "num_inference_steps" else over
    return static_slider(frames, values, label, f"{named}; above alone, below with its mask;", start=len(values) // 2)


# Elements are found from the figure that contains the range input: no ids, so any number of sliders share a page.
MOVE = (
    "const f = this.closest('figure'), frames = f.querySelectorAll('img'), text = frames[this.value].dataset.text;"
    "frames.forEach((frame, i) => frame.style.display = i == this.value ? 'block' : 'none');"
    "f.querySelector('output').value = text; this.setAttribute('aria-valuetext', text);"
)


# The button beside the slider moves it on from frame to frame, and stops it.
PLAY = (
    "const range = this.closest('figure').querySelector('input');"
    "if (this.timer) { clearInterval(this.timer); this.timer = 0; this.textContent = '\u25b6'; return; }"
    "this.textContent = '\u275a\u275a';"
    "this.timer = setInterval(() => { range.value = range.value === range.max ? 0 : +range.value + 1;"
    " range.dispatchEvent(new Event('input')); }, 800);"
)


def static_slider(
    frames: Sequence[Image.Image],
    values: Sequence,
    label: str = "w_d",
    alt: str = "",
    start: int = 0,
    ends: tuple[str, str] | None = None,
) -> HTML:
    """Return a slider over frames that are part of the page: it needs no kernel, no server and no network.

    frames, values: one number or name per frame; label: name of the values; alt: text description of the frames;
    start: index of the first frame shown; ends: what the two ends of the scale mean, written below them. Moved by
    mouse, touch, arrow keys or its play button.
    Raises `InputError` if there are no frames or not one value for each.
    """
    if not frames or len(frames) != len(values):
        raise InputError(
            f"{len(frames)} frames and {len(values)} values: give at least one frame, and a value for each"
        )
    texts = [html.escape(f"{label} = {value if isinstance(value, str) else f'{value:g}'}") for value in values]
    images = "".join(
        f'<img class="dark-light" src="data:image/webp;base64,{base64.b64encode(to_webp(frame)).decode()}" '
        f'data-text="{text}" alt="{html.escape(alt)} {text}" width="{frame.width}" height="{frame.height}" '
        f'style="display:{"block" if i == start else "none"};max-width:100%;height:auto;margin:0">'
        for i, (frame, text) in enumerate(zip(frames, texts, strict=True))
    )
    # Black on white for any page colours, and no dimmed frames on a dark page (the theme's class "dark-light");
    # the control is high enough for a finger; a screen reader gets the value only from the control.
    below = "" if ends is None else "".join(f"<span>{html.escape(end)}</span>" for end in ends)
    return HTML(
        f'<figure style="margin:1em 0;padding:8px;width:fit-content;max-width:100%;box-sizing:border-box;'
        f'background:white;color:black;border-radius:4px">{images}'
        f'<div style="display:flex;gap:1em;align-items:center;margin:0.25em 0 0">'
        f'<button type="button" aria-label="play" onclick="{PLAY}" style="width:2.75em;height:2.75em;border:0;'
        f'border-radius:4px;background:#eee;color:black">\u25b6</button>'
        f'<label style="display:flex;gap:1em;align-items:center;flex:1;min-width:0">'
        f'<input type="range" min="0" max="{len(frames) - 1}" step="1" value="{start}" autocomplete="off" '
        f'aria-label="{html.escape(label)}" aria-valuetext="{texts[start]}" oninput="{MOVE}" '
        f'style="flex:1;min-width:0;height:2.75em;accent-color:{COLOURS[0]}">'
        f'<output aria-live="off" style="min-width:7em;font-variant-numeric:tabular-nums">{texts[start]}</output>'
        f"</label></div>"
        f'<div style="display:flex;justify-content:space-between;margin:0 8em 0 3.75em;font-size:85%">{below}</div>'
        f"</figure>"
    )


def live_slider(
    pipe: "DefectDiffuPipeline", product: str | None = None, defect: str | None = None, seed: int = 0, **settings: Any
) -> ipywidgets.Widget:
    """Return widgets that call the pipeline: product, defect, w_d, w_p, seed and steps, and the resulting pair.

    settings: initial values of w_d, w_p and num_inference_steps; other settings are passed to every call unchanged,
    such as `image` and `mask` to put the defect on a picture of one's own.
    Only the picture is redrawn, and frames computed before are shown from a cache; the line below the controls
    says how long the last new frame took.
    """
    start = {name: settings.pop(name, pipe.config[name]) for name in ("w_d", "w_p", "num_inference_steps")}
    waits = {"continuous_update": False}  # compute a frame when the handle is released, not while it moves
    controls = {
        "product": ipywidgets.Dropdown(options=pipe.products, value=product or pipe.products[0]),
        "defect": ipywidgets.Dropdown(options=["good", *pipe.defects], value=defect or pipe.defects[0]),
        "w_d": ipywidgets.FloatSlider(start["w_d"], min=0, max=4, step=0.25, **waits),
        "w_p": ipywidgets.FloatSlider(start["w_p"], min=0, max=4, step=0.25, **waits),
        "seed": ipywidgets.BoundedIntText(seed, min=0, max=2**31 - 1),
        "num_inference_steps": ipywidgets.IntSlider(start["num_inference_steps"], min=1, max=100, **waits),
    }
    for name, control in controls.items():
        control.description = "steps" if name == "num_inference_steps" else name
    picture, status = ipywidgets.Image(format="webp"), ipywidgets.Label()

    @cache
    def draw(seed: int, **chosen: Any) -> bytes:
        status.value = "drawing ..."
        begin = time.perf_counter()
        out = pipe(seeds=[seed], **settings, **chosen)
        status.value = f"a frame takes {time.perf_counter() - begin:.1f} s"
        return to_webp(pairs(out, 256))

    def redraw(_change: object = None) -> None:
        picture.value = draw(**{name: control.value for name, control in controls.items()})

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    left = ipywidgets.VBox([*controls.values(), status])
    return ipywidgets.HBox([left, picture], layout=ipywidgets.Layout(flex_flow="row wrap"))


SHEET_SIDE = 96  # pixels, of a picture on `weights_sheet`


def weights_sheet(pipe: "DefectDiffuPipeline", strengths: Sequence[float] = (1, 2, 3), seed: int = 0) -> Image.Image:
    """Return generated pictures of every procedural pair, below them the same with the generated mask.

    Each defect at `strengths`, all from one seed; "good" from that seed and the following ones. Pictures larger than
    `SHEET_SIDE` pixels are scaled down to it.
    """
    pairs = [(product, defect) for product, found in PAIRS.items() for defect in (GOOD, *found)]
    frames = [(pair, w_d, seed + i * (pair[1] == GOOD)) for pair in pairs for i, w_d in enumerate(strengths)]
    out = pipe(
        product=[product for (product, _), _, _ in frames],
        defect=[defect for (_, defect), _, _ in frames],
        w_d=[0.0 if defect == GOOD else float(w_d) for (_, defect), w_d, _ in frames],
        seeds=[seed for *_, seed in frames],
        batch_size=16,
    )
    drawn: dict[tuple[str, str], list] = {pair: [] for pair in pairs}
    for (pair, *_), image, mask in zip(frames, out.images, out.masks, strict=True):
        side = min(image.width, SHEET_SIDE)
        drawn[pair].append(
            [tile.resize((side, side), Image.Resampling.LANCZOS) for tile in (image, overlay(image, mask))]
        )
    return contact_sheet(lambda *pair: mosaic([*zip(*drawn[pair], strict=True)], gap=2))
