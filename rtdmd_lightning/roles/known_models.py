"""Which model an adapter is for, told by the names and the shapes of its layers. No weights are read."""

from dataclasses import dataclass

from torch import nn

from rtdmd_lightning.models.families import family_of, skeleton
from rtdmd_lightning.models.published import NAMES, published
from rtdmd_lightning.roles.adapter import Adapter
from rtdmd_lightning.roles.apply import linear_shapes


@dataclass(frozen=True)
class Match:
    """How the layers of an adapter compare with the linear layers of a model.

    Args:
        model: its hub id or folder.
        fitting: the adapter's layers that the model has, in the same shape.
        misshapen: those that it has in another shape.
        missing: those that it does not have.
        targets: the model's layers that are LoRA targets of its family (METHOD section 4).
    """

    model: str
    fitting: list[str]
    misshapen: list[str]
    missing: list[str]
    targets: list[str]

    @property
    def fits(self) -> bool:
        return not self.misshapen and not self.missing

    def __str__(self) -> str:
        keys = 2 * len(self.fitting + self.misshapen + self.missing)
        if self.fits:
            adapted = set(self.fitting)
            targets = f"{len(adapted.intersection(self.targets))} of its {len(self.targets)} LoRA targets"
            others = len(adapted.difference(self.targets))
            return f"{self.model}: all {keys} keys ({targets}{f'; other layers: {others}' if others else ''})"
        reasons = [
            f"{what} {paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
            for paths, what in ((self.misshapen, "of another shape is"), (self.missing, "it does not have"))
            if paths
        ]
        return f"{self.model}: {2 * len(self.fitting)} of {keys} keys ({'; '.join(reasons)})"


def match_published(adapter: Adapter) -> list[Match]:
    """The adapter against every published model, the best match first.

    Models with the same layers match alike: the layers that METHOD adapts do not tell SD3 from SD3.5 Medium.
    """
    matches = []
    for model in map(published, NAMES):
        name = " or ".join(filter(None, (model.pretrained, model.generator_pretrained)))
        matches.append(compare(adapter, name, model.meta_transformer(), model.family.lora_targets))
    return sorted(matches, key=lambda match: (len(match.fitting), -len(match.missing)), reverse=True)


def match_base(adapter: Adapter, base: str) -> Match:
    """The adapter against a diffusers folder or hub id, of which configs are read. Raises UserError where they cannot be."""
    return compare(adapter, base, skeleton(base), family_of(base).lora_targets)


def compare(adapter: Adapter, model: str, transformer: nn.Module, lora_targets: list[str]) -> Match:
    """The adapter against a transformer, which may live on the meta device; `model` is what to call it."""
    shapes = linear_shapes(transformer)
    there = {path: update for path, update in adapter.layers.items() if path in shapes}
    return Match(
        model,
        fitting=[path for path, update in there.items() if update.shape == shapes[path]],
        misshapen=[path for path, update in there.items() if update.shape != shapes[path]],
        missing=[path for path in adapter.layers if path not in shapes],
        targets=[path for path in shapes if any(f".{path}".endswith(f".{target}") for target in lora_targets)],
    )
