"""Is the text that the prompt asks for, between double quotes, legible in the image? METHOD section 6, read by rapidocr."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text import edit_distance

from rtdmd_lightning.rewards.base import Reward, grey_levels
from rtdmd_lightning.utils.errors import UserError


class OCRReward(Reward):
    """1 where the wanted text can be read, down to 0 as more of its letters are wrong; lower-cased and without spaces.

    rapidocr ships its models, so nothing is downloaded; it runs on the CPU whatever the images are on.

    Args:
        threads: CPU threads of one process.
    """

    name = "ocr"
    differentiable = False

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def load(self) -> None:
        from rapidocr import RapidOCR

        threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": self.threads for kind in ("intra", "inter")}
        self._read: Any = RapidOCR(params={"Global.log_level": "error", **threads})

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        wanted = [quoted_text(prompt) for prompt in prompts]
        pixels = grey_levels(images).permute(0, 2, 3, 1).cpu().numpy()
        scores = [
            text_score("".join(self._read(picture[:, :, ::-1].copy()).txts or ()), text)  # the reader wants BGR
            for picture, text in zip(pixels, wanted, strict=True)
        ]
        return torch.tensor(scores, device=images.device)


def quoted_text(prompt: str) -> str:
    """What stands between the first two double quotes. Raises UserError for a prompt without any."""
    parts = prompt.split('"')
    if len(parts) < 3 or not parts[1].strip():
        raise UserError(f'ocr: the prompt must hold the wanted text between double quotes ("): {prompt}')
    return parts[1]


def text_score(read: str, wanted: str) -> float:
    """1 where `wanted` is contained in `read`, else `1 - min(edit distance, n)/n` with n the length of `wanted`."""
    read, wanted = (text.lower().replace(" ", "") for text in (read, wanted))
    if wanted in read:
        return 1.0
    distance = int(edit_distance([read], [wanted], reduction="sum"))
    return 1 - min(distance, len(wanted)) / len(wanted)
