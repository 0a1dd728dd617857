"""One adapter as every file format means it: for each adapted layer two thin matrices and a scale."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import Tensor

METHOD_SCALE = 2.0
"""alpha / rank of METHOD section 4; published files hold neither number and mean this one."""

FOLDED_SCALE = 1.0
"""What a reader that knows no alpha takes (ComfyUI does): alpha = rank. B has the scale folded into it then."""

SCALE_KEY = "lora_scale"
"""Where our own files keep alpha / rank: in checkpoints an entry, in `.pt` files an attribute of the OrderedDict (as torch keeps
a state dict's `_metadata`), so that they stay plain state dicts of nothing but adapter keys."""

METHOD_KEY = "{path}.lora_{half}.default.weight"
"""METHOD section 5's names, of the layer and of `A` or `B`."""


@dataclass(frozen=True)
class LayerUpdate:
    """What an adapter adds to one layer's weight `[out, in]`: `scale * up @ down`, `down` `[r, in]`, `up` `[out, r]`."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the layer's weight, `(out, in)`."""
        return len(self.up), self.down.shape[1]

    @property
    def alpha(self) -> float:
        return self.scale * self.rank

    def delta(self) -> Tensor:
        """The update itself, `[out, in]` float32."""
        return self.scale * (self.up.float() @ self.down.float())

    def with_scale(self, scale: float) -> "LayerUpdate":
        """The same update under another scale; `up` takes up the difference."""
        return self if scale == self.scale else LayerUpdate(self.down, self.up * (self.scale / scale), scale)


@dataclass(frozen=True)
class Adapter:
    """Updates by the path of their layer in the transformer. `source` names the file in errors."""

    layers: dict[str, LayerUpdate]
    source: str

    @property
    def scale(self) -> float | None:
        """The scale that all layers share, if they do."""
        scales = {update.scale for update in self.layers.values()}
        return scales.pop() if len(scales) == 1 else None

    def with_scale(self, scale: float) -> "Adapter":
        """The same adapter with this scale for all layers: to the last bit where the scales differ by a power of two."""
        return Adapter({path: update.with_scale(scale) for path, update in self.layers.items()}, self.source)

    def with_one_scale(self) -> "Adapter":
        """The same adapter with one scale for all layers (its own where it has one, else the method's)."""
        return self.with_scale(self.scale or METHOD_SCALE)

    def state_dict(self, key: str = METHOD_KEY) -> dict[str, Tensor]:
        """All matrices, on the CPU, under names made from `key`. The scale is not in it."""
        return {
            key.format(path=path, half=half): matrix.detach().cpu().contiguous()
            for path, update in self.layers.items()
            for half, matrix in (("A", update.down), ("B", update.up))
        }

    def peft_config(self) -> LoraConfig:
        """PEFT's description. It names every layer by its whole path: suffixes could match layers that hold no update."""
        ranks = {path: update.rank for path, update in self.layers.items()}
        alphas = {path: _whole(update.alpha) for path, update in self.layers.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,
            rank_pattern={f"^{path}": value for path, value in ranks.items() if value != rank},
            alpha_pattern={f"^{path}": value for path, value in alphas.items() if value != alpha},
            target_modules=sorted(self.layers),
        )


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that equals all of them together: ranks add up, A's and B's are concatenated, scales folded into B."""
    layers: dict[str, LayerUpdate] = {}
    for adapter in adapters:
        for path, update in adapter.layers.items():
            layers[path] = _concatenated(layers[path], update) if path in layers else update
    return Adapter(layers, " + ".join(adapter.source for adapter in adapters))


def _concatenated(first: LayerUpdate, second: LayerUpdate) -> LayerUpdate:
    second = second.with_scale(first.scale)
    return LayerUpdate(
        torch.cat([first.down.float(), second.down.float()]),
        torch.cat([first.up.float(), second.up.float()], dim=1),
        first.scale,
    )


def _whole(number: float) -> float:
    """64.0 as 64, as configs write it."""
    return int(number) if number == int(number) else number
