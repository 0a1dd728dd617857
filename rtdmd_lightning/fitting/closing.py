"""What the console says when a run is done: its folder, its last scores, and how to draw with the result."""

import json
import shlex
from pathlib import Path

from lightning import Trainer

from rtdmd_lightning.callbacks import ExportGenerator
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.publishing.run_folder import scores_of
from rtdmd_lightning.roles.roles import EMA
from rtdmd_lightning.utils.run_folder import run_folder


def closing(trainer: Trainer, module: FewStepModule) -> str:
    """A few lines. Scores by tag are in `eval.jsonl` alone; a run without an `ExportGenerator` has no result to draw with."""
    folder = run_folder(trainer)
    lines = [f"{folder}: {trainer.global_step} updates"]
    scores = {name: value for name, value in scores_of(folder).items() if name.count("/") == 1}
    if scores:
        told = (f"{name.removeprefix('eval/')} {value:.3f}" for name, value in scores.items())
        lines.append(f"held-out prompts: {', '.join(told)}")
    callbacks = trainer.callbacks  # type: ignore[attr-defined] # Lightning sets it from elsewhere
    for export in callbacks:
        if isinstance(export, ExportGenerator) and isinstance(module.backbone, PipelineBackbone):
            result = folder / export.name
            command = sampling_command(module, module.backbone.pretrained, result)
            lines += [f"result: {result}", f"draw with it: {command}"]
    return "\n".join(lines)


def sampling_command(module: FewStepModule, base: str, result: Path) -> str:
    """The command that draws with a run's result on top of what it was trained on, at the steps that it was trained for."""
    settings = module.sampler_settings
    eta = settings.eta if settings.draw_eta is None else settings.draw_eta
    options = {
        "--base": [base],
        **what_is_drawn(module, result),
        "--steps": [str(list(settings.steps))],
        "--eta": [f"{eta:g}"],
        "--prompt": ["YOUR PROMPT"],
        "--out": [str(result.parent / "samples")],
    }
    words = [word for option, values in options.items() for word in (option, *values)]
    return shlex.join(["rtdmd", "sample", *words])


def what_is_drawn(module: FewStepModule, result: Path) -> dict[str, list[str]]:
    """The options for a result: adapters, on those that lie beneath; or a whole transformer, which is drawn as students are."""
    if module.trainable == "full":
        return {"--backbone": [json.dumps({"transformer_from": str(result)})], "--guidance_scale": ["1"]}
    frozen = module.frozen_adapters()
    beneath = [frozen[name] for name in module.stacks()[EMA] if name in frozen]
    return {"--adapters": [*beneath, str(result)]}
