"""What a checkpoint belongs to, so that no run goes on from another one's."""

from collections.abc import Mapping, Set
from pathlib import Path

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import content_digest

ORIGIN_KEY = "origin"
Origin = dict[str, str]


def origin(module: str, shape: Mapping[str, str], beneath: Mapping[str, str], base: Mapping[str, str]) -> Origin:
    """The class that is trained, the shape of what it trains, and a digest of each file or folder that lies beneath that.

    `base` is what tells the frozen base, see `Backbone.base_identity`.
    """
    digests = {name: content_digest(Path(path)) for name, path in beneath.items()}
    return {"module": module, **shape, **base, **digests}


def check_origin(checkpoint: Path, found: Origin | None, wanted: Origin) -> None:
    """Raises UserError for a checkpoint of another origin than the run's, or of none."""
    if found is None:
        raise UserError(
            f"{checkpoint} does not say which run it belongs to: it is not this project's, or an older version saved it; it "
            "cannot be resumed, but --model.initial_adapter starts a run anew from a stage-1 generator"
        )
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{checkpoint} does not belong to this run: its {name} is {found.get(name, 'none')}, the run's is "
                f"{wanted.get(name, 'none')}; resume it with the options that it was saved with (stage 2 takes stage 1's result "
                "as --model.cold_start)"
            )


def check_keys(found: Set[str], wanted: Set[str]) -> None:
    """Raises UserError for a checkpoint whose keys are not those of the run."""
    if differing := wanted ^ found:
        raise UserError(
            f"the checkpoint does not fit this model: {len(differing)} of {len(wanted)} keys differ, e.g. {min(differing)!r}"
        )
