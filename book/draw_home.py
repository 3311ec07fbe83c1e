"""Draws what the shipped weights `book` generate: the slider of the home page and the picture of the README.

Products with one defect each, all from seed 0, with growing w_d: alone, and with the generated mask. And one given
picture with four defects in a given place.
"""

from pathlib import Path

from PIL import Image, ImageDraw

from defectdiffu import DefectDiffuPipeline, viz
from defectdiffu.drawn.procedural import render
from defectdiffu.pictures import mosaic, overlay

PAIRS = (("hazelnut", "hole"), ("bottle", "broken"), ("wood", "color"), ("screw", "scratch"))
ON_NUT = ("crack", "hole", "cut", "contamination")
STRENGTHS = (0, 0.5, 1, 1.5, 2, 2.5, 3)
SIDE = 192  # pixels, of a picture on the page
FIGURES = Path(__file__).with_name("figures")

pipe = DefectDiffuPipeline.from_pretrained("book")
products, defects = zip(*PAIRS, strict=True)
alone: list[list[Image.Image]] = []
marked: list[list[Image.Image]] = []
for w_d in STRENGTHS:
    out = pipe(product=products, defect=defects, w_d=w_d, seeds=[0] * len(PAIRS))
    alone.append([image.resize((SIDE, SIDE)) for image in out.images])
    masked = [overlay(image, mask) for image, mask in zip(out.images, out.masks, strict=True)]
    marked.append([image.resize((SIDE, SIDE)) for image in masked])

frames = [mosaic([above, below]) for above, below in zip(alone, marked, strict=True)]
alt = f"{', '.join(map(' '.join, PAIRS))}; above alone, below with its mask;"
slider = viz.static_slider(frames, STRENGTHS, "w_d", alt, start=3, ends=("no defect", "strong"))
(FIGURES / "home_slider.html").write_text(slider.data + "\n")

shown = [STRENGTHS.index(w_d) for w_d in (0, 1, 2, 3)]
rows = [[*(alone[i][row] for i in shown), *(marked[i][row] for i in shown)] for row in range(len(PAIRS))]
mosaic(rows).save(FIGURES / "strengths.webp", quality=80, method=6)

nut = Image.fromarray(render("hazelnut", "good", seed=5).normal)
place = Image.new("L", nut.size)
ImageDraw.Draw(place).ellipse((95, 95, 165, 150), fill=255)
out = pipe("hazelnut", ON_NUT, image=nut, mask=place, seeds=[0] * len(ON_NUT))
masked = [overlay(nut, place), *(overlay(image, mask) for image, mask in zip(out.images, out.masks, strict=True))]
rows = [[image.resize((SIDE, SIDE)) for image in row] for row in ([nut, *out.images], masked)]
mosaic(rows).save(FIGURES / "given.webp", quality=80, method=6)
