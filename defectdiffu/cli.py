"""The command line: `defectdiffu data|train|generate|evaluate|benchmark`. Results go to stdout, messages to stderr."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from defectdiffu import __version__
from defectdiffu.config import STRENGTH, load_preset
from defectdiffu.errors import InputError, printable

if TYPE_CHECKING:
    from accelerate import PartialState

# Imports that load torch are inside the commands, so that help and usage errors appear at once.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn from few pictures what a product and a defect look like; generate defect images with their masks.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make and check data folders.")
app.add_typer(data_app, name="data")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure what was generated; every measure writes one JSON.")
app.add_typer(evaluate_app, name="evaluate")

Generated = Annotated[Path, typer.Option(help="Generated pairs, as `generate` writes them.")]
Real = Annotated[Path, typer.Option(help="Real or rendered pairs of the same products and defects.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]


UsageError: Any = typer.BadParameter.__bases__[0]  # typer has it from click or from its own copy of click


class Stopped(BaseException):
    """Ctrl-C; typer itself would turn a KeyboardInterrupt into "Aborted"."""


def main() -> None:
    """Entry point: an error that a user can fix is one line on stderr and exit code 2."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(error.format_message())
    except Stopped:
        print("\ndefectdiffu: stopped; what is finished stays, and the same command resumes", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str) -> NoReturn:
    if message:  # empty where a group of commands was called alone and has printed its help
        print(f"defectdiffu: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"defectdiffu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _finish(result: dict, file: Path | None) -> None:
    from defectdiffu.files import write_json

    if file is not None:
        write_json(file, result)
    print(json.dumps(result, indent=2))


@data_app.command("render")
def data_render(
    out: Path,
    products: Annotated[str | None, typer.Option(help="Comma-separated; default: all.")] = None,
    defects: Annotated[str | None, typer.Option(help="Comma-separated; default: all.")] = None,
    per_pair: Annotated[int, typer.Option(min=1, help="Defect images per pair.")] = 10,
    good: Annotated[
        int | None, typer.Option(min=1, help="Good images per product; default: ten times --per-pair.")
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Another seed renders other specimens.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="Only the pairs held out of training.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that render; default: one per core.")] = None,
) -> None:
    """Render the procedural set into OUT, in MVTec AD's layout; the same command again resumes."""
    from defectdiffu.drawn.procedural import write_dataset
    from defectdiffu.drawn.workers import cores

    write_dataset(out, _names(products), _names(defects), per_pair, size, seed, held_out, good, workers or cores())
    print(printable(out))


@data_app.command("check")
def data_check(
    folder: Path,
    size: Annotated[int, typer.Option(min=8, help="Side in pixels of the pictures to train on.")] = 256,
) -> None:
    """List every problem of a folder in MVTec AD's layout with its file, and what is doubtful as warnings.

    Exit code 1 if there are problems; warnings alone leave it 0.
    """
    from defectdiffu.data.validate import examine

    problems, notices = examine(folder, size)
    for problem in problems:
        print(printable(problem))
    for notice in notices:
        print(printable(f"warning: {notice}"))
    print(f"{len(problems)} problem(s), {len(notices)} warning(s) in {printable(folder)}", file=sys.stderr)
    sys.exit(1 if problems else 0)


@data_app.command("split")
def data_split(
    source: Path,
    few: Path,
    rest: Path,
    per_defect: Annotated[int, typer.Option(min=1, help="Images per product and defect in FEW.")] = 10,
    good: Annotated[int, typer.Option(min=1, help="Good images per product in FEW.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Another seed chooses other images.")] = 0,
) -> None:
    """Copy a folder into two new ones: FEW to train on, REST to test on."""
    from defectdiffu.data.splitting import write_split

    _finish(write_split(source, few, rest, per_defect, good, seed), None)


@data_app.command("tile")
def data_tile(
    source: Path,
    out: Path,
    size: Annotated[int, typer.Option(min=16, help="Side of a tile in pixels.")] = 256,
    overlap: Annotated[int, typer.Option(min=0, help="Pixels that neighbours share.")] = 32,
    good: Annotated[int, typer.Option(min=0, help="Tiles without a defect, per product.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of good tiles.")] = 0,
) -> None:
    """Cut large or oblong pictures and their masks into tiles: SOURCE and the new folder OUT in MVTec AD's layout."""
    from defectdiffu.data.tiling import tile_folder

    _finish(tile_folder(source, out, size, overlap, good, seed), None)


@data_app.command("download")
def data_download(name: str, out: Path) -> None:
    """Print the licence of a public data set and fetch its archive into OUT: mvtec, visa or ksdd2."""
    from defectdiffu.data.datasets import download

    print(printable(download(name, out)))


@data_app.command("convert")
def data_convert(
    name: Annotated[str, typer.Argument(help="mvtec, visa, ksdd2, or folder: a folder of your own.")],
    source: Path,
    out: Path,
    binarise: Annotated[bool, typer.Option("--binarise", help="folder: masks get two values.")] = False,
    invert: Annotated[bool, typer.Option("--invert", help="folder: black in the masks is the defect.")] = False,
    white: Annotated[int | None, typer.Option(min=1, max=65535, help="folder: white of 16-bit pictures.")] = None,
) -> None:
    """Turn SOURCE into the new folder OUT in MVTec AD's layout.

    SOURCE is a public set in its owners' layout, a folder or its archive, or a folder of your own, of which the result
    says what was taken for what.
    """
    from defectdiffu.data.adopt import adopt
    from defectdiffu.data.datasets import convert

    if name == "folder":
        _finish(adopt(source, out, binarise, invert, white), None)
    elif binarise or invert or white is not None:
        raise InputError(f"--binarise, --invert and --white are for `data convert folder`, not for {name}")
    else:
        _finish(convert(name, source, out), None)


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="tiny, book, paper, or a JSON file.")],
    data: Annotated[list[Path], typer.Option(help="A folder in MVTec AD's layout; repeatable.")],
    out: Annotated[Path, typer.Option(help="The run's folder; the same command again resumes.")],
    val: Annotated[Path | None, typer.Option(help="A folder for validation losses, never trained on.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; the autoencoder gets at most twice as many.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Instead of --steps: as many steps as fit in this time.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per step.")] = None,
    without: Annotated[str | None, typer.Option(help="Pairs to hold out: magnetic_tile/crack,pill/scratch.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not start from the preset's shipped weights.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be trained, with memory and time.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="Train a method to compare with: stylegan2, dfmgan or defectgen.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="With --method: the pairs to train, such as tile/crack; default: all.")
    ] = None,
) -> None:
    """Train on folders of images; OUT is then a model to generate with.

    `tiny` and `book` adapt the weights that come with the package, including the autoencoder, unless --from-scratch is
    given. With --method, OUT holds a model for every product and defect.
    """
    settings = load_preset(preset)
    if method is not None:
        _refuse({"--val": val, "--minutes": minutes, "--from-scratch": from_scratch, "--dry-run": dry_run}, "--method")
        from defectdiffu.comparisons.run import train as compared
        from defectdiffu.data.splitting import parse_pairs

        settings = settings.replace(training={"hold_out": without or settings.training.hold_out})
        pairs = None if only is None else parse_pairs(only)
        print(printable(compared(method, settings, data, out, pairs, steps, batch_size)))
        return
    _refuse({"--only": only}, "training without --method")
    if from_scratch:
        settings = settings.replace(start_from=None)
    if without is not None:
        settings = settings.replace(training={"hold_out": without})
    if steps is not None:
        settings = settings.replace(
            training={"steps": steps}, autoencoder={"steps": min(settings.autoencoder.steps, 2 * steps)}
        )
    if minutes is not None:
        settings = settings.replace(training={"minutes": minutes})
    if batch_size is not None:
        settings = settings.replace(training={"batch_size": batch_size})
    if dry_run:
        from defectdiffu.training.planning import plan

        _finish(plan(settings, data), None)
        return
    from defectdiffu.training.run import train as run

    print(printable(run(settings, data, out, val)))


@app.command()
def generate(
    product: Annotated[str, typer.Option(help="A product that the weights know.")],
    out: Annotated[Path, typer.Option(help="Images and masks go here, in MVTec AD's layout.")],
    defect: Annotated[str, typer.Option(help="A defect that the weights know, or good.")] = "good",
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "book",
    num: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 4,
    w_d: Annotated[float | None, typer.Option(help="Strength of the defect.")] = None,
    w_p: Annotated[float | None, typer.Option(help="Strength of the product.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the next images count up.")] = 0,
    check: Annotated[
        float, typer.Option(min=0, help="Keep pairs that changed so many times more inside the mask than outside.")
    ] = 0.0,
    attempts: Annotated[int, typer.Option(min=1, help="Seeds that are tried per pair, at most.")] = 8,
    append: Annotated[bool, typer.Option("--append", help="Add to the pictures of this pair that are there.")] = False,
    guidance: Annotated[str | None, typer.Option(help="double_free, defect_only or product_aware.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs sampled together; fewer take less memory.")] = 8,
    on: Annotated[
        Path | None, typer.Option(help="A defect-free picture, or a folder of them, that gets the defect.")
    ] = None,
    where: Annotated[
        Path | None, typer.Option(help="With --on: the mask of the place, or a folder of masks; default: anywhere.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="With --on: share of the steps taken; fewer keep more of the picture there.")
    ] = STRENGTH,
    crop: Annotated[
        int | None, typer.Option(help="With --on: side of the square worked on; default: the picture's shorter side.")
    ] = None,
    full_precision: Annotated[
        bool, typer.Option("--full-precision", help="float32 on a GPU: twice the memory, slower.")
    ] = False,
    offload: Annotated[bool, typer.Option("--offload", help="Keep only the part that computes on the GPU.")] = False,
    tiling: Annotated[bool, typer.Option("--tiling", help="Decode large pictures tile by tile.")] = False,
) -> None:
    """Generate image-mask pairs."""
    from defectdiffu.comparisons.run import generate as compared
    from defectdiffu.comparisons.run import is_comparison
    from defectdiffu.generation import generate_folder, load_pipeline, weakness

    if is_comparison(weights):
        ours: dict[str, Any] = {"--w-d": w_d, "--w-p": w_p, "--steps": steps, "--guidance": guidance, "--check": check}
        ours |= {"--on": on, "--where": where, "--crop": crop, "--strength": strength != STRENGTH}
        ours |= {"--full-precision": full_precision, "--offload": offload, "--tiling": tiling}
        _refuse(ours, f"{weights}, a method to compare with")
        record = compared(Path(weights), out, product, defect, num, seed, batch_size, append, attempts)
        print(f"{len(record['seeds'])} of {num} pictures in {printable(out)}{_left_out(record)}")
        return
    pipe = load_pipeline(weights, full_precision, offload, tiling)
    main = _process().is_main_process
    if main and (warning := weakness(pipe, product, defect)):
        print(f"defectdiffu: {warning}", file=sys.stderr)
    record = generate_folder(
        pipe,
        out,
        product,
        defect,
        num,
        seed,
        w_d=w_d,
        w_p=w_p,
        steps=steps,
        guidance=guidance,
        batch_size=batch_size,
        check=check,
        attempts=attempts,
        append=append,
        on=on,
        where=where,
        strength=strength,
        crop=crop,
    )
    note = f", of {len(record['ratios'])} that were checked" if check else _left_out(record)
    if main:
        print(f"{len(record['seeds'])} of {num} pairs in {printable(out)}{note}")


def _left_out(record: dict) -> str:
    """What the record of `generate` says of pictures that are not there."""
    skipped = len(record["seeds_without_mask"])
    return f", {skipped} without a mask left out" if skipped else ""


def _refuse(options: dict[str, Any], what: str) -> None:
    """Raise `InputError` for options that are given and that `what` does not have."""
    if given := [name for name, value in options.items() if value]:
        raise InputError(f"{', '.join(given)}: not for {what}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _numbers(what: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{what} must be comma-separated whole numbers, not '{text}'") from None


def _evaluate(measure: str, file: Path | None, **arguments: Any) -> None:
    from defectdiffu.evaluation.report import evaluate

    print(json.dumps(evaluate(measure, file, **arguments), indent=2))


@evaluate_app.command()
def oracle(
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="Images per product and defect.")] = 8,
    file: Json = None,
) -> None:
    """Rendered products only: are product, defect and mask right; is w_d the defect's strength?"""
    _evaluate("oracle", file, weights=weights, num=num)


@evaluate_app.command()
def fidelity(generated: Generated, real: Real, file: Json = None) -> None:
    """FID, KID and Inception Score, or the judge's Frechet distance if Inception cannot be fetched."""
    _evaluate("fidelity", file, generated=generated, real=real)


@evaluate_app.command()
def diversity(generated: Generated, real: Real, file: Json = None) -> None:
    """LPIPS and both variants of IC-LPIPS."""
    _evaluate("diversity", file, generated=generated, real=real)


@evaluate_app.command()
def memorisation(generated: Generated, real: Real, file: Json = None) -> None:
    """How near each generated image is to the training images, relative to how near those are to each other."""
    _evaluate("memorisation", file, generated=generated, real=real)


@evaluate_app.command()
def downstream(
    generated: Generated,
    real: Real,
    test: Annotated[Path, typer.Option(help="Pairs to test on; the same folder as --real is split in halves.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated, at least 2.")] = "0,1,2",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every training, 16 pictures each.")] = 400,
    detectors: Annotated[str, typer.Option(help="Comma-separated.")] = "unet,resnet50",
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the detectors' pictures; default: that of the generated ones.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Also write the record that the book reads.")] = None,
    file: Json = None,
) -> None:
    """Do the pairs help a detector? Compared with real pairs alone, copy-paste and Perlin noise.

    With --json, FILE.progress keeps every finished training, and the same command resumes.
    """
    from defectdiffu.evaluation.downstream import record as write_record
    from defectdiffu.evaluation.report import evaluate

    result = evaluate(
        "downstream",
        file,
        generated=generated,
        real=real,
        test=test,
        seeds=_numbers("seeds", seeds),
        steps=steps,
        detectors=[name.strip() for name in detectors.split(",")],
        progress=file.with_name(f"{file.name}.progress") if file else None,
        size=size,
    )
    if record is not None:
        write_record(result, record)
    for name, found in result["detectors"].items():
        print(f"{name}: {found['verdict']}")


@evaluate_app.command()
def transfer(
    weights: Annotated[list[str], typer.Option(help="Trained with or --without the pairs; repeatable.")],
    real: Annotated[list[Path], typer.Option(help="Real pictures, including those of the pairs; repeatable.")],
    pairs: Annotated[str, typer.Option(help="magnetic_tile/crack,pill/scratch")],
    num: Annotated[int, typer.Option(min=1, help="Pictures per pair.")] = 50,
    sheet: Annotated[Path | None, typer.Option(help="Write some of the pictures with their masks, WebP.")] = None,
    record: Annotated[Path | None, typer.Option(help="Also write the record that the book reads.")] = None,
    file: Json = None,
) -> None:
    """Held-out pairs on photographs: do the masks agree with those of a U-Net trained on the real defects?"""
    from defectdiffu.data.splitting import parse_pairs
    from defectdiffu.evaluation.report import measured, run_of

    run = run_of("experiments.transfer")
    result = measured("transfer", run, file, weights=weights, real=real, pairs=parse_pairs(pairs), num=num, sheet=sheet)
    if record is not None:
        from defectdiffu.experiments.transfer import record as write_record

        write_record(result, record)
    print(json.dumps(result, indent=2))


@evaluate_app.command("all")
def evaluate_everything(
    generated: Generated,
    real: Real,
    file: Annotated[Path, typer.Option("--json", help="The results; the same command again resumes.")],
    weights: Annotated[str, typer.Option(help="The oracle's weights: shipped name, folder or hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="The oracle's pictures per product and defect.")] = 2,
) -> None:
    """Fidelity, diversity, memorisation and the oracle in one JSON. `downstream` trains detectors and is separate."""
    from defectdiffu.evaluation.report import evaluate_all, table

    result = evaluate_all(file, generated, real, weights, num)
    for measure, score, value in table(result):
        print(f"{measure:13}{score:42}{value}")
    for measure, found in result["results"].items():
        if "note" in found:
            print(f"{measure:13}{found['note']}")
    for measure, reason in result["left_out"].items():
        print(f"{measure:13}left out: {reason}")


@evaluate_app.command()
def generators(
    generated: Annotated[list[Path], typer.Option(help="Pictures of one method, named by the folder; repeatable.")],
    training: Annotated[Path, typer.Option(help="Pictures that all methods were trained on.")],
    test: Annotated[Path, typer.Option(help="Rendered pictures that none has seen.")],
    file: Annotated[Path, typer.Option("--json", help="The record.")],
    seeds: Annotated[str, typer.Option(help="Of the detectors, comma-separated.")] = "0,1,2",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every detector, 16 pictures each.")] = 400,
    costs: Annotated[Path | None, typer.Option(help="JSON {folder: {name: value}}, kept in the record.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the first pictures of every pair, WebP.")] = None,
) -> None:
    """Rendered products only: score pictures of several methods alike, whatever drew them."""
    from defectdiffu.experiments.generators import run

    run(generated, training, test, file, _numbers("seeds", seeds), steps, costs, sheet)
    print(file)


@evaluate_app.command()
def choices(
    file: Annotated[Path, typer.Option("--json", help="The record.")],
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="Pictures per trained pair.")] = 2,
) -> None:
    """Rendered products only: change guidance, scales, steps and scheduler one at a time, on separate seeds."""
    from defectdiffu.experiments.choices import run

    run(weights, file, num)
    print(file)


@evaluate_app.command()
def inpainting(
    file: Annotated[Path, typer.Option("--json", help="The record.")],
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "book",
    num: Annotated[int, typer.Option(min=1, help="Pictures per trained pair.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the weights' own.")] = None,
) -> None:
    """Rendered products only: defects put on given pictures, against whole pictures and copy-paste."""
    from defectdiffu.experiments.inpainting import run

    run(weights, file, num, steps)
    print(file)


@evaluate_app.command()
def checks(
    file: Annotated[Path, typer.Option("--json", help="The record.")],
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "tiny",
    num: Annotated[int, typer.Option(min=1, help="Pictures per trained pair.")] = 4,
) -> None:
    """Rendered products only: are pairs that pass the self-check (generate --check) better than all pairs?"""
    from defectdiffu.experiments.checks import run

    run(weights, file, num)
    print(file)


@evaluate_app.command()
def autoencoders(
    names: Annotated[list[str], typer.Argument(help="Shipped names, folders or hub ids.")],
    data: Annotated[list[Path], typer.Option(help="Pictures that none was trained on; repeatable.")],
    file: Annotated[Path, typer.Option("--json", help="The record.")],
    size: Annotated[int, typer.Option(min=8, help="Side of the pictures in pixels.")] = 64,
    sheet: Annotated[Path | None, typer.Option(help="Write some reconstructions by each of them, WebP.")] = None,
) -> None:
    """How well autoencoders reconstruct pictures and masks, by PSNR, by IoU and by the judge."""
    from defectdiffu.experiments.autoencoders import run

    run(names, data, size, file, sheet)
    print(file)


@evaluate_app.command()
def ablations(
    data: Annotated[list[Path], typer.Option(help="A folder to train on; repeatable.")],
    val: Annotated[Path, typer.Option(help="A folder of the same pairs, never trained on: held-out losses.")],
    out: Annotated[Path, typer.Option(help="Runs and latents go here; the same command again resumes.")],
    file: Annotated[Path, typer.Option("--json", help="The record, written again after every variant.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps of every variant.")] = 1000,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    variants: Annotated[str | None, typer.Option(help="Comma-separated; default: all.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures per pair for the judge.")] = 2,
    preset: Annotated[str, typer.Option(help="tiny, book, paper, or a JSON file.")] = "tiny",
) -> None:
    """Train the model with one thing changed at a time, from scratch, and compare each with the full model."""
    from defectdiffu.experiments.ablations import run

    run(load_preset(preset), data, val, steps, _numbers("seeds", seeds), out, file, _names(variants), num)
    print(file)


@app.command()
def demo(
    weights: Annotated[str, typer.Option(help="A shipped name, a folder or a hub id.")] = "book",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    host: Annotated[str, typer.Option(help="Who may open it: this machine only, or 0.0.0.0 for all.")] = "127.0.0.1",
) -> None:
    """Open a page in the browser to try a model, also on a picture of your own (extra: demo)."""
    from defectdiffu.demo import serve
    from defectdiffu.generation import load_pipeline

    serve(load_pipeline(weights), port, host)


@app.command()
def benchmark(
    part: Annotated[str | None, typer.Argument(help="train or sample; default: both.")] = None,
    preset: Annotated[str, typer.Option(help="tiny, book, paper, or a JSON file.")] = "tiny",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each figure.")] = 5,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also time what the released code does.")] = False,
    file: Json = None,
) -> None:
    """Measure training and sampling throughput of this machine."""
    from defectdiffu.benchmark import PARTS
    from defectdiffu.benchmark import benchmark as run

    _finish(run(load_preset(preset), repeats, PARTS if part is None else (part,), baseline), file)


def _process() -> "PartialState":
    """accelerate's state of this process: its device, and whether it is the one that reports."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


if __name__ == "__main__":
    main()
