from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn

from torchrl_vla.objectives import TokenBCLoss
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA
from torchrl_vla.schema import InstructionTable, MissingKeyError, SchemaError
from torchrl_vla.testing import check_loss
from torchrl_vla.tokenizers import UniformActionTokenizer


class Biased(TensorDictModuleBase):
    """Gives token 1 the probability 3/4 and token 0 the rest, wherever asked."""

    in_keys = ["state"]
    out_keys = ["action_tokens"]

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1 / 4, 3 / 4]).log())

    def token_log_probs(self, td):
        return self.logits.log_softmax(-1)[td["action_tokens"]]


def batch() -> TensorDict:
    return TensorDict(
        {
            "state": torch.zeros(2, 1),
            "action_tokens": torch.tensor([[[1], [0]], [[1], [0]]]),
            "action_is_pad": torch.tensor([[False, False], [False, True]]),
        },
        batch_size=[2],
    )


def test_the_loss_is_the_mean_over_valid_tokens():
    expected = (2 * -math.log(3 / 4) - math.log(1 / 4)) / 3
    loss = TokenBCLoss(Biased())(batch())["loss_bc"]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_tokens_under_the_padding_have_no_gradient():
    policy = Biased()
    data = batch()
    loss = TokenBCLoss(policy)
    gradients = []
    for token in (0, 1):
        data["action_tokens"][1, 1] = token
        (gradient,) = torch.autograd.grad(loss(data)["loss_bc"], loss.parameters())
        gradients.append(gradient)
    # d/dlogits of the mean -log p over tokens 1, 0, 1 is p - (1/3, 2/3)
    torch.testing.assert_close(
        gradients[0], torch.tensor([1 / 4 - 1 / 3, 3 / 4 - 2 / 3])
    )
    assert torch.equal(*gradients)


def test_no_pad_mask_takes_every_token_when_it_is_said():
    loss = TokenBCLoss(Biased())
    loss.set_keys(pad_mask=None)
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    value = loss(batch().exclude("action_is_pad"))["loss_bc"]
    torch.testing.assert_close(value, torch.tensor(expected))


def test_a_misspelt_mask_key_raises():
    loss = TokenBCLoss(Biased())
    loss.set_keys(pad_mask="is_pad")
    with pytest.raises(MissingKeyError, match=r"TokenBCLoss: .* at 'is_pad', got none"):
        loss(batch())


def test_continuous_targets_are_refused():
    data = batch()
    data["action_tokens"] = data["action_tokens"].float()
    with pytest.raises(SchemaError, match=r"int64 tokens .*float32. Use BCLoss"):
        TokenBCLoss(Biased())(data)


def test_a_policy_without_a_token_head_is_refused():
    policy = TensorDictModule(nn.Linear(1, 1), ["state"], ["action_chunk"])
    with pytest.raises(TypeError, match=r"token head .* Use BCLoss"):
        TokenBCLoss(policy)


def test_cloning_tokens_teaches_a_tiny_token_vla():
    torch.manual_seed(0)
    table = InstructionTable(["go left", "go right"])
    tokenizer = UniformActionTokenizer(8, low=-1.0, high=1.0)
    policy = TinyTokenVLA(
        action_dim=1,
        chunk_size=2,
        action_tokenizer=tokenizer,
        instructions=table,
        backbone=BackboneConfig(state_dim=1, cameras=(), hidden=32),
    )
    sign = torch.tensor([-1.0, 1.0]).repeat(16)
    data = TensorDict(
        {
            "observation": {"state": torch.rand(32, 1)},
            "language_instruction": table.ids.repeat(16),
            "action_tokens": tokenizer.encode(sign[:, None, None].expand(32, 2, 1)),
            "action_is_pad": torch.zeros(32, 2, dtype=torch.bool),
        },
        batch_size=[32],
    )
    loss = TokenBCLoss(policy)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(60):
        value = loss(data)["loss_bc"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.1  # ln 2 for a policy that cannot read
    data["action_is_pad"][:3, 1] = True
    check_loss(loss, data)


def test_tokens_of_dimensions_that_a_robot_lacks_do_not_count():
    data = TensorDict(
        {
            "state": torch.zeros(1, 1),
            "action_tokens": torch.tensor([[[1, 0], [1, 0]]]),
            "action_is_pad": torch.zeros(1, 2, dtype=torch.bool),
            "action_dim_is_pad": torch.tensor([[False, True]]),
        },
        batch_size=[1],
    )
    loss = TokenBCLoss(Biased())
    with pytest.raises(SchemaError, match=r"a key of padded dimensions.*set_keys"):
        loss(data)
    loss.set_keys(dim_pad_mask="action_dim_is_pad")
    assert "action_dim_is_pad" in loss.in_keys
    torch.testing.assert_close(loss(data)["loss_bc"], torch.tensor(4 / 3).log())
