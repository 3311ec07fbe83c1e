"""The paper's three data sets: source, licence, download, and conversion from their own layouts to ours.

    notice("visa")                                    # licence, citation, how to download it by hand
    archive = download("visa", Path("data"))          # data/VisA_20220922.tar
    convert("visa", archive, Path("data/visa"))       # <product>/train/good, test/<defect>, ground_truth/<defect>

Folders keep the owners' defect names; `catalog.unify` gives them the unified names of Table 2 when they are read,
and `splitting.split` halves them for training and evaluation, as the paper does.
"""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from defectdiffu.config import GOOD
from defectdiffu.data.archives import check_room, unpack
from defectdiffu.data.download import fetch
from defectdiffu.data.folder import read_folder
from defectdiffu.data.image_files import Problem, check_file_name, mask_values, opened
from defectdiffu.errors import InputError, check_choice, check_folder_name
from defectdiffu.files import building


@dataclass(frozen=True)
class Item:
    """One image in its owner's layout, and its place in ours.

    image, mask          files in the owner's layout; mask None for good images
    product, defect      folders in our layout; subset: "train" or "test"
    """

    image: Path
    mask: Path | None
    product: str
    defect: str
    subset: str


@dataclass(frozen=True)
class Source:
    """A data set as its owners publish it.

    url     address of the archive; None if its owners require a form
    sha256  of the archive. The owners publish none: several independent downloads gave these
    """

    title: str
    licence: str
    citation: str
    page: str
    archive: str
    gigabytes: float
    sha256: str
    url: str | None
    read: Callable[[Path], Iterator[Item]]


def notice(name: str) -> str:
    """Title, licence, citation and how to download the archive by hand, as a text of a few lines."""
    source = SOURCES[check_choice("data set", name, SOURCES)]
    return (
        f"{source.title}\n"
        f"  licence:   {source.licence}\n"
        f"  cite:      {source.citation}\n"
        f"  by hand:   get {source.archive} ({source.gigabytes:.1f} GB) from {source.page}\n"
        f"             SHA-256 {source.sha256}\n"
        f"             then: defectdiffu data convert {name} {source.archive} OUT"
    )


def download(name: str, out: Path, say: Callable[[str], None] = print) -> Path:
    """Print the licence of a data set, then fetch its archive into the folder `out` (`download.fetch`).

    Raises `InputError` if the owners require a form, and says how to download the archive by hand.
    """
    say(notice(name))
    source = SOURCES[name]
    if source.url is None:
        raise InputError(
            f"{source.title}: accept its licence on {source.page} and download {source.archive} there by hand, "
            f"then run: defectdiffu data convert {name} {source.archive} OUT"
        )
    return fetch(source.url, out / source.archive, source.sha256)


def convert(name: str, source: Path, out: Path) -> dict[str, dict[str, int]]:
    """Convert a data set from its owners' layout into the new folder `out` in the MVTec AD layout: all of it, or
    nothing.

    source: the archive, or the folder it was unpacked into. Images stay the same, byte for byte; masks become 0 and
    255. Returns {product: {defect: images}}. Raises `InputError` for a source that is not in its owners' layout.
    """
    read = SOURCES[check_choice("data set", name, SOURCES)].read
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    with building(out) as ours:
        theirs = source
        copy: Callable[[Path, Path], object] = shutil.copyfile
        if source.is_file():
            theirs = unpack(source, ours.with_name("theirs"))
            copy = Path.rename  # it is our own copy: no room is needed twice
        items = list(read(theirs))
        if copy is shutil.copyfile:
            check_room(out.parent, sum(item.image.stat().st_size for item in items), str(out))
        for item in items:
            marked = None if item.mask is None else _marked(item.mask)
            copy(item.image, place(ours, item, marked))
    return count(items)


def place(root: Path, item: Item, marked: np.ndarray | None) -> Path:
    """Write the mask (bool (H, W), None for good images) of an item below `root` in the MVTec AD layout; return where
    its image goes. Raises `InputError` for names that a folder cannot have, and if there is an image of that name."""
    check_folder_name("product", item.product)
    check_folder_name("defect", item.defect)
    check_file_name(item.image)
    home = root / item.product
    image = home / item.subset / item.defect / item.image.name
    if image.exists():
        raise Problem(item.image, f"a second image with this name for {item.product}, {item.defect}")
    image.parent.mkdir(parents=True, exist_ok=True)
    if marked is not None:
        mask = home / "ground_truth" / item.defect / f"{item.image.stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(marked.astype(np.uint8) * 255).save(mask)
    return image


def count(items: Iterable[Item]) -> dict[str, dict[str, int]]:
    """Return {product: {defect: images}}, sorted."""
    counts: dict[str, Counter] = {}
    for item in items:
        counts.setdefault(item.product, Counter())[item.defect] += 1
    return {product: dict(sorted(counter.items())) for product, counter in sorted(counts.items())}


def _marked(path: Path) -> np.ndarray:
    """Bool (H, W): every nonzero value is defect, because VisA's masks number the kinds of defect."""
    with opened(path) as image:
        return mask_values(image)[0] != 0


def _slug(label: str) -> str:
    """A label as the name of a folder: "Chunk of wax missing" becomes "chunk_of_wax_missing"."""
    return re.sub("[^a-z0-9]+", "_", label.lower()).strip("_")


def _root(folder: Path, marker: str, what: str) -> Path:
    """The folder that holds `marker`: `folder` itself or a folder in it, as in archives."""
    for root in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (root / marker).exists():
            return root
    raise Problem(folder, f"not in the layout of {what}: there is no {marker}")


# ---------------------------------------------------------------------------------------------------------------------
# The three layouts


def read_mvtec(folder: Path) -> Iterator[Item]:
    """MVTec AD: <product>/{train/good, test/<defect>, ground_truth/<defect>}. Its layout is ours."""
    nested = [path for path in sorted(folder.iterdir()) if any(path.glob("*/test"))]
    root = nested[0] if nested and not any(folder.glob("*/test")) else folder
    for sample in read_folder(root):
        yield Item(sample.image, sample.mask, sample.product, sample.original_defect, sample.subset)


def read_visa(folder: Path) -> Iterator[Item]:
    """VisA: <object>/Data/{Images/Normal, Images/Anomaly, Masks/Anomaly}, <object>/image_anno.csv, split_csv/1cls.csv.

    The split is the owners' one-class split: good images to train on, good images and all defects to test on. A
    defect's name is its label in image_anno.csv; several labels together become "combined", as in MVTec AD.
    """
    root = _root(folder, "split_csv/1cls.csv", "VisA")
    labels: dict[str, dict[str, str]] = {}
    for row in _table(root / "split_csv/1cls.csv", "object", "split", "label", "image", "mask"):
        product, subset = row["object"], row["split"]
        if not product or product != _slug(product) or subset not in ("train", "test"):
            raise Problem(root / "split_csv/1cls.csv", f"'{product}', '{subset}': not an object and train or test")
        image = _inside(root, row["image"])
        if row["label"] == "normal":
            yield Item(image, None, product, GOOD, subset)
            continue
        if product not in labels:
            table = _table(root / product / "image_anno.csv", "image", "label", "mask")
            labels[product] = {line["image"]: line["label"] for line in table}
        kinds = {_slug(label) for label in labels[product].get(row["image"], "").split(",")} - {""}
        if not kinds:
            raise Problem(root / product / "image_anno.csv", f"no label for {row['image']}")
        yield Item(image, _inside(root, row["mask"]), product, kinds.pop() if len(kinds) == 1 else "combined", "test")


def read_ksdd2(folder: Path) -> Iterator[Item]:
    """KolektorSDD2: train/ and test/, each with NNNNN.png and NNNNN_GT.png, a mask that is black for good images.

    There is one product and one kind of defect. Defects of both train/ and test/ go to `test`, where the half split
    splits them again; numbers never repeat. Files not named by a number are skipped: the owners' archive holds a stray
    copy of one image.
    """
    root = _root(folder, "train", "KolektorSDD2")
    for subset in ("train", "test"):
        for image in sorted((root / subset).glob("*.png")):
            if not image.stem.isdecimal():
                continue
            mask = image.with_stem(f"{image.stem}_GT")
            if _marked(mask).any():
                yield Item(image, mask, "kolektor_surface", "defect", "test")
            else:
                yield Item(image, None, "kolektor_surface", GOOD, subset)


def _table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file. Raises `Problem` if it is missing, not a CSV file in UTF-8, or lacks a column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(text.splitlines(), restval="")
        missing = set(columns) - set(reader.fieldnames or ())
        rows = [row for row in reader if not missing]
    except OSError as error:
        raise Problem(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(path, f"is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except csv.Error as error:
        raise Problem(path, f"is not a CSV table: {error}") from error
    if missing:
        raise Problem(path, f"lacks the column {', '.join(sorted(missing))}; needed are {', '.join(columns)}")
    yield from rows


def _inside(root: Path, name: str) -> Path:
    """The file that a table names. Raises `Problem` if it is missing or outside `root`."""
    path = root / name
    try:
        inside, there = path.resolve().is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        raise Problem(root, f"its table names the file {name[:40]!r}..., which no file can be called") from None
    if not inside:
        raise Problem(root, f"its table names the file '{name}', which lies outside this folder")
    if not there:
        raise Problem(path, "there is no such file, but the table names it")
    return path


SOURCES = {
    "mvtec": Source(
        title="MVTec AD, 15 products, 73 kinds of defect",
        licence="CC BY-NC-SA 4.0: no commercial use; weights trained on it inherit that",
        citation="Bergmann, Fauser, Sattlegger, Steger: MVTec AD. CVPR 2019",
        page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        archive="mvtec_anomaly_detection.tar.xz",
        gigabytes=5.3,
        sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        url=None,
        read=read_mvtec,
    ),
    "visa": Source(
        title="VisA, 12 products",
        licence="CC BY 4.0",
        citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-supervised Pre-training. ECCV 2022",
        page="https://github.com/amazon-science/spot-diff",
        archive="VisA_20220922.tar",
        gigabytes=1.9,
        sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        read=read_visa,
    ),
    "ksdd2": Source(
        title="KolektorSDD2, surfaces with and without defects",
        licence="CC BY-NC-SA 4.0: no commercial use; weights trained on it inherit that",
        citation="Božič, Tabernik, Skočaj: Mixed supervision for surface-defect detection. Computers in Industry 2021",
        page="https://www.vicos.si/resources/kolektorsdd2/",
        archive="KolektorSDD2.zip",
        gigabytes=0.9,
        sha256="edcdb486809b24f1d17b785e30c52fafc5999554dd5fe18ddf77b61ceb6f36a8",
        url="https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip",
        read=read_ksdd2,
    ),
}
