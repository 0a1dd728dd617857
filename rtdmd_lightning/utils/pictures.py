"""Images with their prompts: one picture with a caption below each image, for files and for loggers that know no captions."""

import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

COLUMNS = 6
SMALL_SIDE = 160
"""Images are enlarged, with hard pixel edges, by whole numbers up to this width: a caption wants some room."""
LINES = 3  # of a caption at most
GAP = 8
GROUND, INK = "white", "#202020"
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # knows more alphabets than PIL's own


@dataclass(frozen=True)
class Pictures:
    """Images `[N, 3, H, W]` in [0, 1] and a caption of each."""

    images: Tensor
    captions: list[str]

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.captions)

    @cached_property
    def separate(self) -> list[Image.Image]:
        return [to_pil_image(image) for image in self.images.cpu().float().clamp(0, 1).mul(255).round().byte()]

    @cached_property
    def grid(self) -> Image.Image:
        """Rows of at most `COLUMNS`, each image with its caption below; of a long one the beginning."""
        width, height = (side * max(1, SMALL_SIDE // self.images.shape[-1]) for side in self.images.shape[:1:-1])
        font = ImageFont.truetype(str(FONT), size=max(12, width // 24))
        letters = max(1, int(width / font.getlength("n")))
        line_height = sum(font.getmetrics()) + 1
        cell = (width + GAP, height + LINES * line_height + 2 * GAP)
        columns = min(COLUMNS, len(self.captions))
        rows = -(-len(self.captions) // columns)
        grid = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), GROUND)
        draw = ImageDraw.Draw(grid)
        for number, (image, caption) in enumerate(zip(self.separate, self.captions, strict=True)):
            left, top = GAP + number % columns * cell[0], GAP + number // columns * cell[1]
            grid.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
            for line, text in enumerate(textwrap.wrap(caption, letters, max_lines=LINES, placeholder="…")):
                draw.text((left, top + height + GAP // 2 + line * line_height), text, fill=INK, font=font)
        return grid
