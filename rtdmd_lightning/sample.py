"""Prompts to images with a few steps: `rtdmd sample --base … --adapters a b --prompt "…" --out dir`.

Under `torchrun` the batches are dealt out to all processes. Noise belongs to the image and batches are cut before they are
dealt, so an image is the same on any number of processes.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("sample")

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.evaluation.images import write_image
from rtdmd_lightning.evaluation.tasks import in_batches
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.families import open_backbone
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.roles.inference import InferenceModel, even_steps
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.files import check_output, write_text
from rtdmd_lightning.utils.json_text import check_letters
from rtdmd_lightning.utils.processes import MatmulPrecision, process_device, processes, use_matmul_precision

RECORD = "sample.json"


@dataclass(frozen=True)
class Job:
    """What is drawn and how; the fields are the command line's options.

    Args:
        base: the base model, a diffusers folder or hub id.
        out: the folder for the images and for `sample.json`, which holds what it takes to draw them again.
        adapters: files or folders in any format, applied in this order, e.g. the cold start's and then stage 2's.
        prompt: one or several prompts.
        prompts: a prompt file instead, see `rtdmd_lightning.data.prompts.load_prompts`.
        images_per_prompt: how many images each prompt gets.
        steps: how many, or which raw timesteps (METHOD section 1).
        schedule: of a number of steps: evenly spaced (4 are 1000, 750, 500, 250), or what the base's own pipeline would use.
        eta: stochasticity of the CPS steps; 0 is the Euler ODE sampler.
        guidance_scale: of CFG, or the model's guidance input; 1 is how students are trained. By default 1 with adapters, and
            without them the base's own: 3.5 for FLUX.1-dev (give 1 where a student is merged into it), 1 for other models.
        seed: image i depends on (seed, i) only.
        batch_size: images drawn at once on each process.
        resolution: in pixels; by default that of the base's own pipeline.
        backbone: further arguments of the base's backbone class, e.g. '{"use_t5": false, "dtype": "float32"}'. The number of text
            tokens, `max_sequence_length`, is by default what the family's students are trained with (SD3: 128, diffusers has
            256).
        device: of the first process on a machine; by default an accelerator where there is one.
        float32_matmul_precision: of float32 matrix products on an accelerator; `high` is TF32 where the device has it.
    """

    base: str
    out: Path
    adapters: Sequence[str] = ()
    prompt: Sequence[str] = ()
    prompts: str | None = None
    images_per_prompt: int = 1
    steps: int | list[int] = 4
    schedule: Literal["even", "pipeline"] = "even"
    eta: float = 0.9
    guidance_scale: float | None = None
    seed: int = 0
    batch_size: int = 8
    resolution: int | None = None
    backbone: dict[str, Any] | None = None
    device: str | None = None
    float32_matmul_precision: MatmulPrecision = "high"

    def all_prompts(self) -> list[str]:
        """One entry an image. Raises UserError where there are no prompts, or two sources of them."""
        if bool(self.prompt) == bool(self.prompts):
            raise UserError("give either --prompt or --prompts")
        if self.images_per_prompt < 1 or self.batch_size < 1:
            raise UserError("--images_per_prompt and --batch_size must be at least 1")
        check_letters(list(self.prompt), "--prompt")
        prompts = list(self.prompt) or [entry["prompt"] for entry in load_prompts(str(self.prompts))]
        return [prompt for prompt in prompts for _ in range(self.images_per_prompt)]

    def model(self, backbone: Backbone) -> InferenceModel:
        by_pipeline = self.schedule == "pipeline" or not isinstance(self.steps, int)
        return InferenceModel(
            backbone,
            self.adapters,
            self.steps if by_pipeline else even_steps(self.steps),  # type: ignore[arg-type]
            self.guidance_scale,
            self.eta,
        )


def sample(job: Job) -> Path:
    """Draw this process's share; returns the record, which is there once all processes are done."""
    prompts = job.all_prompts()
    check_output(job.out, "--out")
    backbone = open_backbone(job.base, job.resolution, job.backbone)
    model = job.model(backbone)
    with processes() as (rank, world_size):
        device = process_device(job.device)
        use_matmul_precision(job.float32_matmul_precision, device)
        model.load(device)
        files = [f"{index:06d}.png" for index in range(len(prompts))]
        batches = in_batches(range(len(prompts)), job.batch_size)[rank::world_size]
        shown = track(batches, f"drawing {len(prompts)} images", console=Console(stderr=True), disable=rank != 0)
        for batch in shown:
            images = model.generate([prompts[index] for index in batch], batch, seed=job.seed)
            for index, image in zip(batch, images, strict=True):
                write_image(image, job.out / files[index])
    if rank == 0:
        listed = [{"file": file, "index": i, "prompt": prompts[i]} for i, file in enumerate(files)]
        record = _record(_with_defaults(job, backbone, model), model, listed)
        write_text(dumps(record, indent=2, ensure_ascii=False), job.out / RECORD)
    return job.out / RECORD


def _with_defaults(job: Job, backbone: PipelineBackbone, model: InferenceModel) -> Job:
    """The job with what base and family decided, so that its record alone draws the same."""
    text = {"max_sequence_length": backbone.max_sequence_length}
    return replace(
        job,
        resolution=backbone.resolution,
        guidance_scale=model.guidance_scale,
        backbone=(job.backbone or {}) | text,
    )


def _record(job: Job, model: InferenceModel, images: list[dict]) -> dict[str, Any]:
    options = vars(job) | {"out": str(job.out), "adapters": list(job.adapters), "prompt": list(job.prompt)}
    return {
        "options": options,
        "sigmas": model.sampler.sigmas,
        "adapter_files": {path: _digests(Path(path)) for path in job.adapters},
        "device": str(model.device),
        "versions": {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")},
        "images": images,
    }


def _digests(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(arguments: list[str]) -> None:
    parser = command_parser()
    parser.add_argument("--adapters", nargs="*", type=str, default=[])
    parser.add_argument("--prompt", nargs="*", type=str, default=[])
    parser.add_class_arguments(Job, skip={"adapters", "prompt"})
    print(f"written: {sample(Job(**parser.parse_args(arguments).as_dict()))}")


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
