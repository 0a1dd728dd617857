"""With gradient checkpointing of its autoencoder a backbone has the same images and gradients, and keeps less for them."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import save_all, tiny_backbones


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("family", ["sd3", "flux", "flux2"])
def test_images_and_gradients_are_the_same(family, tiny_folder, folders):
    images, gradients, kept = [], [], []
    for option in (False, True):
        backbone = tiny_backbone(tiny_folder) if family == "sd3" else tiny_backbones(folders)[family]
        backbone.vae_gradient_checkpointing = option
        backbone.load()
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, *backbone.latent_shape(), generator=generator).requires_grad_()
        sizes: list[int] = []
        with saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            decoded = backbone.decode(latents)
        (gradient,) = torch.autograd.grad(decoded.square().mean(), latents)
        images.append(decoded.detach()), gradients.append(gradient), kept.append(sum(sizes))
    assert torch.equal(*images)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-8)
    assert gradients[0].abs().max() > 0
    assert kept[1] < 0.5 * kept[0]
