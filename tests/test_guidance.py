import diffusers
import numpy as np
import pytest
import torch
from helpers import random_pipeline

from defectdiffu import InputError
from defectdiffu.config import GOOD
from defectdiffu.guidance import GUIDANCES, Branches, branch_conditions, drop_conditions, evaluate_branches, guide
from defectdiffu.losses import noise_of_velocity, picture_of_velocity

NULL = "industry"
FORMS = pytest.mark.parametrize("form", GUIDANCES)


def random_noise(batch: int = 3) -> dict[str, torch.Tensor]:
    return {branch: torch.randn(batch, 4, 2, 2) for branch in ("gp", "g0", "d0", "dp")}


def scales(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 1


def frequencies(has_defect: bool, p1: float, p2: float, draws: int = 20_000) -> dict[tuple[bool, ...], float]:
    """How often an image loses its product and its defect."""
    dropped = drop_conditions(np.full(draws, has_defect), p1, p2, np.random.default_rng(0))
    outcomes, counts = np.unique(np.stack(dropped, axis=1), axis=0, return_counts=True)
    return {tuple(map(bool, outcome)): n / draws for outcome, n in zip(outcomes, counts, strict=True)}


def expect(found: dict, expected: dict, draws: int = 20_000) -> None:
    assert found.keys() == expected.keys()
    for outcome, p in expected.items():
        assert abs(found[outcome] - p) < 4 * np.sqrt(p * (1 - p) / draws), outcome


@pytest.mark.parametrize(("p1", "p2"), [(0.2, 0.2), (0.1, 0.4)])
def test_algorithm_1_of_a_defect_image(p1, p2):
    null = 1 - (1 - p1) ** 2
    expected = {
        (False, False): (1 - null) * (1 - p2),
        (True, False): null * (1 - p2),
        (False, True): (1 - null) * p2,
        (True, True): null * p2,
    }
    expect(frequencies(True, p1, p2), expected)


@pytest.mark.parametrize("p1", [0.1, 0.3])
def test_algorithm_1_of_a_good_image(p1):
    expect(frequencies(False, p1, p2=0.5), {(False, False): 1 - p1, (True, False): p1})


def test_algorithm_1_draws_the_same_count_whatever_happens():
    """So that later random numbers do not depend on the picture."""
    after = []
    for has_defect in (True, False):
        rng = np.random.default_rng(5)
        drop_conditions(np.array([has_defect]), 0.5, 0.5, rng)
        after.append(rng.random())
    assert after[0] == after[1]


# ---------------------------------------------------------------------------------------------------------------------
# Eqs. 4 and 12 and the released forms


def test_the_three_forms_by_hand():
    e = {"g0": torch.tensor(1.0), "gp": torch.tensor(3.0), "d0": torch.tensor(8.0), "dp": torch.tensor(14.0)}
    values = {name: float(form.combine(e, 2.0, torch.tensor(0.5))) for name, form in GUIDANCES.items()}
    assert values == {
        "double_free": 1 + 2 * (3 - 1) + 0.5 * (8 - 1),
        "defect_only": 3 + 0.5 * (14 - 3),
        "product_aware": 1 + 2 * (3 - 1) + 0.5 * (14 - 3),
    }


@FORMS
def test_without_a_defect_it_is_the_good_product(form):
    e = random_noise()
    torch.testing.assert_close(GUIDANCES[form].combine(e, 1.0, scales(0, 0, 0)), e["gp"])


@FORMS
def test_equal_conditions_change_nothing(form):
    same = torch.randn(3, 4, 2, 2)
    e = dict.fromkeys(("gp", "g0", "d0", "dp"), same)
    torch.testing.assert_close(GUIDANCES[form].combine(e, 3.0, scales(1, 2, 5)), same)


def test_product_aware_at_one_is_defect_only():
    e, w_d = random_noise(), scales(0.5, 1, 2)
    one, other = (GUIDANCES[form].combine(e, 1.0, w_d) for form in ("product_aware", "defect_only"))
    torch.testing.assert_close(one, other)


@FORMS
def test_every_channel_is_guided_and_every_image_by_its_own_scale(form):
    e = random_noise()
    branches = Branches(e, e, {})
    noise, _ = guide(branches, form, 1.0, scales(0, 1, 2))
    moved = noise - e["gp"]
    assert moved[0].abs().max() < 1e-5
    assert (moved[1].abs().amax(dim=(-2, -1)) > 0).all()  # (C,)
    torch.testing.assert_close(
        moved[2], guide(Branches({k: v[2:] for k, v in e.items()}, e, {}), form, 1.0, scales(2))[0][0] - e["gp"][2]
    )
    for row, w in enumerate((0.0, 1.0, 2.0)):
        alone = {k: v[row : row + 1] for k, v in e.items()}
        torch.testing.assert_close(guide(Branches(alone, alone, {}), form, 1.0, scales(w))[0][0], noise[row])


@FORMS
def test_the_mask_is_the_defect_branchs_and_the_good_ones_at_zero(form):
    mask = random_noise(4)
    _, guided = guide(Branches(mask, mask, {}), form, 1.0, scales(0, 0.5, 1, 3))
    told = GUIDANCES[form].defect
    good, defect = mask["g" + told[1]], mask[told]
    torch.testing.assert_close(guided[0], good[0])
    torch.testing.assert_close(guided[1], (good[1] + defect[1]) / 2)
    torch.testing.assert_close(guided[2:], defect[2:])


# ---------------------------------------------------------------------------------------------------------------------
# The branches


@pytest.mark.parametrize("changes", [{}, {"attention_over": "tokens"}, {"learn_sigma": True}])
@FORMS
@torch.no_grad()
def test_sharing_the_background_equals_separate_passes(form, changes):
    pipe = random_pipeline(model=changes)
    conditions = branch_conditions(pipe.encoder, form, ["tile"], ["crack"], NULL)
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 900])
    shared = evaluate_branches(pipe.transformer, x, t, conditions)
    assert tuple(shared.predicted) == GUIDANCES[form].branches
    for branch, condition in conditions.items():
        for row in range(3):
            out = pipe.transformer(x[row : row + 1], t[row : row + 1], **vars(condition))
            for found, naive in (
                (shared.predicted, out.sample[:, :4]),
                (shared.mask, out.mask),
                (shared.attention, out.attention),
            ):
                torch.testing.assert_close(found[branch][row], naive[0], atol=1e-5, rtol=0)
    assert not torch.allclose(*(shared.predicted[b] for b in GUIDANCES[form].branches[:2]), atol=1e-3)


@pytest.mark.parametrize(("form", "products"), [("double_free", 2), ("defect_only", 1), ("product_aware", 2)])
@torch.no_grad()
def test_the_background_runs_once_for_each_product(pipe, form, products):
    rows = {"background": 0, "defect": 0, "fusion": 0}
    for part in rows:
        for block in getattr(pipe.transformer, f"{part}_part"):
            block.register_forward_pre_hook(
                lambda module, args, part=part: rows.update({part: rows[part] + len(args[0])})
            )
    conditions = branch_conditions(pipe.encoder, form, ["tile"], ["crack"], NULL)
    evaluate_branches(pipe.transformer, torch.randn(5, 4, 8, 8), torch.full((5,), 500), conditions)
    branches = len(GUIDANCES[form].branches)
    assert rows == {"background": 5 * products, "defect": 5 * branches, "fusion": 5 * branches}


@torch.no_grad()
def test_branches_are_told_what_their_names_say(pipe):
    conditions = branch_conditions(pipe.encoder, "product_aware", ["tile"], ["crack"], NULL)
    told = {"g0": (NULL, GOOD), "gp": ("tile", GOOD), "dp": ("tile", "crack")}
    assert conditions.keys() == told.keys()
    for branch, (product, defect) in told.items():
        expected = pipe.encoder.conditions([product], [defect])
        for part in ("product", "defect", "fusion"):
            assert torch.equal(getattr(conditions[branch], part).pooled, getattr(expected, part).pooled)


def test_unknown_guidance_is_named(pipe):
    with pytest.raises(InputError, match="unknown guidance 'double': did you mean double_free"):
        branch_conditions(pipe.encoder, "double", ["tile"], ["crack"], NULL)


@FORMS
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_guiding_the_velocity_is_guiding_the_noise(form, name):
    """The same branches as noise and as velocity: the same guided noise, x_0 and next latent at every step."""
    generator = torch.Generator().manual_seed(0)

    def drawn() -> torch.Tensor:
        return torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=generator)

    guide = GUIDANCES[form].combine
    by_noise, by_velocity = (getattr(diffusers, name)(prediction_type=p) for p in ("epsilon", "v_prediction"))
    by_noise.set_timesteps(10)
    by_velocity.set_timesteps(10)
    x, w_d = drawn(), scales(0.5, 2.0).double()
    for t in by_noise.timesteps:
        a_bar = by_noise.alphas_cumprod.double()[t].expand(2)
        said = {branch: drawn() for branch in GUIDANCES[form].branches}
        v = guide(said, 1.5, w_d)
        noise = guide({branch: noise_of_velocity(value, x, a_bar) for branch, value in said.items()}, 1.5, w_d)
        torch.testing.assert_close(noise_of_velocity(v, x, a_bar), noise, atol=1e-5, rtol=0)
        picture = (x - (1 - a_bar[0]).sqrt() * noise) / a_bar[0].sqrt()
        torch.testing.assert_close(picture_of_velocity(v, x, a_bar), picture, atol=1e-5, rtol=0)
        after = by_velocity.step(v, t, x).prev_sample
        x = by_noise.step(noise, t, x).prev_sample
        torch.testing.assert_close(after, x, atol=1e-5, rtol=1e-5)
