"""Full fine-tuning: an update of stage 1 equals the same one written in plain torch."""

import pytest
import torch
from lightning import Callback

from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from tests.support.tiny import train
from tests.support.whole import Plain, stock, whole_module

pytestmark = pytest.mark.slow


class Batches(Callback):
    """Those that the module was trained on."""

    def __init__(self) -> None:
        self.seen: list = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append(batch)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_cycles_are_those_of_plain_torch(tiny_folder, precision):
    """Under autocast too, whose rounded copies of weights must not outlive an update; float32 sums of another order are rounded
    otherwise there, a hundredth of an update."""
    module, batches = whole_module(tiny_folder), Batches()
    load = (lambda: stock(tiny_folder)) if precision == "32-true" else lambda: module.backbone.load_transformer()
    plain = Plain(module, load, precision)
    for network in plain.networks.values():
        network.requires_grad_(True)
    before = {role: [p.detach().clone() for p in network.parameters()] for role, network in plain.networks.items()}
    train(module, steps=2, callbacks=[batches], precision=precision)
    for number, batch in enumerate(batches.seen):
        plain.cycle(batch, number)
    tolerance = 1e-6 if precision == "32-true" else 1e-4
    for role in (GENERATOR, FAKE_SCORE, EMA, TEACHER):
        own = dict(module.roles.base_of(role).named_parameters())
        names = [name for name, _ in plain.networks[role].named_parameters()]
        assert own.keys() == set(names)
        for name, expected in zip(names, plain.networks[role].parameters(), strict=True):
            torch.testing.assert_close(own[name], expected, rtol=0, atol=tolerance, msg=f"{role} {name}")
        moved = max((own[name] - old).abs().max() for name, old in zip(names, before[role], strict=True))
        assert moved == 0 if role == TEACHER else moved > 9e-4


@pytest.mark.parametrize("options", [{"micro_batch_size": 2}, {"backbone": {"gradient_checkpointing": True}}], ids=str)
def test_micro_batches_and_checkpointing_make_the_same_update(tiny_folder, options):
    whole, other = whole_module(tiny_folder), whole_module(tiny_folder, **options)
    train(whole, precision="bf16-mixed")
    train(other, precision="bf16-mixed")
    tolerance = 0 if "backbone" in options else 1e-4  # smaller products round otherwise
    for role in (GENERATOR, FAKE_SCORE, EMA):
        for one, two in zip(whole.roles.parameters_of(role), other.roles.parameters_of(role), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=tolerance)
