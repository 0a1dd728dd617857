"""The gradients of stage 2's terms: they add up to the run's own, and what is said of their noise is so."""

from itertools import permutations

import pytest
import torch

from rtdmd_lightning import fit, gradient_noise
from rtdmd_lightning.data.stream import StepSampler
from rtdmd_lightning.gradient_noise import Moments, measure
from rtdmd_lightning.losses import PolicySettings
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

pytestmark = pytest.mark.slow


def moments_of(gradients: torch.Tensor) -> Moments:
    moments = Moments()
    for one in gradients:
        moments.add(one)
    return moments


def test_the_signal_is_the_mean_product_of_two_different_gradients():
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = torch.tensor([float(one @ other) for one, other in permutations(gradients, 2)])
    moments = moments_of(gradients)
    assert moments.signal == pytest.approx(products.mean().item())
    assert moments.power == pytest.approx(gradients.square().sum(dim=1).mean().item())
    assert moments.share == pytest.approx(moments.signal / moments.power)


def test_the_cosine_of_an_average_with_the_true_mean():
    generator, mean = torch.Generator().manual_seed(0), torch.ones(400)
    draws = mean + 3 * torch.randn(2000, 400, generator=generator)
    moments = moments_of(draws)
    for count in (1, 4, 20):
        averages = draws.view(-1, count, 400).mean(dim=1)
        cosines = torch.nn.functional.cosine_similarity(averages, mean[None])
        assert moments.cosine(count) == pytest.approx(cosines.mean().item(), abs=0.01)


def test_without_a_signal_an_average_points_nowhere():
    assert moments_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).cosine(100) == 0
    assert moments_of(torch.zeros(2, 2)).cosine(100) == 0


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def test_the_terms_add_up_to_the_gradient_of_the_run(tmp_path, tiny_folder, cold_start):
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start)
    run = fit.main(["--config", str(config), "--trainer.max_steps=1", "--model.fake_optimizer.learning_rate=0"])
    logged = run.trainer.callback_metrics
    assert logged["policy/kept_samples"] == 16  # of all, so that both are means over the same samples
    moments, micro_batches = measure(config, [], 1)
    assert micro_batches == 4 and all(moment.count == 4 for moment in moments.values())
    policy = [name for name in moments if name.startswith("policy")]
    assert len(policy) == 2 and moments.keys() - set(policy) == {"reward", "matching"}
    # METHOD: the mean over the trained steps, the last among them.
    total = sum(moment.total / 4 for moment in moments.values()) / 3
    assert torch.as_tensor(total).norm() == pytest.approx(logged["generator/grad_norm"].item(), rel=1e-3)


def test_every_epoch_is_of_the_same_weights(tmp_path, tiny_folder, cold_start):
    """With the first epoch's prompts and noise each time, the second one's gradients are the first one's again."""
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start)
    positions = range(16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepSampler, "__iter__", lambda self: iter([list(positions)] * 2))
        patch.setattr(PolicySettings, "choose", lambda self, seed, epoch, steps: [0])
        options = ["--model.final_step.matching_weight=0", "--model.policy.shared_noise=false"]
        one, two = (measure(config, options, epochs)[0] for epochs in (1, 2))
    for name, moment in one.items():
        assert two[name].count == 2 * moment.count
        torch.testing.assert_close(two[name].total, 2 * moment.total)


def test_refused(tmp_path, tiny_folder, cold_start):
    with pytest.raises(UserError, match="is not a stage 2"):
        measure(write_config(tmp_path, tiny_folder), [], 1)
    with pytest.raises(UserError, match="epochs must be at least 1"):
        gradient_noise.gradient_noise(write_rtdmd_config(tmp_path, tiny_folder, cold_start), epochs=0)
    single = ["--model.micro_batches=1", "--model.policy.trained_steps=1"]
    with pytest.raises(UserError, match="there is one gradient, whose noise cannot be told"):
        gradient_noise.gradient_noise(write_rtdmd_config(tmp_path, tiny_folder, cold_start), single, epochs=1)


def test_the_table(tmp_path, tiny_folder, cold_start, capsys):
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start)
    options = '["--model.policy.trained_steps=1","--model.policy.steps=[0]"]'
    gradient_noise.main([f"--config={config}", f"--options={options}", "--epochs=1"])
    printed = capsys.readouterr().out
    assert "policy, step 0" in printed and "policy, step 1" not in printed and "matching" in printed
