"""What makes a run smaller on one card, from the cheapest to the dearest, and what each comes to in bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from rtdmd_lightning.models.frozen_linear import BYTES_OF_A_WEIGHT
from rtdmd_lightning.models.quantization import Quantization
from rtdmd_lightning.planning.estimate import MOMENTS, MemoryEstimate, Trace
from rtdmd_lightning.planning.phases import EVALUATION, FAKE_STEP, GENERATOR_STEP, ROLLOUT

NONE: Mapping[str, int] = MappingProxyType({})

PROMPTS = "prompts"
"""The moment when text encoders that are offloaded otherwise lie on the device."""


@dataclass(frozen=True)
class Setup:
    """What of a run decides its memory on one card.

    micro_batch: samples of a pass; None: the whole batch.
    """

    cached: bool = False
    checkpointing: bool = False
    micro_batch: int | None = None
    offload: bool = False
    vae_checkpointing: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True)
class Switch:
    """A change of a setup, how the command line spells it, and what it costs in time as far as that is known."""

    name: str
    change: dict[str, Any]
    options: tuple[str, ...]
    slowdown: str
    is_of_rewards: bool = False


SWITCHES = (
    Switch(
        "cached embeddings",
        {"cached": True},
        ("--model.backbone.embedding_cache=embeddings", "--model.backbone.text_encoders=false"),
        "none: prompts are embedded once, before the run (python -m rtdmd_lightning.embed)",
    ),
    Switch(
        "gradient checkpointing",
        {"checkpointing": True},
        ("--model.backbone.gradient_checkpointing=true",),
        "4/3 of every pass with gradient, counted: the forward pass is computed twice",
    ),
    Switch(
        "micro-batches",
        {"micro_batch": 1},
        ("--model.micro_batch_size={micro_batch}",),
        "1 in operations, counted; the time of small passes is not measured",
    ),
    Switch(
        "offload",
        {"offload": True},
        ("--model.offload=[text_encoders,vae,rewards]",),
        "their weights are copied to the card once a use; not measured",
    ),
    Switch(
        "VAE's gradient checkpointing",
        {"vae_checkpointing": True},
        ("--model.backbone.vae_gradient_checkpointing=true",),
        "5/3 of the decoder's share in the generator update at most, counted: its forward pass is computed once more",
        is_of_rewards=True,
    ),
    Switch("base in int8", {"quantization": "int8"}, ("--model.backbone.quantization=int8",), "not measured"),
    Switch("base in nf4", {"quantization": "nf4"}, ("--model.backbone.quantization=nf4",), "not measured"),
)


def changed(setup: Setup, switches: tuple[Switch, ...]) -> Setup:
    """The setup with the switches on; of two that change the same, the last one counts."""
    for switch in switches:
        setup = replace(setup, **switch.change)
    return setup


def options_of(setup: Setup, switches: tuple[Switch, ...]) -> list[str]:
    """On the command line, of those of the switches that are on in the setup."""
    least = replace(setup, micro_batch=setup.micro_batch and 1)
    on = [switch for switch in switches if changed(least, (switch,)) == least]
    return [option.format(micro_batch=setup.micro_batch) for switch in on for option in switch.options]


def smaller(trace: Trace, setup: Setup) -> Trace:
    """What a trace of the plain run would be with the setup's base, and `micro_batch` times its one sample."""
    bases = trace.bases
    if setup.quantization != "none":
        of_a_weight = BYTES_OF_A_WEIGHT[setup.quantization]
        bases = tuple(base._replace(total=base.total - base.linear + int(of_a_weight * base.weights)) for base in bases)
    samples = setup.micro_batch or 1

    def scaled(phases: dict[str, int]) -> dict[str, int]:
        return {name: trace.gradients + samples * (size - trace.gradients) for name, size in phases.items()}

    return trace._replace(bases=bases, checkpointed=scaled(trace.checkpointed), full=scaled(trace.full))


def at_worst(trace: Trace, setup: Setup, held_out: Mapping[str, int] = NONE) -> MemoryEstimate:
    """One card's bytes at the moment that has most of them; `held_out`: bytes of the rewards that an evaluation alone asks."""
    return max(_moments(trace, setup, held_out), key=lambda moment: moment.total)


def _moments(trace: Trace, setup: Setup, held_out: Mapping[str, int]) -> Iterator[MemoryEstimate]:
    reinforces, away = bool(trace.rewards), setup.offload
    every = {**trace.rewards, **held_out}
    needed = {  # of rewards, where they are offloaded: one scores after the other, those that are back-propagated together
        ROLLOUT: max(trace.rewards.values(), default=0),
        GENERATOR_STEP: sum(trace.differentiable.values()),
        EVALUATION: max(every.values(), default=0),
    }
    text_encoders = 0 if setup.cached else trace.text_encoders
    phases = trace.checkpointed if setup.checkpointing else trace.full
    if away and not setup.cached:
        phases = phases | {PROMPTS: 0}
    for name, size in phases.items():
        decodes = name == EVALUATION or (reinforces and name not in (FAKE_STEP, PROMPTS))
        yield MemoryEstimate(
            base=sum(base.total for base in trace.bases),
            adapters=trace.adapters,
            gradients=trace.gradients,
            optimizer=MOMENTS * trace.trained,
            activations=max(0, size - trace.gradients),
            vae=trace.vae if decodes or not away else 0,
            text_encoders=text_encoders if name == PROMPTS or not away else 0,
            rewards=needed.get(name, 0) if away else sum(every.values()),
        )
