"""Images as whole grey levels, for the scorers that read files rather than tensors."""

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


def grey_levels(images: Tensor) -> Tensor:
    """`[..., H, W]` in [0, 1], overshoot cut off, to uint8 as a saved PNG would hold them."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte()


def to_pil(images: Tensor) -> list[Image.Image]:
    """`[B, 3, H, W]` in [0, 1] to B pictures."""
    return [to_pil_image(image) for image in grey_levels(images).cpu()]
