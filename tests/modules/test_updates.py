"""What one optimizer step does in either stage: whose gradient is clipped to which norm, and when the average moves."""

import json

import pytest
import torch
from lightning import Callback
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from tests.support.tiny import REPOSITORY, tiny_module, train
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module

pytestmark = pytest.mark.slow

PAPER = json.loads((REPOSITORY / "tests/data/paper_constants.json").read_text())


@pytest.fixture(scope="module")
def modules(tiny_folder, tmp_path_factory):
    """Either stage's small module, by its options."""
    cold_start = save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))
    return {
        "stage 1": lambda **options: tiny_module(tiny_folder, batch_size=2, fake_update_ratio=1, **options),
        "stage 2": lambda **options: tiny_rtdmd_module(tiny_folder, cold_start, micro_batches=2, **options),
    }


def first_norms(module):
    """Of each role's first update: the gradient norm that is reported, and that of the gradient which AdamW gets."""
    reported, stepped = {}, {}
    original = module.optimize.step

    def step_optimizer(role):
        norm = original(role)
        reported.setdefault(role, norm.item())
        return norm

    def before_step(optimizer, args, kwargs):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        role = GENERATOR if parameters[0] is module.roles.parameters_of(GENERATOR)[0] else FAKE_SCORE
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        stepped.setdefault(role, torch.nn.utils.get_total_norm(gradients).item())

    module.optimize.step = step_optimizer
    hook = register_optimizer_step_pre_hook(before_step)
    try:
        train(module)
    finally:
        hook.remove()
    return reported, stepped


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_both_optimizers_get_exactly_their_settings(modules, stage):
    """A lost argument would mean AdamW's own: a weight decay of 0.01."""
    settings = {
        GENERATOR: OptimizerSettings(1e-3, betas=(0.8, 0.95), weight_decay=0.03, eps=1e-5),
        FAKE_SCORE: OptimizerSettings(2e-3, betas=(0.7, 0.9), weight_decay=0.0, eps=1e-6),
    }
    options = {"generator_optimizer": settings[GENERATOR], "fake_optimizer": settings[FAKE_SCORE]}
    module = modules[stage](**options)
    for optimizer, (role, wanted) in zip(module.configure_optimizers(), settings.items(), strict=True):
        (group,) = optimizer.param_groups
        assert all(a is b for a, b in zip(group["params"], module.roles.parameters_of(role), strict=True))
        assert (group["lr"], group["betas"]) == (wanted.learning_rate, wanted.betas)
        assert (group["weight_decay"], group["eps"]) == (wanted.weight_decay, wanted.eps)


class Overflow(torch.autograd.Function):
    """A finite value with an infinite gradient, as half precision makes it."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * float("inf")


@pytest.mark.parametrize("role", [GENERATOR, FAKE_SCORE])
@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_a_gradient_that_is_no_number_stops_the_run_and_moves_nothing(modules, stage, role):
    module = modules[stage]()
    backward_in = module.optimize.backward

    def overflowing(which, loss):
        backward_in(which, Overflow.apply(loss) if which == role else loss)

    module.optimize.backward = overflowing
    before = [parameter.detach().clone() for parameter in module.roles.parameters_of(role)]
    with pytest.raises(FloatingPointError, match=f"the norm of the {role} gradient is (nan|inf) at step 0"):
        train(module)
    assert all(map(torch.equal, module.roles.parameters_of(role), before))


@pytest.mark.parametrize("role", [GENERATOR, FAKE_SCORE])
def test_a_loss_that_is_no_number_stops_the_run_and_moves_nothing(modules, role):
    """Though its gradient is one."""
    module = modules["stage 1"]()
    backward_in = module.optimize.backward
    infinite = torch.tensor(float("inf"))
    module.optimize.backward = lambda which, loss: backward_in(which, loss + infinite if which == role else loss)
    before = [parameter.detach().clone() for parameter in module.roles.parameters_of(role)]
    with pytest.raises(FloatingPointError, match=f"the {role} loss is (nan|inf) at step 0"):
        train(module)
    assert all(map(torch.equal, module.roles.parameters_of(role), before))


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_a_gradient_is_clipped_to_its_roles_norm_and_a_smaller_one_left_alone(modules, stage):
    free = OptimizerSettings(max_grad_norm=1e6)
    reported, stepped = first_norms(modules[stage](generator_optimizer=free, fake_optimizer=free))
    assert stepped == pytest.approx(reported, rel=1e-4)

    bounds = {GENERATOR: reported[GENERATOR] / 3, FAKE_SCORE: reported[FAKE_SCORE] / 5}
    options = {
        "generator_optimizer": OptimizerSettings(learning_rate=0.0, max_grad_norm=bounds[GENERATOR]),
        "fake_optimizer": OptimizerSettings(learning_rate=0.0, max_grad_norm=bounds[FAKE_SCORE]),
    }
    still_reported, stepped = first_norms(modules[stage](**options))
    assert stepped == pytest.approx(bounds, rel=1e-2)
    assert still_reported[FAKE_SCORE] == pytest.approx(reported[FAKE_SCORE], rel=1e-4)


class Record(Callback):
    """Generator and average after every training step."""

    def __init__(self) -> None:
        self.generator: list[torch.Tensor] = []
        self.average: list[torch.Tensor] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
        for role, values in ((GENERATOR, self.generator), (EMA, self.average)):
            values.append(torch.cat([p.detach().flatten() for p in pl_module.roles.parameters_of(role)]))


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("moves", [1, 3])
@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_the_average_moves_as_one_offered_before_each_update_and_after_it(modules, stage, moves, warm_up):
    """Move by move: all but the last before the update, with the number of updates done; the last one after it."""
    module = modules[stage](
        ema=EMASettings(decay=0.4, moves=moves, every=2, warm_up=warm_up),
        generator_optimizer=OptimizerSettings(learning_rate=1e-2),
    )
    record = Record()
    train(module, 5, [record])
    assert len(record.average) == 6
    for update in range(1, 6):
        average = record.average[update - 1]
        before, after = record.generator[update - 1], record.generator[update]
        assert not torch.equal(before, after)
        for generator, done in [(before, update - 1)] * (moves - 1) + [(after, update)]:
            if done % 2 == 1:
                decay = min(0.4, (1 + done) / (10 + done)) if warm_up else 0.4
                average = decay * average + (1 - decay) * generator
        torch.testing.assert_close(record.average[update], average)
    assert (record.average[5] - record.average[0]).abs().max() > 0.01


def test_by_default_the_average_moves_as_often_as_the_authors(modules):
    """0.99 per fake-score update; in stage 2 one move per micro-batch, 0.185 left of 0.9 after sixteen."""
    assert modules["stage 1"]().ema_moves == 1 and modules["stage 2"]().ema_moves == 2
    assert EMASettings(0.99).kept(10, updates=0) == pytest.approx(
        PAPER["stage1_common"]["ema_decay_per_generator_update"]
    )
    stage_2 = EMASettings(0.9, every=8, warm_up=True)
    assert [updates for updates in range(20) if stage_2.kept(1, updates) < 1] == [7, 15]
    assert stage_2.kept(1, 7) == pytest.approx(8 / 17)
    left = PAPER["stage2_common"]["ema_effective_decay_per_8_updates"]
    assert stage_2.kept(16, updates=87) == pytest.approx(left)
