"""The model card that a result is published with: where it comes from, how it was made, how it scores, how to use it."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rtdmd_lightning import method
from rtdmd_lightning.evaluation.tasks import UNSEEN_IN_IMAGES
from rtdmd_lightning.publishing.scheduler_file import SCHEDULER_FILE, SCHEDULER_FOLDER
from rtdmd_lightning.roles.inference import even_steps
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.curve_names import score_name

METHOD_FILE = "METHOD.md"
"""The file beside the card that it links to."""

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A few-step text-to-image student: LoRA adapters for `{{ base }}`, trained with {{ method }} of rtdmd-lightning, after
arXiv 2605.26108 ([METHOD]({{ method_file }}) has the equations). It draws in {{ steps | length }} forward passes without
classifier-free guidance.

| | |
|---|---|
| base | `{{ base }}` |
| its weights in training | {{ weights }} |
| adapters, applied in this order | {{ adapters }} |
| raw timesteps | {{ steps | join(", ") }} |
| eta of the CPS sampler | {{ eta }} |
| resolution in training | {{ resolution }} |
| `max_sequence_length` in training | {{ max_sequence_length }} |

## Use

`pytorch_lora_weights.safetensors` is the whole stack as one adapter, for `pipe.load_lora_weights` of diffusers. Its scale is
folded in, so that readers that know no alpha, such as ComfyUI, apply it in full.
{%- if evenly_spaced %} Nothing but diffusers and PEFT is needed:
`{{ scheduler_folder }}/{{ scheduler_file }}` has the sampler.

```python
import torch
from diffusers import {{ pipeline }}
from diffusers.utils import get_class_from_dynamic_module

pipe = {{ pipeline }}.from_pretrained({{ quoted_base }}, torch_dtype=torch.bfloat16)
pipe.load_lora_weights("{{ repo_id }}")
CPSScheduler = get_class_from_dynamic_module(
    "{{ repo_id }}", "{{ scheduler_file }}", "{{ scheduler_folder }}", "CPSScheduler", trust_remote_code=True
)
pipe.scheduler = CPSScheduler.from_config(pipe.scheduler.config, eta={{ eta }})
image = pipe(
    prompt="{{ prompt }}",
    num_inference_steps={{ steps | length }},
    guidance_scale={{ guidance_scale }},
    max_sequence_length={{ max_sequence_length }},
    height={{ resolution }},
    width={{ resolution }},
).images[0]
```

The guidance scale is essential: a student is trained without CFG, and a pipeline's own default spoils it. In ComfyUI the closest
are `LoraLoaderModelOnly`, {{ steps | length }} steps, CFG 1, scheduler `simple`, sampler `euler_ancestral`.
{%- else %}
Its steps are not evenly spaced, which a pipeline would take them to be: draw with the command below.
{%- endif %}

Each adapter alone is a plain state dict, `NAME/generator_ema.pt`. They are stacked, never loaded into one place:

    rtdmd hub pull --repo_id {{ repo_id }} --out {{ name }}
    rtdmd sample --base {{ sample_base }} --backbone {{ backbone }} --adapters {{ pulled }} \\
        --resolution {{ resolution }} --steps "{{ steps }}" --eta {{ eta }} --prompt "{{ prompt }}" --out images

## Scores

{{ scores }}

## Recipe

The configuration of the last stage, as it ran (`recipe.yaml`):

```yaml
{{ recipe }}```
"""


@dataclass(frozen=True)
class Result:
    """What is published.

    base: folder or hub id of the base model that the generator starts from.
    adapters: the names of the adapters, in the order of the stack, and their ranks.
    pipeline: the class of the base's diffusers pipeline.
    guidance_scale: what that pipeline must be called with to draw as the student is trained.
    config: the last run's configuration: `model`, `data` and `seed_everything`.
    scores: metric name to value at the end of the run, with the generator update that they belong to under `step`.
    """

    base: str
    adapters: dict[str, str]
    pipeline: str
    guidance_scale: float
    config: Mapping[str, Any]
    scores: Mapping[str, float]

    @property
    def _options(self) -> Mapping[str, Any]:
        return self.config["model"]["init_args"]

    @property
    def steps(self) -> list[int]:
        return self._options["sampler"]["steps"]

    @property
    def eta(self) -> float:
        return SamplerSettings(**self._options["sampler"]).eta_of_images

    @property
    def resolution(self) -> int:
        return self._options["backbone"]["init_args"]["resolution"]

    @property
    def max_sequence_length(self) -> int:
        return self._options["backbone"]["init_args"]["max_sequence_length"]

    @property
    def weights(self) -> str:
        """What the frozen base was kept in."""
        options = self._options["backbone"]["init_args"]
        kind = options.get("quantization", "none")  # runs before the option have it not
        return (
            options["dtype"] if kind == "none" else f"{options['dtype']}, its blocks' linear layers quantised to {kind}"
        )

    @property
    def backbone(self) -> dict[str, Any]:
        """The backbone's options beside the ones that `sample` has options of its own for, that images do not show, or that
        were for the memory in training."""
        own = ("pretrained", "resolution", "gradient_checkpointing", "quantization", *UNSEEN_IN_IMAGES)
        return {name: value for name, value in self._options["backbone"]["init_args"].items() if name not in own}

    @property
    def sample_base(self) -> str:
        """What `sample` calls the base: the teacher's, where the generator has another, which is among the options then."""
        backbone = self._options["backbone"]["init_args"]
        return backbone["pretrained"] if backbone.get("generator_pretrained") else self.base

    @property
    def method(self) -> str:
        return self.config["model"]["class_path"].rpartition(".")[2].removesuffix("Module")

    @property
    def recipe(self) -> str:
        return yaml.safe_dump(dict(self.config), sort_keys=False)


def model_card(result: Result, repo_id: str, prompt: str = "a photo of two red circles") -> ModelCard:
    """The card, with what the hub reads (base model, library, scores) in its header."""
    name = repo_id.rpartition("/")[2]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=None if Path(result.base).exists() else result.base,  # the hub wants an id of its own here
        tags=["lora", "few-step", "rtdmd"],
        model_name=name,
        eval_results=[_evaluated(metric, value) for metric, value in result.scores.items() if metric != "step"],
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=name,
        repo_id=repo_id,
        prompt=prompt,
        base=result.base,
        method=result.method,
        weights=result.weights,
        method_file=METHOD_FILE,
        scheduler_file=SCHEDULER_FILE,
        scheduler_folder=SCHEDULER_FOLDER,
        adapters=" → ".join(f"`{adapter}` ({rank})" for adapter, rank in result.adapters.items()),
        quoted_base=json.dumps(result.base, ensure_ascii=False),
        pulled=shlex.join(f"{name}/{adapter}" for adapter in result.adapters),
        sample_base=shlex.quote(result.sample_base),
        backbone=shlex.quote(json.dumps(result.backbone)),
        steps=result.steps,
        eta=result.eta,
        resolution=result.resolution,
        max_sequence_length=result.max_sequence_length,
        pipeline=result.pipeline,
        evenly_spaced=list(result.steps) == even_steps(len(result.steps)),
        guidance_scale=result.guidance_scale,
        scores=_score_table(result.scores),
        recipe=result.recipe,
    )


def method_text() -> str:
    """The method's README as it is published. Links into this repository become plain text; they lead nowhere on the hub."""
    readme = Path(method.__file__).with_name("README.md")
    return re.sub(r"\[([^\[\]\n]+)\]\(\.\./[^\s)]+\)", r"\1", readme.read_text(encoding="utf-8"))


def _evaluated(metric: str, value: float) -> EvalResult:
    name = score_name(metric)
    return EvalResult(
        task_type="text-to-image",
        dataset_type="held-out-prompts",
        dataset_name="Held-out prompts of the run",
        metric_type=name,
        metric_value=value,
    )


def _score_table(scores: Mapping[str, float]) -> str:
    if not scores:
        return "None were taken."
    rows = [f"| {score_name(metric)} | {value:.4f} |" for metric, value in scores.items() if metric != "step"]
    return "\n".join(
        [f"On held-out prompts, after {scores['step']:g} generator updates:\n", "| | |", "|---|---|", *rows]
    )
