"""OCR on rendered text, with the models that rapidocr ships, and the arithmetic of METHOD section 6."""

import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_tensor

from rtdmd_lightning.rewards import ocr
from rtdmd_lightning.rewards.base import grey_levels
from rtdmd_lightning.rewards.mixture import RewardGone, RewardMixture
from rtdmd_lightning.rewards.ocr import OCRReward, quoted_text, text_score
from rtdmd_lightning.utils.errors import UserError
from tests.support.fake_reader import KILLED, PROCESS, SLOW, fake_reader

CPU = torch.device("cpu")


def rendered(*lines: str) -> torch.Tensor:
    image = Image.new("RGB", (288, 160), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + 60 * row), line, fill=(200, 0, 0), font=ImageFont.load_default(40))
    return to_tensor(image)


@pytest.fixture(scope="module")
def reward():
    reward = OCRReward()
    reward.to(CPU)
    return reward


def test_rendered_text_is_read(reward):
    """The same picture for its own text and for another, two lines, and a blank."""
    images = torch.stack([rendered("HELLO 42"), rendered("HELLO 42"), rendered("GOOD", "DAY"), rendered("")])
    prompts = ['a sign that says "HELLO 42"', 'a sign that says "winter"', 'a card with "Good day" on it', 'a "word"']
    scores = reward.score(images, prompts, [{}] * 4)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert scores[0] == 1.0 and scores[2] == 1.0 and scores[3] == 0.0
    assert scores[1] < 0.5


def test_grey_levels():
    """A decoder overshoots: 1.02 is white and must not wrap around to black; levels are rounded, not cut down."""
    assert grey_levels(torch.tensor([1.02, -0.3, 0.5, 0.999])).tolist() == [255, 0, 128, 255]


def test_the_reader_gets_blue_first(monkeypatch):
    """rapidocr takes arrays as OpenCV makes them."""
    seen = []
    monkeypatch.setattr(ocr, "rapidocr", lambda threads: lambda picture: seen.append(picture) or "")
    reward = OCRReward()
    reward.to(CPU)
    reward.score(torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6), ['"x"'], [{}])
    assert seen[0].shape == (4, 6, 3) and seen[0][0, 0].tolist() == [0, 51, 255]


@pytest.fixture
def pool(monkeypatch):
    """The reward with two processes that read as `tests.support.fake_reader` does."""
    monkeypatch.setattr(ocr, "rapidocr", fake_reader)
    reward = OCRReward(workers=2)
    reward.to(CPU)
    return reward


def of_grey(*levels: int) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255


@pytest.mark.slow
def test_other_processes_read_and_answer_in_the_order_of_the_pictures(pool):
    """The first picture takes long enough for another process to read all the others."""
    levels = [SLOW, 1, 2, 3, 4, 5]
    scores = pool.score(of_grey(*levels), [f'"grey {level}"' for level in levels], [{}] * len(levels))
    assert scores.tolist() == [1.0] * len(levels)
    (first,) = pool._read([np.full((8, 8, 3), PROCESS, np.uint8)])
    assert int(first) != os.getpid()


@pytest.mark.slow
def test_a_process_that_ends_is_told_in_one_sentence_that_blames_no_prompt(pool):
    mixture = RewardMixture([pool], {"ocr": 1.0})
    for _ in range(2):
        with pytest.raises(RewardGone, match=r"^ocr: one of the 2 processes .* workers 0") as caught:
            mixture.score(of_grey(1, KILLED), ['"grey 1"', '"a"'], [{}] * 2)
        assert "prompt" not in str(caught.value)


@pytest.mark.slow
def test_the_processes_end_with_the_reward(pool):
    process = int(pool._read([np.full((8, 8, 3), PROCESS, np.uint8)])[0])
    assert alive(process)
    del pool._read
    deadline = time.monotonic() + 120
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process)


def alive(process: int) -> bool:
    return process in {child.pid for child in multiprocessing.active_children()}


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UserError, match="workers"):
        OCRReward(workers=-1)


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("HELLO42", "Hello 42", 1.0),
        ("xxhello 42yy", "hello 42", 1.0),
        ("hello 43", "hello 42", 1 - 1 / 7),
        ("helo42", "hello42", 1 - 1 / 7),
        ("42hello", "hello42", 1 - 4 / 7),
        ("", "abc", 0.0),
        ("a text that is much longer than it", "xyz", 0.0),
    ],
)
def test_text_score(read, wanted, score):
    """Contained is 1; else the edits count, at most as many as there are letters."""
    assert text_score(read, wanted) == pytest.approx(score)


def test_quoted_text():
    assert quoted_text('a sign "Stop here" near "Go"') == "Stop here"


@pytest.mark.parametrize("prompt", ["a sign", 'a sign "', 'a sign ""', 'a sign "  "'])
def test_a_prompt_without_text_is_told(prompt):
    with pytest.raises(UserError, match="between double quotes"):
        quoted_text(prompt)
