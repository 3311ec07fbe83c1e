"""The image autoencoder: picture and mask go through the same one (Fig. 2, Image Encoder and Decoder).

Ours is diffusers' `AutoencoderTiny` over patches, trained as a variational autoencoder whose posterior has one fixed
width: the penalty is then the squared latent, and the decoder is trained on slightly noisy latents, such as a sampler
gives. It is initialised with the patches' principal components, the best linear encoding, and learns the rest.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin  # noqa: F401 (pipelines are loaded by it)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from defectdiffu.config import AutoencoderConfig
from defectdiffu.errors import InputError
from defectdiffu.masks import to_picture

SQUARE_WEIGHT = 5.0  # of the squared against the absolute error
PRIOR_WEIGHT = 1e-3  # of the latent's square against the error of the picture
RECOMBINED = 0.2  # share of the pictures whose colours `recombine` may change
LATENT_RMS = 0.5  # of a new autoencoder: the tanh of `AutoencoderTiny`'s decoder is almost linear in this range


Autoencoder = AutoencoderKL | AutoencoderTiny  # ours is an `AutoencoderTiny`


class PatchAutoencoder(AutoencoderTiny):
    """`AutoencoderTiny` that folds patches of p x p pixels into channels, where the original halves the side level by
    level: all its convolutions have the latent's size, and none has to learn a pixel's position in its patch.

    vae.encode(pictures (B, 3, S, S)).latents: (B, C, S / p, S / p); vae.decode(latents).sample: the pictures.
    """

    config: Any  # its attributes are the arguments of `__init__`; diffusers declares a plain dict

    @register_to_config
    def __init__(
        self,
        patch_size: int = 4,
        channels: int = 96,
        latent_channels: int = 8,
        scaling_factor: float = 1.0,
    ):
        folded = 3 * patch_size**2
        AutoencoderTiny.__init__.__wrapped__(  # not its wrapper, which would write the sizes into the config again
            self,
            in_channels=folded,
            out_channels=folded,
            encoder_block_out_channels=(channels,),
            decoder_block_out_channels=(channels,),
            num_encoder_blocks=(2,),
            num_decoder_blocks=(3,),
            latent_channels=latent_channels,
        )
        self.encoder.layers.insert(0, nn.PixelUnshuffle(patch_size))
        self.decoder.layers.append(nn.PixelShuffle(patch_size))


def build_autoencoder(config: AutoencoderConfig) -> PatchAutoencoder:
    """A new autoencoder whose latent's side is the picture's side divided by `config.downsample`.

    Raises `InputError` if the latent has more channels than the layers or the patch can fill.
    """
    most = min(config.channels, 3 * config.downsample**2)
    if config.latent_channels > most:
        raise InputError(
            f"autoencoder.latent_channels {config.latent_channels} must be at most {most}: autoencoder.channels is "
            f"{config.channels}, and a patch has {3 * config.downsample**2} numbers"
        )
    return PatchAutoencoder(config.downsample, config.channels, config.latent_channels)


@torch.no_grad()
def begin_as_principal_components(vae: PatchAutoencoder, pictures: Tensor) -> None:
    """Set a new autoencoder's weights so that its latent holds the principal components of the pictures' patches.

    pictures (B, 3, S, S) in [-1, 1]. For patch x with mean m and components U of deviations s, encoder and decoder are

        z = G^-1 U^T (x - m)    and    x = m + U G z,    G = c sqrt(s),

    up to the decoder's tanh. For every component this G balances the prior's penalty on z, which falls with G squared,
    and the error from the latent's noise, which grows with it; c gives z the width `LATENT_RMS`.
    The residual blocks start as the identity: values are shifted to be positive, and a ReLU does not change those.
    """
    count = vae.config.latent_channels
    first, *_, last = (m for m in vae.encoder.layers if isinstance(m, nn.Conv2d))
    begin, *_, end = (m for m in vae.decoder.layers if isinstance(m, nn.Conv2d))
    number, total, products = 0, torch.zeros(()), torch.zeros(())
    for some in pictures.split(64):  # a few at a time: all patches in double precision need much memory
        x = F.pixel_unshuffle(some, vae.config.patch_size).movedim(1, -1).flatten(0, -2).double()  # (patches, 3 p^2)
        number, total, products = number + len(x), total + x.sum(dim=0), products + x.mT @ x
    mean = total / number
    variances, components = torch.linalg.eigh(products / number - torch.outer(mean, mean))
    u = components.flip(1)[:, :count]  # (3 p^2, C)
    s = variances.flip(0)[:count].clamp(min=1e-8).sqrt()
    g = s.sqrt()
    g *= (s / g).square().mean().sqrt() / LATENT_RMS
    shift = 4 * s / g  # four deviations: almost no value is below

    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            for parameter in block.conv[-1].parameters():
                parameter.zero_()
    same = torch.arange(count)
    for convolution, rows in ((first, same), (last, slice(None)), (begin, same), (end, slice(None))):
        convolution.weight[rows] = 0  # channels beyond the latent's stay random, for training to use
    # Internally, AutoencoderTiny has pictures in [0, 1].
    first.weight[:count, :, 1, 1] = (2 * (u / g).T).float()
    first.get_parameter("bias")[:count] = (shift - (mean + 1) @ (u / g)).float()
    last.weight[same, same, 1, 1] = 1
    last.get_parameter("bias").copy_(-shift)
    begin.weight[same, same, 1, 1] = 1
    begin.get_parameter("bias")[:count] = shift.float()
    end.weight[:, :count, 1, 1] = (u * g / 2).float()
    end.get_parameter("bias").copy_((mean + 1 - (u * g) @ shift) / 2)


def stable_diffusion_autoencoder() -> AutoencoderKL:
    """A new autoencoder with the sizes of Stable Diffusion's, where only sizes matter."""
    widths = (128, 256, 512, 512)
    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    return AutoencoderKL(3, 3, down, up, widths, layers_per_block=2, latent_channels=4, sample_size=256)


def downsampling(vae: Autoencoder) -> int:
    """The side of a picture divided by the side of its latent."""
    if isinstance(vae, PatchAutoencoder):
        return vae.config.patch_size
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def fix_tiling(vae: Autoencoder) -> None:
    """Make `vae.enable_tiling()` decode correctly: diffusers assumes that `AutoencoderTiny` downsamples by 8."""
    if isinstance(vae, AutoencoderTiny):
        vae.spatial_scale_factor = downsampling(vae)
        vae.tile_latent_min_size = vae.tile_sample_min_size // vae.spatial_scale_factor


def encode(vae: Autoencoder, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] -> latents (B, C, H, W) of about unit variance (the posterior's mean)."""
    out = vae.encode(pictures)
    latents = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
    return latents * vae.config["scaling_factor"]


def decode(vae: Autoencoder, latents: Tensor) -> Tensor:
    """The inverse of `encode`: latents (B, C, H, W) -> pictures (B, 3, S, S) in [-1, 1]."""
    return vae.decode(latents / vae.config["scaling_factor"]).sample.clamp(-1, 1)


def recombine(pictures: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures with colours that a few examples lack, so that the autoencoder learns to keep any colour anywhere.

    pictures (B, 3, S, S) in [-1, 1], masks (B, S, S) in {0, 1}. A share `RECOMBINED` of the pictures is changed: half
    of them have their colour channels permuted and inverted at random; then half show another picture inside the mask
    of a defect, moved to a random place.
    """
    n, _, side, _ = pictures.shape
    uniform = torch.rand(n, 9, generator=generator, device=pictures.device)
    chosen = uniform[:, 8, None, None, None] < RECOMBINED
    order = uniform[:, :3].argsort(dim=1)  # (B, 3)
    sign = torch.where(uniform[:, 3:6] < 0.5, -1.0, 1.0)  # (B, 3)
    other = pictures.gather(1, order[:, :, None, None].expand_as(pictures)) * sign[:, :, None, None]
    changed = torch.where(uniform[:, 6, None, None, None] < 0.5, other, pictures)

    shift = (torch.rand(2, generator=generator, device=pictures.device) * side).int().tolist()
    window = masks.roll((1, *shift), (0, 1, 2)) * (uniform[:, 7, None, None] < 0.5)
    changed = torch.where(window[:, None] > 0, other.roll(2, 0), changed)
    return torch.where(chosen, changed, pictures)


def reconstruction_loss(vae: PatchAutoencoder, pictures: Tensor, latent_noise: float, noise: Tensor) -> Tensor:
    """Error of the picture and of its edges, plus the prior's penalty on the latent.

    pictures (B, 3, S, S) in [-1, 1]; noise (B, C, H, W) standard normal. The squared error keeps small stains of a
    strong colour, which the absolute error would lose; the edge error keeps thin scratches, cracks and woven texture.
    """
    latents = vae.encoder(pictures)
    decoded = vae.decoder(latents + latent_noise * noise)
    return difference(decoded, pictures) + PRIOR_WEIGHT * latents.square().mean()


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute and squared error of two pictures (B, 3, S, S), and the absolute error of their edges."""
    error = a - b
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + SQUARE_WEIGHT * error.square().mean() + edges


@torch.no_grad()
def fidelity(vae: Autoencoder, pictures: Tensor, masks: Tensor) -> dict[str, float]:
    """How well the autoencoder reconstructs: PSNR in dB of pictures (B, 3, S, S) in [-1, 1], IoU of masks (B, S, S) in
    {0, 1}. This bounds the quality of everything generated through it.
    """
    error = F.mse_loss(decode(vae, encode(vae, pictures)), pictures) / 4  # full scale is 2
    returned = decode(vae, encode(vae, to_picture(masks))).mean(dim=1) > 0
    union = (returned | (masks > 0.5)).sum().clamp(min=1)
    return {
        "psnr_db": float(-10 * error.log10()),
        "mask_iou": float((returned & (masks > 0.5)).sum() / union),
    }
