"""Images on the disk: lossless, and either whole or absent."""

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.utils.files import appearing_at


def write_image(image: Tensor, path: Path) -> None:
    """`[3, H, W]` in [0, 1] to a PNG of 8 bits a channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_at(path) as partial:
        to_pil(image[None])[0].save(partial, format="PNG")


def read_image(path: Path) -> Tensor:
    """`[3, H, W]` float32 in [0, 1]."""
    with Image.open(path) as image:
        return pil_to_tensor(image).float() / 255


def data_uri(path: Path, side: int) -> str:
    """The image for embedding in a page: the file itself, or a smaller JPEG where it is larger than `side` pixels."""
    with Image.open(path) as image:
        if max(image.size) <= side:
            return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=88)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
