from __future__ import annotations

import pytest
import torch
from robot_runs import make_run

from torchrl_vla.runtime import PlainRollout, RecordedActions, run_strategy
from torchrl_vla.schema import SchemaError


def test_the_recorded_actions_follow_the_approach_bit_for_bit():
    run, robot = make_run()
    actions = torch.rand(7, 2, generator=torch.Generator().manual_seed(0))
    run.policy = RecordedActions(actions, run.robot_env.loop, approach_s=0.5)
    run_strategy(PlainRollout(), run)
    sent = torch.stack([action for _, action in robot.sent])
    assert len(sent) == 5 + 6
    assert torch.equal(sent[4:], actions)
    torch.testing.assert_close(sent[:4].diff(dim=0), (actions[0] / 5).expand(3, 2))
    assert run.robot_env.loop.ended_by == "the recording is over"


@pytest.mark.parametrize("shape", [(0, 2), (2,), (1, 2, 2)])
def test_what_is_no_episode_is_refused(shape):
    with pytest.raises(SchemaError, match=r"\[T, A\] with T >= 1"):
        RecordedActions(torch.zeros(shape), None)
