from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl.envs import InitTracker, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import ExecutorKeys, MultiStepActorWrapper, select_decisions
from torchrl_vla.schema import ExecutionError, InstructionTable, MissingKeyError

with warnings.catch_warnings():  # torchrl 0.14 deprecates classes as it defines them
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import Collector


class ClockActor(TensorDictModuleBase):
    """Writes chunk[h] = 100 * clock + h, and the clock as its tokens."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.in_keys = ["clock"]
        self.out_keys = ["action_chunk", "action_tokens", ("info", "log_probs")]
        self.calls: list[tuple[torch.Size, list[str]]] = []

    def forward(self, td):
        self.calls.append((td.batch_size, list(td.keys())))
        clock = td["clock"]
        ahead = torch.arange(self.horizon)
        td["action_chunk"] = (100 * clock[..., None] + ahead)[..., None].float()
        td["action_tokens"] = clock.clone()
        td["info", "log_probs"] = -clock.float()
        return td


class TokenPolicy(TensorDictModuleBase):
    """Smallest token policy: logits from the state, chunk from the tokens."""

    def __init__(self, state_dim=6, horizon=4, action_dim=4, n_bins=5) -> None:
        super().__init__()
        self.shape = (horizon, action_dim, n_bins)
        self.net = nn.Linear(state_dim, horizon * action_dim * n_bins)
        self.in_keys = [("observation", "state")]
        self.out_keys = ["action_chunk", "action_tokens", "log_probs"]

    def get_dist(self, td):
        logits = self.net(td["observation", "state"]).unflatten(-1, self.shape)
        logits = logits + torch.linspace(0, 1, self.shape[-1])
        categorical = torch.distributions.Categorical(logits=logits)
        return torch.distributions.Independent(categorical, 2)

    def forward(self, td):
        dist = self.get_dist(td)
        tokens = dist.sample()
        td["action_tokens"] = tokens
        td["log_probs"] = dist.log_prob(tokens)
        td["action_chunk"] = tokens / 2.0 - 1.0
        return td


def reference(inits, clocks, interval):
    """One environment at a time, with a list as its queue."""
    out = []
    for init_row, clock_row in zip(inits, clocks):
        queue, row = [], []
        for is_init, clock in zip(init_row, clock_row):
            asked = is_init or not queue
            if asked:
                queue, plan = [100 * clock + h for h in range(interval)], clock
            row.append((queue.pop(0), asked, plan))
        out.append(row)
    return out


@st.composite
def episodes(draw):
    batch, time = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    horizon = draw(st.integers(1, 5))
    interval = draw(st.integers(1, horizon))
    flags = st.lists(st.booleans(), min_size=time, max_size=time)
    inits = [[True, *draw(flags)[1:]] for _ in range(batch)]
    return inits, horizon, interval


@settings(max_examples=150, deadline=None)
@given(episodes())
def test_agrees_with_one_queue_per_environment(drawn):
    inits, horizon, interval = drawn
    batch, time = len(inits), len(inits[0])
    clocks = torch.arange(batch * time).reshape(batch, time)
    actor = ClockActor(horizon)
    executor = MultiStepActorWrapper(actor, replan_interval=interval)
    carried = TensorDict({}, [batch])
    steps = []
    for t in range(time):
        carried["clock"] = clocks[:, t]
        carried["is_init"] = torch.tensor(inits)[:, t, None]
        carried = executor(carried.copy())
        steps.append(carried)
    # Stacked only now: a tensor that was handed out must not change later.
    rollout = torch.stack(steps, -1)
    expected = torch.tensor(reference(inits, clocks.tolist(), interval))
    assert rollout["action"][..., 0].tolist() == expected[..., 0].tolist()
    assert rollout["is_decision"][..., 0].tolist() == expected[..., 1].bool().tolist()
    assert rollout["action_tokens"].tolist() == expected[..., 2].tolist()
    assert rollout["info", "log_probs"].tolist() == (-expected[..., 2]).tolist()
    # True where the row's queue is empty, so that the next step asks about it anyway.
    left = [[(a - 100 * p) % 100 for a, _, p in row] for row in expected.tolist()]
    last = [[position == interval - 1 for position in row] for row in left]
    assert rollout["observation_needed"][..., 0].tolist() == last
    asked = expected[..., 1].sum(0)
    assert [size[0] for size, _ in actor.calls] == asked[asked > 0].tolist()
    assert "action_chunk" not in set(rollout.keys())


@pytest.mark.parametrize("batch_size", [[], [3], [2, 2]])
@pytest.mark.parametrize(("interval", "n_calls"), [(None, 3), (2, 5), (1, 10)])
def test_policy_is_called_ceil_of_steps_over_interval_times(
    batch_size, interval, n_calls
):
    actor = StateActor(4)
    env = TransformedEnv(ToyVLAEnv(batch_size=batch_size), InitTracker())
    policy = MultiStepActorWrapper(actor, n_steps=4, replan_interval=interval)
    rollout = env.rollout(10, policy)
    assert actor.n_calls == n_calls
    # Each call counts up from the last echoed action; so does the executed action.
    executed = rollout["action"][..., 0].reshape(-1, 10)[0]
    torch.testing.assert_close(executed, 0.01 * torch.arange(1, 11))
    every = interval or 4
    decided = [t % every == 0 for t in range(10)]
    assert rollout["is_decision"].reshape(-1, 10)[0].tolist() == decided


class StateActor(TensorDictModuleBase):
    """Counts on by 0.01 from the action that the state echoes."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.n_calls = horizon, 0
        self.in_keys = [("observation", "state")]
        self.out_keys = ["action_chunk"]

    def forward(self, td):
        assert list(td.keys(True, True)) == [("observation", "state")]
        self.n_calls += 1
        last = td["observation", "state"][..., None, :4]
        ahead = 0.01 * torch.arange(1.0, self.horizon + 1)[:, None]
        return td.set("action_chunk", last + ahead)


def test_partial_replans_ask_only_for_the_rows_that_need_one():
    actor = ClockActor(3)
    executor = MultiStepActorWrapper(actor)
    executor(step([1, 2, 3], [True, True, True]))
    out = executor(step([4, 5, 6], [False, True, False]))
    assert out["action"].flatten().tolist() == [101.0, 500.0, 301.0]
    assert out["is_decision"].flatten().tolist() == [False, True, False]
    assert out["action_tokens"].tolist() == [1, 5, 3]
    assert actor.calls == [((3,), ["clock"]), ((1,), ["clock"])]


def step(clock, is_init):
    return TensorDict(
        {"clock": torch.tensor(clock), "is_init": torch.tensor(is_init).unsqueeze(-1)},
        batch_size=[len(clock)],
    )


def test_text_written_by_the_actor_follows_its_chunk():
    def plan(clock):
        texts = NonTensorStack(*[f"plan {c}" for c in clock.tolist()])
        return clock[:, None, None].expand(-1, 2, 1).float(), texts

    class Speaker(ClockActor):
        def forward(self, td):
            td["action_chunk"], td["plan"] = plan(td["clock"])
            return td

    actor = Speaker(2)
    actor.out_keys = ["action_chunk", "plan"]
    executor = MultiStepActorWrapper(actor)
    executor(step([1, 2], [True, True]))
    out = executor(step([3, 4], [False, True]))
    assert list(out["plan"]) == ["plan 1", "plan 4"]


def test_forgetting_the_length_does_not_replay_a_chunk_for_ever():
    actor = ClockActor(4)
    executor = MultiStepActorWrapper(actor)
    for t in range(40):
        executor(step([t], [t == 0]))
    assert len(actor.calls) == 10


@pytest.mark.parametrize("make", [SerialEnv, ParallelEnv])
def test_desynchronized_workers_execute_their_own_chunks(make):
    env = make(2, [worker_of(3), worker_of(5)])
    env = TransformedEnv(env, InitTracker())
    actor = StateActor(4)
    policy = MultiStepActorWrapper(actor)
    try:
        rollout = env.rollout(12, policy, break_when_any_done=False)
    finally:
        env.close()
    # Each episode counts 0.01, 0.02, ... from its own reset.
    steps = [[t % length + 1 for t in range(12)] for length in (3, 5)]
    torch.testing.assert_close(rollout["action"][..., 0], 0.01 * torch.tensor(steps))
    decided = [[t % length in (0, 4) for t in range(12)] for length in (3, 5)]
    assert rollout["is_decision"][..., 0].tolist() == decided


def worker_of(max_steps):
    # A partial and no closure: spawned workers cannot import this file.
    return partial(ToyVLAEnv, max_steps=max_steps, instructions=InstructionTable())


@pytest.mark.parametrize("auto_register", [True, False])
def test_chunks_survive_the_batch_boundaries_of_a_collector(auto_register):
    env = ToyVLAEnv(batch_size=[2], max_steps=7, instructions=InstructionTable())
    if not auto_register:
        env = TransformedEnv(env, InitTracker())
    collector = Collector(
        env,
        MultiStepActorWrapper(StateActor(4)),
        frames_per_batch=10,  # 5 steps of two environments: not a multiple of 4 or 7
        total_frames=40,
        auto_register_policy_transforms=auto_register,
    )
    rollout = torch.cat([batch.clone() for batch in collector], -1)
    collector.shutdown()
    steps = [[t % 7 + 1 for t in range(20)]] * 2
    torch.testing.assert_close(rollout["action"][..., 0], 0.01 * torch.tensor(steps))
    decided = [[t % 7 in (0, 4) for t in range(20)]] * 2
    assert rollout["is_decision"][..., 0].tolist() == decided


def test_a_collectors_random_frames_are_followed_by_a_fresh_plan():
    env = ToyVLAEnv(batch_size=[2], max_steps=50, instructions=InstructionTable())
    collector = Collector(
        TransformedEnv(env, InitTracker()),
        MultiStepActorWrapper(StateActor(4)),
        frames_per_batch=10,
        total_frames=20,
        init_random_frames=10,
    )
    random, planned = (batch.clone() for batch in collector)
    collector.shutdown()
    assert planned["is_decision"][0, :, 0].tolist() == [True, False, False, False, True]
    # The actor counts on from the last random action, which the state echoes.
    expected = random["action"][:, -1:] + 0.01 * torch.arange(1.0, 6.0)[:, None]
    torch.testing.assert_close(planned["action"], expected)


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.MODE])
def test_works_without_gradients_under_every_exploration_type(kind):
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    with torch.no_grad(), set_exploration_type(kind):
        rollout = env.rollout(5, MultiStepActorWrapper(TokenPolicy()))
    assert not rollout["log_probs"].requires_grad


def test_ppo_ratio_is_one_while_the_weights_are_unchanged():
    torch.manual_seed(0)
    env = ToyVLAEnv(batch_size=[6], instructions=InstructionTable())
    env = TransformedEnv(env, InitTracker())
    policy = TokenPolicy()
    with torch.no_grad():
        rollout = env.rollout(11, MultiStepActorWrapper(policy, replan_interval=3))
    # The tokens at every step are those of the chunk in execution.
    position = torch.arange(11) % 3
    chunk = rollout["action_tokens"] / 2.0 - 1.0
    served = chunk[:, torch.arange(11), position]
    assert torch.equal(served, rollout["action"])
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions.batch_size == (6 * 4,)
    decisions["advantage"] = torch.randn(24, 1)
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    loss.set_keys(
        action="action_tokens", sample_log_prob="log_probs", advantage="advantage"
    )
    out = loss(decisions)
    assert out["clip_fraction"].item() == 0.0
    assert out["kl_approx"].item() == 0.0
    ratio = (policy.get_dist(decisions).log_prob(decisions["action_tokens"])).exp()
    assert torch.equal(ratio, decisions["log_probs"].exp())


def test_log_probs_match_after_any_pattern_of_resets():
    torch.manual_seed(0)
    env = SerialEnv(3, [worker_of(2), worker_of(3), worker_of(7)])
    env = TransformedEnv(env, InitTracker())
    policy = TokenPolicy()
    with torch.no_grad():
        rollout = env.rollout(
            20, MultiStepActorWrapper(policy), break_when_any_done=False
        )
        decisions = select_decisions(rollout, chunk_size=4)
        now = policy.get_dist(decisions).log_prob(decisions["action_tokens"])
    # Batched matrix products differ in the last bits with the number of rows.
    torch.testing.assert_close(now, decisions["log_probs"], rtol=1e-5, atol=1e-5)
    assert torch.equal(
        decisions["action"], decisions["action_tokens"][:, 0] / 2.0 - 1.0
    )


def test_copies_start_empty_and_share_nothing():
    executor = MultiStepActorWrapper(ClockActor(3))
    executor(step([1], [True]))
    for twin in (copy.deepcopy(executor), pickle.loads(pickle.dumps(executor))):
        out = twin(step([2], [False]))
        assert out["action"].item() == 200.0
    assert executor(step([3], [False]))["action"].item() == 101.0


def test_state_dict_holds_the_actor_only():
    policy = TokenPolicy()
    executor = MultiStepActorWrapper(policy)
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    env.rollout(2, executor)
    assert list(executor.state_dict()) == ["policy.net.weight", "policy.net.bias"]


def test_moving_the_executor_plans_afresh():
    actor = ClockActor(3)
    executor = MultiStepActorWrapper(actor)
    executor(step([1], [True]))
    executor.to(torch.float64)
    assert executor(step([2], [False]))["action"].item() == 200.0


def test_reset_plans_afresh():
    executor = MultiStepActorWrapper(ClockActor(3))
    executor(step([1, 2], [True, True]))
    executor.reset()
    assert executor(step([5], [False]))["action"].item() == 500.0


def test_actor_that_writes_its_chunk_at_action_is_served_there():
    actor = TensorDictModule(
        lambda clock: clock[:, None, None] + torch.arange(2.0)[:, None],
        in_keys=["clock"],
        out_keys=["action"],
    )
    executor = MultiStepActorWrapper(actor)
    assert executor(step([3], [True]))["action"].tolist() == [[3.0]]
    assert executor(step([9], [False]))["action"].tolist() == [[4.0]]


def test_missing_is_init_names_the_transform_to_add():
    executor = MultiStepActorWrapper(ClockActor(3))
    message = r"at 'is_init', got only \['clock'\]. Append InitTracker\(\)"
    with pytest.raises(MissingKeyError, match=message):
        executor(step([1], [True]).exclude("is_init"))


def test_batch_size_change_in_mid_episode_is_refused():
    executor = MultiStepActorWrapper(ClockActor(3))
    executor(step([1, 2], [True, True]))
    message = r"expected batch size \[2\].*got \[3\] in mid-episode.*No action was sent"
    with pytest.raises(ExecutionError, match=message):
        executor(step([1, 2, 3], [True, False, True]))
    assert executor(step([1, 2, 3], [True] * 3))["action"].shape == (3, 1)


def test_executor_shared_by_two_environments_is_refused():
    executor = MultiStepActorWrapper(ClockActor(3))
    train = executor(step([1, 2], [True, True]))
    executor(step([7, 8], [True, True]))  # an evaluation in between
    train.update(step([3, 4], [False, False]))
    message = r"another environment used this executor in between.*No action was sent"
    with pytest.raises(ExecutionError, match=message):
        executor(train)


def test_chunk_of_another_length_than_announced_is_refused():
    executor = MultiStepActorWrapper(ClockActor(3), n_steps=4)
    with pytest.raises(ExecutionError, match=r"n_steps=4 actions .*got 3\. Leave"):
        executor(step([1], [True]))


def test_interval_longer_than_the_chunk_is_refused():
    executor = MultiStepActorWrapper(ClockActor(3), replan_interval=4)
    with pytest.raises(ExecutionError, match=r"replan_interval in 1\.\.3.*got 4"):
        executor(step([1], [True]))
    with pytest.raises(ValueError, match=r"replan_interval in 1\.\.3.*got 4"):
        MultiStepActorWrapper(ClockActor(3), 3, replan_interval=4)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (3, 2, 4), (2, 0, 4)])
def test_chunk_of_another_shape_is_refused(shape):
    actor = TensorDictModule(
        lambda clock: torch.zeros(shape), in_keys=["clock"], out_keys=["action_chunk"]
    )
    executor = MultiStepActorWrapper(actor)
    with pytest.raises((ExecutionError, RuntimeError), match=r"expected a chunk|shape"):
        executor(step([1, 2], [True, True]))


def test_ambiguous_chunk_key_must_be_named():
    actor = ClockActor(3)
    actor.out_keys = ["action", "action_chunk"]
    message = "exactly one of 'action_chunk' and 'action' among the out_keys"
    with pytest.raises(ValueError, match=message):
        MultiStepActorWrapper(actor)
    named = MultiStepActorWrapper(actor, keys=ExecutorKeys(chunk="action_chunk"))
    assert named.chunk_key == "action_chunk"
    with pytest.raises(ValueError, match=r"expected 'plan', of keys\.chunk, among the"):
        MultiStepActorWrapper(actor, keys=ExecutorKeys(chunk="plan"))


@pytest.mark.parametrize("name", ["n_steps", "replan_interval"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"positive int at argument '{name}', got 0"):
        MultiStepActorWrapper(ClockActor(3), **{name: 0})


def test_output_that_the_actor_does_not_write_is_named():
    actor = ClockActor(3)
    actor.out_keys = [*actor.out_keys, "value"]
    executor = MultiStepActorWrapper(actor)
    with pytest.raises(MissingKeyError, match="expected ClockActor to write 'value'"):
        executor(step([1], [True]))


def test_torchrls_lists_of_one_key_are_accepted():
    policy = TensorDictModule(
        lambda state: state.unsqueeze(-2).expand(1, 2, 1), ["state"], ["plan"]
    )
    executor = MultiStepActorWrapper(policy, action_keys=["arm"], chunk_keys=["plan"])
    assert (executor.keys.action, executor.keys.chunk) == ("arm", "plan")
    one = TensorDict(
        {"state": torch.ones(1, 1), "is_init": torch.ones(1, 1).bool()}, [1]
    )
    assert executor(one)["arm"].tolist() == [[1.0]]
    both = {"action_keys": ["arm"], "keys": ExecutorKeys()}
    for name in ("action_keys", "chunk_keys"):
        with pytest.raises(ValueError, match=rf"one key in {name}, got .* each"):
            MultiStepActorWrapper(policy, **{name: ["a", "b"]})
    with pytest.raises(ValueError, match=r"keys= alone, got \['action_keys'\] as arg"):
        MultiStepActorWrapper(policy, **both)
