import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defectdiffu import InputError
from defectdiffu.comparisons.adversarial import (
    ADAPT_EVERY,
    Game,
    fit_game,
    gradient_penalty,
    lazy_adam,
    logistic,
    path_lengths,
    update,
)


class ToyGenerator(nn.Module):
    latent_size = 4

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3 * 64)

    def forward(self, z):
        return self.linear(z).view(-1, 3, 8, 8)


class ToyDiscriminator(nn.Module):
    channels = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 64, 1)

    def forward(self, x):
        return self.linear(x.flatten(1))[:, 0]


@pytest.fixture
def game():
    torch.manual_seed(0)
    return Game(ToyGenerator(), [ToyDiscriminator()])


def real_at(step: int) -> torch.Tensor:
    return 0.5 + 0.1 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))


SETTINGS = {"steps": 40, "seed": 0, "checkpoint_every": 10, "label": "toy"}


def test_the_losses_are_the_logs_of_probabilities(game):
    logits = torch.tensor([-2.0, 0.5, 3.0])
    torch.testing.assert_close(logistic(logits), -(1 - logits.sigmoid()).log().mean())
    rng = torch.Generator().manual_seed(0)
    z, real = torch.randn(8, 4), real_at(0)
    of_real, of_fake = (game.discriminators[0](x) for x in (real, game.generator(z)))
    expected = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
    torch.testing.assert_close(game.discriminator_loss(real, z, rng), expected)
    torch.testing.assert_close(game.signs, of_real.sign().mean())
    torch.testing.assert_close(game.generator_terms(z, rng)["generator"], F.softplus(-of_fake).mean())


def test_r1_is_the_gradient_by_hand():
    """D(x) = sum_i a_i x_i^2 has the gradient 2 a_i x_i."""
    a, x = torch.rand(3, 4, 4).requires_grad_(), torch.randn(2, 3, 4, 4)
    found = gradient_penalty(lambda x: (a * x.square()).sum(dim=(1, 2, 3)), x)
    torch.testing.assert_close(found, (2 * a * x).square().sum(dim=(1, 2, 3)).mean())
    (gradient,) = torch.autograd.grad(found, a)  # it trains the discriminator
    torch.testing.assert_close(gradient, 8 * a * x.square().mean(dim=0))


def test_path_lengths_by_hand():
    """g(w) = A w has the Jacobian A."""
    A, w, noise = torch.randn(3 * 16, 5), torch.randn(2, 5).requires_grad_(), torch.randn(2, 3, 4, 4)
    found = path_lengths((w @ A.T).view(2, 3, 4, 4), w, noise)
    torch.testing.assert_close(found, (noise.flatten(1) / 4 @ A).norm(dim=1))


def test_an_update_changes_one_player_alone(game):
    before = {name: value.clone() for name, value in game.state_dict().items()}
    ours = list(game.generator.parameters())
    terms = game.generator_terms(torch.randn(8, 4), torch.Generator())
    update(lazy_adam(ours, 0), ours, terms["generator"])
    changed = {name for name, value in game.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"generator.linear.weight", "generator.linear.bias"}


def test_the_optimiser_allows_for_the_steps_of_regularisation():
    (group,) = lazy_adam([nn.Parameter(torch.zeros(1))], 16).param_groups
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert group["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    assert lazy_adam([nn.Parameter(torch.zeros(1))], 0).param_groups[0]["lr"] == 0.002


def test_the_augmentation_rises_where_real_pictures_are_told_and_falls_where_not(game, tmp_path):
    game.discriminators[0].linear.bias.data += 100  # every real picture is called real
    fit_game(game, real_at, tmp_path / "checkpoints", **SETTINGS)
    pictures = SETTINGS["steps"] // ADAPT_EVERY * ADAPT_EVERY * len(real_at(0))
    assert float(game.p) == pytest.approx(pictures / 500_000)
    game.discriminators[0].linear.bias.data -= 300
    fit_game(game, real_at, tmp_path / "other" / "checkpoints", **SETTINGS)
    assert float(game.p) == pytest.approx(0, abs=1e-6)


def test_it_is_logged_and_the_generator_follows_the_pictures(game, tmp_path):
    def error() -> float:
        return float((game.generator(torch.randn(64, 4)).mean() - 0.5).detach().abs())

    before = error()
    fit_game(game, real_at, tmp_path / "checkpoints", **SETTINGS | {"steps": 150})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100, 150]
    assert lines[0].keys() == {"stage", "step", "generator", "discriminator", "p", "samples_per_second"}
    assert error() < before - 0.1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_generator_gets_its_average(game, tmp_path):
    fit_game(game, real_at, tmp_path / "checkpoints", **SETTINGS)
    again = Game(ToyGenerator(), [ToyDiscriminator()])
    fit_game(again, real_at, tmp_path / "checkpoints", **SETTINGS)  # there is nothing left to do
    assert torch.equal(again.generator.linear.weight, game.generator.linear.weight)


def test_a_checkpoint_of_another_model_is_named(game, tmp_path):
    fit_game(game, real_at, tmp_path / "checkpoints", **SETTINGS)
    other = Game(ToyGenerator(), [ToyDiscriminator(), ToyDiscriminator()])
    with pytest.raises(InputError, match=r"checkpoints holds a checkpoint of another model"):
        fit_game(other, real_at, tmp_path / "checkpoints", **SETTINGS)


def test_a_loss_that_is_no_number_is_named(game, tmp_path):
    with pytest.raises(InputError, match=r"toy: a loss is no number at step 40"):
        fit_game(game, lambda step: real_at(step) * float("nan"), tmp_path / "checkpoints", **SETTINGS)
