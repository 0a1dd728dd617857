"""What a `RemoteReward` and its server say to each other: JSON with images as base64 PNGs, never pickle; and the token."""

import base64
import binascii
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.utils.errors import UserError

TOKEN_VARIABLE = "RTDMD_REWARD_TOKEN"
HOLD_SECONDS = 1.0  # how long the server keeps a question open before it says "not yet"
MAX_PIXELS = 2**24  # of one image, 4096 x 4096: a PNG of a few bytes can unfold into gigabytes


@dataclass(frozen=True)
class ScoreRequest:
    """Images to score: `[B, 3, H, W]` uint8 grey levels, with their B prompts and metadata, by the reward of that name."""

    reward: str
    images: Tensor
    prompts: list[str]
    metadata: list[dict]


def encode(reward: str, images: Tensor, prompts: list[str], metadata: list[dict]) -> bytes:
    """The body of a request. `[B, 3, H, W]` images in [0, 1] become PNGs: overshoot is cut off, levels are rounded to 8 bits.

    Raises UserError for metadata that JSON cannot hold.
    """
    pictures = [_png(picture) for picture in to_pil(images)]
    try:
        text = json.dumps({"reward": reward, "images": pictures, "prompts": prompts, "metadata": metadata})
    except TypeError as error:
        raise UserError(f"{reward}: metadata that goes to another process must be JSON: {error}") from error
    return text.encode()


def decode(body: bytes) -> ScoreRequest:
    """What `encode` wrote. Raises UserError for anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}") from error
    if not (isinstance(content, dict) and content.keys() == {"reward", "images", "prompts", "metadata"}):
        raise UserError("the body must be an object of reward, images, prompts and metadata")
    pictures, prompts = _list_of(str, content, "images"), _list_of(str, content, "prompts")
    metadata = _list_of(dict, content, "metadata")
    if not len(pictures) == len(prompts) == len(metadata) > 0:
        raise UserError("images, prompts and metadata must be of one length, at least 1")
    images = [_pixels(picture) for picture in pictures]
    if len({image.shape for image in images}) > 1:
        raise UserError("the images of a request must be of one size")
    return ScoreRequest(str(content["reward"]), torch.stack(images), prompts, metadata)


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


def _pixels(picture: str) -> Tensor:
    """`[3, H, W]` uint8."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(picture, validate=True)), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"an image of {image.width} x {image.height} is larger than {MAX_PIXELS} pixels")
            return pil_to_tensor(image.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"an image is not a base64 PNG: {error}") from error


def _list_of(kind: type, content: dict, key: str) -> list:
    values = content[key]
    if not (isinstance(values, list) and all(isinstance(value, kind) for value in values)):
        raise UserError(f"{key} must be a list of {kind.__name__}")
    return values
