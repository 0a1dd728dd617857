"""What a `RemoteReward` and its server say to each other: JSON with images as base64 PNGs, never pickle; and the token."""

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.json_text import parse_json

TOKEN_VARIABLE = "RTDMD_REWARD_TOKEN"
HOLD_SECONDS = 1.0  # how long the server keeps a question open before it says "not yet"


@dataclass(frozen=True)
class ScoreRequest:
    """Images to score, still folded up, with their B prompts and metadata, by the reward of that name.

    pictures: B PNGs.
    size: of each, `(width, height)`, as their headers have it.
    """

    reward: str
    pictures: list[bytes]
    size: tuple[int, int]
    prompts: list[str]
    metadata: list[dict]

    @property
    def pixels(self) -> int:
        """Of all images together."""
        return len(self.pictures) * self.size[0] * self.size[1]

    def images(self) -> list[Tensor]:
        """B images, `[3, H, W]` uint8 grey levels. Raises UserError for what is no picture behind its header."""
        return [_pixels(picture) for picture in self.pictures]


def encode(reward: str, images: Tensor, prompts: list[str], metadata: list[dict]) -> bytes:
    """The body of a request. `[B, 3, H, W]` images in [0, 1] become PNGs: overshoot is cut off, levels are rounded to 8 bits.

    Raises UserError for images with NaN, which a PNG would show as black, and for metadata that JSON cannot hold.
    """
    finite = images.detach().flatten(1).isfinite().all(dim=1).tolist()
    if not all(finite):
        raise UserError(
            f"{reward}: the image of the prompt {prompts[finite.index(False)]!r} has NaN or infinite values"
        )
    pictures = [_png(picture) for picture in to_pil(images)]
    try:
        text = json.dumps({"reward": reward, "images": pictures, "prompts": prompts, "metadata": metadata})
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{reward}: metadata that goes to another process must be JSON: {error}") from error
    return text.encode()


def decode(body: bytes) -> ScoreRequest:
    """What `encode` wrote; of the pictures no more than the headers are read. Raises UserError for anything else."""
    content = parse_json(body, "the body")
    if not (isinstance(content, dict) and content.keys() == {"reward", "images", "prompts", "metadata"}):
        raise UserError("the body must be an object of reward, images, prompts and metadata")
    texts, prompts = _list_of(str, content, "images"), _list_of(str, content, "prompts")
    metadata = _list_of(dict, content, "metadata")
    if not len(texts) == len(prompts) == len(metadata) > 0:
        raise UserError("images, prompts and metadata must be of one length, at least 1")
    pictures = [_unquoted(text) for text in texts]
    sizes = {_size(picture) for picture in pictures}
    if len(sizes) > 1:
        raise UserError("the images of a request must be of one size")
    return ScoreRequest(str(content["reward"]), pictures, sizes.pop(), prompts, metadata)


def read_token(token_file: Path | None) -> str | None:
    """From the file, or without one from the environment; None where there is neither.

    Raises UserError for a file that cannot be read, and for a token that no header can carry.
    """
    if token_file is None:
        source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    else:
        try:
            source, token = str(token_file), token_file.expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(f"the token file {token_file} cannot be read: {error}") from error
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"the token in {source} must be one line of ASCII characters without spaces")
    return token


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)  # the fastest that still compresses
    return base64.b64encode(buffer.getvalue()).decode()


def _unquoted(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's own is one of them
        raise UserError(f"an image is not a base64 PNG: {error}") from error


@contextmanager
def _opened(picture: bytes) -> Iterator[Image.Image]:
    """Pillow's image, of which it has read the header alone; errors of the body's code are told as the picture's."""
    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            yield image
    except Exception as error:  # what Pillow raises depends on the bytes
        raise UserError(f"an image is not a base64 PNG: {error}") from error


def _size(picture: bytes) -> tuple[int, int]:
    with _opened(picture) as image:
        return image.size


def _pixels(picture: bytes) -> Tensor:
    with _opened(picture) as image:
        return pil_to_tensor(image.convert("RGB"))


def _list_of(kind: type, content: dict, key: str) -> list:
    values = content[key]
    if not (isinstance(values, list) and all(isinstance(value, kind) for value in values)):
        raise UserError(f"{key} must be a list of {kind.__name__}")
    return values
