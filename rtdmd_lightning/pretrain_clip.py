"""Reproduce `checkpoints/tiny-clip`: `rtdmd pretrain_clip` (or `make tiny-clip`).

A `CLIPModel` of the real class that knows the toy world, trained on its pictures and their prompts; `clipscore` on it is
the world's differentiable reward. Started again, the run goes on where it stopped. The result is a folder that
`CLIPModel` and `CLIPProcessor` load; `retrieval.json` in it says how well it tells held-out prompts apart.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("pretrain_clip")

import json
import sys
from pathlib import Path

import lightning as L

from rtdmd_lightning.pretraining.clip import ClipModule, batches, save_folder
from rtdmd_lightning.pretraining.clip_pairs import sample_pairs
from rtdmd_lightning.pretraining.clip_retrieval import retrieval_report
from rtdmd_lightning.pretraining.training import fit
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import readable_errors

TRAINING_PAIRS = 24_000


def main(
    output: Path = Path("checkpoints/tiny-clip"),
    run_dir: Path = Path("runs/tiny-clip"),
    steps: int = 2500,
    pairs: int = TRAINING_PAIRS,
    precision: str = "32-true",
) -> None:
    """Train, write the folder, then read it back and measure it.

    Args:
        output: folder to write.
        run_dir: checkpoints and TensorBoard logs; delete it to start over.
        steps: optimizer steps.
        pairs: how many image-prompt pairs to render.
        precision: Lightning precision of the run.
    """
    L.seed_everything(0)
    module = ClipModule(steps)
    fit(module, batches(module, sample_pairs(pairs, seed=0)), run_dir, steps, precision=precision)
    save_folder(module, output)
    report = retrieval_report(output)
    (output / "retrieval.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    with readable_errors():
        run_command(main, sys.argv[1:])
