from __future__ import annotations

import pytest
import torch
from seeded_loss import Seeded
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from tiny_options import make_tiny
from torch import nn

from torchrl_vla.objectives import DiffusionBCLoss, FlowMatchingLoss
from torchrl_vla.policies import BackboneConfig, TinyFlowVLA
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.testing import check_loss

H, A = 3, 2


def flow(**options) -> TinyFlowVLA:
    torch.manual_seed(0)
    return make_tiny(
        TinyFlowVLA,
        action_dim=A,
        chunk_size=H,
        denoiser_depth=1,
        **options,
        backbone=BackboneConfig(state_dim=1, cameras=(), hidden=16, depth=1),
    )


def batch() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    td = TensorDict(
        {
            "observation": {"state": torch.randn(4, 1, generator=generator)},
            "action_chunk": torch.randn(4, H, A, generator=generator),
            "action_is_pad": torch.tensor(
                [[False] * 3, [False, True, True], [False, False, True], [True] * 3]
            ),
        },
        batch_size=[4],
    )
    td["language_instruction"] = "push"
    return td


def naive(policy, td, alpha: float) -> torch.Tensor:
    """Element by element, with the noise that the loss draws."""
    torch.manual_seed(7)
    noise, share = torch.randn(4, H, A), torch.rand(4) ** (1 / alpha)
    condition, terms = policy.encode(td), []
    for i in range(4):
        data = td["action_chunk"][i] * ~td["action_is_pad"][i][:, None]
        x = share[i] * noise[i] + (1 - share[i]) * data
        velocity = policy.velocity(condition[i : i + 1], x[None], 1 - share[i : i + 1])
        for h in range(H):
            if not td["action_is_pad"][i, h]:
                terms += list((velocity[0, h] - (data[h] - noise[i, h])) ** 2)
    assert len(terms) == A * (~td["action_is_pad"]).sum()
    return torch.stack(terms).mean()


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_the_loss_is_the_naive_mean_over_valid_elements(alpha):
    policy, td = flow(), batch()
    loss = Seeded(FlowMatchingLoss(policy, time_alpha=alpha))
    torch.testing.assert_close(loss(td)["loss_bc"], naive(policy, td, alpha))


def test_it_keeps_the_contract_of_a_loss():
    check_loss(Seeded(FlowMatchingLoss(flow(), num_samples=3)), batch())


def test_targets_under_the_padding_have_no_gradient_and_others_do():
    td = batch()
    target = td["action_chunk"].clone().requires_grad_()
    loss = Seeded(FlowMatchingLoss(flow()))(td.set("action_chunk", target))["loss_bc"]
    (gradient,) = torch.autograd.grad(loss, target)
    assert ((gradient == 0).all(-1) == td["action_is_pad"]).all()


def test_dimensions_that_a_robot_lacks_do_not_count():
    td = batch().set("action_dim_is_pad", torch.tensor([[False, True]]).expand(4, A))
    loss = FlowMatchingLoss(flow())
    with pytest.raises(SchemaError, match=r"FlowMatchingLoss: .*padded dimensions"):
        loss(td)
    loss.set_keys(dim_pad_mask="action_dim_is_pad")
    assert "action_dim_is_pad" in loss.in_keys
    expected = Seeded(loss)(td)["loss_bc"]
    td["action_chunk"][..., 1] = torch.nan
    assert torch.equal(Seeded(loss)(td)["loss_bc"], expected)


def test_the_experts_chunk_may_lie_elsewhere():
    loss, td = FlowMatchingLoss(flow()), batch()
    expected = Seeded(loss)(td)["loss_bc"]
    td["expert"] = td["action_chunk"]
    td["action_chunk"] = torch.full((4, H, A), torch.nan)  # the policy's, say
    loss.set_keys(action="expert")
    assert torch.equal(Seeded(loss)(td)["loss_bc"], expected)
    assert td["action_chunk"].isnan().all()


def test_no_pad_mask_takes_every_element_when_it_is_said():
    loss, td = FlowMatchingLoss(flow()), batch().exclude("action_is_pad")
    with pytest.raises(MissingKeyError, match=r"FlowMatchingLoss: .*'action_is_pad'"):
        loss(td)
    loss.set_keys(pad_mask=None)
    value = Seeded(loss)(td)["loss_bc"]
    unpadded = td.clone().set("action_is_pad", torch.zeros(4, H, dtype=torch.bool))
    torch.testing.assert_close(value, naive(flow(), unpadded, 1.0))


@pytest.mark.parametrize("make", [FlowMatchingLoss, DiffusionBCLoss])
def test_a_policy_that_does_not_denoise_is_refused(make):
    policy = TensorDictModule(nn.Linear(1, 1), ["state"], ["action_chunk"])
    with pytest.raises(TypeError, match=rf"{make.__name__}: .* Use BCLoss"):
        make(policy)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"a positive time_alpha, got 0"):
        FlowMatchingLoss(flow(), time_alpha=0)
    with pytest.raises(
        ValueError, match=r"positive int at argument 'num_samples', got 0"
    ):
        FlowMatchingLoss(flow(), num_samples=0)
    td = batch()
    td["action_chunk"] = torch.zeros(4, H, A, dtype=torch.int64)
    with pytest.raises(SchemaError, match=r"float actions .* Use TokenBCLoss"):
        FlowMatchingLoss(flow())(td)


def test_a_flow_learns_both_of_two_ways():
    """The sign of the actions is random: their mean, 0, is never right."""
    torch.manual_seed(1)
    policy, td = flow(num_steps=8), batch()[:1].expand(32).clone()
    td["action_is_pad"] = torch.zeros(32, H, dtype=torch.bool)
    sign = torch.tensor([-1.0, 1.0]).repeat(16)
    td["action_chunk"] = sign[:, None, None].expand(32, H, A).clone()
    loss = FlowMatchingLoss(policy, num_samples=8)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(td)["loss_bc"].backward()
        optimizer.step()
    with torch.no_grad():
        chunk = policy.decode(policy.get_dist(td).sample([8]))
    # 0 for the mean, 0.48 for noise that was left as it is
    assert ((chunk.abs() - 1).abs() < 0.5).float().mean() > 0.8
    assert 0.3 < (chunk > 0).float().mean() < 0.7
