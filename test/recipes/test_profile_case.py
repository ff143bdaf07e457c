from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.profiling.profile_cases import CaseResources, ProfileCase
from torchrl_vla.recipes import make_cloning_loss, make_policy, make_space
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.profile_case import (
    ResourcefulLoss,
    make_optimizer,
    make_profile_dataset,
    train_profile_case,
)


@pytest.fixture(scope="module")
def made():
    dataset = make_profile_dataset()
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=4, hidden=16, depth=1)
    space = make_space(dataset.metadata)
    transform = make_training_transform(policy, space, dataset.storage)
    return (
        policy,
        make_cloning_loss(policy),
        dataset.replay_buffer(4, transform=transform, seed=0).sample(),
    )


def gradients(policy, loss, batch, **resources):
    policy.zero_grad()
    value = ResourcefulLoss(loss, CaseResources(**resources))(batch)["loss_bc"]
    value.backward()
    return value, [p.grad.clone() for p in policy.parameters()]


def test_checkpointing_changes_no_gradient(made):
    value, expected = gradients(*made)
    other, found = gradients(*made, checkpointing=True)
    assert torch.equal(value, other)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_bfloat16_and_checkpointing_train_a_tiny_policy(made):
    value, expected = gradients(*made)
    other, found = gradients(*made, bf16=True, checkpointing=True)
    assert other != value
    # bfloat16 has 8 bits of precision.
    assert other.item() == pytest.approx(value.item(), rel=0.02)
    norms = [torch.cat([g.flatten() for g in gs]).norm() for gs in (found, expected)]
    assert norms[0].item() == pytest.approx(norms[1].item(), rel=0.1)


def test_the_optimizer_is_that_of_the_case(made):
    policy = made[0]
    assert type(make_optimizer(policy, CaseResources("sgd"))) is torch.optim.SGD
    assert type(make_optimizer(policy, CaseResources())) is torch.optim.AdamW


def test_determinism_is_switched_on_for_the_case_alone():
    case = ProfileCase(
        "x",
        "tiny",
        {"chunk_size": 2, "hidden": 8, "depth": 1},
        steps=1,
        resources=CaseResources(deterministic=True),
    )
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        train_profile_case(case, None)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def test_a_function_of_ones_own_makes_the_policy(monkeypatch):
    import sys
    from types import ModuleType

    seen = []
    module = ModuleType("my_policies")

    def make(dataset, width):
        seen.append(width)
        return make_policy(dataset, chunk_size=2, hidden=width, depth=1)

    module.make = make
    monkeypatch.setitem(sys.modules, "my_policies", module)
    case = ProfileCase("mine", "my_policies:make", {"width": 8}, steps=1)
    train_profile_case(case, None)
    assert seen == [8]


def test_the_dataset_is_the_same_each_time():
    first, second = make_profile_dataset(), make_profile_dataset()
    assert (first.frames == second.frames).all()
    assert isinstance(first.frames, TensorDict)
