"""An algorithm is one class on one base class; the rest is what it holds."""

import lightning as L
import pytest

from rtdmd_lightning.modules import ACDMDModule, RTDMDModule


@pytest.mark.parametrize("stage", [ACDMDModule, RTDMDModule])
def test_at_most_one_class_of_ours_lies_between_lightnings_module_and_a_stage(stage):
    order = stage.__mro__
    ours = [base for base in order if base.__module__.startswith("rtdmd_lightning.")]
    assert ours[0] is stage and len(ours) <= 2
    assert all(order.index(base) < order.index(L.LightningModule) for base in ours)
