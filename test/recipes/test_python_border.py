"""Arguments of another kind, at the recipes that are given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from counting_dataset import counting_dataset
from point_robot import Point, act_by, make_point, towards
from torch import nn

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import ArgumentTypeError
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.recipes import (
    TrainingSettings,
    finetune,
    make_policy,
    train_behavior_cloning,
)
from torchrl_vla.spaces import ModelSpace


class Net(ContinuousVLAWrapper):
    """A policy of the point robot with a layer that differs between the modes."""

    def __init__(self, middle):
        super().__init__(action_dim=4, chunk_size=2)
        self.layers = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), middle, nn.Linear(64, 8)
        )

    def predict_chunk(self, tensordict):
        return self.layers(tensordict["observation", "state"]).unflatten(-1, (2, 4))


@pytest.mark.parametrize(
    "dataset",
    ["runs/demos", Path("runs/demos"), {"action": np.zeros((3, 2))}, torch.zeros(3, 2)],
)
def test_what_are_no_demonstrations_are_refused_with_the_fix(dataset, tmp_path):
    policy = Net(nn.Identity())
    for name, call in {
        "train_behavior_cloning": lambda: train_behavior_cloning(policy, dataset),
        "make_policy": lambda: make_policy(dataset, chunk_size=2),
        "finetune": lambda: finetune(
            policy, None, make_point(), tmp_path, demonstrations=dataset
        ),
    }.items():
        message = rf"^{name}: .*got {type(dataset).__name__} .*recipes\.open_dataset\("
        with pytest.raises(ArgumentTypeError, match=message):
            call()


@pytest.mark.parametrize("policy", [lambda td: td, Net, "policy", None])
def test_what_is_no_policy_is_refused_with_the_fix(policy, tmp_path):
    with pytest.raises(
        ArgumentTypeError, match=r"^train_behavior_cloning: .*nn\.Module"
    ):
        train_behavior_cloning(policy, counting_dataset([4, 5]))
    with pytest.raises(
        ArgumentTypeError, match=r"^finetune: .*Write an nn\.Module who"
    ):
        finetune(policy, None, make_point(), tmp_path)


def test_an_environment_of_gymnasium_is_refused_with_the_fix(tmp_path):
    net = Net(nn.Identity())
    with pytest.raises(ArgumentTypeError, match=r"^finetune: .*GymnasiumEnv\(make_env"):
        finetune(net, None, Point(), tmp_path)
    with pytest.raises(ArgumentTypeError, match=r"^finetune: .*'env', got .*Point"):
        finetune(net, None, make_point(), tmp_path, eval_env=Point())


def returns(net, seed=1):
    env, policy = make_point(), MultiStepActorWrapper(net)
    result = evaluate(env, policy, 4, seed=seed, progress=False)
    return [episode.episode_return for episode in result.episodes]


def test_evaluation_leaves_batch_statistics_and_modes_as_they_were():
    net = Net(nn.BatchNorm1d(64)).train()
    net.layers[0].eval()
    before = {name: value.clone() for name, value in net.named_buffers()}
    returns(net)
    assert before
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]), name
    assert net.training
    assert net.layers[2].training
    assert not net.layers[0].training


def test_a_policy_with_dropout_is_judged_without_it():
    net = Net(nn.Dropout(0.5)).train()
    assert returns(net) == returns(net) == returns(net.eval())


def test_a_policy_with_batch_statistics_acts_alone():
    net = MultiStepActorWrapper(Net(nn.BatchNorm1d(64)).train())
    assert len(evaluate(make_point(num_envs=1), net, 2, progress=False)) == 2


def test_a_callback_judges_the_weights_that_are_left(tmp_path):
    dataset = collect(
        make_point(), act_by(towards), 8, folder=tmp_path / "d", progress=False
    )
    space, seen, modes = ModelSpace(dataset.metadata), [], []
    net = Net(nn.Dropout(0.3))

    def judge():
        executor = space.executor(net, replan_interval=1)
        result = evaluate(make_point(), executor, 4, progress=False)
        return [episode.episode_return for episode in result.episodes]

    def callback(step):
        modes.append(net.training)
        seen.append(judge())

    train_behavior_cloning(
        net,
        dataset,
        TrainingSettings(steps=6, log_interval=3, ema_decay=0.0),
        space=space,
        progress=False,
        callback=callback,
    )
    assert modes == [False, False]
    assert seen[-1] == judge()
    assert seen[0] != seen[-1]


def test_a_bare_chunk_policy_in_a_rollout_is_told_its_executor():
    chunks = act_by(lambda state: torch.zeros(len(state), 2, 2), "action_chunk")
    with pytest.raises(KeyError, match=r"TabletopEnv: .*wrap it in MultiStepActorWr"):
        TabletopEnv(2, image_size=8).rollout(2, chunks)
