"""Where a backbone's autoencoder and text encoders are: on the device, or in CPU memory while they are not used."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from rtdmd_lightning.utils.offloading import Offloaded

TEXT_ENCODERS, VAE, BASE = "text_encoders", "vae", "base"
"""What a backbone may have `offloaded`; of the base it is what is quantised (`frozen_linear.py`)."""


class Placement:
    """`device` is where they work."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._offloaded: dict[str, Offloaded] = {}

    def move(
        self, part: str, pipeline: Any, components: Sequence[str], device: torch.device, *, offloaded: bool
    ) -> None:
        """What a pipeline has of some components: to the device, or to a home in CPU memory while the part is not `at_work`."""
        self.device = device
        found = [] if pipeline is None else [pipeline.components.get(name) for name in components]
        networks = [network for network in found if isinstance(network, nn.Module)]
        if offloaded:
            self._offloaded[part] = Offloaded(networks, device)
            return
        for network in networks:
            network.to(device)

    def at_work(self, part: str) -> AbstractContextManager[None]:
        """The part on the device in the body."""
        return self._offloaded[part].at_work() if part in self._offloaded else nullcontext()
