"""Training the toy world's autoencoder."""

import pytest
import torch
from torch.nn.functional import mse_loss

from rtdmd_lightning.pretrain_teacher import train_vae
from rtdmd_lightning.pretraining import vae
from rtdmd_lightning.shapes.dataset import sample_pairs
from rtdmd_lightning.shapes.world import IMAGE_SIZE


@pytest.fixture
def images():
    return sample_pairs(64, seed=0)[0]


def test_the_full_size_is_four_fold_down_to_four_channels():
    model = vae.build_vae()
    latents = model.encode(torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)).latent_dist.mean
    assert latents.shape == (2, 4, 8, 8)
    assert model.decode(latents).sample.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_grey_levels_fill_the_vaes_range():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(vae.to_vae_range(levels), torch.tensor([-1.0, -0.6, 1.0]))


def test_the_loss_is_squared_error_and_a_little_kl(small, images):
    """Per picture, the KL is a mean over the latent's numbers, as the error is over the pixels."""
    module = vae.AutoencoderModule(steps=10)
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    torch.manual_seed(1)
    loss = module.training_step([images[:8]], 0)
    torch.manual_seed(1)
    pixels = vae.to_vae_range(images[:8])
    posterior = module.vae.encode(pixels).latent_dist
    error = mse_loss(module.vae.decode(posterior.sample()).sample, pixels)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    torch.testing.assert_close(loss, error + vae.KL_WEIGHT * kl)
    torch.testing.assert_close(logged["vae/psnr"], -10 * (error / 4).log10())


@pytest.mark.slow
def test_training_learns_to_reconstruct(small, images, tmp_path):
    torch.manual_seed(0)

    def error(model) -> float:
        pixels = vae.to_vae_range(images)
        with torch.no_grad():
            return float(mse_loss(model.decode(model.encode(pixels).latent_dist.mean).sample, pixels))

    before = error(vae.build_vae())
    trained = train_vae(images, tmp_path, steps=40)
    assert not trained.training
    assert error(trained) < before / 5
    unchanged = train_vae(images, tmp_path, steps=40)  # the run is finished: read, not trained again
    assert all(a.equal(b) for a, b in zip(trained.parameters(), unchanged.parameters(), strict=True))


def test_the_recorded_statistics_make_latents_standard(small, images):
    """In batches of whatever size; `[N, 4, 8, 8]`, and the posterior's means, not samples of it."""
    model = vae.build_vae()
    latents = vae.encode_all(model, images, batch_size=24)
    assert latents.shape == (64, 4, 8, 8) and not latents.requires_grad
    torch.testing.assert_close(latents, vae.encode_all(model, images), rtol=0, atol=1e-5)
    vae.set_latent_statistics(model, 3 * latents + 5)
    standard = (3 * latents + 5 - model.config.shift_factor) * model.config.scaling_factor
    assert standard.mean().abs() < 1e-4 and abs(standard.std() - 1) < 1e-4
