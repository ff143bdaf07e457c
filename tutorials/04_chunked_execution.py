"""Chunked execution
=================

``chunk of actions --> executor --one action--> env``.

A policy that predicts eight actions need not run at each of the next eight steps. Who
counts them out? ``MultiStepActorWrapper`` does it in the policy, one action per step of
the environment; ``MultiAction`` does it in the environment, one chunk per step of the
policy. Same actions, same rewards, other bookkeeping.
"""

# %%
# A policy that one can check by eye
# ----------------------------------
#
# ``ToyVLAEnv`` echoes the executed action in its state, beside a target. The policy
# plans a straight ramp from the current action to the target in ``H`` steps. It keeps
# count of the rows for which it was called.

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, select_decisions
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.schema import ExecutionError, InstructionTable, ObservationKeys
from torchrl_vla.transforms import SuccessReward

A, H, T, N = 2, 8, 24, 4


class Ramp(ContinuousVLAWrapper):
    """Plan a straight line from the current action to the target."""

    rows_called = 0

    def predict_chunk(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Return the ramp, ``[*B, H, A]``."""
        self.rows_called += tensordict.numel()
        now, target = tensordict["observation", "state"].unsqueeze(-2).split(A, -1)
        share = torch.arange(1, H + 1).unsqueeze(-1) / H
        return now + share * (target - now)


def make_env(success_steps: int) -> ToyVLAEnv:
    """Make ``N`` environments with the same targets every time."""
    return ToyVLAEnv(
        action_dim=A,
        state_dim=2 * A,
        success_steps=success_steps,  # so many steps near the target in a row
        success_tol=0.1,
        instructions=InstructionTable(),
        batch_size=[N],
        seed=0,
    )


def make_policy() -> Ramp:
    """Make a policy that has not been called yet."""
    return Ramp(action_dim=A, chunk_size=H, keys=ObservationKeys(image=None))


# %%
# Open loop, receding horizon, closed loop
# ----------------------------------------
#
# ``replan_interval`` is all there is to choose. The executor reads ``is_init``
# (TorchRL's ``InitTracker`` writes it) and writes ``is_decision``: True on the steps on
# which the policy was called. The chunk stays in the executor, not in the rollout.
#
# Here no episode ends, so the counts are ``T / interval`` a row, and the policy ran for
# no more rows than that.

figure, axes = plt.subplots(1, 3, figsize=(10, 2.5), sharey=True)
names = {None: "open loop", 4: "receding horizon, 4", 1: "closed loop"}
rollouts = {}
for axis, interval in zip(axes, names):
    env = TransformedEnv(make_env(success_steps=T + 1), InitTracker())
    policy = make_policy()
    actor = MultiStepActorWrapper(policy, replan_interval=interval)
    rollout = rollouts[interval] = env.rollout(T, actor)
    decisions = int(rollout["is_decision"].sum())
    print(f"{names[interval]:>20}: {decisions} decisions in {N * T} steps")
    assert decisions == policy.rows_called == N * T // (interval or H)
    assert rollout.get("action_chunk", None) is None

    action, decided = rollout["action"][0, :, 0], rollout["is_decision"][0, :, 0]
    steps = torch.arange(T)
    axis.axhline(rollout["observation", "state"][0, 0, A], color="0.7")
    axis.plot(steps, action, ".-", markersize=3)
    axis.plot(steps[decided], action[decided], "o", color="tab:red", markersize=4)
    axis.set_title(names[interval], size=10)
axes[0].set_ylabel("action")
figure.tight_layout()
plt.show()

# %%
# The red dots are decisions, the grey line is the target. Note the right one:
# deciding more often is not always better. Each plan spreads the way that is left over
# ``H`` steps, so in closed loop the policy always has ``H`` steps to go.

error = {
    interval: rollout["action"][:, H - 1] - rollout["observation", "state"][:, 0, A:]
    for interval, rollout in rollouts.items()
}
print({names[interval]: e.abs().mean().item() for interval, e in error.items()})

# %%
# Environments end at different times
# -----------------------------------
#
# Now an episode ends after three steps near its target, and the rows drift apart. A row
# that begins an episode calls the policy again, for that row alone; the others go on
# with the chunks they have.

env = TransformedEnv(make_env(success_steps=3), InitTracker())
policy = make_policy()
actor = MultiStepActorWrapper(policy)
rollout = env.rollout(T, actor, break_when_any_done=False)
decided, begins = rollout["is_decision"][..., 0], rollout["is_init"][..., 0]
print("^ = first step of an episode, d = another decision, . = from the chunk")
for row in range(N):
    letters = [
        "^" if b else "d" if a else "." for a, b in zip(decided[row], begins[row])
    ]
    print("".join(letters))

for row in range(N):  # the rule, step by step
    left = 0
    for step in range(T):
        due = bool(begins[row, step]) or left == 0
        assert bool(decided[row, step]) == due
        left = H - 1 if due else left - 1
assert policy.rows_called == int(decided.sum())

# %%
# An executor holds the chunks of one environment. If another one used it in between, it
# would execute plans that were made for something else, so it raises. Give each
# environment its own; executors are cheap.

one, other = (TransformedEnv(make_env(T + 1), InitTracker()) for _ in range(2))
shared = MultiStepActorWrapper(make_policy())
ours, theirs = one.rollout(3, shared), other.rollout(3, shared)
try:
    shared(one.step_mdp(ours[:, -1]))
except ExecutionError as error_message:
    print(error_message)
else:
    raise AssertionError("a chunk of another environment must not be executed")

# %%
# The same, in the environment
# ----------------------------
#
# ``MultiAction`` runs a whole chunk in one outer step, so each transition is one
# decision and nothing needs to be selected. Transforms *before* it run at every base
# step: ``SuccessReward`` pays 1 there, and the outer reward is the sum. A success
# counts wherever in the chunk it happens, and the row stops there while the others go
# on.

outer_env = TransformedEnv(
    make_env(success_steps=3), Compose(SuccessReward(), MultiAction(H))
)
outer = outer_env.rollout(12, make_policy(), break_when_any_done=False)["next"]
paid = outer["reward"][..., 0] == 1
where = outer["executed_steps"][..., 0][paid]
print("successes at chunk positions", sorted(where.unique().tolist()))
print("the first outer step executed\n", outer["is_executed"][:, 0].int())

# %%
# The bookkeeping of the other side is ``select_decisions``: it keeps the steps on which
# the policy was called, with the rewards that followed from them. From the same episode
# seeds the first decisions of both sides agree in everything.

seeds = torch.arange(100, 100 + N)
env = TransformedEnv(make_env(success_steps=3), Compose(InitTracker(), SuccessReward()))
start = env.reset(episode_seeds=seeds)
rollout = env.rollout(
    H,
    MultiStepActorWrapper(make_policy()),
    auto_reset=False,
    tensordict=start,
    break_when_any_done=False,
)
decisions = select_decisions(rollout, chunk_size=H)
from_seeds = torch.isin(decisions["episode_seed"], seeds)
inside = decisions[decisions["is_init"][:, 0] & from_seeds]
outside = outer_env.rollout(
    1, make_policy(), auto_reset=False, tensordict=outer_env.reset(episode_seeds=seeds)
)[:, 0]
for key in ("reward", "executed_steps", "is_executed", "success", "done"):
    assert torch.equal(inside["next", key], outside["next", key]), key
assert torch.equal(
    inside["next", "observation", "state"], outside["next", "observation", "state"]
)

# %%
# The claims that are left: success was paid at several positions of the chunk, exactly
# where it was reached; and in closed loop this policy stays far from its target.

assert len(where.unique()) > 1
assert torch.equal(paid, outer["success"][..., 0])
assert torch.equal(outer["is_executed"].sum(-1), outer["executed_steps"][..., 0])
assert error[None].abs().max() < 1e-6
assert (
    error[1].abs().mean()
    > 0.3 * rollouts[1]["observation", "state"][:, 0, A:].abs().mean()
)
