"""OCR on rendered text, with the models that rapidocr ships, and the arithmetic of METHOD section 6."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_tensor

from rtdmd_lightning.rewards.base import grey_levels
from rtdmd_lightning.rewards.ocr import OCRReward, quoted_text, text_score
from rtdmd_lightning.utils.errors import UserError


def rendered(*lines: str) -> torch.Tensor:
    image = Image.new("RGB", (288, 160), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + 60 * row), line, fill=(200, 0, 0), font=ImageFont.load_default(40))
    return to_tensor(image)


@pytest.fixture(scope="module")
def reward():
    reward = OCRReward()
    reward.to(torch.device("cpu"))
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
    reward = OCRReward()
    monkeypatch.setattr(
        reward, "_read", lambda picture: seen.append(picture) or SimpleNamespace(txts=None), raising=False
    )
    reward.score(torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6), ['"x"'], [{}])
    assert seen[0].shape == (4, 6, 3) and seen[0][0, 0].tolist() == [0, 51, 255]


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
