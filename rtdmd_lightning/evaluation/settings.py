"""What an evaluation compares, as it stands in a config."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from jsonargparse.typing import NonNegativeInt, PositiveInt

from rtdmd_lightning import roles as adapters
from rtdmd_lightning.evaluation.published import KINDS
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.registry import check_reward
from rtdmd_lightning.roles.inference import METHOD_STEPS, InferenceModel
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.files import slug


@dataclass(frozen=True)
class Entry:
    """A model and how it is sampled.

    Args:
        backbone: the base model.
        adapters: files or folders of adapters, applied in this order, each on top of those before it.
        steps: the raw timesteps, or a number N for the schedule that the family's own pipeline uses for N steps.
        guidance_scale: of CFG, or the model's guidance input; by default 1 (none) with adapters, and without them the base's own:
            3.5 for FLUX.1-dev, 1 for other models.
        eta: stochasticity of the CPS sampler; 0 is the Euler ODE step.
        seed: entries of the same seed draw a prompt from the same noise.
        published: `teacher` or `RTDMD` where the paper has figures of that kind for this base: on the published prompt sets they
            stand below this entry's own, see `evaluation/facts/published.json`.
    """

    backbone: Backbone
    adapters: list[str] = field(default_factory=list)
    steps: int | list[int] = field(default_factory=lambda: list(METHOD_STEPS))
    guidance_scale: float | None = None
    eta: float = 0.9
    seed: int = 0
    published: str | None = None

    def model(self) -> InferenceModel:
        """A model of its own, not loaded yet; it can be dropped with all its weights. Raises UserError for bad settings."""
        return InferenceModel(copy.deepcopy(self.backbone), self.adapters, self.steps, self.guidance_scale, self.eta)


@dataclass(frozen=True)
class PromptSet:
    """Prompts and the rewards that score the images drawn for them.

    Args:
        prompts: where they are, see `rtdmd_lightning.data.prompts.load_prompts`.
        rewards: what scores the images; their names must differ.
        images_per_prompt: K images are those that a file with the N prompts K times over would have: the r-th image of prompt p
            has the index p + r·N and its noise, and the first is the same whatever K is. Standard errors are over prompts.
        verdict: the reward by which the picture side by side marks an image as right (its score is 1) or wrong (any other score).
    """

    prompts: str
    rewards: list[Reward]
    images_per_prompt: PositiveInt = 1  # type: ignore[valid-type]
    verdict: str | None = None


@dataclass(frozen=True)
class Gallery:
    """What of the images the report and the pictures show: of every prompt that is shown, its first image.

    Args:
        prompts: at most so many of every set, spread evenly over it.
        side: images that are larger, in pixels, are shown smaller (and as JPEG; smaller ones stay as they are).
        side_by_side: prompts in the picture of every set, spread likewise.
    """

    prompts: NonNegativeInt = 200  # type: ignore[valid-type]
    side: PositiveInt = 320  # type: ignore[valid-type]
    side_by_side: PositiveInt = 12  # type: ignore[valid-type]


def check_settings(entries: dict[str, Entry], sets: dict[str, PromptSet], baseline: str) -> None:
    """Refuse what would only fail after hours of drawing. Raises UserError."""
    if not entries or not sets:
        raise UserError("an evaluation wants at least one entry under 'entries' and one prompt set under 'sets'")
    if baseline not in entries:
        raise UserError(f"the baseline {baseline!r} is not one of the entries: {_quoted(entries)}")
    slugs = [slug(name) for name in sets]
    require(
        len(set(slugs)) == len(sets), f"the sets {_quoted(sets)} must differ in more than what file names leave out"
    )
    for name, prompt_set in sets.items():
        for reward in prompt_set.rewards:
            check_reward(reward)
        rewards = [reward.name for reward in prompt_set.rewards]
        if not rewards or len(set(rewards)) != len(rewards):
            raise UserError(f"the rewards of the set {name!r} must be named and differ, not {rewards}")
        require(
            prompt_set.verdict in (None, *rewards),
            f"the set {name!r}: verdict must be one of its rewards ({_quoted(rewards)}), not {prompt_set.verdict!r}",
        )
    for name, entry in entries.items():
        require(
            entry.published in (None, *KINDS),
            f"the entry {name!r}: published must be one of {_quoted(KINDS)}, not {entry.published!r}",
        )
        try:
            entry.model()
            for adapter in entry.adapters:
                adapters.read(adapter)
        except UserError as error:
            raise UserError(f"the entry {name!r}: {error}") from error


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
