"""The command line: `defectdiffu data|train|generate|evaluate|benchmark`. Results go to stdout, bad input to stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from defectdiffu.config import load_preset
from defectdiffu.errors import InputError

# Imports that load torch stand inside the commands, so that help and errors of use come at once.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Make and check data folders.")
app.add_typer(data_app, name="data")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure what was generated; every measure writes one JSON.")
app.add_typer(evaluate_app, name="evaluate")

Generated = Annotated[Path, typer.Option(help="Generated pairs, as `generate` writes them.")]
Real = Annotated[Path, typer.Option(help="Real or rendered pairs of the same products and defects.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file, too.")]


def main() -> None:
    """Entry point: what a user can put right is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"defectdiffu: {error}", file=sys.stderr)
        sys.exit(2)


def _finish(result: dict, file: Path | None) -> None:
    from defectdiffu.checkpoints import write_atomically

    text = json.dumps(result, indent=2)
    if file is not None:
        write_atomically(file, lambda path: path.write_text(text + "\n"))
    print(text)


@data_app.command("render")
def data_render(
    out: Path,
    products: Annotated[str | None, typer.Option(help="Comma-separated; all unless given.")] = None,
    defects: Annotated[str | None, typer.Option(help="Comma-separated; all unless given.")] = None,
    per_pair: Annotated[int, typer.Option(min=1, help="Defect images per pair; ten times as many good ones.")] = 10,
    size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="Only the pairs that training never sees.")] = False,
) -> None:
    """Render the procedural set into OUT, in MVTec AD's layout."""
    from defectdiffu.data.procedural import write_dataset

    names = (None if v is None else [n.strip() for n in v.split(",")] for v in (products, defects))
    write_dataset(out, *names, per_pair=per_pair, size=size, seed=seed, held_out=held_out)
    print(out)


@data_app.command("check")
def data_check(folder: Path) -> None:
    """List every problem of a folder in MVTec AD's layout with its file; exit code 1 if there are any."""
    from defectdiffu.data.validate import check_folder

    problems = check_folder(folder)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem(s) in {folder}", file=sys.stderr)
    sys.exit(1 if problems else 0)


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="tiny, book, paper, or a JSON file.")],
    data: Annotated[list[Path], typer.Option(help="A folder in MVTec AD's layout; may be given again.")],
    out: Annotated[Path, typer.Option(help="The run's folder; the same command again resumes.")],
    val: Annotated[Path | None, typer.Option(help="A folder to watch the losses on, never trained on.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The autoencoder gets at most twice as many.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not begin from the preset's shipped weights.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it takes.")] = False,
) -> None:
    """Train on folders of images; OUT is then a model to generate with.

    `tiny` adapts the weights that come with the package, autoencoder and all, unless told otherwise.
    """
    settings = load_preset(preset)
    if from_scratch:
        settings = settings.replace(start_from=None)
    if steps is not None:
        settings = settings.replace(
            training={"steps": steps}, autoencoder={"steps": min(settings.autoencoder.steps, 2 * steps)}
        )
    if dry_run:
        from defectdiffu.planning import plan

        _finish(plan(settings, data), None)
        return
    from defectdiffu.training import train as run

    print(run(settings, data, out, val))


@app.command()
def generate(
    product: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option(help="Images and masks go here, in MVTec AD's layout.")],
    defect: Annotated[str, typer.Option()] = "good",
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 4,
    w_d: Annotated[float | None, typer.Option(help="Strength of the defect.")] = None,
    w_p: Annotated[float | None, typer.Option(help="Strength of the product.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the next has the next.")] = 0,
    guidance: Annotated[str | None, typer.Option(help="double_free, defect_only or product_aware.")] = None,
) -> None:
    """Generate image-mask pairs."""
    from defectdiffu.generation import generate_folder

    record = generate_folder(
        _pipeline(weights), out, product, defect, num, seed, w_d=w_d, w_p=w_p, steps=steps, guidance=guidance
    )
    skipped = len(record["seeds_without_mask"])
    note = f", {skipped} without a mask left out" if skipped else ""
    print(f"{len(record['seeds'])} of {num} pairs in {out}{note}")


def _evaluate(measure: str, file: Path | None, **arguments) -> None:
    from defectdiffu.evaluation import evaluate

    print(json.dumps(evaluate(measure, file, **arguments), indent=2))


@evaluate_app.command()
def oracle(
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="Images per product and defect.")] = 8,
    file: Json = None,
) -> None:
    """Rendered products only: is it the product, the defect, and the defect's mask; does w_d mean strength?"""
    _evaluate("oracle", file, weights=weights, num=num)


@evaluate_app.command()
def fidelity(generated: Generated, real: Real, file: Json = None) -> None:
    """FID, KID and Inception Score, or the judge's Frechet distance where Inception cannot be fetched."""
    _evaluate("fidelity", file, generated=generated, real=real)


@evaluate_app.command()
def diversity(generated: Generated, real: Real, file: Json = None) -> None:
    """LPIPS and both variants of IC-LPIPS."""
    _evaluate("diversity", file, generated=generated, real=real)


@evaluate_app.command()
def memorisation(generated: Generated, real: Real, file: Json = None) -> None:
    """How near each generated image is to the training images, against how near those are to each other."""
    _evaluate("memorisation", file, generated=generated, real=real)


@evaluate_app.command()
def downstream(
    generated: Generated,
    real: Real,
    test: Annotated[Path, typer.Option(help="Pairs to test on; the same folder as --real is split in halves.")],
    file: Json = None,
) -> None:
    """Do the pairs help a detector? Against real pairs alone, copy-paste and Perlin noise."""
    _evaluate("downstream", file, generated=generated, real=real, test=test)


@app.command()
def benchmark(
    preset: Annotated[str, typer.Option(help="tiny, book, paper, or a JSON file.")] = "tiny",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    file: Json = None,
) -> None:
    """Measure training and sampling throughput of this machine."""
    from defectdiffu.benchmark import benchmark as run

    _finish(run(load_preset(preset), repeats), file)


def _pipeline(weights: str):
    import torch

    from defectdiffu.pipeline import DefectDiffuPipeline

    return DefectDiffuPipeline.from_pretrained(weights).to("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
