"""The ablations' switches work as named, and a run keeps finished results."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import random_pipeline, tiny_preset

from defectdiffu import DefectDiffuPipeline, InputError
from defectdiffu.config import PRESETS
from defectdiffu.data.folder import read_folder
from defectdiffu.evaluation.judge import Judge, JudgeNetwork
from defectdiffu.experiments import ablations
from defectdiffu.experiments.ablations import FULL, run, variants
from defectdiffu.guidance import GUIDANCES, branch_conditions, evaluate_branches
from defectdiffu.training.building import TRAIN_STEPS, build_pipeline
from defectdiffu.training.latents import Pictures, cached_latents


@pytest.mark.parametrize("name", PRESETS)
def test_every_variant_changes_known_settings_of_every_preset(name):
    preset = PRESETS[name]
    assert variants(preset)[FULL] == {}
    for changes in variants(preset).values():
        preset.replace(**changes)  # raises for unknown settings
    blocks = vars(preset.replace(**variants(preset)["without fusion part but as deep"]).model)
    kinds = ("background_blocks", "defect_blocks", "fusion_blocks")
    assert sum(blocks[k] for k in kinds) == sum(vars(preset.model)[k] for k in kinds)


@torch.no_grad()
def test_one_prompt_is_the_fusion_prompt_in_all_three_parts(pipe):
    told = random_pipeline(model={"one_prompt": True}).encoder.conditions(["tile"], ["crack"])
    fusion = pipe.encoder.conditions(["tile"], ["crack"]).fusion.pooled
    for part in (told.product, told.defect, told.fusion):
        torch.testing.assert_close(part.pooled, fusion)


@pytest.mark.parametrize("form", GUIDANCES)
@torch.no_grad()
def test_with_one_prompt_no_branch_takes_anothers_background(form):
    pipe = random_pipeline(model={"one_prompt": True})
    conditions = branch_conditions(pipe.encoder, form, ["tile"], ["crack"], "industry")
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    found = evaluate_branches(pipe.transformer, x, t, conditions)
    for branch, condition in conditions.items():
        for row in range(2):
            alone = pipe.transformer(x[row : row + 1], t[row : row + 1], **vars(condition)).sample[0]
            torch.testing.assert_close(found.predicted[branch][row], alone, atol=1e-5, rtol=0)


def test_weights_remember_their_one_prompt(tmp_path):
    random_pipeline(model={"one_prompt": True}).save_pretrained(tmp_path)
    assert DefectDiffuPipeline.from_pretrained(tmp_path).encoder.one_prompt


def test_without_the_fusion_part_pairs_are_drawn():
    pipe = random_pipeline(model={"fusion_blocks": 0})
    assert len(pipe.transformer.fusion_part) == 0
    assert pipe("tile", "crack").images[0].size == (32, 32)


@pytest.fixture
def preset(tmp_path, pipe):
    pipe.vae.save_pretrained(tmp_path / "vae")
    return tiny_preset(autoencoder={"pretrained": str(tmp_path / "vae")})


def test_a_run_compares_with_the_full_model_and_keeps_what_is_finished(preset, data, tmp_path, monkeypatch):
    untrained = Judge(JudgeNetwork(16), {"size": 16})
    monkeypatch.setattr(Judge, "shipped", lambda size: untrained)
    folders = {"data": [data], "val": data, "out": tmp_path / "runs", "file": tmp_path / "record.json"}
    names = ["another random start", "one text prompt", "product_aware guidance"]
    asked = {"steps": 2, "seeds": [0], "names": names}
    record = run(preset, **folders, **asked)
    assert [r["name"] for r in record["runs"]] == [FULL, *names]
    full, start, prompt, aware = record["runs"]
    assert start["differences"]["mask"]["mean"] != 0
    assert "differences" not in full
    for score in ("noise", "defect_noise", "mask"):
        assert prompt["differences"][score]["mean"] == pytest.approx(
            prompt["scores"][score]["mean"] - full["scores"][score]["mean"]
        )
        assert aware["differences"][score]["mean"] == 0  # the same weights
    assert full["scores"]["noise"]["count"] == 20
    assert full["scores"]["defect_noise"]["count"] == 12
    assert full["scores"]["product_accuracy"]["count"] == 3 * 2  # hazelnut crack and hole, tile crack
    assert full["scores"]["judge_distance"]["count"] == 3  # one per pair
    assert json.loads((tmp_path / "record.json").read_text()) == record

    monkeypatch.setattr(ablations, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(ablations, "judged", lambda *_: pytest.fail("judged again"))
    assert run(preset, **folders, **asked)["runs"] == record["runs"]


def test_a_new_models_error_is_the_noise_itself(pipe, data, preset):
    built = build_pipeline(preset, pipe.vae, pipe.pairs)
    latents = cached_latents(pipe.vae, Pictures.load(read_folder(data), 32), 1, 0, data.parent / "cache")
    losses = ablations.held_out_losses(built, latents)
    # It predicts 0 everywhere, so the error is the noise's variance, 1, also inside the mask.
    assert sum(losses["noise"]) / len(losses["noise"]) == pytest.approx(1, abs=0.05)
    assert sum(losses["defect_noise"]) / len(losses["defect_noise"]) == pytest.approx(1, abs=0.2)


def test_a_predicted_velocity_is_scored_by_the_noise_it_implies(pipe, data, preset):
    built = build_pipeline(preset.replace(model={"prediction": "velocity"}), pipe.vae, pipe.pairs)
    latents = cached_latents(pipe.vae, Pictures.load(read_folder(data), 32), 1, 0, data.parent / "cache")
    latents.image.zero_()
    losses = ablations.held_out_losses(built, latents)
    # v = 0 implies sqrt(1 - a_bar) x_t, here (1 - a_bar) noise: the rest, a_bar noise, has the variance a_bar^2.
    expected = DDPMScheduler(TRAIN_STEPS).alphas_cumprod.square().mean().item()
    assert sum(losses["noise"]) / len(losses["noise"]) == pytest.approx(expected, rel=0.2)


def test_bad_input_is_named(preset, data, tmp_path):
    folders = {"data": [data], "val": data, "out": tmp_path / "runs", "file": tmp_path / "record.json"}
    with pytest.raises(InputError, match="unknown variant 'one text promt': did you mean one text prompt"):
        run(preset, **folders, steps=2, seeds=[0], names=["one text promt"])
    with pytest.raises(InputError, match="no seeds"):
        run(preset, **folders, steps=2, seeds=[])
    with pytest.raises(InputError, match=r"set autoencoder\.pretrained"):
        run(preset.replace(autoencoder={"pretrained": None}), **folders, steps=2, seeds=[0])
