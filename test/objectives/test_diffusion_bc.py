from __future__ import annotations

import pytest
import torch
from seeded_loss import Seeded
from tensordict import TensorDict
from tiny_options import make_tiny

from torchrl_vla.objectives import DiffusionBCLoss
from torchrl_vla.policies import BackboneConfig, TinyDiffusionVLA
from torchrl_vla.schema import SchemaError
from torchrl_vla.testing import check_loss

H, A = 3, 2


def diffusion(**options) -> TinyDiffusionVLA:
    torch.manual_seed(0)
    return make_tiny(
        TinyDiffusionVLA,
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
            "observation": {"state": torch.randn(3, 1, generator=generator)},
            "action_chunk": torch.randn(3, H, A, generator=generator),
            "action_is_pad": torch.tensor(
                [[False] * 3, [False, True, True], [False, False, True]]
            ),
        },
        batch_size=[3],
    )
    td["language_instruction"] = "push"
    return td


def test_the_loss_is_the_naive_mean_over_valid_elements():
    policy, td = diffusion(num_levels=10), batch()
    value = Seeded(DiffusionBCLoss(policy))(td)["loss_bc"]
    torch.manual_seed(7)
    noise, level = torch.randn(3, H, A), torch.randint(1, 11, (3,))
    condition, terms = policy.encode(td), []
    for i in range(3):
        data = td["action_chunk"][i] * ~td["action_is_pad"][i][:, None]
        kept = policy.signal[level[i]]
        x = kept.sqrt() * data + (1 - kept).sqrt() * noise[i]
        predicted = policy.predict_noise(
            condition[i : i + 1], x[None], level[i : i + 1]
        )
        for h in range(H):
            if not td["action_is_pad"][i, h]:
                terms += list((predicted[0, h] - noise[i, h]) ** 2 / kept)
    assert len(terms) == 6 * A
    torch.testing.assert_close(value, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_it_keeps_the_contract_of_a_loss():
    check_loss(Seeded(DiffusionBCLoss(diffusion(), num_samples=3)), batch())


def test_targets_under_the_padding_have_no_gradient_and_others_do():
    td = batch()
    target = td["action_chunk"].clone().requires_grad_()
    loss = Seeded(DiffusionBCLoss(diffusion()))(td.set("action_chunk", target))
    (gradient,) = torch.autograd.grad(loss["loss_bc"], target)
    assert ((gradient == 0).all(-1) == td["action_is_pad"]).all()


def test_a_mask_that_is_none_is_refused():
    td = batch().set("action_is_pad", torch.zeros(3, H))
    with pytest.raises(SchemaError, match=r"DiffusionBCLoss: expected dtype bool"):
        DiffusionBCLoss(diffusion())(td)
    with pytest.raises(ValueError, match=r"DiffusionBCLoss: .* 'num_samples', got -1"):
        DiffusionBCLoss(diffusion(), num_samples=-1)


def test_diffusion_learns_both_of_two_ways():
    """The sign of the actions is random: their mean, 0, is never right."""
    torch.manual_seed(1)
    policy, td = diffusion(num_steps=16), batch()[:1].expand(32).clone()
    td["action_is_pad"] = torch.zeros(32, H, dtype=torch.bool)
    sign = torch.tensor([-1.0, 1.0]).repeat(16)
    td["action_chunk"] = sign[:, None, None].expand(32, H, A).clone()
    loss = DiffusionBCLoss(policy, num_samples=8)
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
