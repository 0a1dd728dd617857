"""How adapter files name their matrices.

A key is a prefix, the layer's path in the transformer, `lora_A` or `lora_B`, perhaps the adapter's name, and `weight`. Within
one file prefix and name are the same for all keys.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rtdmd_lightning.utils.errors import UserError

KEY = re.compile(
    r"(?P<prefix>(module\.|base_model\.model\.|transformer\.)?)(?P<path>.+)\.lora_(?P<half>[AB])(\.(?P<name>[^.]+))?\.weight"
)
MOST_NAMED = 10  # keys in one sentence


@dataclass(frozen=True)
class KeyForm:
    """What all keys of a file share: `prefix` before the layer's path, and the adapter's name, which some formats leave out."""

    prefix: str
    name: str | None

    def key(self, path: str, half: str) -> str:
        """The key of a layer's `A` or `B`."""
        name = "" if self.name is None else f".{self.name}"
        return f"{self.prefix}{path}.lora_{half}{name}.weight"


Pairs = dict[str, dict[str, Tensor]]
"""By the layer's path, its `A` and its `B`."""


def pairs_of(state: Mapping[str, Tensor], forms: Sequence[KeyForm], source: str) -> tuple[KeyForm, Pairs]:
    """The one of `forms` in which a file's keys are written, and its matrices by layer. `source` names the file in errors.

    Raises UserError that names the keys which are written otherwise (also where two forms are mixed), and the layers of which
    one half is missing.
    """
    matches = {key: KEY.fullmatch(key) for key in state}
    written = {key: KeyForm(match["prefix"], match["name"]) for key, match in matches.items() if match}
    form = max(forms, key=list(written.values()).count)
    strange = [key for key in state if written.get(key) != form]
    if strange or not state:
        raise UserError(
            f"{source}: keys look like {form.key('LAYER', 'A')!r} here, not like {_named(strange) or 'nothing at all'}"
        )
    pairs: Pairs = {}
    for key, match in matches.items():
        assert match is not None
        pairs.setdefault(match["path"], {})[match["half"]] = state[key]
    if halves := [path for path, pair in pairs.items() if len(pair) == 1]:
        raise UserError(f"{source}: lora_A or lora_B is missing for {_named(halves)}")
    return form, pairs


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED:,} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
