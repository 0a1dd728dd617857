"""What a reward is, and images as whole grey levels, for the scorers that read files rather than tensors."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from rtdmd_lightning.rewards.weights import Source
from rtdmd_lightning.utils.offloading import Offloaded


class Reward(ABC):
    """Scores images against their prompts.

    A constructor only takes note of its arguments, so that a configuration can be read on a machine without the weights.
    `load` reads them, once: the first `to` calls it, and whoever scores calls `to` first.

    `name` keys it in logs and results; `differentiable` says whether the score carries a gradient to the pixels; `offloaded`
    whether its networks lie in CPU memory while it does not score; `reported_scale` is what tables multiply the score by, where
    the published figures are on another scale. `dtype` is that of its networks where it may be chosen, until they are loaded;
    None where it may not.
    """

    name: str
    differentiable: bool
    reported_scale: float = 1.0
    offloaded: bool = False
    dtype: torch.dtype | None = None
    _loaded: bool = False
    _home: Offloaded | None = None

    @abstractmethod
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        """`[B, 3, H, W]` images in [0, 1], their B prompts and GenEval-style metadata, to `[B]` float32 scores."""

    def load(self) -> None:  # noqa: B027 (a reward without weights has nothing to load)
        """Read the weights, frozen and in eval mode, on the CPU. Raises UserError where they cannot be found."""

    def sources(self) -> list[Source]:
        """The weights and other files that `load` reads, in its order."""
        return []

    def networks(self) -> list[nn.Module]:
        """What `to` moves: the networks that `load` made."""
        return []

    def to(self, device: torch.device) -> None:
        """Load the weights unless that is done, and move them; those of an `offloaded` reward only while it is `at_work`."""
        if not self._loaded:
            self.load()
            self._loaded = True
        if self.offloaded:
            self._home = self._home or Offloaded(self.networks(), device)
            return
        for network in self.networks():
            network.to(device)

    def at_work(self) -> AbstractContextManager[None]:
        """Its networks on the device in the body, which whoever scores with an `offloaded` reward asks for."""
        return nullcontext() if self._home is None else self._home.at_work()


def grey_levels(images: Tensor) -> Tensor:
    """`[..., H, W]` in [0, 1], overshoot cut off, to uint8 as a saved PNG would hold them."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte()


def to_pil(images: Tensor) -> list[Image.Image]:
    """`[B, 3, H, W]` in [0, 1] to B pictures."""
    return [to_pil_image(image) for image in grey_levels(images).cpu()]
