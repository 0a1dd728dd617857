"""`make teacher`'s command on a teacher that trains in seconds: its two phases, its resumption, and the folder that it writes."""

import lightning as L
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from rtdmd_lightning import pretrain_teacher as pretrain
from rtdmd_lightning.pretraining import teacher
from rtdmd_lightning.pretraining.vae import encode_all
from rtdmd_lightning.shapes.dataset import sample_pairs
from rtdmd_lightning.shapes.text import build_tokenizer
from rtdmd_lightning.utils.command_line import run_command

pytestmark = pytest.mark.slow

PAIRS = 32


class Watch(L.Callback):
    """Stands in for the scores: what every phase of the teacher's training started and ended with."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.seen.append(self.state(trainer, pl_module))

    def on_train_end(self, trainer, pl_module) -> None:
        self.seen.append(self.state(trainer, pl_module))

    @staticmethod
    def state(trainer, pl_module) -> dict:
        moments = [state["exp_avg"].clone() for state in trainer.optimizers[0].state.values()]
        latents, tokens = trainer.train_dataloader.dataset.tensors
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        return {"step": trainer.global_step, "moments": moments, "weights": weights, "data": (latents, tokens)}


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """`python -m rtdmd_lightning.pretrain_teacher`: three steps on true captions, then `noisy_steps` on noisy ones."""

    def _run(noisy_steps: int) -> list[dict]:
        watch = Watch()
        monkeypatch.setattr(teacher, "ScoreTeacher", lambda every_n_steps: watch)
        steps = ["--vae_steps=2", "--teacher_steps=3", f"--noisy_steps={noisy_steps}", f"--pairs={PAIRS}"]
        places = [f"--output={tmp_path / 'out'}", f"--run_dir={tmp_path / 'run'}"]
        run_command(pretrain.main, [*steps, *places])
        return watch.seen

    return _run


def assert_same(state: dict, other: dict) -> None:
    assert state["step"] == other["step"]
    assert state["weights"].keys() == other["weights"].keys()
    assert all(state["weights"][name].equal(value) for name, value in other["weights"].items())
    assert len(state["moments"]) == len(other["moments"]) > 0
    assert all(a.equal(b) for a, b in zip(state["moments"], other["moments"], strict=True))


def test_the_run_resumes_with_optimizer_and_ema(run):
    """The second phase goes on from the first, and a run started again from its last checkpoint: in all of its state."""
    start, after_true, before_noisy, end = run(noisy_steps=2)
    assert [start["step"], after_true["step"], end["step"]] == [0, 3, 5]
    assert not start["moments"]
    assert_same(after_true, before_noisy)
    assert end["weights"]["ema.n_averaged"] == 5
    assert any(not end["weights"][name].equal(value) for name, value in after_true["weights"].items() if "ema" in name)

    again, last = run(noisy_steps=4)  # the first phase is done, and not repeated
    assert_same(end, again)
    assert last["step"] == last["weights"]["ema.n_averaged"] == 7


def test_true_captions_come_first_then_noisy_ones_of_the_same_pictures(run):
    start, _, before_noisy, _ = run(noisy_steps=1)
    (latents, true), (same_latents, noisy) = start["data"], before_noisy["data"]
    assert latents.equal(same_latents)
    tokenizer = build_tokenizer()
    read = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens] for tokens in (true, noisy)]
    _, prompts = sample_pairs(PAIRS, seed=0, caption_noise=0.0)
    assert read[0] == prompts
    assert read[1] == sample_pairs(PAIRS, seed=0)[1]
    assert sum(a != b for a, b in zip(*read, strict=True)) == round(0.15 * PAIRS)


def test_the_folder_is_a_stock_pipeline_of_the_ema(run, tmp_path):
    *_, end = run(noisy_steps=1)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        for name, value in getattr(pipeline, part).state_dict().items():
            average = end["weights"][f"ema.module.{part}.{name}"]
            torch.testing.assert_close(value, average.half().float() if part == "transformer" else average)
    stored = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert pipeline.scheduler.config.shift == 3

    images, _ = sample_pairs(PAIRS, seed=0)
    config = pipeline.vae.config
    latents = (encode_all(pipeline.vae, images) - config.shift_factor) * config.scaling_factor
    assert latents.mean().abs() < 1e-3 and abs(latents.std() - 1) < 1e-3

    drawn = pipeline("a photo of a red circle", num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 32, 32) and drawn.isfinite().all()
