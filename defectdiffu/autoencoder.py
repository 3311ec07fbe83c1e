"""The image autoencoder: picture and mask go through the same one (Fig. 2, Image Encoder and Decoder).

Ours is diffusers' `AutoencoderTiny` trained as a variational autoencoder whose posterior has one fixed width: the
penalty is then the latent's square, and the decoder is used to latents that are a little off, as a sampler's are.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from defectdiffu.config import AutoencoderConfig
from defectdiffu.masks import to_picture

SQUARE_WEIGHT = 5.0  # of the squared against the absolute error
PRIOR_WEIGHT = 1e-3  # of the latent's square against the error of the picture


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderTiny:
    """A new `AutoencoderTiny` that halves the picture's side log2(config.downsample) times."""
    levels = config.downsample.bit_length()
    return AutoencoderTiny(
        encoder_block_out_channels=(config.channels,) * levels,
        decoder_block_out_channels=(config.channels,) * levels,
        num_encoder_blocks=(1, *(3,) * (levels - 1)),
        num_decoder_blocks=(*(3,) * (levels - 1), 1),
        latent_channels=config.latent_channels,
    )


def stable_diffusion_autoencoder() -> AutoencoderKL:
    """A new autoencoder of the sizes of Stable Diffusion's, for what depends on sizes alone."""
    widths = (128, 256, 512, 512)
    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    return AutoencoderKL(3, 3, down, up, widths, layers_per_block=2, latent_channels=4, sample_size=256)


def mend_tiling(vae) -> None:
    """Let `vae.enable_tiling()` decode right: diffusers takes it that an `AutoencoderTiny` halves the side thrice."""
    if isinstance(vae, AutoencoderTiny):
        vae.spatial_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.tile_latent_min_size = vae.tile_sample_min_size // vae.spatial_scale_factor


def encode(vae, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] -> latents (B, C, H, W) of about unit variance (the posterior's mean)."""
    out = vae.encode(pictures)
    latents = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
    return latents * vae.config.scaling_factor


def decode(vae, latents: Tensor) -> Tensor:
    """The inverse of `encode`: latents (B, C, H, W) -> pictures (B, 3, S, S) in [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)


def recombine(pictures: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures with colours that a few examples lack, so that the autoencoder learns to keep any colour anywhere.

    pictures (B, 3, S, S) in [-1, 1], masks (B, S, S) in {0, 1}. Half of them have their colour channels exchanged and
    inverted at random; then half of them show another one through the mask of a defect, moved to a random place.
    """
    n, _, side, _ = pictures.shape
    uniform = torch.rand(n, 9, generator=generator, device=pictures.device)
    order = uniform[:, :3].argsort(dim=1)  # (B, 3)
    sign = torch.where(uniform[:, 3:6] < 0.5, -1.0, 1.0)  # (B, 3)
    other = pictures.gather(1, order[:, :, None, None].expand_as(pictures)) * sign[:, :, None, None]
    pictures = torch.where(uniform[:, 6, None, None, None] < 0.5, other, pictures)

    shift = (torch.rand(2, generator=generator, device=pictures.device) * side).int().tolist()
    window = masks.roll((1, *shift), (0, 1, 2)) * (uniform[:, 7, None, None] < 0.5)
    return torch.where(window[:, None] > 0, other.roll(2, 0), pictures)


def reconstruction_loss(vae: AutoencoderTiny, pictures: Tensor, latent_noise: float, noise: Tensor) -> Tensor:
    """Error of the picture and of its edges, plus the prior's pull on the latent.

    pictures (B, 3, S, S) in [-1, 1]; noise (B, C, H, W) standard normal. The squared error holds small stains of a
    strong colour, which the absolute error would give up; edges hold thin scratches and cracks and woven texture.
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
def fidelity(vae, pictures: Tensor, masks: Tensor) -> dict[str, float]:
    """What the autoencoder loses: PSNR in dB of pictures (B, 3, S, S) in [-1, 1], IoU of masks (B, S, S) in {0, 1}.

    Nothing that is generated through it can be better than this.
    """
    error = F.mse_loss(decode(vae, encode(vae, pictures)), pictures) / 4  # full scale is 2
    returned = decode(vae, encode(vae, to_picture(masks))).mean(dim=1) > 0
    union = (returned | (masks > 0.5)).sum().clamp(min=1)
    return {
        "psnr_db": float(-10 * error.log10()),
        "mask_iou": float((returned & (masks > 0.5)).sum() / union),
    }
