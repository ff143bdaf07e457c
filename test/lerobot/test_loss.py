"""LeRobotLoss against LeRobot's own training step, and what the padding may do."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from lerobot_checkpoints import (
    make_processors,
    to_lerobot_batch,
)
from lerobot_training_batches import ROWS, TRAINED, batch, wrap
from tensordict import TensorDict

from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.schema import MissingKeyError, SchemaError

pytestmark = pytest.mark.lerobot


def lerobots_batch(policy: LeRobotPolicyWrapper, td: TensorDict) -> dict:
    """What LeRobot's dataset would give for the same frames, before its processor."""
    if policy.config.observation_delta_indices is None:
        out = to_lerobot_batch(td)
    else:
        source = td.select("observation", "language_instruction")
        source["observation"] = td["observation_history"]
        out = to_lerobot_batch(source)
    out["action"], out["action_is_pad"] = td["action_chunk"], td["action_is_pad"]
    return out


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_is_that_of_lerobots_own_training_step(name, tiny_vlm):
    policy = wrap(name, tiny_vlm)
    loss = LeRobotLoss(policy, train_on_padding=not policy.masks_padding).train()
    td = batch(name, policy, padded=name != "smolvla" or _is_new())
    own, (before, _) = deepcopy(policy.policy), make_processors(policy.policy)
    torch.manual_seed(3)
    expected, log = own.forward(before(lerobots_batch(policy, td)))
    expected.backward()
    torch.manual_seed(3)
    out = loss(td)
    assert torch.equal(out["loss_lerobot"], expected)
    assert expected > 0
    entries = {k: v for k, v in (log or {}).items() if isinstance(v, (int, float))}
    logged = out.get("log", None)
    found = {} if logged is None else {k: v.item() for k, v in logged.items()}
    for key, value in entries.items():
        assert found[key] == pytest.approx(value)
    out["loss_lerobot"].backward()
    for ours, theirs in zip(policy.policy.parameters(), own.parameters()):
        if theirs.grad is None:
            assert ours.grad is None
        else:
            assert torch.equal(ours.grad, theirs.grad)


def _is_new() -> bool:
    import lerobot

    return not lerobot.__version__.startswith("0.4")


@pytest.mark.parametrize("name", ["act", "act-cameras"])
def test_padded_actions_have_no_influence_on_act(name):
    policy = wrap(name)
    loss = LeRobotLoss(policy).eval()
    policy.policy.model.train(False)
    td = batch(name, policy)
    td["action_chunk"].requires_grad_()
    loss.train()
    for module in policy.policy.modules():  # dropout and batch statistics aside
        if isinstance(module, (torch.nn.Dropout, torch.nn.MultiheadAttention)):
            module.eval()
    out = loss(td)
    out["loss_lerobot"].backward()
    gradient = td["action_chunk"].grad
    is_pad = td["action_is_pad"]
    assert (gradient[is_pad] == 0).all()
    assert (gradient[~is_pad] != 0).any(-1).all()


def test_the_loss_of_diffusion_counts_no_padded_position():
    policy = wrap("diffusion", do_mask_loss_for_padding=True)
    loss, td = LeRobotLoss(policy).train(), batch("diffusion", policy)
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    policy.policy.diffusion.unet.register_forward_hook(keep)
    loss(td)["loss_lerobot"].backward()
    (prediction,) = seen
    is_pad = td["action_is_pad"]
    assert (prediction.grad[is_pad] == 0).all()
    assert (prediction.grad[~is_pad] != 0).any(-1).all()


def test_the_loss_of_smolvla_counts_no_padded_position(tiny_vlm):
    policy = wrap("smolvla", tiny_vlm)
    loss, td = LeRobotLoss(policy).train(), batch("smolvla", policy)
    seen, forward = [], policy.policy.model.forward

    def keep(*args, **kwargs):
        losses = forward(*args, **kwargs)
        losses.retain_grad()
        seen.append(losses)
        return losses

    policy.policy.model.forward = keep
    loss(td)["loss_lerobot"].backward()
    (losses,) = seen
    is_pad = td["action_is_pad"]
    assert (losses.grad[is_pad] == 0).all()
    assert (losses.grad[~is_pad][..., :7] > 0).all()


def test_a_loss_that_counts_padding_is_refused_unless_requested(tiny_vlm):
    for name in ("diffusion", "vqbet"):
        policy = wrap(name)
        with pytest.raises(SchemaError, match=r"counts them.*do_mask_loss_for_padding"):
            LeRobotLoss(policy)
        assert LeRobotLoss(policy, train_on_padding=True).train_on_padding


def test_a_policy_that_learns_from_rewards_is_refused():
    with pytest.raises(SchemaError, match=r"TDMPCPolicy, which learns from rewards"):
        LeRobotLoss(wrap("tdmpc"))


def test_other_objects_are_refused():
    policy = LeRobotPolicyWrapper(lambda b: b, action_dim=1, chunk_size=1)
    policy.policy = torch.nn.Identity()
    with pytest.raises(SchemaError, match=r"LeRobotPolicyWrapper around a policy of"):
        LeRobotLoss(policy)


def test_evaluation_mode_is_refused_while_gradients_are_recorded():
    policy = wrap("diffusion", do_mask_loss_for_padding=True)
    loss, td = LeRobotLoss(policy).eval(), batch("diffusion", policy)
    with pytest.raises(SchemaError, match=r"in training mode, got evaluation mode"):
        loss(td)
    with torch.no_grad():
        assert loss(td)["loss_lerobot"] > 0


def test_a_missing_or_inverted_mask_is_refused():
    policy = wrap("act")
    loss, td = LeRobotLoss(policy).train(), batch("act", policy)
    with pytest.raises(MissingKeyError, match=r"action_is_pad"):
        loss(td.exclude("action_is_pad"))
    with pytest.raises(SchemaError, match=r"bool"):
        loss(td.clone().set("action_is_pad", (~td["action_is_pad"]).float()))
    with pytest.raises(SchemaError, match=r"LeRobotLoss"):
        loss(td.clone().set("action_is_pad", torch.ones_like(td["action_is_pad"])))
    with pytest.raises(MissingKeyError, match=r"action_chunk"):
        loss(td.exclude("action_chunk"))


def test_weights_that_lerobots_losses_do_not_know_are_refused():
    policy = wrap("act")
    td = batch("act", policy).set("sample_weight", torch.ones(ROWS))
    with pytest.raises(SchemaError, match=r"of equal weight, .*'sample_weight'"):
        LeRobotLoss(policy).train()(td)


def test_targets_of_another_window_are_refused_and_the_right_one_named():
    policy = wrap("diffusion", do_mask_loss_for_padding=True)
    assert list(policy.target_steps) == [-1, 0, 1, 2, 3, 4, 5, 6]
    loss, td = LeRobotLoss(policy).train(), batch("diffusion", policy)
    td["action_chunk"] = td["action_chunk"][:, :3]
    td["action_is_pad"] = td["action_is_pad"][:, :3]
    with pytest.raises(
        SchemaError, match=r"ActionChunkTransform\(8, storage=\.\.\., first_step=-1\)"
    ):
        loss(td)


def test_targets_that_begin_at_another_step_are_refused():
    policy = wrap("diffusion", do_mask_loss_for_padding=True)
    loss, td = LeRobotLoss(policy).train(), batch("diffusion", policy)
    td["action"] = td["action_chunk"][:, 1]
    loss(td)
    td["action"] = td["action_chunk"][:, 0]
    with pytest.raises(SchemaError, match=r"begin at step -1 from the frame"):
        loss(td)


@pytest.mark.parametrize("name", TRAINED)
def test_an_inverted_mask_raises(name, tiny_vlm):
    policy = wrap(name, tiny_vlm)
    td = batch(name, policy)
    td["action_is_pad"] = ~td["action_is_pad"]
    loss = LeRobotLoss(policy, train_on_padding=True).train()
    with pytest.raises(SchemaError, match=r"LeRobotLoss: .* pass ~valid"):
        loss(td)
