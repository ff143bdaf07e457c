from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    InitTracker,
    ParallelEnv,
    SerialEnv,
    StepCounter,
    SuccessReward,
    Transform,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.envs.tabletop.scene import CONTACT
from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.schema import ExecutionError, InstructionTable, MissingKeyError

make_toy = partial(
    ToyVLAEnv,
    action_dim=2,
    state_dim=4,
    success_steps=1,
    instructions=InstructionTable(),
)
HORIZON = 4


class MaskBlindToy(ToyVLAEnv):
    """Steps every row, whatever ``_step`` says."""

    def _step(self, tensordict):
        return super()._step(tensordict.exclude("_step"))


class LastingToy(ToyVLAEnv):
    """Reports success while it lasts and ends at the time limit only."""

    def _ended(self):
        ended = super()._ended()
        ended["terminated"] = torch.zeros_like(ended["terminated"])
        ended["done"] = ended["truncated"].clone()
        return ended


def chunk_with_success_at(td, position):
    """Make ``[*B, H, 2]`` that is on target at ``position`` (1..H; 0 never)."""
    target = td["observation", "state"][..., None, 2:4]
    position = torch.as_tensor(position)
    hit = position[..., None] == torch.arange(1, HORIZON + 1)
    return torch.where(hit[..., None], target, target + 0.4)


def transforms(order):
    if order == "before":
        return Compose(SuccessReward(), MultiAction(HORIZON))
    return Compose(MultiAction(HORIZON), SuccessReward())


def is_executed_up_to(steps):
    return (torch.arange(HORIZON) < torch.as_tensor(steps)[..., None]).tolist()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("position", [1, 2, 3, 4])
def test_success_at_any_position_is_paid_in_a_single_environment(order, position):
    env = TransformedEnv(make_toy(seed=0), transforms(order))
    td = env.reset()
    td["action_chunk"] = chunk_with_success_at(td, position)
    after = env.step(td)["next"]
    assert after["reward"].tolist() == [1.0]
    assert after["success"].tolist() == after["terminated"].tolist() == [True]
    assert after["executed_steps"].tolist() == [position]
    assert after["is_executed"].tolist() == is_executed_up_to(position)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("base", [make_toy, partial(MaskBlindToy, *[2, 4])])
def test_success_at_any_position_is_paid_in_a_mixed_batch(order, base):
    if base is not make_toy:
        base = partial(base, success_steps=1, instructions=InstructionTable())
    env = TransformedEnv(base(batch_size=[5], seed=0), transforms(order))
    check_mixed_batch(env)


def check_mixed_batch(env):
    positions = torch.arange(5)  # 0 never succeeds
    td = env.reset()
    chunk = td["action_chunk"] = chunk_with_success_at(td, positions)
    after = env.step(td)["next"]
    steps = [4, 1, 2, 3, 4]
    assert after["reward"].flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert after["success"].flatten().tolist() == [False, True, True, True, True]
    assert torch.equal(after["done"], after["success"])
    assert after["executed_steps"].flatten().tolist() == steps
    assert after["is_executed"].tolist() == is_executed_up_to(steps)
    # The state echoes the last *executed* action.
    last = chunk[torch.arange(5), torch.tensor(steps) - 1]
    assert torch.equal(after["observation", "state"][:, :2], last)


@pytest.mark.parametrize("order", ["before", "after"])
def test_success_at_any_position_is_paid_in_serial_environments(order):
    check_mixed_batch(TransformedEnv(SerialEnv(5, make_toy), transforms(order)))


def test_success_at_any_position_is_paid_in_parallel_environments():
    env = TransformedEnv(ParallelEnv(2, make_toy), transforms("before"))
    try:
        td = env.reset()
        td["action_chunk"] = chunk_with_success_at(td, [3, 1])
        after = env.step(td)["next"]
    finally:
        env.close()
    assert after["reward"].tolist() == [[1.0], [1.0]]
    assert after["executed_steps"].tolist() == [[3], [1]]


def test_each_worker_may_execute_its_own_chunks():
    env = SerialEnv(
        5, lambda: TransformedEnv(make_toy(), Compose(MultiAction(4), SuccessReward()))
    )
    check_mixed_batch(env)


def test_workers_with_batches_of_their_own_keep_what_ended():
    env = TransformedEnv(
        SerialEnv(2, partial(make_toy, batch_size=[3])), MultiAction(4)
    )
    td = env.reset()
    positions = torch.tensor([[0, 1, 2], [3, 4, 1]])
    chunk = td["action_chunk"] = chunk_with_success_at(td, positions)
    after = env.step(td)["next"]
    steps = torch.tensor([[4, 1, 2], [3, 4, 1]])
    assert torch.equal(after["executed_steps"][..., 0], steps)
    last = chunk.gather(2, (steps - 1)[..., None, None].expand(2, 3, 1, 2))[:, :, 0]
    assert torch.equal(after["observation", "state"][..., :2], last)


def test_peers_minimal_failure_gives_the_right_reward():
    # Reference F1: upstream returns success True, terminated True and reward 0.0.
    env = TransformedEnv(
        ToyVLAEnv(action_dim=2, state_dim=4, success_steps=2, seed=0),
        Compose(MultiAction(chunk_key="action"), SuccessReward()),
    )
    td = env.reset()
    td["action"] = td["observation", "state"][2:4].expand(4, 2).clone()
    after = env.step(td)["next"]
    assert after["success"].item()
    assert after["terminated"].item()
    assert after["reward"].item() == 1.0
    assert after["executed_steps"].item() == 2


def test_text_of_rows_that_ended_is_kept():
    base = ToyVLAEnv(2, 4, success_steps=1, batch_size=[2])
    env = TransformedEnv(base, MultiAction(4))
    td = env.reset()
    td["action_chunk"] = chunk_with_success_at(td, [1, 3])
    after = env.step(td)["next"]
    assert list(after["language_instruction"]) == [base.instruction] * 2


def test_reward_is_the_sum_over_the_executed_steps():
    env = TransformedEnv(ToyVLAEnv(1, 1, batch_size=[2], max_steps=3), MultiAction(4))
    td = env.reset()
    td["action_chunk"] = torch.tensor([[0.1, 0.2, 0.4, 0.8], [1.0, 0.0, 0.5, 0.0]])[
        ..., None
    ]
    after = env.step(td)["next"]
    torch.testing.assert_close(after["reward"], torch.tensor([[-0.7], [-1.5]]))
    assert after["truncated"].all()
    assert not after["terminated"].any()


def test_success_that_passes_within_the_chunk_is_kept():
    base = LastingToy(2, 4, success_steps=1, instructions=InstructionTable())
    env = TransformedEnv(base, Compose(MultiAction(HORIZON), SuccessReward()))
    td = env.reset()
    td["action_chunk"] = chunk_with_success_at(td, 2)
    after = env.step(td)["next"]
    assert after["executed_steps"].item() == 4
    assert after["success"].item()
    assert after["reward"].item() == 1.0


def test_only_the_first_n_executed_actions_run():
    env = TransformedEnv(ToyVLAEnv(1, 1), MultiAction(4, replan_interval=2))
    check_env_specs(env)
    td = env.reset()
    td["action_chunk"] = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    after = env.step(td)["next"]
    assert after["is_executed"].tolist() == [True, True, False, False]
    torch.testing.assert_close(after["observation", "state"], torch.tensor([0.2]))


def test_rows_masked_out_of_the_outer_step_execute_nothing():
    env = TransformedEnv(ToyVLAEnv(1, 1, batch_size=[2]), MultiAction(3))
    td = env.reset()
    td["action_chunk"] = torch.ones(2, 3, 1)
    td["_step"] = torch.tensor([True, False])
    after = env.step(td)["next"]
    assert after["executed_steps"].tolist() == [[3], [0]]
    assert after["reward"].tolist() == [[-3.0], [0.0]]
    assert after["observation", "state"].tolist() == [[1.0], [0.0]]


class Recorder(Transform):
    """Remembers the first state entry of each step that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def _call(self, next_tensordict):
        # A new list each time: a clone of this transform would lose the others.
        state = next_tensordict["observation", "state"]
        self.seen = [*self.seen, round(state.flatten()[0].item(), 3)]
        return next_tensordict


class Halve(Transform):
    """Halves the action on its way to the robot."""

    def _inv_call(self, tensordict):
        return tensordict.set("action", tensordict["action"] / 2)


def test_transforms_before_see_every_base_step_and_after_every_chunk():
    before, after = Recorder(), Recorder()
    env = TransformedEnv(
        ToyVLAEnv(1, 1),
        Compose(Compose(before), Halve(), StepCounter(), MultiAction(3), after),
    )
    td = env.reset()
    td["action_chunk"] = torch.tensor([[0.2], [0.4], [0.6]])
    out = env.step(td)["next"]
    assert before.seen == [0.1, 0.2, 0.3]
    assert after.seen == [0.3]
    assert out["step_count"].item() == 3


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_agrees_with_stepping_each_environment_alone(data):
    batch, horizon = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    limit = data.draw(st.integers(1, 12))
    replan_interval = data.draw(st.integers(1, horizon))
    seeds = torch.tensor(
        data.draw(st.lists(st.integers(0, 99), min_size=batch, max_size=batch))
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    chunks = torch.rand(3, batch, horizon, 2, generator=generator) * 2 - 1
    arguments = {"success_steps": 1, "success_tol": 0.5, "max_steps": limit}

    env = TransformedEnv(
        ToyVLAEnv(2, 4, batch_size=[batch], **arguments),
        MultiAction(horizon, replan_interval=replan_interval),
    )
    td = env.reset(episode_seeds=seeds)
    outer = []
    for chunk in chunks:
        after = env.step(td.set("action_chunk", chunk))["next"]
        outer.append(after)
        td = after.exclude("reward")

    for row in range(batch):
        alone = ToyVLAEnv(2, 4, **arguments)
        td = alone.reset(episode_seeds=seeds[row])
        for chunk, after in zip(chunks, outer):
            total, steps = 0.0, 0
            for action in chunk[row, :replan_interval]:
                td = alone.step(td.set("action", action))["next"]
                total, steps = total + td["reward"], steps + 1
                if td["done"]:
                    break
            torch.testing.assert_close(after["reward"][row], total)
            assert after["executed_steps"][row].item() == steps
            assert torch.equal(after["done"][row], td["done"])
            state = "observation", "state"
            assert torch.equal(after[state][row], td[state])
            if td["done"]:
                break


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("batch_size", [[], [2], [2, 3]])
def test_specs_match_what_the_environment_does(batch_size, chunk_size):
    base = make_toy(batch_size=batch_size, max_steps=4)
    check_env_specs(TransformedEnv(base, MultiAction(chunk_size)))


def test_specs_match_around_success_reward_and_workers():
    check_env_specs(TransformedEnv(make_toy(), transforms("before")))
    check_env_specs(TransformedEnv(make_toy(), transforms("after")))
    check_env_specs(TransformedEnv(SerialEnv(2, make_toy), MultiAction(3)))


def test_specs_announce_the_chunk_and_its_bounds():
    env = TransformedEnv(make_toy(batch_size=[5]), MultiAction(3))
    assert env.action_keys == ["action_chunk"]
    assert env.full_action_spec["action_chunk"].shape == (5, 3, 2)
    assert env.full_action_spec["action_chunk"].space.high.unique().tolist() == [1.0]
    assert env.observation_spec["is_executed"].shape == (5, 3)


def test_policy_is_called_once_per_outer_step():
    calls = []

    def plan(state):
        calls.append(state.shape)
        return state.new_zeros(*state.shape[:-1], 3, 4)

    policy = TensorDictModule(
        plan, in_keys=[("observation", "state")], out_keys=["action_chunk"]
    )
    env = TransformedEnv(
        ToyVLAEnv(batch_size=[2], max_steps=7, instructions=InstructionTable()),
        Compose(InitTracker(), MultiAction.from_vla(3)),
    )
    rollout = env.rollout(10, policy)
    assert len(calls) == 3  # ceil(7 / 3)
    executed = rollout["next", "executed_steps"][..., 0]
    assert executed.tolist() == [[3, 3, 1]] * 2
    assert "action" not in set(rollout.keys())


def test_stepping_does_not_leave_anything_in_the_callers_tensordict():
    env = TransformedEnv(ToyVLAEnv(1, 1), MultiAction(2))
    td = env.reset().set("action_chunk", torch.zeros(2, 1))
    before = set(td.keys(True, True))
    env.step(td)
    new = {key for key in td.keys(True, True) if key[0] != "next"} - before
    assert new == set()


class Flags(Transform):
    """Remembers what the base environment is told about who will look."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[bool]] = []

    def _inv_call(self, tensordict):
        self.seen = [*self.seen, tensordict["observation_needed"].flatten().tolist()]
        return tensordict


@pytest.mark.parametrize("batch_size", [[], [2], [2, 1]])
@pytest.mark.parametrize(
    ("horizon", "replan_interval", "told"),
    [
        (3, None, [False, False, True]),
        (3, 2, [False, True]),
        (3, 1, [True]),
        (1, None, [True]),
    ],
)
def test_nobody_looks_before_the_chunks_last_step(
    horizon, replan_interval, told, batch_size
):
    flags = Flags()
    env = TransformedEnv(
        ToyVLAEnv(1, 1, batch_size=batch_size),
        Compose(flags, MultiAction(horizon, replan_interval=replan_interval)),
    )
    td = env.reset().set("action_chunk", torch.zeros(*batch_size, horizon, 1))
    out = env.step(td)
    rows = torch.Size(batch_size).numel()
    assert flags.seen == [[flag] * rows for flag in told]
    assert "observation_needed" not in out.keys(True)


def test_an_end_that_the_environment_does_not_know_of_cannot_be_drawn():
    def make(render_on_demand, limit):
        base = TabletopEnv(
            2, tasks=("push",), image_size=8, render_on_demand=render_on_demand
        )
        env = TransformedEnv(base, Compose(StepCounter(limit), MultiAction(8)))
        td = env.reset(episode_seeds=torch.tensor([0, 1]))
        # Block 0 of row 1 is in the way and moves from the first step on.
        gripper, block = base.scene.gripper[1], base.scene.target_block[1]
        towards = (block - gripper) / (block - gripper).norm()
        base.scene.gripper = torch.stack(
            [base.scene.gripper[0], block - towards * CONTACT]
        )
        chunk = torch.stack([torch.zeros(2), towards]).unsqueeze(1).expand(2, 8, 2)
        return env, td.set("action_chunk", chunk)

    env, td = make(True, limit=2)
    message = r"'image_is_stale' True at env indices \[\[1\]\],.*Give the time limit"
    with pytest.raises(ExecutionError, match=message):
        env.step(td)
    for options in ({"render_on_demand": False, "limit": 2}, {"limit": 8}):
        env, td = make(**{"render_on_demand": True, **options})
        assert env.step(td)["next", "done"].all()


def test_missing_chunk_is_named():
    env = TransformedEnv(ToyVLAEnv(), MultiAction(3))
    td = env.reset().set("action", torch.zeros(4))
    message = r"chunk \[\*B, H, A\] at 'action_chunk', got only .*'action'"
    with pytest.raises(MissingKeyError, match=message):
        env.step(td)


@pytest.mark.parametrize("shape", [(2, 4), (4,), (1, 3, 4)])
def test_chunk_of_another_shape_is_refused(shape):
    env = TransformedEnv(ToyVLAEnv(), MultiAction(3))
    td = env.reset().set("action_chunk", torch.zeros(shape))
    with pytest.raises(ExecutionError, match="H = 3, A = 4 at 'action_chunk', got"):
        env.step(td)


def test_chunk_shorter_than_what_is_executed_is_refused():
    env = TransformedEnv(ToyVLAEnv(), MultiAction(replan_interval=3))
    td = env.reset().set("action_chunk", torch.zeros(2, 4))
    with pytest.raises(ExecutionError, match="at least replan_interval=3 actions"):
        env.step(td)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, "positive int at argument 'chunk_size', got 0"),
        ({"replan_interval": 0}, "positive int at argument 'replan_interval', got 0"),
        (
            {"chunk_size": 2, "replan_interval": 3},
            r"replan_interval in 1\.\.chunk_size=2, got 3",
        ),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiAction(**arguments)


def test_use_outside_an_environment_is_refused():
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(4), transform=MultiAction(2), batch_size=1
    )
    message = r"to be in a TransformedEnv, got.*env\.append_transform"
    with pytest.raises(ExecutionError, match=message):
        buffer.extend(TensorDict({"action_chunk": torch.zeros(4, 2, 1)}, [4]))
    with pytest.raises(ExecutionError, match=message):
        MultiAction(2)(TensorDict({"action_chunk": torch.zeros(4, 2, 1)}, [4]))
