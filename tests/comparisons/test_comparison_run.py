"""Training and generating with the compared methods by the command, as a user does."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import tiny_preset, write_folder
from PIL import Image

from defectdiffu.comparisons import run as comparisons
from defectdiffu.comparisons.run import RECIPES, Recipe

GAN = {"channels": 4, "max_channels": 16, "width": 16}
FULL = dict(RECIPES)
UNETS = {"channels": 8, "structure_levels": 2, "detail_levels": 1}


@pytest.mark.parametrize(("name", "size"), [("tiny", 64), ("book", 256), ("paper", 512)])
def test_every_recipe_makes_a_model(name, size):
    for method, model in zip(FULL, comparisons.MODELS.values(), strict=True):
        with torch.device("meta"):
            assert model(size, **FULL[method][name].sizes).num_parameters() > 500_000


@pytest.fixture(autouse=True)
def small(monkeypatch):
    sizes = {"stylegan2": GAN, "dfmgan": GAN, "defectgen": UNETS}
    for method, values in sizes.items():
        monkeypatch.setitem(RECIPES, method, {"tiny": Recipe(2, 4, values)})


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    file = tmp_path_factory.mktemp("preset") / "preset.json"
    file.write_text(json.dumps(tiny_preset().to_dict()))
    return file


@pytest.mark.parametrize("method", ["stylegan2", "dfmgan", "defectgen"])
def test_a_method_is_trained_and_generates_what_the_check_passes(run, data, preset, tmp_path, method):
    arguments = ["train", "--method", method, "--preset", preset, "--data", data, "--out", tmp_path / "run"]
    code, out, _ = run(*arguments, "--only", "tile/hole")
    assert (code, out.strip()) == (0, str(tmp_path / "run"))
    trained = {folder.name for folder in (tmp_path / "run" / "tile").iterdir()}
    assert trained == ({"hole", "good"} if method == "dfmgan" else {"hole"})
    assert not (tmp_path / "run" / "hazelnut").exists()

    model = comparisons.load(tmp_path / "run", "tile", "hole")
    _, masks = model.sample(8)
    seeds = [s for s in range(8) if masks is None or masks[s].any()]
    arguments = ["generate", "--weights", tmp_path / "run", "--product", "tile", "--out", tmp_path / "out"]
    code, out, err = run(*arguments, "--defect", "hole", "--num", 1, "--seed", seeds[0])
    assert code == 0 and "1 of 1 pictures" in out
    assert run(*arguments, "--defect", "hole", "--num", 1, "--seed", seeds[0], "--append")[0] == 0
    home = tmp_path / "out" / "tile"
    assert sorted(f.name for f in (home / "test" / "hole").iterdir()) == ["000.png", "001.png"]
    assert Image.open(home / "test" / "hole" / "000.png").size == (32, 32)
    records = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert records[0]["seeds"] == seeds[:1] and records[1]["seeds"] != seeds[:1]
    if method == "stylegan2":
        assert "StyleGAN2 gives no masks, so there will be no ground_truth" in err
        assert not (home / "ground_truth").exists()
    else:
        assert sorted(f.name for f in (home / "ground_truth" / "hole").iterdir()) == ["000_mask.png", "001_mask.png"]
        assert Image.open(home / "ground_truth" / "hole" / "000_mask.png").mode == "L"
        assert run("data", "check", tmp_path / "out", "--size", 32)[0] == 0
    if method == "dfmgan":
        assert run(*arguments, "--num", 2)[0] == 0
        assert len(list(home.glob("*/good/*.png"))) == 2


@pytest.fixture(scope="module")
def trained(data, preset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "stylegan2", {"tiny": Recipe(1, 4, GAN)})
        comparisons.train("stylegan2", tiny_preset(), [data], out)
    return out


def test_every_pair_gets_a_model(trained):
    models = {str(file.parent.relative_to(trained)) for file in trained.glob("*/*/config.json")}
    assert models == {f"{product}/{defect}" for product in ("tile", "hazelnut") for defect in ("crack", "hole")}


def test_an_empty_mask_is_no_pair(run, trained, tmp_path, monkeypatch):
    class Odd:
        """Marks everything in the pictures of odd seeds below `most`, nothing in the others."""

        most = 9

        def sample(self, num, seeds):
            images, _ = model.sample(num, seeds)
            marked = np.array([s % 2 == 1 and s < self.most for s in seeds])
            return images, np.broadcast_to(marked[:, None, None], images.shape[:3])

    model = comparisons.load(trained, "tile", "hole")
    monkeypatch.setattr(comparisons, "load", lambda *_: Odd())
    record = comparisons.generate(trained, tmp_path / "out", "tile", "hole", num=2, batch_size=1)
    assert (record["seeds"], record["seeds_without_mask"]) == ([1, 3], [0, 2])
    monkeypatch.setattr(Odd, "most", 0)
    arguments = ["generate", "--weights", trained, "--product", "tile", "--defect", "hole", "--out", tmp_path / "none"]
    code, _, err = run(*arguments, "--num", 1)
    assert code == 2 and "none of 8 images of tile with hole has a mask; nothing was written" in err
    assert not (tmp_path / "none").exists()
    code, _, err = run(*arguments, "--num", 2, "--attempts", 3)
    assert code == 2 and "none of 6 images of tile with hole has a mask; nothing was written" in err
    monkeypatch.setattr(Odd, "most", 9)
    assert "2 of 2 pictures in" in (said := run(*arguments, "--num", 2)[1]) and "2 without a mask left out" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--method", "stylegan"], "unknown method 'stylegan': did you mean stylegan2?"),
        (["train", "--method", "dfmgan", "--only", "tile/hoel"], "unknown defect of tile 'hoel': did you mean hole?"),
        (["train", "--method", "dfmgan", "--only", "tyle/hole"], "unknown product 'tyle': did you mean tile?"),
        (["train", "--method", "dfmgan", "--minutes", 3, "--dry-run"], "--minutes, --dry-run: not for --method"),
        (["train", "--only", "tile/hole"], "--only: not for training without --method"),
        (["train", "--method", "defectgen", "--out", "RUN"], "RUN was begun with"),
        (["generate", "--product", "tyle"], "unknown product 'tyle': did you mean tile?"),
        (["generate", "--product", "tile", "--defect", "hoel"], "unknown defect 'hoel': did you mean hole?"),
        (["generate", "--product", "tile", "--w-d", 2], "--w-d: not for RUN, a method to compare with"),
        (["generate", "--product", "tile", "--strength", 0.3], "--strength: not for RUN, a method to compare with"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, data, preset, trained, tmp_path, arguments, message):
    given = ["--weights", trained] if arguments[0] == "generate" else ["--preset", preset, "--data", data]
    if "RUN" in arguments:
        arguments = [trained if a == "RUN" else a for a in arguments]
    else:
        given += ["--out", tmp_path / "out"]
    code, out, err = run(*arguments, *given)
    assert (code, out) == (2, "")
    assert message.replace("RUN", str(trained)) in err.strip().splitlines()[-1]
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_dfmgan_needs_good_pictures_and_all_need_defects(run, preset, tmp_path):
    folder = write_folder(tmp_path / "data", good=0)
    settings = ["--preset", preset, "--out", tmp_path / "run"]
    code, _, err = run("train", "--method", "dfmgan", "--data", folder, *settings)
    assert code == 2 and "dfmgan begins with defect-free pictures, and there are none of hazelnut" in err
    folder = write_folder(tmp_path / "good", defective=0)
    code, _, err = run("train", "--method", "stylegan2", "--data", folder, *settings)
    assert code == 2 and "no picture of a defect: there is nothing to compare with" in err
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_named(run, data, preset, trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "tile" / "hole" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    pair = ["--product", "tile", "--defect", "hole"]
    code, _, err = run("generate", "--weights", copy, *pair, "--out", tmp_path / "out")
    assert code == 2 and f"the weights in {copy / 'tile' / 'hole'} cannot be loaded" in err
