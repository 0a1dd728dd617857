"""Images with captions: which image stands where, and that its prompt stands below it."""

import numpy as np
import pytest
import torch

from rtdmd_lightning.utils.pictures import COLUMNS, GAP, SMALL_SIDE, Pictures


def grid(captions, shape=(8, 8)):
    """Every image of its own shade of red."""
    images = torch.zeros(len(captions), 3, *shape)
    images[:, 0] = torch.arange(len(captions)).view(-1, 1, 1) / len(captions)
    return np.asarray(Pictures(images, captions).grid)


def below(picture, number, height):
    """The strip below an image of the first row."""
    width = SMALL_SIDE + GAP
    return picture[GAP + height :, GAP + number * width : (number + 1) * width]


def test_images_stand_in_rows_in_their_order():
    count = COLUMNS + 2
    picture = grid(["a"] * count)
    row_height = (picture.shape[0] - GAP) // 2
    for number in range(count):
        y, x = GAP + number // COLUMNS * row_height, GAP + number % COLUMNS * (SMALL_SIDE + GAP)
        image = picture[y : y + SMALL_SIDE, x : x + SMALL_SIDE]
        assert (image[..., 0] == round(255 * number / count)).all() and (image[..., 1:] == 0).all()


def test_captions_are_dark_on_light_and_differ_with_the_prompt():
    picture = grid(["a red circle", "", "a red circle", "a blue square"])
    strips = [below(picture, number, SMALL_SIDE) for number in range(4)]
    assert strips[0].min() < 60 and strips[1].min() == 255
    assert (strips[0] == strips[2]).all() and not (strips[0] == strips[3]).all()


def test_of_a_long_caption_the_beginning_is_shown():
    long, longer, other = grid(["word " * 100]), grid(["word " * 200]), grid(["words " * 100])
    assert (long == longer).all() and not (long == other).all()


@pytest.mark.parametrize(("shape", "shown"), [((64, 32), (320, 160)), ((90, 100), (90, 100)), ((512, 512), (512, 512))])
def test_small_images_are_enlarged_by_whole_numbers(shape, shown):
    """Height and width; others keep their size."""
    picture = grid(["a", "b"], shape)
    assert picture.shape[1] == 2 * (shown[1] + GAP) + GAP and picture.shape[0] > shown[0]
    assert (picture[GAP : GAP + shown[0], -GAP - shown[1] : -GAP, 0] == 128).all()
