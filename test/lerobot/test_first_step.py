"""The first-step check against every supported policy type of LeRobot's."""

from __future__ import annotations

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import observe
from lerobot_streams import Stream
from lerobot_training_batches import TRAINED, batch, wrap

from torchrl_vla.errors import NoTrainingError
from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.testing import check_training_step
from torchrl_vla.testing.training_step_checks import excused_parameters

pytestmark = pytest.mark.lerobot


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_trains_every_part_of_a_policy(name, tiny_vlm):
    policy = wrap(name, tiny_vlm).train()
    loss = LeRobotLoss(policy, train_on_padding=True)
    check_training_step(policy, loss, batch(name, policy))


@pytest.mark.parametrize("name", backbones.here())
def test_so_it_does_of_one_on_a_backbone_but_for_what_is_said(name, tmp_path):
    with backbones.narrow_gemma() if name.startswith("pi0") else torch.enable_grad():
        made = backbones.make_checkpoint(name, tmp_path)
        policy = LeRobotPolicyWrapper.from_pretrained(made.folder).train()
        (td,) = observe(made, 1, 2)
        if policy.history_size > 1:
            Stream(policy).history.begin(td)
        steps = len(policy.target_steps)
        td["action_chunk"] = torch.randn(2, steps, 7)
        td["action_is_pad"] = torch.zeros(2, steps, dtype=torch.bool)
        loss = LeRobotLoss(policy, train_on_padding=True)
        check_training_step(policy, loss, td)
        if name.startswith("pi0"):
            excused = excused_parameters(policy)
            layers = {n.split("layers.")[1][0] for n in excused if "layers." in n}
            assert layers == {"1"}  # the last of two
            policy.without_gradient = {}
            with pytest.raises(NoTrainingError, match=r"lm_head.weight"):
                check_training_step(policy, loss, td)
