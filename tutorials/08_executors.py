"""From chunks to a robot
======================

``policy --chunks--> executor --one action a step--> robot``.

The fourth tutorial executes chunks one after the other. A robot needs more: the
policy takes time to answer, its plans disagree with one another, the arms of a batch
finish at different moments, and the joints are controlled faster than the policy was
trained. Each member of the family of executors answers one of these, and all leave the
same record in the rollout.
"""

# %%
# A policy that never plans the same thing twice
# ----------------------------------------------
#
# ``ToyVLAEnv`` echoes the executed action in its state, beside a target. The policy
# plans to be where it believes the target to be, and its belief is noisy: a new one for
# every question. With ``guide_chunk`` and ``guide_weight`` in its ``optional_in_keys``
# it can continue a plan that is in execution. A flow policy would inpaint; this one
# blends. It keeps count of its calls.

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import (
    ActionInterpolation,
    AsyncExecutor,
    MultiStepActorWrapper,
    RealTimeChunking,
    SkipWaiting,
    StepClockWorker,
    TemporalEnsemble,
)
from torchrl_vla.schema import InstructionTable

A, H, T, N = 1, 8, 48, 4
DELAY = 2  # steps that an answer takes


class Undecided(TensorDictModuleBase):
    """Plan to stay at a target that is seen through noise."""

    in_keys = [("observation", "state")]
    optional_in_keys = ["guide_chunk", "guide_weight"]
    out_keys = ["action_chunk"]

    def __init__(self, noise: float = 0.2) -> None:
        super().__init__()
        self.noise = noise
        self.calls = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action_chunk``, ``[*B, H, A]``."""
        self.calls += 1
        target = tensordict["observation", "state"][..., A:].unsqueeze(-2)
        believed = target + self.noise * torch.randn_like(target)
        plan = believed.expand(*tensordict.batch_size, H, A)
        guide = tensordict.get("guide_chunk", None)
        if guide is not None:
            weight = tensordict["guide_weight"].unsqueeze(-1)
            plan = weight * guide + (1 - weight) * plan
        return tensordict.set("action_chunk", plan)


def make_env(rows: int, *transforms, success_steps: int = T + 1) -> TransformedEnv:
    """Make toy robots; they go on for ever unless ``success_steps`` is small."""
    toy = ToyVLAEnv(
        action_dim=A,
        state_dim=2 * A,
        success_steps=success_steps,
        success_tol=0.3,
        instructions=InstructionTable(),
        batch_size=[rows],
        seed=0,
    )
    return TransformedEnv(toy, Compose(InitTracker(), *transforms))


# %%
# Disagreement and delay
# ----------------------
#
# Open loop executes a whole plan and then jumps to the next belief. An ensemble
# calls the policy at every step and executes the mean of all plans that reach it. The
# other two live with a chunk that arrives two steps late: ``AsyncExecutor`` calls early
# and leaves out the actions whose time has gone by; ``RealTimeChunking`` also tells the
# policy what it will have executed by then, so that the new plan continues the old one;
# for that it calls while half of the old plan is left. ``StepClockWorker`` counts the
# delay in steps, which makes it the same in every run; on a robot it is a thread.
#
# ``action_reference`` says what the actions are measured from. Nobody guesses it:
# chunks that are relative to different states must not be averaged or joined, and
# raise.

absolute = {"action_reference": "absolute"}
family = {
    "open loop": lambda policy: MultiStepActorWrapper(policy),
    "ensemble": lambda policy: TemporalEnsemble(policy, coefficient=0.01, **absolute),
    "asynchronous": lambda policy: AsyncExecutor(
        policy, request_at=DELAY, worker=StepClockWorker(DELAY), **absolute
    ),
    "real-time chunking": lambda policy: RealTimeChunking(
        policy, replan_interval=H // 2, inference_delay=DELAY, **absolute
    ),
}
figure, axes = plt.subplots(1, 4, figsize=(12, 2.5), sharey=True)
jumps, calls, rollouts = {}, {}, {}
for axis, (name, make) in zip(axes, family.items()):
    torch.manual_seed(0)
    policy = Undecided()
    rollout = rollouts[name] = make_env(N).rollout(T, make(policy))
    action, decided = rollout["action"][..., 0], rollout["is_decision"][..., 0]
    moved = (action[:, 1:] - action[:, :-1]).abs()
    jumps[name], calls[name] = moved.max().item(), policy.calls
    print(f"{name:>20}: {policy.calls:2} calls in {T} steps, largest ", end="")
    print(f"jump {jumps[name]:.2f}, {int(decided[0].sum())} decisions a row")

    steps = torch.arange(T)
    axis.axhline(rollout["observation", "state"][0, 0, A], color="0.7")
    axis.plot(steps, action[0], ".-", markersize=3)
    axis.plot(steps[decided[0]], action[0, decided[0]], "o", color="tab:red", ms=3)
    axis.set_title(name, size=10)
axes[0].set_ylabel("action")
figure.tight_layout()
plt.show()

# %%
# What was executed is what the rollout says
# ------------------------------------------
#
# ``is_decision`` marks the first step of a chunk *in execution*, and
# ``observation_age`` how long ago the policy looked. An asynchronous chunk is entered
# two actions late: its first actions belong to steps that have gone by.

late = rollouts["asynchronous"]
age = late["observation_age"][late["is_decision"]]
print("ages at the decisions of a row:", age.reshape(N, -1)[0].tolist())

# %%
# Rows that drift apart
# ---------------------
#
# Episodes end at different steps, and soon every step finds some row at the end of its
# chunk: the policy is called at nearly every step, for a row or two. With
# ``align=True`` rows that begin an episode wait for the others, ``SkipWaiting`` makes
# time stand still for them, and the policy is called for all of them at once.

ROWS = 16
batched = {}
for align in (False, True):
    torch.manual_seed(0)
    policy = Undecided()
    env = make_env(ROWS, *[SkipWaiting()] * align, success_steps=3)
    actor = MultiStepActorWrapper(policy, align=align)
    env.rollout(T, actor, break_when_any_done=False)
    batched[align] = policy.calls / T
    print(f"align={align}: {batched[align]:.2f} calls a step, ideal {1 / H:.2f}")

# %%
# A robot that is controlled faster
# ---------------------------------
#
# A policy trained at 10 Hz, a robot controlled at 50: ``ActionInterpolation`` asks the
# executor inside for one action in five ticks and leads the robot there in a straight
# line. It takes absolute targets only, since a delta would be executed five times.

torch.manual_seed(0)
fast = ActionInterpolation(MultiStepActorWrapper(Undecided()), 5, **absolute)
ticks = make_env(1).rollout(T, fast)["action"][0, :, 0]
steps = (ticks[1:] - ticks[:-1]).reshape(-1)
print("from one plan to the next:", [f"{value:.2f}" for value in ticks[38:46]])

try:
    ActionInterpolation(MultiStepActorWrapper(Undecided()), 5, action_reference="delta")
except ValueError as error:
    print(error)
else:
    raise AssertionError("deltas must not be interpolated")

# %%
# The claims: whoever averages or continues moves more smoothly than whoever jumps; only
# the ensemble pays for it with a call at every step; a late chunk is entered two
# actions late; waiting for one another saves calls; and between two actions the ticks
# are evenly spaced.

assert jumps["ensemble"] < jumps["open loop"]
assert jumps["real-time chunking"] < jumps["asynchronous"]
assert calls["ensemble"] == T
assert max(calls[name] for name in calls if name != "ensemble") <= T // 4
assert age.reshape(N, -1)[:, 1:].eq(DELAY).all()
assert batched[True] < 0.5 * batched[False]
inside = steps[4:44].reshape(-1, 5)  # of the second to the ninth action
assert torch.allclose(inside, inside[:, :1].expand_as(inside), atol=1e-6)
