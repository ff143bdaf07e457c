from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tiny_options import make_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_vla.execution import (
    ActionGuard,
    ActionInterpolation,
    AsyncExecutor,
    EmbodimentActionTranslator,
    EmbodimentContract,
    GuardKeys,
    MultiStepActorWrapper,
    RealTimeChunking,
    StepClockWorker,
    TemporalEnsemble,
)
from torchrl_vla.policies import TinyFlowVLA, TinyGaussianVLA, TinyVLA
from torchrl_vla.schema import (
    ActionGuardError,
    ExecutionError,
    InstructionTable,
    MissingKeyError,
    PolicySpace,
    RobotDatasetMetadata,
    SpaceError,
)
from torchrl_vla.testing import check_executor, check_log_prob_consistency, check_policy

RADIANS = EmbodimentContract(
    "arm", 2, action_horizon=3, action_low=(-2.0, -2.0), action_high=(2.0, 2.0)
)
DEGREES = EmbodimentContract(
    "arm-degrees", 2, action_low=(-90.0, -90.0), action_high=(90.0, 90.0)
)
JOINT = EmbodimentContract("joint", 1, action_low=(-1.0,), action_high=(1.0,))
METADATA = RobotDatasetMetadata(
    "joint", action_low=(-1.0,), action_high=(1.0,), action_dim=1
)
NAN = torch.nan


def make_policy(key="action_chunk"):
    """Write the state three times."""
    return TensorDictModule(
        lambda state: state.unsqueeze(-2).expand(*state.shape[:-1], 3, 2),
        [("observation", "state")],
        [key],
    )


def observe(*states):
    state = torch.tensor(states)
    return TensorDict({"observation": {"state": state}}, state.shape[:-1])


class Copy(TensorDictModuleBase):
    """Write the state ``[*B, H]`` or ``[*B]`` as actions of one dimension."""

    in_keys = ["state"]

    def __init__(self, key="action_chunk"):
        super().__init__()
        self.out_keys = [key]

    def forward(self, td):
        return td.set(self.out_keys[0], td["state"].unsqueeze(-1))


def guard_chunk(*numbers, **options):
    """Return what leaves of one chunk of one-dimensional actions."""
    td = TensorDict({"state": torch.tensor([numbers])}, [1])
    return ActionGuard(Copy(), JOINT, **options)(td)["action_chunk"].flatten().tolist()


def drive(guard, *steps, starts=(0,)):
    """Step a guard of single actions; a number per environment and step."""
    out = []
    for index, numbers in enumerate(steps):
        state = torch.tensor(numbers)
        begins = torch.full((len(numbers), 1), index in starts)
        td = TensorDict({"state": state, "is_init": begins}, [len(numbers)])
        out.append(guard(td)["action"].flatten().tolist())
    return out


# What passes


def test_a_legal_chunk_passes_unchanged():
    td = observe([1.0, -2.0], [0.5, 0.0])
    free = make_policy()(td.clone())
    guarded = ActionGuard(make_policy(), RADIANS)
    assert guarded.in_keys == [("observation", "state")]
    assert guarded.out_keys == ["action_chunk"]
    assert guarded(td) is td
    assert (td == free).all()


@pytest.mark.parametrize("mode", ["refuse", "clip", "hold"])
def test_what_passes_is_the_policys_own_tensor_and_one_number_is_read_back(mode):
    read, chunk = [], torch.zeros(2, 3, 1)

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(func)
            return func(*args, **(kwargs or {}))

    policy = TensorDictModule(lambda state: chunk, ["state"], ["action_chunk"])
    guard = ActionGuard(policy, JOINT, on_violation=mode, max_step=1.0)
    with Count(), torch.no_grad():
        td = guard(TensorDict({"state": torch.zeros(2, 1)}, [2]))
    assert td["action_chunk"] is chunk
    assert len(read) == 1


# Refusing


def test_a_refused_chunk_leaves_the_tensordict_as_it_was():
    td = observe([1.0, 3.0])
    td["action_chunk"] = torch.zeros(1, 3, 2)
    before = td.clone()
    with pytest.raises(
        ActionGuardError, match="env index 0, step 0, dimension 1, got 3"
    ):
        ActionGuard(make_policy(), RADIANS)(td)
    assert (td == before).all()


@pytest.mark.parametrize("mode", ["refuse", "clip"])
def test_numbers_that_are_not_finite_are_refused_with_their_place(mode):
    td = observe([1.0, 0.0], [0.0, NAN])
    guard = ActionGuard(make_policy(), RADIANS, on_violation=mode)
    with pytest.raises(
        ActionGuardError,
        match="a finite value at env index 1, step 0, dimension 1, got nan",
    ):
        guard(td)


@pytest.mark.parametrize("mode", ["refuse", "clip", "hold"])
def test_a_wrong_width_is_refused_under_every_mode(mode):
    for key, contract in (("action_chunk", JOINT), ("action_chunk", RADIANS)):
        wide = TensorDictModule(lambda s: s.expand(1, 3, 5), ["state"], [key])
        with pytest.raises(ActionGuardError, match=r"action dimension A = \d, got 5"):
            ActionGuard(wide, contract, on_violation=mode)(
                TensorDict({"state": torch.zeros(1, 1, 5)}, [1])
            )


def test_a_single_action_of_the_wrong_width_is_refused():
    """Simulators broadcast one number to every joint."""
    narrow = TensorDictModule(lambda s: s, ["state"], ["action"])
    with pytest.raises(ActionGuardError, match="action dimension A = 2, got 1"):
        ActionGuard(narrow, RADIANS)(TensorDict({"state": torch.zeros(4, 1)}, [4]))


def test_a_change_beyond_max_step_is_refused():
    assert guard_chunk(0.0, 0.5, 1.0, max_step=0.5) == [0.0, 0.5, 1.0]
    with pytest.raises(
        ActionGuardError,
        match=r"max_step=0\.5 per step, got more at .* \[\[0, 2, 0\]\]",
    ):
        guard_chunk(0.0, 0.5, -0.25, max_step=0.5)


def test_steps_of_exactly_the_limit_pass_whatever_their_rounding():
    numbers = [0.1 * step for step in range(10)]
    assert guard_chunk(*numbers, max_step=0.1) == pytest.approx(numbers)


# Clipping and holding, in a chunk


def test_clipping_moves_each_number_to_the_nearest_legal_one():
    assert guard_chunk(0.5, 3.0, -7.0, on_violation="clip") == [0.5, 1.0, -1.0]


def test_clipping_limits_the_change_from_the_clipped_action_before():
    out = guard_chunk(0.0, 9.0, 9.0, -9.0, on_violation="clip", max_step=0.75)
    assert out == [0.0, 0.75, 1.0, 0.25]


def test_holding_repeats_the_last_legal_action_of_the_chunk():
    assert guard_chunk(0.5, 3.0, NAN, 0.25, on_violation="hold") == [
        0.5,
        0.5,
        0.5,
        0.25,
    ]
    # 0.75 is too far from what is held, 0.5 is not.
    out = guard_chunk(0.0, 5.0, 0.75, 0.5, on_violation="hold", max_step=0.5)
    assert out == [0.0, 0.0, 0.0, 0.5]


def test_a_chunk_that_begins_with_an_illegal_action_has_none_to_hold():
    with pytest.raises(
        ActionGuardError, match=r"(?s)no legal action before it to hold.*got 3"
    ):
        guard_chunk(3.0, 0.0, on_violation="hold")


def test_each_dimension_has_its_own_largest_step():
    td = observe([1.0, 1.0])
    policy = TensorDictModule(
        lambda s: torch.stack([torch.zeros_like(s), s], -2),
        [("observation", "state")],
        ["action_chunk"],
    )
    contract = EmbodimentContract("arm", 2)
    guard = ActionGuard(policy, contract, on_violation="clip", max_step=(0.25, 5.0))
    assert guard(td)["action_chunk"].tolist() == [[[0.0, 0.0], [0.25, 1.0]]]


# Single actions: the action before, per environment


def test_the_rate_limit_runs_through_an_episode_and_its_first_step_is_free():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip", max_step=0.5)
    assert guard.in_keys == ["state", "is_init"]
    out = drive(guard, [1.0], [-1.0], [-1.0], [1.0], [1.0], starts=(0, 3))
    assert out == [[1.0], [0.5], [0.0], [1.0], [1.0]]


def test_each_environment_begins_its_episodes_on_its_own():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip", max_step=0.5)
    td = TensorDict(
        {"state": torch.tensor([1.0, 1.0]), "is_init": torch.ones(2, 1).bool()}, [2]
    )
    guard(td)
    td = TensorDict(
        {
            "state": torch.tensor([-1.0, -1.0]),
            "is_init": torch.tensor([[False], [True]]),
        },
        [2],
    )
    assert guard(td)["action"].flatten().tolist() == [0.5, -1.0]


def test_holding_repeats_each_environments_last_legal_action():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="hold")
    out = drive(guard, [0.5, -0.5], [NAN, 0.0], [5.0, 5.0], [0.25, 0.75])
    assert out == [[0.5, -0.5], [0.5, 0.0], [0.5, 0.0], [0.25, 0.75]]


def test_the_first_action_of_an_episode_cannot_be_held():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="hold")
    with pytest.raises(ActionGuardError, match=r"env index 1, step 0.*got nan"):
        drive(guard, [0.0, NAN])
    assert drive(guard, [0.5], starts=()) == [[0.5]]
    with pytest.raises(ActionGuardError, match="no legal action before it"):
        drive(guard, [NAN])


def test_a_position_in_the_data_is_compared_with_the_first_action():
    keys = GuardKeys(state="position")
    guard = ActionGuard(
        Copy("action"), JOINT, on_violation="clip", max_step=0.25, keys=keys
    )
    td = TensorDict(
        {
            "state": torch.tensor([1.0]),
            "position": torch.tensor([[0.5]]),
            "is_init": torch.ones(1, 1).bool(),
        },
        [1],
    )
    assert guard(td.copy())["action"].item() == 0.75
    td["is_init"] = torch.zeros(1, 1).bool()
    assert guard(td.copy())["action"].item() == 1.0  # from 0.75, not from the position
    with pytest.raises(MissingKeyError, match=r"position \[1, 1\] at 'position', got"):
        guard(td.exclude("position"))


def test_reset_forgets_the_last_actions():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip", max_step=0.5)
    drive(guard, [1.0])
    guard.reset()
    assert drive(guard, [-1.0], starts=()) == [[-1.0]]


def test_another_batch_size_in_mid_episode_is_refused():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip", max_step=0.5)
    drive(guard, [1.0, 1.0])
    with pytest.raises(ExecutionError, match=r"shape \[2, 1\].*got \[1, 1\] in mid"):
        drive(guard, [1.0], starts=())
    assert drive(guard, [-1.0]) == [[-1.0]]


def test_a_guard_that_remembers_needs_the_mark_of_an_episodes_first_step():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="hold")
    with pytest.raises(MissingKeyError, match=r"bool .* at 'is_init'.*InitTracker"):
        guard(TensorDict({"state": torch.zeros(1)}, [1]))


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_copies_begin_empty(again):
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip", max_step=0.5)
    drive(guard, [1.0])
    assert drive(again(guard), [-1.0], starts=()) == [[-1.0]]
    assert drive(guard, [-1.0], starts=()) == [[0.5]]


def test_an_environment_without_a_batch_is_guarded():
    guard = ActionGuard(Copy("action"), JOINT, on_violation="clip")
    assert guard(TensorDict({"state": torch.tensor(3.0)}))["action"].tolist() == [1.0]
    chunk = ActionGuard(Copy(), JOINT, on_violation="clip")(
        TensorDict({"state": torch.tensor([3.0, 0.0])})
    )
    assert chunk["action_chunk"].tolist() == [[1.0], [0.0]]


# Around executors, and in them


EXECUTORS = {
    "multi-step": MultiStepActorWrapper,
    "aligned": lambda policy: MultiStepActorWrapper(policy, align=True),
    "ensemble": lambda policy: TemporalEnsemble(
        policy, action_reference="absolute", coefficient=0.0
    ),
    "asynchronous": lambda policy: AsyncExecutor(
        policy, request_at=1, action_reference="absolute", worker=StepClockWorker(0)
    ),
    "interpolated": lambda policy: ActionInterpolation(
        MultiStepActorWrapper(policy), 2, action_reference="absolute"
    ),
    "interpolated guard": lambda policy: ActionInterpolation(
        ActionGuard(MultiStepActorWrapper(policy), JOINT, on_violation="clip"),
        2,
        action_reference="absolute",
    ),
}


def play(executor, chunks, starts=(0,)):
    """Step one environment whose chunk at step ``t`` is ``chunks[t]``."""
    out, td = [], TensorDict(batch_size=[1])
    for step, chunk in enumerate(chunks):
        td["state"] = torch.tensor([chunk])
        td["is_init"] = torch.tensor([[step in starts]])
        td["is_waiting"] = torch.zeros(1, 1).bool()
        td = executor(td)
        out.append(td["action"].item())
    return out


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executors_actions_are_limited_step_by_step(name):
    executor = EXECUTORS[name](Copy())
    chunks = [[3.0, -3.0], [-3.0, 3.0]] * 4
    guard = ActionGuard(executor, JOINT, on_violation="clip", max_step=0.25)
    actions = play(guard, chunks)
    assert all(abs(action) <= 1 for action in actions)
    steps = [abs(b - a) for a, b in pairwise(actions)]
    assert max(steps) <= 0.25 + 1e-6
    assert guard.makes_wait == executor.makes_wait
    guard.reset()
    assert executor._state is None


def test_an_executed_sequence_is_limited_across_chunks():
    guard = ActionGuard(
        MultiStepActorWrapper(Copy()), JOINT, on_violation="clip", max_step=0.5
    )
    # Chunks of two: 0, 1; then -1, -1; a new episode begins at step 4.
    chunks = [[0.0, 1.0], [], [-1.0, -1.0], [], [1.0, 1.0]]
    chunks = [chunk or [0.0, 0.0] for chunk in chunks]
    assert play(guard, chunks, starts=(0, 4)) == [0.0, 0.5, 0.0, -0.5, 1.0]


def test_a_guarded_executor_keeps_the_executors_contract():
    contract = EmbodimentContract("clock", 1, action_low=(-1e6,), action_high=(1e6,))
    for mode in ("refuse", "clip", "hold"):
        check_executor(
            lambda policy: ActionGuard(
                MultiStepActorWrapper(policy, replan_interval=2),
                contract,
                on_violation=mode,  # noqa: B023 (called at once)
            ),
            chunk_size=3,
            replan_interval=2,
        )
        check_executor(
            lambda policy: MultiStepActorWrapper(
                ActionGuard(policy, contract, on_violation=mode),  # noqa: B023
                replan_interval=2,
            ),
            chunk_size=3,
            replan_interval=2,
        )


def make_flow():
    torch.manual_seed(0)
    return make_tiny(
        TinyFlowVLA, action_dim=1, chunk_size=8, cameras=(), state_dim=1, hidden=16
    )


def test_real_time_chunking_runs_through_the_guard_of_a_flow_policy():
    options = {"replan_interval": 3, "inference_delay": 2}
    free = RealTimeChunking(make_flow(), action_reference="absolute", **options)
    guarded = RealTimeChunking(
        ActionGuard(make_flow(), EmbodimentContract("arm", 1)),
        action_reference="absolute",
        **options,
    )
    for step in range(7):
        td = TensorDict({"observation": {"state": torch.full((1, 1), 0.1 * step)}}, [1])
        td["language_instruction"] = NonTensorStack("go")
        td["is_init"] = torch.tensor([[step == 0]])
        with torch.no_grad():
            expected, got = free(td.clone()), guarded(td.clone())
        for key in ("action", "guide_chunk", "guide_weight"):
            assert torch.equal(expected[key], got[key])


# Transparent


def test_a_policy_behind_the_guard_is_still_a_policy():
    table = InstructionTable(["left", "right"])
    policy = make_tiny(
        TinyVLA,
        action_dim=2,
        chunk_size=3,
        state_dim=2,
        cameras=(),
        instructions=table,
        hidden=16,
    )
    observation = TensorDict(
        {
            "observation": {"state": torch.randn(4, 2)},
            "language_instruction": table.encode(["left", "right"] * 2),
        },
        [4],
    )
    guard = ActionGuard(policy, EmbodimentContract("arm", 2))
    check_policy(guard, observation)
    assert (guard.action_dim, guard.chunk_size) == (2, 3)
    expected = policy(observation.clone())["action_chunk"]
    chunk = guard(observation.clone())["action_chunk"]
    assert torch.equal(chunk, expected)
    chunk.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_the_likelihood_of_a_stochastic_policy_is_found_through_the_guard():
    torch.manual_seed(0)
    policy = make_tiny(
        TinyGaussianVLA, action_dim=1, chunk_size=2, state_dim=1, cameras=(), hidden=16
    )
    guard = ActionGuard(policy, JOINT, on_violation="clip")
    data = TensorDict({"observation": {"state": torch.randn(5, 1)}}, [5])
    data["language_instruction"] = NonTensorStack(*["go"] * 5)
    data = guard(data)
    check_log_prob_consistency(guard, data)
    assert guard.sample_key == policy.sample_key
    assert torch.equal(guard.log_prob(data), policy.log_prob(data))
    assert torch.equal(guard.get_dist(data).mode, policy.get_dist(data).mode)


def test_other_members_are_forwarded_and_missing_ones_stay_missing():
    policy = make_flow()
    policy.make_environment_transform = lambda: ["history"]
    guard = ActionGuard(ActionGuard(policy, JOINT), JOINT)
    assert guard.optional_in_keys == policy.optional_in_keys
    assert "guide_chunk" in guard.optional_in_keys
    assert guard.make_environment_transform() == ["history"]
    guard.train(False)
    assert not policy.training
    with pytest.raises(AttributeError, match="no attribute 'replan_interval'"):
        _ = guard.replan_interval
    assert not hasattr(ActionGuard(make_policy(), RADIANS), "optional_in_keys")
    executor = MultiStepActorWrapper(policy, replan_interval=2)
    assert ActionGuard(executor, JOINT).replan_interval == 2


# The translator and the tag


def test_the_guard_translates_and_keeps_the_raw_chunk_where_it_is_told_to():
    translator = EmbodimentActionTranslator(
        RADIANS, lambda chunk, contract: chunk.rad2deg(), DEGREES
    )
    guard = ActionGuard(
        make_policy("plan"),
        translator=translator,
        keys=GuardKeys(action="plan", raw="raw"),
    )
    td = guard(observe([torch.pi / 2, 0.0]))
    assert guard.out_keys == ["plan", "raw"]
    assert td["raw"][0, 0].tolist() == pytest.approx([torch.pi / 2, 0.0])
    assert td["plan"][0, 0].tolist() == pytest.approx([90.0, 0.0])
    assert (guard.action_dim, guard.chunk_size) == (2, None)
    with pytest.raises(ActionGuardError, match=r"(?s)arm-degrees.* got 114\.59"):
        guard(observe([2.0, 0.0]))


def test_what_is_clipped_is_what_is_translated():
    translator = EmbodimentActionTranslator(RADIANS, lambda chunk, contract: 10 * chunk)
    guard = ActionGuard(make_policy(), translator=translator, on_violation="clip")
    assert guard(observe([1.0, 9.0]))["action_chunk"][0, 0].tolist() == [10.0, 20.0]


def test_a_single_action_is_translated_too():
    translator = EmbodimentActionTranslator(JOINT, lambda chunk, contract: -chunk)
    guard = ActionGuard(Copy("action"), translator=translator)
    td = guard(TensorDict({"state": torch.tensor([0.5, -1.0])}, [2]))
    assert td["action"].tolist() == [[-0.5], [1.0]]


def test_the_tag_of_every_environment_is_compared():
    guard = ActionGuard(make_policy(), RADIANS, keys=GuardKeys(tag="robot"))
    td = observe([1.0, 0.0], [0.0, 0.0])
    td["robot"] = NonTensorStack("arm", "leg")
    with pytest.raises(ActionGuardError, match="embodiment_tag 'arm', got 'leg'"):
        guard(td)
    td["robot"] = NonTensorStack("arm", "arm")
    assert guard(td)["action_chunk"].shape == (2, 3, 2)
    with pytest.raises(MissingKeyError, match="tag as text at 'robot', got None"):
        guard(observe([1.0, 0.0]))


# From metadata, and arguments


def test_metadata_declare_what_is_legal():
    td = TensorDict({"state": torch.tensor([[0.5, 3.0]])}, [1])
    guard = ActionGuard.from_metadata(Copy(), METADATA, on_violation="clip")
    assert guard(td)["action_chunk"].flatten().tolist() == [0.5, 1.0]
    undeclared = RobotDatasetMetadata("joint", action_dim=1)
    td = TensorDict({"state": torch.tensor([[0.5, 3.0]])}, [1])
    guard = ActionGuard.from_metadata(Copy(), undeclared)
    assert guard(td)["action_chunk"].flatten().tolist() == [0.5, 3.0]


def test_deltas_are_not_held():
    deltas = RobotDatasetMetadata("joint", action_dim=1, action_reference="delta")
    with pytest.raises(ValueError, match="'delta', got 'hold': a delta that is repeat"):
        ActionGuard.from_metadata(Copy(), deltas, on_violation="hold")


def test_a_policy_of_model_space_is_refused():
    policy = Copy()
    policy.policy_space = PolicySpace("model", "abc", "mean_std")
    with pytest.raises(SpaceError, match="ActionGuard: expected a policy in robot"):
        ActionGuard(policy, JOINT)


def test_a_policy_that_writes_no_action_is_refused():
    with pytest.raises(MissingKeyError, match=r"'action_chunk', 'action'.*\['plan'\]"):
        ActionGuard(make_policy("plan"), RADIANS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a contract, or a translator with the same"),
        (
            {
                "contract": DEGREES,
                "translator": EmbodimentActionTranslator(RADIANS, torch.add),
            },
            "a contract, or a translator with the same",
        ),
        ({"contract": DEGREES, "on_violation": "ignore"}, "'hold'], got 'ignore'"),
        ({"contract": DEGREES, "max_step": 0.0}, "'max_step', got 0.0"),
        ({"contract": DEGREES, "max_step": (1.0, NAN)}, "positive, finite numbers"),
        ({"contract": DEGREES, "max_step": (1.0,)}, r"action_dim=2 numbers.*got \[1\]"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ActionGuard(make_policy(), **options)
