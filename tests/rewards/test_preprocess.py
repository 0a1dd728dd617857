"""Preprocessing in tensors against PIL, and against transformers' processor of either backend."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from rtdmd_lightning.rewards.preprocess import ClipPreprocess, centre_crop, resize_shorter_side
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import pictures, to_pil

SIDE = 32
SIZES = [(48, 48), (90, 64), (37, 91), (20, 20), (17, 25), (32, 32), (51, 32), (224, 224)]
LEVEL = 1 / 255


def processor(backend, side: int = SIDE, **kwargs):
    return backend(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **kwargs)


def noise(size: tuple[int, int]) -> Tensor:
    """The hardest picture: independent pixels on whole grey levels."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, *size), generator=generator) / 255


def black_and_white(size: tuple[int, int]) -> Tensor:
    """Independent pixels, each black or white: the full range, so that the kernel overshoots everywhere."""
    return (noise(size) > 0.5).float()


def resized_by_pil(images: Tensor, side: int, kernel: Image.Resampling = Image.Resampling.BICUBIC) -> Tensor:
    """PIL's resize, on floats and so without its rounding, each pass cut off at black and white as on grey levels."""
    height, width = images.shape[-2:]
    new_height, new_width = (side * length // min(height, width) for length in (height, width))
    done = []
    for image in images.flatten(0, 1).numpy():
        for size in ((new_width, height), (new_width, new_height)):
            image = np.array(Image.fromarray(image).resize(size, kernel)).clip(0, 1)
        done.append(torch.from_numpy(image))
    return torch.stack(done).unflatten(0, images.shape[:2])


@pytest.mark.parametrize("size", SIZES)
def test_the_resize_is_pils(size):
    """Where overshoot is cut off, too: pictures of the full range, against PIL's own two passes."""
    for images in (noise(size), black_and_white(size)):
        torch.testing.assert_close(resize_shorter_side(images, SIDE), resized_by_pil(images, SIDE), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_is_the_processors(size):
    """On floats: sizes, rounding down of the longer side, the crop's place, mean and std.

    transformers does not cut off overshoot on floats. Bicubic kernels overshoot by an eighth of the range at most, so from
    0.2 to 0.8 two passes never leave [0, 1], and the processor as it stands must agree. Beyond, its resize is PIL's.
    """
    theirs = processor(CLIPImageProcessor)
    preprocess = ClipPreprocess.from_processor(theirs)
    inside, beyond = 0.2 + 0.6 * black_and_white(size), black_and_white(size)
    expected = theirs(list(inside), do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(inside), expected, rtol=0, atol=1e-5)
    resized = list(resized_by_pil(beyond, SIDE))
    expected = theirs(resized, do_resize=False, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(beyond), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_only_rounding_parts_it_from_the_pil_processor(size):
    """The PIL processor works in whole grey levels, rounding after each pass: about a level at most, and none on average."""
    theirs = processor(CLIPImageProcessorPil)
    preprocess = ClipPreprocess.from_processor(theirs)
    for images in (pictures(2, size), noise(size)):
        expected = theirs([to_pil(image) for image in images], return_tensors="pt").pixel_values
        difference = (preprocess(images) - expected) * torch.tensor(preprocess.std).view(3, 1, 1)
        assert difference.abs().max() < (1e-5 if min(size) == SIDE else 1.2 * LEVEL)
        assert difference.abs().mean() < 0.4 * LEVEL
        assert difference.mean().abs() < 1e-3


def test_overshoot_is_cut_off_as_pil_does():
    """A bicubic kernel shoots over at an edge between black and white; grey levels end at 0 and 255."""
    stripes = torch.zeros(1, 3, 20, 20)
    stripes[..., 5:12] = 1
    resized = resize_shorter_side(stripes, SIDE)
    theirs = np.array(to_pil(stripes[0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    assert (resized.min(), resized.max()) == (0, 1)
    torch.testing.assert_close(resized[0].permute(1, 2, 0).double(), torch.from_numpy(theirs), rtol=0, atol=1.1 * LEVEL)


def test_the_crop_leaves_an_odd_rest_at_the_bottom_and_the_right():
    image = torch.arange(7 * 5.0).view(1, 1, 7, 5)
    assert centre_crop(image, 4)[0, 0, 0, 0] == image[0, 0, 1, 0]
    assert centre_crop(image, 5).shape == (1, 1, 5, 5)


@pytest.mark.parametrize("size", SIZES)
def test_the_bilinear_whole_is_torchvisions(size):
    """Resize and crop as torchvision's transforms do them by default on tensors; PIL's antialiased resize has the same kernel."""
    mean, std = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
    preprocess = ClipPreprocess(SIDE, SIDE, mean, std, "bilinear")
    theirs = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.Normalize(mean, std)])
    by_pil = v2.Compose([v2.CenterCrop(SIDE), v2.Normalize(mean, std)])
    for images in (noise(size), black_and_white(size)):
        torch.testing.assert_close(preprocess(images), theirs(images), rtol=0, atol=1e-6)
        resized = resized_by_pil(images, SIDE, Image.Resampling.BILINEAR)
        torch.testing.assert_close(preprocess(images), by_pil(resized), rtol=0, atol=2e-4)


def test_the_two_resizes_differ_unless_the_picture_has_the_size():
    bilinear, bicubic = (
        ClipPreprocess.from_processor(processor(CLIPImageProcessor), resize) for resize in ("bilinear", "bicubic")
    )
    assert (bilinear(noise((48, 48))) - bicubic(noise((48, 48)))).abs().max() > 10 * LEVEL
    assert torch.equal(bilinear(noise((SIDE, SIDE))), bicubic(noise((SIDE, SIDE))))


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 12), (5, 4)])
def test_gradients_are_right(size, resize):
    """Down and up, against finite differences."""
    preprocess = ClipPreprocess(6, 6, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), resize)
    images = 0.35 + 0.3 * noise(size).double()[:1]
    assert torch.autograd.gradcheck(preprocess, images.requires_grad_())


@pytest.mark.parametrize(
    "broken",
    [
        CLIPImageProcessor(do_normalize=False),
        CLIPImageProcessor(do_center_crop=False),
        CLIPImageProcessor(resample=2),
        CLIPImageProcessor(size={"height": 224, "width": 224}),
        CLIPImageProcessor(crop_size={"height": 224, "width": 200}),
        CLIPImageProcessor(size={"shortest_edge": 100}),
    ],
)
def test_a_processor_that_does_something_else_is_refused(broken):
    with pytest.raises(UserError, match="image processor"):
        ClipPreprocess.from_processor(broken)
