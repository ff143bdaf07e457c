"""Real-time chunking: our weights and guidance against LeRobot's, and its policies."""

from __future__ import annotations

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import (
    A,
    make_policy,
    make_processors,
    observe,
    to_lerobot_batch,
)

from torchrl_vla.execution import (
    ExponentialPrefix,
    LinearPrefix,
    OnesPrefix,
    PrefixSchedule,
    RealTimeChunking,
    ZerosPrefix,
)
from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.policies.denoising.guidance import guided_velocity
from torchrl_vla.schema import MissingKeyError, SchemaError

pytestmark = pytest.mark.lerobot

SCHEDULES = [LinearPrefix(), ExponentialPrefix(), OnesPrefix(), ZerosPrefix()]


def rtc_config(schedule: PrefixSchedule = LinearPrefix(), **options):  # noqa: B008
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    schedule_class = type(RTCConfig().prefix_attention_schedule)
    options = {"enabled": True, **options}  # 0.4.4's default is False
    return RTCConfig(
        prefix_attention_schedule=schedule_class(schedule.name.upper()), **options
    )


def processor(schedule: PrefixSchedule = LinearPrefix(), **options):  # noqa: B008
    from lerobot.policies.rtc.modeling_rtc import RTCProcessor

    return RTCProcessor(rtc_config(schedule, **options))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prefix_weights_are_lerobots_for_every_delay_and_overlap(schedule):
    theirs = processor(schedule)
    for size in (1, 2, 3, 8, 50):
        for overlap in range(size + 1):
            for delay in {0, 1, 2, overlap // 2, overlap, overlap + 1, size}:
                torch.testing.assert_close(
                    schedule(delay, overlap, size),
                    theirs.get_prefix_weights(delay, overlap, size),
                    msg=f"delay={delay}, overlap={overlap}, size={size}",
                )


@pytest.mark.parametrize("time", [0.05, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("through_network", [False, True])
def test_guidance_is_lerobots_with_its_time_turned_round(time, through_network):
    """LeRobot's time is 1 at the noise, and its velocity noise - data.

    It lets x require a gradient after the network has run, so that the Jacobian is the
    identity. A velocity that requires the gradient itself gets the published formula.
    """
    generator = torch.Generator().manual_seed(0)
    x, guide = torch.randn(2, 2, 6, 3, generator=generator)
    matrix = torch.randn(3, 3, generator=generator)
    size, overlap, delay = 6, 4, 2

    def theirs(x):
        if through_network:
            x.requires_grad_()
        return torch.tanh(x @ matrix) * (1 + time)

    with torch.no_grad():
        expected = processor(max_guidance_weight=5.0).denoise_step(
            x_t=x,
            prev_chunk_left_over=guide[:, :overlap],
            inference_delay=delay,
            time=time,
            original_denoise_step_partial=theirs,
            execution_horizon=overlap,
        )
        got = guided_velocity(
            lambda x, t: -torch.tanh(x @ matrix) * (1 + (1 - t).view(-1, 1, 1)),
            x,
            torch.full((2,), 1 - time),
            torch.cat([guide[:, :overlap], torch.zeros(2, 2, 3)], 1),
            LinearPrefix()(delay, overlap, size).expand(2, size),
            max_guidance=5.0,
            through_network=through_network,
        )
    torch.testing.assert_close(-got, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def made(checkpoint):
    return checkpoint("smolvla")


@pytest.fixture(scope="module")
def policy(made):
    return load(made)


def load(made, schedule: PrefixSchedule = LinearPrefix(), **options):  # noqa: B008
    overrides = {"rtc_config": rtc_config(schedule, **options)}
    return LeRobotPolicyWrapper.from_pretrained(made.folder, overrides=overrides)


def compare_with_lerobot(policy, made, schedule, left_over_of):
    """Play 12 steps with H in 8..10: called at 0, 4 and 8, entered at 0, 6 and 10."""
    horizon, delay, size = 4, 2, policy.chunk_size
    executor = RealTimeChunking(
        policy,
        replan_interval=horizon,
        inference_delay=delay,
        action_reference="absolute",
        schedule=schedule,
    )
    observations = observe(made, 12, 3)
    torch.manual_seed(5)
    got = torch.stack([executor(td.copy())["action"] for td in observations], 1)

    theirs, own = policy.policy, policy.pipeline
    torch.manual_seed(5)
    chunks, options = [], {}
    for step in (0, 4, 8):
        batch = own.preprocessor(to_lerobot_batch(observations[step]))
        chunk = theirs.predict_action_chunk(batch, **options)
        chunks.append(own.postprocessor(chunk))
        options = {
            "inference_delay": delay,
            "prev_chunk_left_over": left_over_of(
                chunk[:, horizon:], chunks[-1][:, horizon:], observations[step + 4 :]
            ),
            "execution_horizon": size - horizon,
        }
    expected = [chunks[0][:, :6], chunks[1][:, 2:6], chunks[2][:, 2:4]]
    # Their left-over was never denormalized; ours was, and normalized again.
    torch.testing.assert_close(got, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def as_it_was(normalized, robot_space, later):
    return normalized


@pytest.mark.parametrize("schedule", [ExponentialPrefix(), OnesPrefix()])
def test_actions_are_those_of_lerobots_own_call_with_the_same_left_over(made, schedule):
    compare_with_lerobot(load(made, schedule), made, schedule, as_it_was)


needs_pi0 = pytest.mark.skipif("pi0" not in backbones.here(), reason="needs a fork")


@needs_pi0
@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_the_pi_policies_continue_chunks_as_in_lerobots_own_call(name, tmp_path):
    with backbones.narrow_gemma():
        made = backbones.make_checkpoint(name, tmp_path)
        policy = load(made)
        compare_with_lerobot(policy, made, LinearPrefix(), as_it_was)


@needs_pi0
def test_relative_actions_are_continued_from_the_state_of_now(tmp_path):
    """As LeRobot re-anchors them: absolute, then relative to the state of the request.

    The chunk leaves the wrapper absolute, so it may be continued.
    """
    from lerobot.policies.rtc.relative import reanchor_relative_rtc_prefix

    with backbones.narrow_gemma():
        made = backbones.make_relative_checkpoint(tmp_path)
        policy = load(made)
        steps = {
            type(step).__name__: step for step in policy.pipeline.preprocessor.steps
        }

        def reanchored(normalized, robot_space, later):
            if not later:
                return normalized
            return reanchor_relative_rtc_prefix(
                robot_space,
                later[0]["observation", "state"],
                steps["RelativeActionsProcessorStep"],
                steps["NormalizerProcessorStep"],
                "cpu",
            )

        compare_with_lerobot(policy, made, LinearPrefix(), reanchored)


def test_the_guide_pulls_the_new_chunk_to_the_old_one(made, policy):
    (td,), size = observe(made, 1, 2), 10
    torch.manual_seed(0)
    free = policy(td.copy())["action_chunk"]
    td["guide_chunk"] = free + 1.0
    td["guide_weight"] = LinearPrefix()(3, 3, size).expand(2, size)  # 1 1 1 0 ...
    torch.manual_seed(0)
    moved = policy(td)["action_chunk"] - free
    assert (moved[:, :3] > 0.5).all()  # of 1
    assert (moved[:, 3:].abs() < 0.1).all()


def test_rows_without_a_guide_are_predicted_apart_from_those_with_one(made, policy):
    observations, size = observe(made, 1, 3)[0], 10
    guided = observations.copy()
    guided["guide_chunk"] = torch.full((3, size, A), 0.5)
    weight = torch.zeros(3, size)
    weight[1] = LinearPrefix()(2, 6, size)
    guided["guide_weight"] = weight
    torch.manual_seed(0)
    got = policy(guided)["action_chunk"]
    # The calls are in the order of the overlaps: elements 0 and 2, then 1.
    torch.manual_seed(0)
    free = policy(observations[[0, 2]])["action_chunk"]
    continued = policy(guided[[1]])["action_chunk"]
    torch.testing.assert_close(got[[0, 2]], free, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[[1]], continued, rtol=1e-4, atol=1e-4)


def test_without_weight_the_chunk_is_the_same_as_without_a_guide(made, policy):
    (td,) = observe(made, 1, 2)
    torch.manual_seed(0)
    free = policy(td.copy())["action_chunk"]
    td["guide_chunk"] = torch.ones(2, 10, A)
    td["guide_weight"] = torch.zeros(2, 10)
    torch.manual_seed(0)
    assert torch.equal(policy(td)["action_chunk"], free)


def test_weights_of_another_schedule_than_the_policys_are_refused(made, policy):
    (td,) = observe(made, 1, 2)
    td["guide_chunk"] = torch.zeros(2, 10, A)
    td["guide_weight"] = ExponentialPrefix()(2, 6, 10).expand(2, 10)
    match = r"schedule LINEAR at 'guide_weight'.*schedule=LinearPrefix\(\)"
    with pytest.raises(SchemaError, match=match):
        policy(td)


def test_a_guide_without_its_weight_is_refused(made, policy):
    (td,) = observe(made, 1, 2)
    td["guide_chunk"] = torch.zeros(2, 10, A)
    with pytest.raises(MissingKeyError, match=r"a float \[\*B, H\] at 'guide_weight'"):
        policy(td)


def test_a_guide_is_declared_only_where_the_policy_can_follow_one(
    made, policy, checkpoint
):
    plain = LeRobotPolicyWrapper.from_pretrained(made.folder)
    assert plain.optional_in_keys == ["noise_seed"]
    act = LeRobotPolicyWrapper.from_pretrained(checkpoint("act").folder)
    assert act.optional_in_keys == []
    assert load(made, enabled=False).optional_in_keys == ["noise_seed"]
    assert policy.optional_in_keys == ["guide_chunk", "guide_weight", "noise_seed"]
    assert "guide_chunk" not in policy.in_keys
    match = r"a policy of LeRobot's whose rtc_config is enabled"
    with pytest.raises(ValueError, match=match):
        RealTimeChunking(
            plain, replan_interval=4, inference_delay=2, action_reference="absolute"
        )


def test_a_policy_that_converts_joints_after_guiding_is_refused(tiny_vlm):
    policy = make_policy("smolvla", tiny_vlm, rtc_config=rtc_config())
    pre, post = make_processors(policy)
    policy.config.adapt_to_pi_aloha = True
    match = r"rtc_config=None for a policy with adapt_to_pi_aloha=True"
    with pytest.raises(SchemaError, match=match):
        LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(pre, post))
