from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import (
    InteractionType,
    TensorDictModule,
    TensorDictModuleBase,
    set_interaction_type,
)
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.execution import (
    ActionGuard,
    ActionInterpolation,
    AsyncExecutor,
    MultiStepActorWrapper,
    RealTimeChunking,
    StepClockWorker,
    TemporalEnsemble,
    ZerosPrefix,
)
from torchrl_vla.policies import BackboneConfig, TinyFlowVLA, TinyGaussianVLA
from torchrl_vla.schema import (
    ROBOT_SPACE,
    ActionGuardError,
    ExecutionError,
    FeatureStatistics,
    MetadataError,
    PolicySpace,
    RobotDatasetMetadata,
    SpaceError,
    space_of,
)
from torchrl_vla.spaces import ModelSpace, RobotSpacePolicy
from torchrl_vla.testing import check_log_prob_consistency


def make_space(mode="mean_std", with_state=True):
    # action: mean 5, std 1 (of 4 and 6), min 4, max 6; state: mean 100, std 10.
    stats = FeatureStatistics.from_samples
    return ModelSpace(
        RobotDatasetMetadata(
            "scaled",
            action_statistics=stats(torch.tensor([[4.0], [6.0]])),
            state_statistics=(
                stats(torch.tensor([[90.0], [110.0]])) if with_state else None
            ),
        ),
        mode,
    )


def make_policy():
    """Write the state that it reads twice (in model space)."""
    policy = TensorDictModule(
        lambda state: state.unsqueeze(-2).expand(-1, 2, -1),
        in_keys=[("observation", "state")],
        out_keys=["action_chunk"],
    )
    policy.chunk_size, policy.action_dim = 2, 1
    return policy


def observe(*states):
    data = TensorDict({"observation": {"state": torch.tensor(states)[:, None]}})
    data.batch_size = [len(states)]
    data["is_init"] = torch.ones(len(states), 1, dtype=torch.bool)
    return data


def test_training_samples_hold_model_space_and_the_storage_robot_space():
    storage = LazyTensorStorage(2)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=make_space().transforms(2, storage), batch_size=2
    )
    frames = TensorDict(
        {
            "observation": {"state": torch.tensor([[90.0], [120.0]])},
            "action": torch.tensor([[4.0], [6.0]]),
            "episode_index": torch.zeros(2, dtype=torch.int64),
            "frame_index": torch.arange(2),
        },
        [2],
    )
    buffer.extend(frames)
    sample = buffer[:]
    assert sample["observation", "state"].flatten().tolist() == [-1.0, 2.0]
    assert sample["action_chunk"].squeeze(-1).tolist() == [[-1.0, 1.0], [1.0, 1.0]]
    assert sample["action_is_pad"].tolist() == [[False, False], [False, True]]
    assert storage[:]["action"].flatten().tolist() == [4.0, 6.0]


def test_the_executor_converts_to_model_space_and_back():
    data = make_space().executor(make_policy())(observe(90.0, 120.0))
    # States -1 and 2 in model space; actions 5 - 1 and 5 + 2 in robot space.
    assert data["action"].flatten().tolist() == [4.0, 7.0]
    assert data["observation", "state"].flatten().tolist() == [90.0, 120.0]


def test_the_mode_is_the_same_both_ways():
    data = make_space("min_max").executor(make_policy())(observe(90.0, 105.0))
    # 90 is the minimum: -1, action 4; 105 is three quarters of the way: 0.5.
    assert data["action"].flatten().tolist() == pytest.approx([4.0, 5.5])


def test_data_without_state_statistics_leave_the_state_alone():
    space = make_space(with_state=False)
    assert space.state_scaling is None
    data = space.executor(make_policy())(observe(2.0))
    assert data["action"].item() == 7.0  # 5 + 1 * 2


def test_the_executor_executes_replan_interval_actions():
    actor = make_space().executor(make_policy(), replan_interval=1)
    data = actor(observe(90.0))
    data["is_init"] = torch.zeros(1, 1, dtype=torch.bool)
    data["observation", "state"] = torch.tensor([[120.0]])
    data = actor(data)
    assert data["is_decision"].item() is True
    assert data["action"].item() == 7.0


def test_a_robot_space_policy_announces_what_the_policy_does():
    policy = make_policy()
    space = make_space()
    wrapped = RobotSpacePolicy(policy, space.action_scaling, space.state_scaling)
    assert wrapped.in_keys == [("observation", "state")]
    assert wrapped.out_keys == ["action_chunk"]


def test_metadata_without_action_statistics_are_refused():
    space = ModelSpace(RobotDatasetMetadata("bare", action_dim=1))
    with pytest.raises(MetadataError, match=r"expected statistics in .bare., got None"):
        _ = space.action_scaling


def test_a_guide_in_robot_space_is_shown_to_the_policy_in_model_space():
    class Guided(TensorDictModuleBase):
        in_keys, out_keys = [("observation", "state")], ["action_chunk"]
        optional_in_keys = ["guide_chunk", "guide_weight"]

        def forward(self, td):
            self.seen = td["guide_chunk"].clone(), td["guide_weight"].clone()
            return td.set("action_chunk", 2 * td["guide_chunk"])

    space, policy = make_space(), Guided()
    wrapped = RobotSpacePolicy(policy, space.action_scaling, space.state_scaling)
    assert wrapped.optional_in_keys == ["guide_chunk", "guide_weight"]
    data = observe(90.0)
    data["guide_chunk"] = torch.tensor([[[7.0], [4.0]]])
    data["guide_weight"] = torch.tensor([[1.0, 0.5]])
    data = wrapped(data)
    # 5 + 2 * z: the guide is 2 and -1 in model space, and twice that comes back.
    assert policy.seen[0].flatten().tolist() == [2.0, -1.0]
    assert policy.seen[1].flatten().tolist() == [1.0, 0.5]
    assert data["action_chunk"].flatten().tolist() == [9.0, 3.0]
    assert data["guide_chunk"].flatten().tolist() == [7.0, 4.0]


def test_a_policy_without_optional_inputs_has_none_here_either():
    space = make_space()
    wrapped = RobotSpacePolicy(make_policy(), space.action_scaling, space.state_scaling)
    assert wrapped.optional_in_keys == []
    data = observe(90.0)
    data["guide_chunk"] = torch.zeros(1, 2, 1)
    assert wrapped(data)["action_chunk"].flatten().tolist() == [4.0, 4.0]


def make_flow_actor():
    torch.manual_seed(0)
    flow = TinyFlowVLA(
        action_dim=1,
        chunk_size=8,
        backbone=BackboneConfig(cameras=(), state_dim=1, hidden=32),
    )
    space = make_space()
    return RobotSpacePolicy(flow, space.action_scaling, space.state_scaling)


def test_a_flow_head_ends_where_a_guide_in_robot_space_is_frozen():
    policy, data = make_flow_actor(), observe(90.0, 120.0)
    data["language_instruction"] = NonTensorStack("go", "go")
    with torch.no_grad():
        free = policy(data.copy())["action_chunk"]
        data["guide_chunk"] = free + 3.0
        data["guide_weight"] = ZerosPrefix()(2, 4, 8).expand(2, 8)
        moved = policy(data)["action_chunk"] - free
    assert (moved[:, :2] > 2.5).all()  # of 3: the last of 8 steps goes 89 % of the way


def test_real_time_chunking_runs_a_flow_head_in_robot_space():
    actor = RealTimeChunking(
        make_flow_actor(),
        replan_interval=3,
        inference_delay=2,
        action_reference="absolute",
    )
    actions = []
    for step in range(6):
        data = observe(90.0 + step)
        data["language_instruction"] = NonTensorStack("go")
        data["is_init"] = torch.tensor([[step == 0]])
        with torch.no_grad():
            data = actor(data)
        actions.append(data["action"].item())
    # The chunk that is entered at step 5 continues what steps 3 and 4 executed.
    assert data["guide_chunk"][0, :2, 0].tolist() == actions[3:5]
    assert data["is_decision"].item() is True


def test_a_loss_takes_a_stochastic_policy_and_observations_of_robot_space():
    torch.manual_seed(0)
    inner = TinyGaussianVLA(
        action_dim=1,
        chunk_size=2,
        backbone=BackboneConfig(state_dim=1, cameras=(), hidden=16),
    )
    space = make_space()
    policy = RobotSpacePolicy(inner, space.action_scaling, space.state_scaling)
    data = observe(*range(80, 120, 5)).float()
    data.set("language_instruction", NonTensorStack(*["push"] * 8))
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        data = policy(data)
    # The choice stays in model space: action 5 + 1 * choice.
    torch.testing.assert_close(data["action_chunk"], 5 + data["chunk_sample"])
    check_log_prob_consistency(policy, data)
    seen = data.clone()
    seen["observation", "state"] = (seen["observation", "state"] - 100) / 10
    torch.testing.assert_close(policy.log_prob(data), inner.log_prob(seen))
    assert torch.equal(policy.get_dist(data).mode, policy.get_dist(data).mean)
    assert (data["observation", "state"] >= 80).all()

    data["advantage"] = torch.ones(8, 1)
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=True)
    loss.set_keys(action=policy.sample_key, sample_log_prob="log_probs")
    out = loss(data)
    assert out["clip_fraction"] == 0.0
    out["loss_objective"].backward()
    learned = [p for p in loss.parameters() if p.requires_grad]
    assert len(learned) == len(list(inner.parameters()))
    assert all(p.grad is not None for p in learned)


# Every executor in one line


class Guided(TensorDictModuleBase):
    """Write the state ``H`` times, and take a guide."""

    in_keys, out_keys = [("observation", "state")], ["action_chunk"]
    optional_in_keys = ["guide_chunk", "guide_weight"]

    def forward(self, td):
        state = td["observation", "state"]
        return td.set("action_chunk", state.unsqueeze(-2).expand(-1, 4, -1))


ABSOLUTE = {"action_reference": "absolute"}


@pytest.mark.parametrize(
    ("executor_class", "options"),
    [
        (MultiStepActorWrapper, {"replan_interval": 2}),
        (TemporalEnsemble, ABSOLUTE),
        (RealTimeChunking, {"replan_interval": 2, "inference_delay": 1, **ABSOLUTE}),
        (AsyncExecutor, {"request_at": 1, "worker": StepClockWorker(0), **ABSOLUTE}),
    ],
)
def test_every_executor_is_built_in_one_line(executor_class, options):
    executor = make_space().executor(Guided(), executor_class, **options)
    assert type(executor) is executor_class
    data = executor(observe(90.0, 120.0))
    assert data["action"].flatten().tolist() == [4.0, 7.0]
    fast = ActionInterpolation(executor, 2, action_reference="absolute")
    fast.reset()
    data = observe(90.0, 120.0)
    data["is_waiting"] = torch.zeros(2, 1).bool()
    assert fast(data)["action"].flatten().tolist() == [4.0, 7.0]


# Marks


def mark(policy, space):
    policy.policy_space = space
    return policy


def test_two_spaces_have_one_fingerprint_if_they_convert_alike():
    space = make_space()
    renamed = replace(space.metadata, dataset_id="other", control_frequency_hz=5.0)
    assert ModelSpace(renamed).fingerprint == space.fingerprint
    loaded = RobotDatasetMetadata.from_json(space.metadata.to_json())
    assert ModelSpace(loaded).fingerprint == space.fingerprint
    others = [make_space("min_max"), make_space(with_state=False)]
    stats = FeatureStatistics.from_samples(torch.tensor([[4.0], [6.5]]))
    others.append(ModelSpace(replace(space.metadata, action_statistics=stats)))
    assert len({other.fingerprint for other in [space, *others]}) == 4
    assert space.policy_space == PolicySpace("model", space.fingerprint, "mean_std")


def test_a_policy_of_this_space_or_without_a_mark_is_accepted():
    space = make_space()
    for policy in (make_policy(), mark(make_policy(), space.policy_space)):
        before = space_of(policy)
        assert space.executor(policy)(observe(120.0))["action"].item() == 7.0
        assert space_of(policy) == before


def test_a_policy_of_another_mode_is_refused():
    policy = mark(make_policy(), make_space("min_max").policy_space)
    with pytest.raises(
        SpaceError, match=r"(?s)\(mean_std\), got .*\(min_max\).*load_checkpoint retur"
    ):
        make_space().executor(policy)


def test_a_policy_of_robot_space_is_not_scaled_twice():
    space, message = make_space(), "of robot space.*scaled twice"
    with pytest.raises(SpaceError, match=message):
        space.executor(mark(make_policy(), ROBOT_SPACE))
    robot_policy = space.robot_policy(make_policy())
    assert space_of(robot_policy) == ROBOT_SPACE
    with pytest.raises(SpaceError, match=message):
        space.executor(robot_policy)
    with pytest.raises(SpaceError, match=message):
        RobotSpacePolicy(robot_policy, space.action_scaling, space.state_scaling)
    MultiStepActorWrapper(robot_policy)  # without a space it is right


# The guard


def limited_space():
    metadata = replace(make_space().metadata, action_low=(4.0,), action_high=(6.0,))
    return ModelSpace(metadata)


def test_actions_beyond_declared_limits_are_clipped_by_default():
    executor = limited_space().executor(make_policy())
    assert isinstance(executor.policy, ActionGuard)
    # 5 - 1, 5 + 2 and 5 - 3 in robot space.
    data = executor(observe(90.0, 120.0, 70.0))
    assert data["action"].flatten().tolist() == [4.0, 6.0, 4.0]


def test_the_guard_is_chosen_by_name_or_left_out():
    space = limited_space()
    with pytest.raises(ActionGuardError, match=r"4\.0 \.\. 6\.0 at env index 1.*got 7"):
        space.executor(make_policy(), guard="refuse")(observe(90.0, 120.0))
    free = space.executor(make_policy(), guard=None)
    assert free(observe(120.0))["action"].item() == 7.0


def test_a_state_that_is_not_finite_moves_no_robot():
    """Case C06: a NaN in the state is a NaN in the chunk."""
    for guard, error in (("clip", ActionGuardError), (None, ExecutionError)):
        executor = make_space().executor(make_policy(), guard=guard)
        with pytest.raises(error, match="env index 1, step 0, dimension 0"):
            executor(observe(90.0, torch.nan))


def test_members_of_the_policy_are_found_through_the_space_and_the_guard():
    policy = make_policy()
    policy.make_environment_transform = list
    executor = limited_space().executor(policy)
    assert (executor.policy.chunk_size, executor.policy.action_dim) == (2, 1)
    assert list(executor.make_environment_transform()) == []
    with pytest.raises(AttributeError, match="no attribute"):
        _ = executor.policy.sample_key


def test_the_scalings_of_a_robot_policy_lie_where_its_weights_do():
    policy = make_policy()
    policy.register_parameter("weight", nn.Parameter(torch.zeros(1, device="meta")))
    space = make_space()
    robot_policy = space.robot_policy(policy)
    scalings = (robot_policy.action_scaling, robot_policy.state_scaling)
    assert {scaling.loc.device.type for scaling in scalings} == {"meta"}
    assert space.action_scaling.loc.device.type == "cpu"
