"""The policy ratio of a run's first update, which must be 1 to better than the clip range (METHOD section 4, item 5)."""

from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rtdmd_lightning.losses.settings import PolicySettings
from rtdmd_lightning.modules.notes import RATIO_DEVIATION, Notes
from rtdmd_lightning.utils.errors import UserError


class FirstRatio:
    """Looks at the first generator update since the run began or was resumed, and at no other.

    There the weights are those of the rollout, so that whatever the ratio differs from 1 is rounding. Beyond the clip range it
    takes samples out of the loss, by chance and not by what they are.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings
        self._is_first = True

    def __call__(self, notes: Notes, gather: Callable[[Tensor], Tensor]) -> None:
        """After the update's losses, before its step; all processes see the same. Raises UserError where the run is to stop."""
        is_first, self._is_first = self._is_first, False
        if not is_first or self.settings.ratio_check == "off":
            return
        largest, clip_range = notes.largest_of(RATIO_DEVIATION, gather), self.settings.clip_range
        if largest is None or largest <= clip_range:
            return
        found = (
            f"on the first generator update the policy's ratio is off 1 by up to {largest:.1e}, beyond model.policy.clip_range "
            f"{clip_range:g}: rollout and update round differently, and samples are clipped for that alone"
        )
        if self.settings.ratio_check == "stop":
            raise UserError(
                f"{found}. Set model.policy.old_log_prob to update, or model.policy.ratio_check to warn to go on like this"
            )
        rank_zero_warn(f"{found}; model.policy.old_log_prob=update keeps the ratio at 1")
