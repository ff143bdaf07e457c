from __future__ import annotations

import copy

import pytest
import torch
from counting_dataset import counting_dataset
from tensordict import TensorDict
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import NoTrainingError, SchemaError
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.recipes import (
    GRPO,
    FinetuneSettings,
    TrainingSettings,
    finetune,
    make_policy,
    make_space,
    run_training,
    to_stochastic,
    train_behavior_cloning,
)
from torchrl_vla.recipes.finetuning.learner import Learner
from torchrl_vla.recipes.training_loop import constant_rate
from torchrl_vla.testing import FirstStepCheck, check_training_step
from torchrl_vla.transforms import ActionChunkTransform

STEP = TrainingSettings(steps=1, batch_size=4)


class TwoParts(ContinuousVLAWrapper):
    """A trunk and a head; the path between them can be cut."""

    def __init__(self, detach=False):
        super().__init__(action_dim=1, chunk_size=2)
        self.trunk = nn.Linear(1, 3)
        self.head = nn.Linear(3, 2)
        self.detach = detach

    def predict_chunk(self, tensordict):
        hidden = self.trunk(tensordict["observation", "state"])
        hidden = hidden.detach() if self.detach else hidden
        return self.head(hidden).unsqueeze(-1)


def clone(policy, **options):
    return train_behavior_cloning(
        policy, counting_dataset(), STEP, progress=False, **options
    )


def test_a_detached_head_raises_at_the_first_step_by_name():
    policy = TwoParts(detach=True)
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(
        NoTrainingError,
        match=r"train: expected a gradient .* got none for \['trunk.weight', "
        r"'trunk.bias'\] after .* freeze them with requires_grad_\(False\).* "
        r"without_gradient = \{'name': 'reason'\}",
    ):
        clone(policy)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_ways_out_that_the_error_names_work():
    frozen = TwoParts(detach=True)
    frozen.trunk.requires_grad_(False)
    clone(frozen)
    excused = TwoParts(detach=True)
    excused.without_gradient = {"trunk.*": "it is pretrained"}
    clone(excused)


def run(policy, optimizer, schedule=None):
    dataset = counting_dataset()
    buffer = dataset.replay_buffer(
        4, transform=ActionChunkTransform(2, storage=dataset.storage), seed=0
    )
    schedule = constant_rate(optimizer) if schedule is None else schedule
    return run_training(policy, BCLoss(policy), buffer, schedule, STEP, progress=False)


def test_an_optimizer_without_some_parameters_raises_by_name():
    policy = TwoParts()
    optimizer = torch.optim.Adam(policy.head.parameters())
    with pytest.raises(
        NoTrainingError,
        match=r"in the optimizer, got \['trunk.weight', 'trunk.bias'\] outside it",
    ):
        run(policy, optimizer)


def test_an_optimizer_of_a_copy_raises():
    policy = TwoParts()
    optimizer = torch.optim.Adam(copy.deepcopy(policy).parameters())
    with pytest.raises(NoTrainingError, match=r"outside it\. Make the Adam"):
        run(policy, optimizer)


def test_a_policy_that_is_frozen_raises():
    policy = TwoParts().requires_grad_(False)
    loose = nn.Parameter(torch.zeros(1))
    check = FirstStepCheck("mine", policy, torch.optim.Adam([loose]))
    with pytest.raises(
        NoTrainingError, match="require a gradient in TwoParts, got non"
    ):
        check.after_backward()


def test_a_step_too_small_for_the_weights_raises():
    policy = TwoParts()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(1.0)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-12)
    with pytest.raises(NoTrainingError, match=r"change weights, .* with lr \[1e-12\]"):
        run(policy, optimizer)


def test_a_schedule_that_begins_with_zero_is_checked_at_the_next_step():
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, lambda step: min(step, 1))
    check = FirstStepCheck("mine", layer, optimizer)
    for is_done in (False, True):
        optimizer.zero_grad()
        layer(torch.ones(1)).sum().backward()
        check.after_backward()
        optimizer.step()
        check.after_step()
        assert check.is_done is is_done
        schedule.step()


def test_the_end_of_a_schedule_is_no_error_for_a_training_that_goes_on():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    LambdaLR(optimizer, lambda step: 1e-12)
    check = FirstStepCheck("mine", layer, optimizer)
    layer(torch.ones(1)).sum().backward()
    check.after_backward()
    optimizer.step()
    check.after_step()
    assert not check.is_done


@pytest.mark.parametrize("may_be_flat", [False, True])
def test_gradients_of_zero_are_an_error_unless_they_may_be(may_be_flat):
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    check = FirstStepCheck("mine", layer, optimizer, may_be_flat)
    (0 * layer(torch.ones(1))).sum().backward()
    check.after_backward()
    optimizer.step()
    if not may_be_flat:
        with pytest.raises(NoTrainingError, match="all gradients are 0"):
            check.after_step()
        return
    check.after_step()
    assert not check.is_done


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    env = TabletopEnv(4, image_size=16, num_blocks=2, max_steps=8, seed=0)
    folder = tmp_path_factory.mktemp("data") / "demos"
    dataset = collect(env, env.make_expert(), 4, folder=folder, progress=False)
    return env, dataset


def test_a_fine_tuning_raises_for_a_detached_part_too(robot, tmp_path):
    env, dataset = robot
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=4, head="tokens", hidden=16, depth=1)
    policy = to_stochastic(policy)
    policy.backbone.text.register_forward_hook(lambda module, i, out: out.detach())
    settings = FinetuneSettings(
        algorithm=GRPO(group_size=2, keep=None),
        iterations=1,
        entropy_coeff=0.1,
        eval_episodes=2,
    )
    space = make_space(dataset.metadata, "tokens")
    with pytest.raises(
        NoTrainingError,
        match=r"finetune: expected a gradient .* \['backbone.text.position",
    ):
        finetune(policy, space, env, tmp_path, settings, progress=False)
    assert Learner.__init__.__globals__["FirstStepCheck"] is FirstStepCheck


def small_loss(detach):
    torch.manual_seed(0)
    policy = TwoParts(detach)
    return policy, BCLoss(policy)


def batch():
    return TensorDict(
        {
            "observation": {"state": torch.ones(3, 1)},
            "action_chunk": torch.zeros(3, 2, 1),
            "action_is_pad": torch.zeros(3, 2, dtype=torch.bool),
        },
        [3],
    )


def test_the_checker_for_users_passes_and_leaves_everything_as_it_was():
    (policy, loss), data = small_loss(False), batch()
    before = copy.deepcopy(policy.state_dict())
    loss.eval()
    policy.head.bias.grad = torch.ones(2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check_training_step(policy, loss, data)
    assert torch.equal(torch.rand(1), expected)
    assert not loss.training
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert policy.head.bias.grad.tolist() == [1, 1]
    assert policy.head.weight.grad is None


def test_the_checker_for_users_names_what_is_not_trained():
    with pytest.raises(NoTrainingError, match=r"got none for \['trunk.weight', "):
        check_training_step(*small_loss(True), batch())

    class NoLoss(nn.Linear):
        def forward(self, tensordict):
            return TensorDict({"error": tensordict["action_chunk"].sum()})

    no_loss = NoLoss(1, 1)
    with pytest.raises(SchemaError, match=r"begin with 'loss' from NoLoss, got \['err"):
        check_training_step(no_loss, no_loss, batch())


def test_a_loss_without_any_gradient_names_all_parameters():
    class Detached(nn.Linear):
        def forward(self, tensordict):
            return TensorDict({"loss": super().forward(torch.ones(1)).detach().sum()})

    policy = Detached(1, 1)
    with pytest.raises(NoTrainingError, match=r"got none for \['weight', 'bias'\]"):
        check_training_step(policy, policy, batch())


def test_after_the_first_step_nothing_is_checked_again():
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    check = FirstStepCheck("mine", layer, optimizer)
    layer(torch.ones(1)).sum().backward()
    check.after_backward()
    optimizer.step()
    check.after_step()
    optimizer.zero_grad()
    check.after_backward()  # there is no gradient now
    check.after_step()
