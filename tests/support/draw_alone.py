"""A pipeline's pictures with nothing but diffusers: `python -P draw_alone.py FOLDER OUT`, without the package."""

import sys

if __name__ == "__main__":
    sys.modules["rtdmd_lightning"] = None  # type: ignore[assignment]  # to import it is an error

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

PROMPTS = ["a photo of a red circle", "a photo of two crosses"]


def pictures(pipeline: DiffusionPipeline) -> Tensor:
    """`[2, 3, H, W]`, drawn in four steps as a student is."""
    pipeline.set_progress_bar_config(disable=True)
    start, pipeline.scheduler.generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    size = {"height": 32, "width": 32, "output_type": "pt", "max_sequence_length": 32}
    return pipeline(PROMPTS, num_inference_steps=4, guidance_scale=1.0, generator=start, **size).images


if __name__ == "__main__":
    folder, out = sys.argv[1:]
    alone = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    torch.save({"images": pictures(alone), "module": type(alone.scheduler).__module__}, out)
