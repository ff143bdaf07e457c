from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import SkipWaiting
from torchrl_vla.schema import ExecutionError
from torchrl_vla.transforms import ObservationHistory


def test_specs_hold_and_nobody_waits_by_default():
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), SkipWaiting())
    check_env_specs(env)
    rollout = env.rollout(3)
    assert not rollout["is_waiting"].any()


def test_what_other_transforms_counted_is_put_back():
    env = TransformedEnv(
        ToyVLAEnv(batch_size=[2], max_steps=9),
        Compose(StepCounter(3), ObservationHistory(2), SkipWaiting()),
    )
    td = env.reset()
    for _ in range(5):
        td["action"] = torch.ones(2, 4)
        td["is_waiting"] = torch.tensor([[True], [False]])
        td = env.step(td)["next"]
    assert td["step_count"].flatten().tolist() == [0, 5]
    assert td["done"].flatten().tolist() == [False, True]
    assert td["history_is_pad"].tolist() == [[True, False], [False, False]]
    texts = td["language_instruction"]
    assert len(texts) == 2


def test_a_mask_that_is_there_is_kept():
    env = TransformedEnv(
        ToyVLAEnv(batch_size=[3]), Compose(StepCounter(), SkipWaiting())
    )
    td = env.reset()
    td["action"] = torch.ones(3, 4)
    td["is_waiting"] = torch.tensor([[True], [False], [False]])
    td["_step"] = torch.tensor([True, False, True])
    state = env.step(td)["next", "observation", "state"][:, 0]
    assert state.tolist() == [0, 0, 1]


def test_rows_of_one_worker_have_to_wait_together():
    env = TransformedEnv(
        SerialEnv(2, partial(ToyVLAEnv, batch_size=[2])), SkipWaiting()
    )
    td = env.reset()
    td["action"] = torch.ones(2, 2, 4)
    td["is_waiting"] = torch.tensor([[[True], [True]], [[False], [False]]])
    state = env.step(td)["next", "observation", "state"][..., 0]
    assert state.tolist() == [[0, 0], [1, 1]]
    td["is_waiting"] = torch.tensor([[[True], [False]], [[False], [False]]])
    with pytest.raises(ExecutionError, match=r"worker of SerialEnv to wait together"):
        env.step(td)


def test_refuses_to_work_outside_an_environment():
    with pytest.raises(
        ExecutionError, match=r"env\.append_transform\(SkipWaiting\(\)\)"
    ):
        SkipWaiting()(TensorDict(batch_size=[2]))
