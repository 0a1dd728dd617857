"""The toy world, which the page shows unless it is given a base: its networks, how they were trained to draw, its words."""

from rtdmd_lightning.shapes.prompts import held_out_prompts, known_words
from rtdmd_lightning.shapes.text import MAX_PROMPT_TOKENS
from rtdmd_lightning.shapes.world import IMAGE_SIZE
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.shipped import CHECKPOINTS, shipped_folder

NETWORKS = shipped_folder() / CHECKPOINTS
BASE = str(NETWORKS / "tiny-sd3")
ADAPTERS = [str(NETWORKS / f"tiny-sd3-{stage}" / "generator_ema.pt") for stage in ("cold-start", "rtdmd")]
NAMES = ["stage 1, the cold start", "stage 2, RTDMD"]
# As configs/evaluate/tiny_sd3.yaml has them.
STEPS, ETA, RESOLUTION = [1000, 650, 420, 210], 0.7, IMAGE_SIZE
BACKBONE = {"use_t5": False, "max_sequence_length": 1, "dtype": "float32"}
MOST_WORDS = MAX_PROMPT_TOKENS - 2  # a word is a token; two more begin and end the prompt


def examples() -> list[str]:
    """A held-out prompt of each kind that the toy world has."""
    return [metadata["prompt"] for metadata in held_out_prompts(1)]


def check_prompt(prompt: str) -> None:
    """Refuse what the toy world's text encoders were never trained on: they would make something of it. Raises UserError."""
    words = prompt.split()
    known = sorted(known_words())
    if unknown := [word for word in words if word not in known]:
        raise UserError(
            f"The toy world does not know {', '.join(map(repr, unknown))}. Its words are: {', '.join(known)}. "
            f"A prompt is, for example, '{examples()[0]}'."
        )
    if not 1 <= len(words) <= MOST_WORDS:
        raise UserError(f"A prompt of the toy world has 1 to {MOST_WORDS} words, not {len(words)}.")
