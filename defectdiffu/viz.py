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
    what = ", ".join(asked[name] for name in ("product", "defect") if name != over)
    label = "steps" if over == "num_inference_steps" else over
    return static_slider(frames, values, label, f"{what}; above alone, below with its mask;", start=len(values) // 2)


# Elements are found from the figure that contains the range input: no ids, so any number of figures share a page.
# With two range inputs the frames are the rows of a grid, one after the other. The positions of the inputs are given to
# the figure's style as --at-0 and --at-1, for arrows that follow them.
MOVE = (
    "const f = this.closest('figure'), frames = f.querySelectorAll('img'), ranges = [...f.querySelectorAll('input')];"
    "const at = ranges.reduce((sum, range) => sum * (+range.max + 1) + +range.value, 0);"
    "const text = frames[at].dataset.text;"
    "frames.forEach((frame, i) => frame.style.display = i === at ? 'block' : 'none');"
    "ranges.forEach((range, i) => {"
    " f.style.setProperty(`--at-${i}`, range.value); range.setAttribute('aria-valuetext', text); });"
    "f.querySelector('output').value = text;"
)


# The button beside the slider moves it on from frame to frame, and stops it.
PLAY = (
    "const range = this.closest('figure').querySelector('input');"
    "if (this.timer) { clearInterval(this.timer); this.timer = 0; this.textContent = '\u25b6'; return; }"
    "this.textContent = '\u275a\u275a';"
    "this.timer = setInterval(() => { range.value = range.value === range.max ? 0 : +range.value + 1;"
    " range.dispatchEvent(new Event('input')); }, 800);"
)

STEP = 40  # units between two values on the explorer's plane
# A pointer on the plane moves both range inputs to the nearest value.
POINT = (
    "if (event.type === 'pointermove') { if (!event.buttons) return; } else this.setPointerCapture(event.pointerId);"
    "const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.getScreenCTM().inverse());"
    "const ranges = this.closest('figure').querySelectorAll('input');"
    f"ranges[0].value = Math.round(-at.y / {STEP}); ranges[1].value = Math.round(at.x / {STEP});"
    "ranges[0].dispatchEvent(new Event('input'));"
)


def named(label: str, value: Any) -> str:
    return f"{label} = {value if isinstance(value, str) else f'{value:g}'}"


def hidden_frames(frames: Sequence[Image.Image], texts: Sequence[str], alt: str, start: int) -> str:
    """HTML of the frames as WebP inside the page; only number `start` is displayed."""
    # No dimmed frames on a dark page: the theme's class "dark-light".
    return "".join(
        f'<img class="dark-light" src="data:image/webp;base64,{base64.b64encode(to_webp(frame)).decode()}" '
        f'data-text="{html.escape(text)}" alt="{html.escape(f"{alt} {text}")}" '
        f'width="{frame.width}" height="{frame.height}" '
        f'style="display:{"block" if i == start else "none"};max-width:100%;height:auto;margin:0">'
        for i, (frame, text) in enumerate(zip(frames, texts, strict=True))
    )


def range_input(label: str, last: int, start: int, text: str, colour: str) -> str:
    """HTML of a range input from 0 to `last`, high enough for a finger; a screen reader gets `text` as its value."""
    return (
        f'<input type="range" min="0" max="{last}" step="1" value="{start}" autocomplete="off" '
        f'aria-label="{html.escape(label)}" aria-valuetext="{html.escape(text)}" oninput="{MOVE}" '
        f'style="flex:1;min-width:0;height:2.75em;accent-color:{colour}">'
    )


def output(text: str) -> str:
    return (
        f'<output aria-live="off" style="min-width:7em;font-variant-numeric:tabular-nums">{html.escape(text)}</output>'
    )


def figure(inside: str, style: str = "") -> HTML:
    """Black on white, whatever the colours of the page are."""
    return HTML(
        f'<figure style="margin:1em 0;padding:8px;width:fit-content;max-width:100%;box-sizing:border-box;'
        f'background:white;color:black;border-radius:4px;{style}">{inside}</figure>'
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
    texts = [named(label, value) for value in values]
    below = "" if ends is None else "".join(f"<span>{html.escape(end)}</span>" for end in ends)
    return figure(
        f"{hidden_frames(frames, texts, alt, start)}"
        f'<div style="display:flex;gap:1em;align-items:center;margin:0.25em 0 0">'
        f'<button type="button" aria-label="play" onclick="{PLAY}" style="width:2.75em;height:2.75em;border:0;'
        f'border-radius:4px;background:#eee;color:black">\u25b6</button>'
        f'<label style="display:flex;gap:1em;align-items:center;flex:1;min-width:0">'
        f"{range_input(label, len(frames) - 1, start, texts[start], PRODUCT)}{output(texts[start])}</label></div>"
        f'<div style="display:flex;justify-content:space-between;margin:0 8em 0 3.75em;font-size:85%">{below}</div>'
    )


def explorer(
    pipe: "DefectDiffuPipeline",
    product: str,
    defect: str,
    w_p: Sequence[float] = (0, 1, 2, 3),
    w_d: Sequence[float] = (0, 0.75, 1.5, 2.25, 3),
    seed: int = 0,
    start: tuple[int, int] = (0, 0),
    **settings: Any,
) -> HTML:
    """Return `static_explorer` of one seed of a pipeline: a frame for each w_p and w_d, below with its mask.

    start: see `static_explorer`. settings: other arguments of the pipeline.
    """
    frames = []
    for scale in w_p:
        out = pipe(product, defect, w_d=list(w_d), w_p=scale, seeds=[seed] * len(w_d), **settings)
        drawn = zip(out.images, out.masks, strict=True)
        frames.append([mosaic([[enlarge(image)], [overlay(enlarge(image), enlarge(mask))]]) for image, mask in drawn])
    return static_explorer(frames, w_p, w_d, f"{product}, {defect}; above alone, below with its mask;", start)


def static_explorer(
    frames: Sequence[Sequence[Image.Image]],
    w_p: Sequence[float],
    w_d: Sequence[float],
    alt: str = "",
    start: tuple[int, int] = (0, 0),
) -> HTML:
    """Return Eq. 4 as a plane: a point dragged along its two directions, and the frame that belongs to the point.

    Part of the page like `static_slider`; moved by mouse or touch on the plane, or by the range inputs below it, which
    take arrow keys. frames[i][j]: what w_p[i] and w_d[j] give, both evenly spaced from 0 on; alt: text description of
    the frames; start: indices (i, j) of the frame shown first.
    Raises `InputError` if there are no frames or not one for each pair of values.
    """
    if not w_p or not w_d or [len(row) for row in frames] != [len(w_d)] * len(w_p):
        raise InputError(f"frames must have a row for each of {len(w_p)} w_p, with a frame for each of {len(w_d)} w_d")
    up, right = STEP * (len(w_p) - 1), STEP * (len(w_d) - 1)
    texts = [f"{named('w_p', p)}, {named('w_d', d)}" for p in w_p for d in w_d]
    at = start[0] * len(w_d) + start[1]
    dots = "".join(
        f'<circle cx="{STEP * j}" cy="{-STEP * i}" r="2" fill="#bbb"/>'
        for i in range(len(w_p))
        for j in range(len(w_d))
    )
    moved_up, moved = f"translate(0,calc(var(--at-0)*-{STEP}px))", f"calc(var(--at-1)*{STEP}px)"
    # Each arrow: a line of one step, stretched, and a head, moved; a head of an arrow without length is transparent.
    plane = (
        f'<svg viewBox="-34 {-up - 34} {right + 60} {up + 66}" aria-hidden="true" onpointerdown="{POINT}" '
        f'onpointermove="{POINT}" style="display:block;width:100%;touch-action:none;cursor:crosshair" '
        f'fill="none" stroke-width="3" font-size="15">{dots}'
        f'<g stroke="{PRODUCT}"><path d="M0 0V{-STEP}" vector-effect="non-scaling-stroke" '
        f'style="transform:scaleY(var(--at-0))"/><path d="m-5 9 5-9 5 9" '
        f'style="transform:{moved_up};opacity:var(--at-0)"/></g>'
        f'<g stroke="{DEFECT}" style="transform:{moved_up}"><path d="M0 0H{STEP}" vector-effect="non-scaling-stroke" '
        f'style="transform:scaleX(var(--at-1))"/><path d="m-9-5 9 5-9 5" '
        f'style="transform:translate({moved},0);opacity:var(--at-1)"/></g>'
        f'<circle r="9" stroke="black" style="transform:translate({moved},calc(var(--at-0)*-{STEP}px))"/>'
        f'<g stroke="none" fill="black"><text x="-32" y="28">\u03b5(g, \u2205)</text>'
        f'<text x="-32" y="{-up - 18}" fill="{PRODUCT}">w_p F_p</text>'
        f'<text x="{right + 22}" y="28" text-anchor="end" fill="{DEFECT}">w_d F_d</text></g></svg>'
    )
    controls = "".join(
        f'<label style="display:flex;gap:0.5em;align-items:center;color:{colour}">{label}'
        f"{range_input(label, len(values) - 1, i, texts[at], colour)}</label>"
        for label, values, i, colour in (("w_p", w_p, start[0], PRODUCT), ("w_d", w_d, start[1], DEFECT))
    )
    pictures = hidden_frames([frame for row in frames for frame in row], texts, alt, at)
    return figure(
        f'<div style="display:flex;gap:1em;align-items:center"><div style="flex:1 1 auto">{pictures}</div>'
        f'<div style="flex:0 1 15em;min-width:9em">{plane}{controls}{output(texts[at])}</div></div>',
        f"--at-0:{start[0]};--at-1:{start[1]}",
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
