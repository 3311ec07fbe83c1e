"""Scores of autoencoders, on synthetic pictures with known results."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from defectdiffu.autoencoder import build_autoencoder
from defectdiffu.config import AutoencoderConfig
from defectdiffu.errors import InputError
from defectdiffu.experiments import autoencoders


@pytest.fixture
def useless(tmp_path) -> str:
    """An autoencoder that returns dark grey for every input."""
    vae = build_autoencoder(AutoencoderConfig(channels=4, latent_channels=2))
    for parameter in vae.decoder.layers[-2].parameters():
        torch.nn.init.constant_(parameter, 0.25 if parameter.ndim == 1 else 0.0)
    vae.save_pretrained(tmp_path / "useless")
    return str(tmp_path / "useless")


def test_a_useless_one_keeps_nothing_and_the_shipped_one_nearly_everything(data, useless, tmp_path):
    file, sheet = tmp_path / "record.json", tmp_path / "sheet.webp"
    record = autoencoders.run([useless, "tiny"], [data], 64, file, sheet)
    assert json.loads(file.read_text()) == record
    rendered, degraded, bad, good = (run["scores"] for run in record["runs"])
    assert [run["name"] for run in record["runs"]][2:] == [useless, "tiny"]
    assert bad["mask_kept"]["mean"] == 0
    assert good["mask_kept"]["mean"] > 0.9
    assert bad["psnr_db"]["low"] <= bad["psnr_db"]["mean"] <= bad["psnr_db"]["high"] < 15
    assert good["psnr_db"]["mean"] > 20
    assert "psnr_db" not in rendered
    kinds = [key for key in rendered if key.startswith("defect_accuracy of ")]
    counts = [rendered[kind]["count"] for kind in kinds]
    assert sum(counts) == rendered["defect_accuracy"]["count"] == record["held_fixed"]["with_a_defect"]
    right = np.dot(counts, [degraded[kind]["mean"] for kind in kinds])
    assert right / sum(counts) == pytest.approx(degraded["defect_accuracy"]["mean"])
    with Image.open(sheet) as image:  # the originals and two reconstructions, a column per kind
        assert image.size == (len(kinds) * 68 - 4, 3 * 68 - 4)


def test_the_error_in_decibels_is_that_of_grey(data, useless, tmp_path):
    """At a size for which no judge is shipped: only the errors are reported."""
    record = autoencoders.run([useless], [data], 32, tmp_path / "record.json")
    (run,) = record["runs"]
    assert set(run["scores"]) == {"psnr_db", "mask_kept"}
    pictures = autoencoders.Pictures.load(autoencoders.read_folder(data), 32)
    values = (pictures.tensors(range(len(pictures)))[0] + 1) * 127.5
    error = float((values - 64).square().mean() / 255**2)
    assert run["scores"]["psnr_db"]["mean"] == pytest.approx(-10 * np.log10(error), abs=0.05)


def test_pictures_without_a_defect_are_refused(write_folder, tmp_path):
    with pytest.raises(InputError, match="has a defect"):
        autoencoders.run(["tiny"], [write_folder("good", {("tile", "good"): 2})], 64, tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


def test_bad_names_and_sizes_are_refused(data, tmp_path):
    for name, size, message in (("nothing", 32, "no autoencoder 'nothing'"), ("tiny", 30, "multiple of 4 for 'tiny'")):
        with pytest.raises(InputError, match=message):
            autoencoders.run([name], [data], size, tmp_path / "record.json")
        assert not (tmp_path / "record.json").exists()
