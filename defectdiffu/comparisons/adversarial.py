"""The adversarial losses and the loop that StyleGAN2 and DFMGAN share.

Two optimisers in turn; regularisation every few steps in steps of its own; augmentation that adapts. What happens in a
step depends only on (seed, its number) and on what checkpoints hold, so that a run that was killed and resumed gives
the same weights as one that was not, to the bit on one thread of a CPU.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from defectdiffu.comparisons.augmentation import adapted, augment
from defectdiffu.errors import InputError
from defectdiffu.machine import stream
from defectdiffu.training.checkpoints import (
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from defectdiffu.training.loop import LOG_EVERY, add_to_log, average_decay, resume_log
from defectdiffu.training.step import follow

# Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, App. B
LEARNING_RATE = 0.002
R1_EVERY, PATH_EVERY = 16, 8  # steps between two of lazy regularisation
HALF_LIFE = 10_000  # of the generator's moving average, in pictures
PATH_DECAY = 0.99  # of the moving average of path lengths
# Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020
ADAPT_EVERY = 4  # steps between two changes of p, Sec. 3.1
R1_FACTOR = 0.0002  # gamma = R1_FACTOR S^2 / B, App. C


class Game(nn.Module):
    """A generator against discriminators, with all that a checkpoint must hold beside optimisers and averages.

    generator: z (B, L) -> (B, C, S, S) in [-1, 1], a picture and possibly a mask, with `latent_size` L.
    discriminators: (B, c, S, S) -> logits (B,); each has `channels` c, the first channels that it sees.
    """

    generator: Any  # a module with `latent_size`
    path_every = 0  # steps between two of the generator's regularisation; 0: it has none

    def __init__(self, generator: nn.Module, discriminators: Sequence[nn.Module]):
        super().__init__()
        self.generator = generator
        self.discriminators = nn.ModuleList(discriminators)
        self.p: Tensor
        self.register_buffer("p", torch.zeros(()))  # of every augmentation
        self.signs: Tensor
        self.register_buffer("signs", torch.zeros(()))  # sum of the r_t since p was changed last
        self.path_length: Tensor
        self.register_buffer("path_length", torch.zeros(()))  # a of Eq. 4

    def logits(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Of each discriminator the logits (B,) of pictures (B, C, S, S), augmented."""
        x = augment(x, self.p, generator)
        return [d(x[:, : d.channels]) for d in self.discriminators]

    def generator_terms(self, z: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the generator's loss, which is their sum."""
        return {"generator": self.non_saturating(self.generator(z), generator)}

    def non_saturating(self, fake: Tensor, generator: torch.Generator) -> Tensor:
        """The generator's loss, summed over the discriminators, for its pictures (B, C, S, S)."""
        return torch.stack([logistic(-v) for v in self.logits(fake, generator)]).sum()

    def discriminator_loss(self, real: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """The discriminators' loss, summed over them; adds to `signs`."""
        with torch.no_grad():
            fake = self.generator(z)
        of_real, of_fake = self.logits(real, generator), self.logits(fake, generator)
        self.signs += of_real[0].detach().sign().mean()
        return torch.stack([logistic(-r) + logistic(f) for r, f in zip(of_real, of_fake, strict=True)]).sum()

    def r1(self, real: Tensor, generator: torch.Generator) -> Tensor:
        """R1 of all discriminators, at what they are given."""
        x = augment(real, self.p, generator)
        return torch.stack([gradient_penalty(d, x[:, : d.channels]) for d in self.discriminators]).sum()

    def path_penalty(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """What the generator's lazy regularisation minimises, where `path_every` is not 0."""
        raise NotImplementedError


def logistic(logits: Tensor) -> Tensor:
    """softplus(logits), mean: of the generated pictures' logits in the discriminator's loss; of the negated logits of
    the real ones, and in the generator's non-saturating loss, of the generated ones (Goodfellow et al. 2014)."""
    return F.softplus(logits).mean()


def gradient_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """R1 without its gamma / 2: mean of |grad_x D(x)|^2 over pictures x (B, C, S, S) (Mescheder et al. 2018, Eq. 9)."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(pictures: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """|J_w^T y| (B,) of Eq. 4, for pictures (B, 3, S, S) made from w (B, W); y = noise / S with noise ~ N(0, I).

    Divided by S, lengths do not grow with the picture: gamma_pl of App. B has the factor 1 / S^2 for that.
    """
    y = noise / pictures.shape[-1]
    (gradient,) = torch.autograd.grad((pictures * y).sum(), w, create_graph=True)
    return gradient.square().sum(dim=1).sqrt()


def fit_game(
    game: Game,
    real_at: Callable[[int], Tensor],
    folder: Path,
    *,
    steps: int,
    seed: int,
    checkpoint_every: int,
    label: str,
) -> None:
    """Take the steps from the newest checkpoint in `folder` to `steps`; the generator then has its averaged weights.

    real_at: the real pictures (B, C, S, S) of a step, on the game's device. Only parameters that require a gradient are
    trained. Raises `InputError` for a checkpoint of another model and for a loss that is no number.
    """
    first = real_at(0)
    device, batch, side = first.device, len(first), first.shape[-1]
    latent_size = game.generator.latent_size
    names = [n for n, p in game.generator.named_parameters() if p.requires_grad]
    ours = [p for p in game.generator.parameters() if p.requires_grad]
    theirs = list(game.discriminators.parameters())
    optimizers = {
        "generator": lazy_adam(ours, game.path_every),
        "discriminators": lazy_adam(theirs, R1_EVERY),
    }
    average = [p.detach().clone() for p in ours]
    decay = 0.5 ** (batch / HALF_LIFE)
    gamma = R1_FACTOR * side**2 / batch

    def tensors() -> dict[str, Tensor]:
        found = {f"game.{name}": value for name, value in game.state_dict().items()}
        found |= {f"ema.{name}": value for name, value in zip(names, average, strict=True)}
        for player, parameters in (("generator", ours), ("discriminators", theirs)):
            state = optimizer_tensors(optimizers[player], parameters)
            found |= {f"{player}.{name}": value for name, value in state.items()}
        return found

    def load(found: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

        game.load_state_dict(part("game."))
        for name, value in zip(names, average, strict=True):
            value.copy_(found[f"ema.{name}"])
        load_optimizer_tensors(optimizers["generator"], ours, part("generator."))
        load_optimizer_tensors(optimizers["discriminators"], theirs, part("discriminators."))

    start = 0
    if (checkpoint := load_newest_checkpoint(folder)) is not None:
        start = checkpoint[1]["step"]
        try:
            load(checkpoint[0])
        except (LookupError, RuntimeError) as error:
            raise InputError(
                f"{folder} holds a checkpoint of another model: remove it, or choose another --out"
            ) from error
        del checkpoint

    log_file = folder.parent / "log.jsonl"
    resume_log(log_file, label, start)
    bar = tqdm(total=steps, initial=start, desc=label, dynamic_ncols=True, mininterval=1)
    tick, done = time.perf_counter(), start
    for number in range(start, steps):
        _, generator = stream(device, seed, 5, number)
        z, z_path, z_fake = torch.randn(3, batch, latent_size, generator=generator, device=device)
        terms = game.generator_terms(z, generator)
        update(optimizers["generator"], ours, torch.stack(list(terms.values())).sum())
        if game.path_every and number % game.path_every == 0:
            update(optimizers["generator"], ours, game.path_every * game.path_penalty(z_path, generator))
        real = real_at(number)
        terms["discriminator"] = game.discriminator_loss(real, z_fake, generator)
        update(optimizers["discriminators"], theirs, terms["discriminator"])
        if number % R1_EVERY == 0:
            update(optimizers["discriminators"], theirs, R1_EVERY * gamma / 2 * game.r1(real, generator))
        follow(average, ours, torch.tensor(1 - average_decay(number, decay), device=device))
        if (number + 1) % ADAPT_EVERY == 0:
            game.p.fill_(adapted(float(game.p), float(game.signs) / ADAPT_EVERY, ADAPT_EVERY * batch))
            game.signs.zero_()
        bar.update()

        last = number + 1 == steps
        if (number + 1) % LOG_EVERY == 0 or last:
            values = {name: float(value.detach()) for name, value in terms.items()} | {"p": float(game.p)}
            if not all(map(math.isfinite, values.values())):
                raise InputError(f"{label}: a loss is no number at step {number + 1}: another seed may help")
            now = time.perf_counter()
            rate = round((number + 1 - done) * batch / (now - tick), 1)
            tick, done = now, number + 1
            bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()} | {"samples/s": f"{rate:.0f}"}, refresh=False)
            add_to_log(log_file, {"stage": label, "step": number + 1, **values, "samples_per_second": rate})
        if (number + 1) % checkpoint_every == 0 or last:
            save_checkpoint(folder, number + 1, tensors(), {})
    bar.close()
    with torch.no_grad():
        for parameter, value in zip(ours, average, strict=True):
            parameter.copy_(value)


def lazy_adam(parameters: list[nn.Parameter], every: int) -> torch.optim.Adam:
    """Adam whose k main steps and one of regularisation change as much as k steps without (StyleGAN2, App. B)."""
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(parameters, LEARNING_RATE * share, betas=(0.0, 0.99**share), eps=1e-8)


def update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor) -> None:
    """One step down the gradient of the loss in these parameters alone; those that it does not depend on stay."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
