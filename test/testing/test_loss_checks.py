from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import BCLoss as TorchRLBCLoss

from torchrl_vla.objectives import BCLoss
from torchrl_vla.testing import check_loss


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, state):
        return self.linear(state).unflatten(-1, (2, 2))


def policy() -> TensorDictModule:
    return TensorDictModule(Policy(), ["state"], ["action_chunk"])


def batch() -> TensorDict:
    return TensorDict(
        {
            "state": torch.randn(2, 3),
            "action_chunk": torch.randn(2, 2, 2),
            "action_is_pad": torch.tensor([[False, False], [False, True]]),
        },
        batch_size=[2],
    )


class Leaky(BCLoss):
    """Broken on purpose: the gradient reaches one padded target, the value does not."""

    def forward(self, tensordict):
        out = super().forward(tensordict)
        target = tensordict["action_chunk"].nan_to_num(0.0)
        return out.set("loss_bc", out["loss_bc"] + (target - target.detach()).sum())


def test_a_strict_loss_passes():
    check_loss(BCLoss(policy(), loss_function="l1"), batch())


def test_a_gradient_under_the_padding_is_found():
    with pytest.raises(AssertionError, match=r"gradient of exactly 0 .* up to 1"):
        check_loss(Leaky(policy()), batch())


@pytest.mark.filterwarnings("ignore:The name target_actor:UserWarning")
def test_the_peer_that_ignores_a_missing_mask_is_found():
    loss = TorchRLBCLoss(policy(), loss_function="l1")
    loss.set_keys(action="action_chunk", pad_mask="action_is_pad")
    with pytest.raises(AssertionError, match="got the loss"):
        check_loss(loss, batch())


def test_a_batch_without_padding_shows_nothing():
    data = batch()
    data["action_is_pad"][:] = False
    with pytest.raises(ValueError, match="got no padded ones"):
        check_loss(BCLoss(policy()), data)
