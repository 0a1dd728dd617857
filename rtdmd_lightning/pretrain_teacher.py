"""Reproduce `checkpoints/tiny-sd3`: `rtdmd pretrain_teacher` (or `make teacher`).

Two runs, autoencoder then teacher, each with its checkpoints under `runs/teacher`; started again, they go on where they
stopped. The teacher learns from true captions first, then from noisy ones (see `dataset.py`). The result is a folder that
`StableDiffusion3Pipeline.from_pretrained` loads.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("pretrain_teacher")

import sys
from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch.utils.data import DataLoader, TensorDataset

from rtdmd_lightning.pretraining import teacher, vae
from rtdmd_lightning.pretraining.training import fit
from rtdmd_lightning.shapes.dataset import sample_pairs
from rtdmd_lightning.shapes.text import build_silent_t5
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.files import allow_reading

TRAINING_PAIRS = 150_000


def main(
    output: Path = Path("checkpoints/tiny-sd3"),
    run_dir: Path = Path("runs/teacher"),
    vae_steps: int = 2500,
    teacher_steps: int = 12_500,
    noisy_steps: int = 2000,
    precision: str = "bf16-mixed",
    pairs: int = TRAINING_PAIRS,
    score_every: int = 2000,
    compile: bool = False,
) -> None:
    """Train the autoencoder, then the teacher, then write the pipeline folder.

    Args:
        output: folder to write.
        run_dir: checkpoints and TensorBoard logs; delete it to start over.
        vae_steps: optimizer steps of the autoencoder.
        teacher_steps: optimizer steps of the teacher on true captions.
        noisy_steps: further steps on captions of which a share belongs to other pictures.
        precision: Lightning precision of the teacher's run; the autoencoder always trains in float32.
        pairs: how many image-prompt pairs to render.
        score_every: teacher steps between two scores on held-out prompts.
        compile: `torch.compile` the teacher's transformer: two minutes lost at the start, a fifth off every step.
    """
    L.seed_everything(0)
    images, prompts = sample_pairs(pairs, seed=0, caption_noise=0.0)
    _, noisy_prompts = sample_pairs(pairs, seed=0)
    trained_vae = train_vae(images, run_dir / "vae", vae_steps)
    latents = vae.encode_all(trained_vae, images)
    vae.set_latent_statistics(trained_vae, latents)
    module = teacher.TeacherModule(trained_vae)
    if compile:
        torch._dynamo.config.automatic_dynamic_shapes = False  # two prompt lengths: two fast graphs, not one slow one
        module.teacher.transformer.compile()
    scorer = teacher.ScoreTeacher(score_every)
    for captions, last_step in ((prompts, teacher_steps), (noisy_prompts, teacher_steps + noisy_steps)):
        pairs_of_tensors = TensorDataset(latents, module.tokenize(captions))
        batches = DataLoader(pairs_of_tensors, teacher.BATCH_SIZE, shuffle=True, drop_last=True)
        fit(module, batches, run_dir / "teacher", last_step, precision=precision, callbacks=[scorer])
    save_folder(module.pipeline(), output)


def train_vae(images: torch.Tensor, run_dir: Path, steps: int) -> AutoencoderKL:
    module = vae.AutoencoderModule(steps)
    fit(module, DataLoader(TensorDataset(images), vae.BATCH_SIZE, shuffle=True, drop_last=True), run_dir, steps)
    return module.vae.eval()


def save_folder(pipeline: StableDiffusion3Pipeline, output: Path) -> None:
    """Write the pipeline with the silent T5 in its third slot; the transformer is stored in float16 to halve its size."""
    text_encoder_3, tokenizer_3 = build_silent_t5()
    pipeline.register_modules(text_encoder_3=text_encoder_3, tokenizer_3=tokenizer_3)
    pipeline.save_pretrained(output)
    pipeline.transformer.half().save_pretrained(output / "transformer")
    allow_reading(output)


if __name__ == "__main__":
    with readable_errors():
        run_command(main, sys.argv[1:])
