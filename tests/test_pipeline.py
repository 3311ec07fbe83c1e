import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep
from helpers import DEFECTS, in_another_process, random_pipeline
from huggingface_hub import ModelCard

from defectdiffu import DefectDiffuPipeline, InputError, pipeline
from defectdiffu.model_card import model_card
from defectdiffu.pipeline import PREDICTION_TYPES
from defectdiffu.weight_files import SCHEDULERS


def pixels(out) -> np.ndarray:
    return np.stack([np.asarray(image) for image in out.images]).astype(int)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to rounding, which may change a pixel by one."""
    return np.abs(a - b).max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_what_a_call_returns(pipe):
    out = pipe(product="tile", defect="crack", num_images=3)
    assert [(i.mode, i.size) for i in out.images] == [("RGB", (32, 32))] * 3
    assert [(m.mode, m.size) for m in out.masks] == [("L", (32, 32))] * 3
    assert {int(v) for m in out.masks for v in np.unique(np.asarray(m))} <= {0, 255}
    assert out.mask_probs.shape == (3, 32, 32)
    assert out.mask_probs.dtype == np.float32
    assert out.mask_probs.min() >= 0
    assert out.mask_probs.max() <= 1
    assert not close(pixels(out)[0], pixels(out)[1])


def test_every_argument_matters(pipe):
    given = {"product": "tile", "defect": "crack", "w_d": 3.0, "w_p": 1.0, "num_inference_steps": 2}
    before = pipe(**given).mask_probs, pixels(pipe(**given))
    changes = {"product": "hazelnut", "defect": "hole", "w_d": 9.0, "w_p": 9.0, "num_inference_steps": 4}
    for key, value in changes.items():
        assert np.abs(pixels(pipe(**given | {key: value})) - before[1]).max() > 0, key
    assert np.abs(pixels(pipe(**given, guidance="defect_only")) - before[1]).max() > 0
    assert np.abs(pipe(**given | {"defect": "hole"}).mask_probs - before[0]).max() > 0


def test_settings_of_the_pipeline_are_the_defaults_of_a_call():
    pipe = random_pipeline(sampling={"guidance": "product_aware", "w_p": 2.0, "w_d": 3.0, "num_inference_steps": 3})
    said = pipe("tile", "crack", guidance="product_aware", w_p=2.0, w_d=3.0, num_inference_steps=3)
    assert (pixels(pipe("tile", "crack")) == pixels(said)).all()
    assert pipe.products == ["hazelnut", "tile"]
    assert pipe.defects == list(DEFECTS)


# ---------------------------------------------------------------------------------------------------------------------
# Image i depends on seed i alone


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_an_image_does_not_depend_on_its_batch(pipe, scheduler):
    """DDPM draws new noise in every step, which must come from the image's own seed as well."""
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    given = {"product": "tile", "defect": "crack", "num_images": 3, "num_inference_steps": 3}
    together = pixels(pipe(**given, seeds=[7, 8, 9]))
    assert close(pixels(pipe(**given, seeds=[7, 8, 9], batch_size=1)), together)
    assert close(pixels(pipe(**given, seeds=[7, 8, 9], batch_size=2)), together)
    assert close(pixels(pipe(**given, seeds=[9, 7, 8])), together[[2, 0, 1]])
    assert not close(together[0], together[1])


def test_the_noise_of_all_steps_is_drawn_at_once_and_is_that_of_step_after_step(pipe, monkeypatch):
    given = {"product": "tile", "defect": "crack", "num_images": 2, "num_inference_steps": 4}
    with monkeypatch.context() as patch:
        patch.setattr(scheduling_dpmsolver_multistep, "randn_tensor", None)  # so no step can draw any
        at_once = pipe(**given)

    step = DPMSolverMultistepScheduler.step

    def step_by_step(self, predicted, t, latents, generator=None):
        return step(self, predicted, t, latents, generator=generator)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", step_by_step)
    assert (pixels(pipe(**given)) == pixels(at_once)).all()


def test_seeds_are_counted_from_zero(pipe):
    given = {"product": "tile", "defect": "crack", "num_images": 2}
    assert (pixels(pipe(**given)) == pixels(pipe(**given, seeds=[0, 1]))).all()


def test_names_go_image_by_image(pipe):
    """Many pairs in one batch: each picture is the same as when generated alone."""
    given = {"product": ["tile", "hazelnut", "tile"], "defect": ["crack", "hole", "good"], "seeds": [5, 6, 7]}
    together, one_by_one = pipe(**given), pipe(**given, batch_size=1)
    assert len(together.images) == 3
    for i in range(3):
        alone = pipe(**{name: values[i] if name != "seeds" else [values[i]] for name, values in given.items()})
        for out in (together, one_by_one):
            assert close(pixels(alone)[0], pixels(out)[i])
            np.testing.assert_allclose(alone.mask_probs[0], out.mask_probs[i], atol=1e-4)
    one_product = pipe(product="tile", defect=given["defect"], seeds=[5, 5, 5])
    assert close(pixels(one_product)[0], pixels(together)[0])


def test_w_d_goes_image_by_image(pipe):
    given = {"product": "tile", "defect": "crack"}
    w_d = [0.0, 1.0, 4.0]
    swept = pipe(**given, w_d=w_d, num_images=3, seeds=[5, 5, 5])
    for i, w in enumerate(w_d):
        alone = pipe(**given, w_d=w, seeds=[5])
        assert close(pixels(alone)[0], pixels(swept)[i])
        np.testing.assert_allclose(alone.mask_probs[0], swept.mask_probs[i], atol=1e-4)
    assert not close(pixels(swept)[0], pixels(swept)[2])


def test_every_frame_of_a_sweep_starts_from_the_same_noise(pipe):
    """Each branch's prediction in the first step, before guidance, is the same for every w_d."""
    seen = []
    pipe(
        product="tile",
        defect="crack",
        w_d=[0.0, 1.0, 4.0],
        num_images=3,
        seeds=[5, 5, 5],
        callback=lambda step, t, latents, branches: seen.append((step, int(t), latents.clone(), branches)),
    )
    assert [step for step, *_ in seen] == [0, 1]
    assert seen[0][1] > seen[1][1]
    assert seen[0][2].shape == (3, 4, 8, 8)
    for row in (1, 2):
        for noise in seen[0][3].predicted.values():
            torch.testing.assert_close(noise[row], noise[0])
        assert not torch.allclose(seen[0][2][row], seen[0][2][0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedulers_that_are_documented_work(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    seen, latents = [], []
    pipe.transformer.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].std())))
    given = {"product": "tile", "defect": "crack", "num_images": 2, "num_inference_steps": 4}
    out = pipe(**given, callback=lambda step, t, x, branches: latents.append(x))
    assert len(latents) == 4
    assert seen[0] == pytest.approx(1, abs=0.15)  # the transformer starts from unit noise, whatever the scheduler's
    assert all(x.isfinite().all() for x in latents)
    assert np.isfinite(out.mask_probs).all()
    assert pixels(out).std() > 0
    assert (pixels(pipe(**given)) == pixels(out)).all()  # no state is left from the previous call


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_the_scheduler_follows_what_the_transformer_predicts(name, prediction):
    """A scheduler made for the other prediction gives the same pictures as one made for this prediction."""
    pipe = random_pipeline(model={"prediction": prediction})
    given = {"product": "tile", "defect": "crack", "num_images": 2}
    pictures = []
    for kind in ("epsilon", "v_prediction"):
        pipe.scheduler = getattr(diffusers, name)(prediction_type=kind)
        pictures.append(pixels(pipe(**given)))
    assert (pictures[0] == pictures[1]).all()
    assert pipe.scheduler.config.prediction_type == PREDICTION_TYPES[prediction]


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_latents_are_not_cut_to_the_range_of_pixels(pipe, name):
    """Neither by a scheduler of the pipeline's own configuration nor by a new one, which clips them by default."""
    given = {"product": "tile", "defect": "crack", "num_images": 2}
    kind, pictures = getattr(diffusers, name), []
    for scheduler in (kind(clip_sample=False), kind.from_config(pipe.scheduler.config), kind()):
        pipe.scheduler = scheduler
        pictures.append(pixels(pipe(**given)))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()


def test_what_is_predicted_is_saved_with_the_scheduler(tmp_path):
    random_pipeline(model={"prediction": "velocity"}).save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    )


@pytest.mark.parametrize("name", ["KarrasVeScheduler", "EDMEulerScheduler", "IPNDMScheduler"])
def test_other_schedulers_are_refused_by_name(pipe, name):
    pipe.scheduler = getattr(diffusers, name)()
    with pytest.raises(InputError, match=f"unknown scheduler '{name}'"):
        pipe(product="tile")


def test_every_scheduler_gives_the_same_kind_of_picture():
    """A wrong scale of the latents, or latents that were cut, give washed-out pictures."""
    pipe = DefectDiffuPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    given, config = {"product": "hazelnut", "defect": "crack", "num_images": 2}, pipe.scheduler.config
    mean = pixels(pipe(**given)).mean()
    for name in SCHEDULERS:
        pipe.scheduler = getattr(diffusers, name).from_config(config)
        assert pixels(pipe(**given)).mean() == pytest.approx(mean, abs=12), name


def test_the_schedulers_that_work_are_documented():
    assert all(name in DefectDiffuPipeline.__doc__ for name in SCHEDULERS)


# ---------------------------------------------------------------------------------------------------------------------
# Saved weights for others

PLAIN = """
import sys
from diffusers import DiffusionPipeline
assert not any(name.startswith("defectdiffu") for name in sys.modules)
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
out = pipe("tile", "crack", num_images=1)
print(type(pipe).__name__, {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)}, out.images[0].size)
"""


@pytest.mark.parametrize("half", [False, True])
def test_diffusers_alone_loads_what_was_saved(tmp_path, half):
    pipe = random_pipeline()
    (pipe.to(torch.float16, silence_dtype_warnings=True) if half else pipe).save_pretrained(tmp_path / "weights")
    paths = {"PYTHONPATH": str(Path(pipeline.__file__).parents[1]), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, tmp_path / "weights"],
        env=os.environ | paths | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "DefectDiffuPipeline {torch.float32} (32, 32)\n", done.stderr


def test_a_model_card_is_saved_and_uploaded(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers.utils.hub_utils, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/mine"))
    monkeypatch.setattr(diffusers.utils.hub_utils, "load_or_create_model_card", lambda *_, **__: ModelCard(""))
    uploaded = []
    monkeypatch.setattr(
        diffusers.utils.hub_utils,
        "upload_folder",
        lambda folder_path, **_: uploaded.append((Path(folder_path) / "README.md").read_text()),
    )
    pipe.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    pipe.push_to_hub("me/mine")
    assert uploaded == [card]
    assert ModelCard(card).data.library_name == "diffusers"
    for words in ("32 x 32", 'pipe("hazelnut", "crack")', "| tile | crack, hole |", "## Licence", "Not measured"):
        assert words in card


def test_the_card_has_the_scores_that_lie_beside_the_weights():
    card = model_card({"tile": ["crack"]}, 64, DefectDiffuPipeline.from_pretrained("tiny").oracle)
    assert "| mask iou | 0.45 | 0.41 |" in card


def test_a_damaged_record_of_scores_is_said_in_the_card(tmp_path):
    (tmp_path / "oracle.json").write_text("{}")
    assert "could not be read" in model_card({}, 64, tmp_path / "oracle.json")


class Constant:
    """A decoder whose output is the latent's mean everywhere: masks can be computed by hand."""

    dtype = torch.float32

    def __init__(self):
        self.config = {"scaling_factor": 1.0}

    def decode(self, latents):
        value = latents.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return type("Decoded", (), {"sample": value.expand(-1, 3, 32, 32)})


def test_the_mask_is_averaged_over_the_last_tenth_of_the_steps(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "vae", Constant())
    said = []
    out = pipe(
        product="tile",
        defect="crack",
        w_d=1.0,
        num_inference_steps=20,
        callback=lambda step, t, x, branches: said.append(float(branches.mask["d0"].mean())),
    )
    expected = np.mean([np.clip((value + 1) / 2, 0, 1) for value in said[-2:]])
    np.testing.assert_allclose(out.mask_probs, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_precision_is_taken_by_either_name(saved, name):
    assert DefectDiffuPipeline.from_pretrained(saved, **{name: torch.bfloat16}).transformer.dtype == torch.bfloat16


def test_a_check_compares_each_picture_with_its_twin_and_keeps_those_that_pass(pipe, monkeypatch):
    asked = {"product": "tile", "defect": "crack", "seeds": [5, 6, 7], "num_inference_steps": 2}
    plain, without = pipe(**asked, w_d=3.0), pipe(**asked, w_d=0.0)
    seen = []

    def ratios(*arrays):
        seen.append(arrays)
        return np.array([3.0, 1.0, 2.0])

    monkeypatch.setattr(pipeline, "change_ratio", ratios)
    out = pipe(**asked, w_d=3.0, check=True)
    (images, twins, marked, twin_marked), *others = seen
    assert not others and marked.dtype == twin_marked.dtype == bool
    np.testing.assert_array_equal(images, [np.asarray(i) for i in plain.images])
    np.testing.assert_array_equal(twins, [np.asarray(i) for i in without.images])
    np.testing.assert_array_equal(marked, [np.asarray(m) > 0 for m in plain.masks])
    np.testing.assert_array_equal(twin_marked, [np.asarray(m) > 0 for m in without.masks])
    assert (out.seeds, out.ratios) == ([5, 7], [3.0, 1.0, 2.0])
    assert [i.tobytes() for i in out.images] == [plain.images[i].tobytes() for i in (0, 2)]
    assert out.mask_probs.shape == (2, 32, 32)
    assert not pipe(**asked, check=4.0).images


def test_half_precision(pipe):
    full = pixels(pipe(product="tile", defect="crack", num_images=2))
    pipe.to(torch.bfloat16)
    half = pixels(pipe(product="tile", defect="crack", num_images=2))
    assert np.abs(full - half).mean() < 5


# ---------------------------------------------------------------------------------------------------------------------
# Saved and loaded


def digest(pipe) -> str:
    """A hash of all outputs of a pipeline."""
    out = pipe(product="tile", defect="crack", num_images=2, seeds=[3, 4])
    arrays = [*map(np.asarray, out.images), *map(np.asarray, out.masks), out.mask_probs]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def write_digest(folder, file) -> None:
    file.write_text(digest(DefectDiffuPipeline.from_pretrained(folder)))


def test_another_process_makes_the_same_bytes(saved, tmp_path):
    assert in_another_process(write_digest, saved, tmp_path / "digest") == 0
    assert (tmp_path / "digest").read_text() == digest(random_pipeline())


def test_what_was_trained_on_travels_with_the_weights(saved):
    pipe = DefectDiffuPipeline.from_pretrained(saved)
    assert pipe.pairs == {"hazelnut": list(DEFECTS), "tile": list(DEFECTS)}
    assert pipe.config.num_inference_steps == 2


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"product": "tiles"}, "unknown product 'tiles': did you mean tile"),
        ({"product": "xyz"}, "unknown product 'xyz': choose from hazelnut, tile, industry"),
        ({"defect": "crak"}, "unknown defect 'crak': did you mean crack"),
        ({"guidance": "doublefree"}, "unknown guidance 'doublefree': did you mean double_free"),
        ({"num_images": 3, "seeds": [1, 2]}, "2 seeds for 3 images"),
        ({"product": ["tile", "hazelnut"], "num_images": 3}, "2 product for 3 images"),
        ({"defect": ["crack", "rust"]}, "rust"),
        ({"num_images": 3, "w_d": [1.0, 2.0]}, "2 w_d for 3 images"),
        ({"num_images": 0}, "must be at least 1"),
        ({"num_inference_steps": -1}, "num_inference_steps is -1: it must be from 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"check": -1.0}, "check is -1.0"),
        ({"defect": "good", "check": True}, "'good' cannot be checked"),
    ],
)
def test_bad_arguments_are_named(pipe, changes, message):
    with pytest.raises(InputError, match=message):
        pipe(**{"product": "tile", "defect": "crack"} | changes)


def test_unknown_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="no weights 'nothing'"):
        DefectDiffuPipeline.from_pretrained("nothing")
    with pytest.raises(InputError, match=r"not a folder of weights of this package: model_index\.json cannot be read"):
        DefectDiffuPipeline.from_pretrained(tmp_path)
