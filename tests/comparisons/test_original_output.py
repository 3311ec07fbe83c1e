"""The page on other generators: its commands bring what the original repositories write into the layout."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectdiffu.data.folder import read_folder
from defectdiffu.evaluation.folders import read_pairs

PAGE = Path(__file__).parents[2] / "book" / "other_generators.md"
MASK = np.pad(np.ones((6, 6), np.uint8), 13)


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def laid_out(tmp_path):
    """What the repositories write, after the commands of the page."""
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        write(tmp_path / "STYLEGAN2_OUT" / f"seed{i:04d}.png", image)
        write(tmp_path / "DFMGAN_OUT" / f"{i}_img.png", image)
        write(tmp_path / "DFMGAN_OUT" / f"{i}_mask.png", np.repeat(255 * MASK[..., None], 3, -1))
        name = f"{i:06d}_0_0.png"
        write(tmp_path / "DEFECTGEN_OUT/images" / f"samples_image_{name}", image)
        write(tmp_path / "DEFECTGEN_OUT/masks_converted_dir" / f"samples_converted_mask_{name}", MASK)
    (commands,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S) if "DFMGAN_OUT" in block]
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True)
    return tmp_path / "theirs"


@pytest.mark.parametrize("method", ["dfmgan", "defectgen"])
def test_pairs_are_read_with_their_masks(laid_out, method):
    samples = read_folder(laid_out / method)
    assert [(s.product, s.defect) for s in samples] == [("hazelnut", "hole")] * 3
    assert all(np.asarray(Image.open(s.mask)).max() > 0 for s in samples)
    assert len({s.mask for s in samples}) == 3


def test_pictures_without_masks_are_read_as_such(laid_out):
    pairs = read_pairs(laid_out / "stylegan2", masks=False)
    assert {pair: len(samples) for pair, samples in pairs.items()} == {("hazelnut", "hole"): 3}
