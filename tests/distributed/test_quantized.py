"""Both stages on a quantised base, from the command line: two steps in one process, and the same two on two processes."""

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.models.frozen_linear import FrozenLinear
from tests.support.tiny import STRATEGIES, backbone_config, load_checkpoint, write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_of(tiny_folder, tmp_path_factory):
    cold_start = save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))

    def write(folder, stage: str, kind: str) -> str:
        options = {
            "backbone": backbone_config(tiny_folder, {"quantization": kind}),
            "checkpoint_every": 2,
            "ema": {"decay": 0.5, "moves": 1, "every": 1, "warm_up": False},
        }
        if stage == "rtdmd":
            return str(write_rtdmd_config(folder, tiny_folder, cold_start, micro_batches=2, **options))
        return str(write_config(folder, tiny_folder, **options))

    return write


@pytest.mark.parametrize(("stage", "kind"), [("cold_start", "nf4"), ("rtdmd", "nf4"), ("cold_start", "int8")])
def test_two_steps_move_every_adapter_alike_on_one_process_and_on_two(stage, kind, config_of, pair, tmp_path):
    single = fit.main(["--config", config_of(tmp_path / "single", stage, kind)])
    assert single.trainer.global_step == 2
    assert any(isinstance(module, FrozenLinear) for module in single.model.roles.transformer.modules())
    assert all(value.isfinite() for value in single.trainer.callback_metrics.values())

    start = fit.parse(["--config", config_of(tmp_path / "start", stage, kind)]).model
    start.configure_model()
    initial, expected = start.state_dict(), load_checkpoint(tmp_path / "single")["state_dict"]
    for name in start.roles.own:
        moved = max((value - initial[key]).abs().max() for key, value in expected.items() if f".{name}." in key)
        assert moved > 3e-5, name

    pair.fit("--config", config_of(tmp_path / "pair", stage, kind), *STRATEGIES["ddp"])
    state = load_checkpoint(tmp_path / "pair")["state_dict"]
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=key)
