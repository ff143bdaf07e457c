from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import (
    EpisodeMixing,
    InterventionPolicy,
    MultiStepActorWrapper,
    TemporalEnsemble,
    select_decisions,
)
from torchrl_vla.schema import ExecutionError, MissingKeyError

H = 3


class Planner(TensorDictModuleBase):
    """Plans ``1000 * clock + slot``: an action shows when it was planned."""

    in_keys = ["clock"]
    out_keys = ["action_chunk", "log_probs"]

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, td):
        self.asked += td.numel()
        slots = torch.arange(float(H)).unsqueeze(-1)
        chunk = 1000 * td["clock"][..., None, None] + slots
        td["log_probs"] = td["clock"].clone()
        return td.set("action_chunk", chunk)


class Button(TensorDictModuleBase):
    """A person who acts with minus the clock while the button is down."""

    in_keys = ["clock", "button"]
    out_keys = ["action", "is_intervention"]

    def forward(self, td):
        assert not {"action", "expert_action", "log_probs"} & set(td.keys())
        td["is_intervention"] = td["button"]
        return td.set("action", -td["clock"].unsqueeze(-1))


def make(executor=MultiStepActorWrapper, *, label_all=False, **options):
    return InterventionPolicy(
        executor(Planner(), **options),
        Button(),
        label_all=label_all,
    )


def drive(actor, begins, buttons):
    """Walk an actor along columns of flags ``[N, T]``; return what each step held."""
    begins, buttons = torch.tensor(begins), torch.tensor(buttons)
    count, n_time = begins.shape
    td, found = TensorDict({}, [count]), []
    for t in range(n_time):
        td["clock"] = torch.full((count,), float(t))
        td["is_init"] = begins[:, t : t + 1]
        td["button"] = buttons[:, t : t + 1]
        kept = td["is_init"].clone()
        td = actor(td)
        assert torch.equal(td["is_init"], kept)
        found.append(td.clone())
    return torch.stack(found, 1)


def naive(begins, buttons):
    """One row at a time: actions, and the steps on which the policy decided."""
    rows, decisions = [], []
    for begin, button in zip(begins, buttons):
        plan, before, row, decided = [], False, [], []
        for t in range(len(begin)):
            asked = begin[t] or not plan or (before and not button[t])
            if asked:
                plan = [1000.0 * t + slot for slot in range(H)]
            planned = plan.pop(0)
            row.append(-float(t) if button[t] else planned)
            decided.append(asked and not button[t])
            before = button[t]
        rows.append(row)
        decisions.append(decided)
    return rows, decisions


@st.composite
def streams(draw):
    count, n_time = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    row = st.lists(st.booleans(), min_size=n_time, max_size=n_time)
    begins = [[True, *draw(row)[1:]] for _ in range(count)]
    return begins, [draw(row) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(streams())
def test_each_row_is_planned_afresh_when_its_expert_lets_go_and_only_then(stream):
    begins, buttons = stream
    out = drive(make(), begins, buttons)
    actions, decisions = naive(begins, buttons)
    assert out["action"].squeeze(-1).tolist() == actions
    assert out["is_decision"].squeeze(-1).tolist() == decisions
    assert out["is_intervention"].squeeze(-1).tolist() == buttons
    assert out["observation_needed"].all()  # an expert may look at any step


def test_a_stale_chunk_is_dropped_in_the_row_that_was_helped_alone():
    begins = [[True, False, False, False], [True, False, False, False]]
    buttons = [[False, True, False, False], [False] * 4]
    out = drive(make(), begins, buttons)
    assert out["action"].squeeze(-1).tolist() == [
        [0.0, -1.0, 2000.0, 2001.0],  # without planning afresh: 0, -1, 2, 3000
        [0.0, 1.0, 2.0, 3000.0],
    ]


def test_the_policy_is_asked_no_more_often_while_the_expert_acts():
    actor = make()
    drive(actor, [[True] + [False] * 8], [[False] + [True] * 7 + [False]])
    assert actor.policy.policy.asked == 3 + 1  # every H steps, and when it is let go


def test_an_ensemble_forgets_the_chunks_from_before_the_intervention():
    actor = make(TemporalEnsemble, action_reference="absolute", coefficient=0.0)
    out = drive(actor, [[True, False, False, False]], [[False, False, True, False]])
    # At step 1 the mean of 1 and 1000; at step 3 the new chunk alone.
    assert out["action"].flatten().tolist() == [0.0, 500.5, -2.0, 3000.0]


@settings(max_examples=20, deadline=None)
@given(streams(), st.booleans())
def test_labels_are_the_experts_and_the_rest_is_what_was_executed(stream, label_all):
    begins, buttons = stream
    out = drive(make(label_all=label_all), begins, buttons)
    acts = torch.tensor(buttons)
    labeled = torch.ones_like(acts) if label_all else acts
    assert torch.equal(out["is_labeled"].squeeze(-1), labeled)
    label = torch.where(labeled, -out["clock"], out["action"].squeeze(-1))
    assert torch.equal(out["expert_action"].squeeze(-1), label)


def test_what_a_noisy_expert_meant_is_the_label_and_what_it_did_is_executed():
    class Noisy(TensorDictModuleBase):
        in_keys, out_keys = [], ["action", "expert_action"]

        def forward(self, td):
            td["expert_action"] = torch.full((1, 1), 5.0)
            return td.set("action", torch.full((1, 1), 6.0))

    actor = make()
    actor = InterventionPolicy(
        actor.policy, Noisy(), gate=lambda td: td["is_init"], label_all=True
    )
    out = drive(actor, [[True, False]], [[False, False]])
    assert out["action"].flatten().tolist() == [6.0, 1000.0]  # planned afresh
    assert out["expert_action"].flatten().tolist() == [5.0, 5.0]


def test_mixing_by_episode_gives_whole_episodes_to_the_expert():
    env = ToyVLAEnv(
        action_dim=1, state_dim=2, max_steps=4, success_steps=9, batch_size=[6], seed=0
    )
    env = TransformedEnv(env, InitTracker())
    expert = TensorDictModule(
        lambda s: 0 * s[..., :1] + 0.5, [("observation", "state")], ["action"]
    )
    planner = TensorDictModule(
        lambda s: (0 * s[..., :1]).unsqueeze(-2).expand(*s.shape[:-1], H, 1),
        [("observation", "state")],
        ["action_chunk"],
    )
    gate = EpisodeMixing(0.5)
    actor = InterventionPolicy(
        MultiStepActorWrapper(planner), expert, gate=gate, label_all=False
    )
    rollout = env.rollout(12, actor, break_when_any_done=False)
    theirs = gate(rollout)
    assert torch.equal(rollout["is_intervention"], theirs)
    assert torch.equal(rollout["action"], torch.where(theirs, 0.5, 0.0))
    per_episode = theirs.view(6, 3, 4).float().mean(-1)
    assert set(per_episode.flatten().tolist()) == {0.0, 1.0}


def test_decisions_hold_the_policys_steps_alone():
    out = drive(
        make(),
        [[True] + [False] * 6],
        [[False, False, True, True, False, False, False]],
    )
    reward = 2.0 ** torch.arange(7).view(1, 7, 1)
    out["next"] = TensorDict(reward=reward, clock=out["clock"] + 1, batch_size=[1, 7])
    decisions = select_decisions(out, H)
    assert decisions["clock"].tolist() == [0.0, 4.0]
    assert decisions["log_probs"].tolist() == [0.0, 4.0]
    after = decisions["next"]
    assert after["reward"].flatten().tolist() == [1 + 2, 16 + 32 + 64]
    assert after["clock"].tolist() == [2.0, 7.0]
    assert after["is_executed"].tolist() == [[True, True, False], [True] * 3]


def test_a_step_that_does_not_say_who_acted_before_is_planned_afresh():
    actor = make()
    step = TensorDict(
        clock=torch.zeros(1), is_init=torch.ones(1, 1).bool(), batch_size=[1]
    )
    step["button"] = torch.zeros(1, 1).bool()
    step = actor(step).exclude("is_intervention")
    step["clock"], step["is_init"] = torch.ones(1), torch.zeros(1, 1).bool()
    assert actor(step)["action"].item() == 1000.0


def test_a_copy_acts_on_its_own():
    actor = make()
    drive(actor, [[True, False]], [[False, True]])
    out = drive(copy.deepcopy(actor), [[True, False]], [[False, False]])
    assert out["action"].flatten().tolist() == [0.0, 1.0]


def test_every_out_key_is_written():
    actor = make()
    out = drive(actor, [[True]], [[True]])
    assert set(actor.out_keys) <= set(out.keys(True, True))
    assert {"clock", "button", "is_init"} <= set(actor.in_keys)


def test_an_executor_that_makes_environments_wait_is_refused():
    with pytest.raises(ValueError, match=r"makes no environment wait, .*align=True"):
        make(align=True)


def test_an_expert_that_does_not_say_when_it_acts_is_refused():
    expert = TensorDictModule(lambda x: x, ["clock"], ["action"])
    with pytest.raises(ValueError, match=r"'is_intervention' .* Pass gate=\.\.\."):
        InterventionPolicy(make().policy, expert, label_all=True)


def test_a_step_without_is_init_raises():
    step = TensorDict(clock=torch.zeros(1), batch_size=[1])
    with pytest.raises(MissingKeyError, match=r"at 'is_init', .*No action was sent"):
        make()(step)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({}, MissingKeyError, r"Fixed to write 'action', got"),
        ({"action": torch.zeros(2, 3)}, ExecutionError, r"\[2, 1\] .* got \[2, 3\]"),
        (
            {"action": torch.tensor([[0.0], [torch.nan]])},
            ExecutionError,
            r"finite numbers at 'action'",
        ),
    ],
)
def test_an_experts_answer_that_is_none_raises(answer, error, message):
    class Fixed(TensorDictModuleBase):
        in_keys, out_keys = ["clock"], ["action"]

        def forward(self, td):
            return td.update(answer)

    def gate(td):
        return torch.ones(2, 1, dtype=torch.bool)

    actor = InterventionPolicy(make().policy, Fixed(), gate=gate, label_all=False)
    with pytest.raises(error, match=message + r"[\s\S]*No action was sent"):
        drive(actor, [[True], [True]], [[True], [True]])


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (torch.ones(1).bool(), r"torch.bool \[1\]"),
        (torch.ones(1, 1), r"torch.float32 \[1, 1\]"),
    ],
)
def test_a_gate_that_returns_no_rows_raises(rows, got):
    actor = InterventionPolicy(
        make().policy, Button(), gate=lambda td: rows, label_all=False
    )
    with pytest.raises(ExecutionError, match=rf"bool \[1, 1\] from the gate.*{got}"):
        drive(actor, [[True]], [[False]])


def test_nan_of_an_expert_that_does_not_act_is_nobodys_business():
    class Idle(Button):
        def forward(self, td):
            td = super().forward(td)
            return td.set("action", torch.where(td["button"], td["action"], torch.nan))

    actor = InterventionPolicy(make().policy, Idle(), label_all=False)
    out = drive(actor, [[True, False, False]], [[False, True, False]])
    assert out["action"].flatten().tolist() == [0.0, -1.0, 2000.0]
    assert out["expert_action"].isfinite().all()
