"""Training the toy world's autoencoder: a diffusers AutoencoderKL, four-fold down, four latent channels."""

import lightning as L
import torch
from diffusers import AutoencoderKL

from rtdmd_lightning.shapes.world import IMAGE_SIZE

CHANNELS = (16, 32, 64)
KL_WEIGHT = 3e-4
BATCH_SIZE = 32


def build_vae(channels: tuple[int, ...] = CHANNELS, norm_num_groups: int = 16) -> AutoencoderKL:
    """An untrained autoencoder: `[B, 3, 32, 32]` in [-1, 1] to `[B, 4, 8, 8]` and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=norm_num_groups,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def to_vae_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to the VAE's [-1, 1]."""
    return images.float() / 127.5 - 1


class AutoencoderModule(L.LightningModule):
    """Squared error plus `KL_WEIGHT` times the mean KL; AdamW with a one-cycle learning rate."""

    def __init__(self, steps: int, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.vae = build_vae()
        self.steps = steps
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[torch.Tensor], batch_idx: int) -> torch.Tensor:
        pixels = to_vae_range(batch[0])
        posterior = self.vae.encode(pixels).latent_dist
        error = torch.nn.functional.mse_loss(self.vae.decode(posterior.sample()).sample, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = 10 * torch.log10(4 / error.detach())
        self.log_dict({"vae/mse": error, "vae/kl": kl, "vae/psnr": psnr}, prog_bar=True)
        return error + KL_WEIGHT * kl

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, self.steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Posterior means of uint8 images, `[N, 4, 8, 8]`, in the VAE's own scale."""
    return torch.cat([vae.encode(to_vae_range(part)).latent_dist.mean for part in images.split(batch_size)])


def set_latent_statistics(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Record in the VAE's config the shift and scale that make its latents zero-mean and unit-variance."""
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
