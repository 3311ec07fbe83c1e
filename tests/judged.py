"""Fixtures for tests that use the judge: small folders in MVTec AD's layout, an untrained judge."""

import numpy as np
import pytest
import torch
from PIL import Image

from defectdiffu.evaluation.judge import Judge, JudgeNetwork


@pytest.fixture
def write_folder(tmp_path):
    """write_folder(name, {(product, defect): count}, size, seed): random pictures; the defect is a bright square."""

    def write(name, counts, size=16, seed=0):
        rng = np.random.default_rng(seed)
        root = tmp_path / name
        for (product, defect), count in counts.items():
            images = root / product / ("train" if defect == "good" else "test") / defect
            masks = root / product / "ground_truth" / defect
            images.mkdir(parents=True)
            if defect != "good":
                masks.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(60, 120, (size, size, 3), dtype=np.uint8)
                mask = np.zeros((size, size), np.uint8)
                if defect != "good":
                    top, left = rng.integers(0, size // 2, 2)
                    mask[top : top + size // 3, left : left + size // 3] = 255
                    image[mask > 0] = 240
                    Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
                Image.fromarray(image).save(images / f"{i:03d}.png")
        return root

    return write


@pytest.fixture
def judge():
    """An untrained judge for pictures of 16 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge(JudgeNetwork(16), {"size": 16})


@pytest.fixture
def only_that_judge(judge, monkeypatch):
    """The untrained judge in place of the shipped ones, for folders of 16 pixel pictures."""
    monkeypatch.setattr(Judge, "shipped", lambda size: judge)
    return judge


@pytest.fixture
def no_network(monkeypatch):
    """No public weights can be fetched."""

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
    monkeypatch.setattr("lpips.pretrained_networks.tv.alexnet", refuse)
