"""LeRobot's flow policies with a likelihood: their chunks, identity and gradients."""

from __future__ import annotations

import contextlib
import math

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import A, S, lerobot_is_new, observe, to_lerobot_batch
from tensordict.nn import InteractionType, set_interaction_type
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.execution import RealTimeChunking
from torchrl_vla.objectives import ChunkPPOLoss, LeRobotLoss, recompute_log_probs
from torchrl_vla.policies import (
    FlowSDENoise,
    LearnedNoise,
    LeRobotFlowPolicy,
    LeRobotPolicyWrapper,
)
from torchrl_vla.policies.lerobot import read_lerobot_folder
from torchrl_vla.schema import ROBOT_SPACE, MissingKeyError, SchemaError
from torchrl_vla.testing import check_log_prob_consistency, check_policy

pytestmark = pytest.mark.lerobot

ROWS = 3
#: Kernels round a row in another batch differently: measured 2e-6 of a log-density.
OTHER_BATCH = 1e-4
NAMES = ["smolvla", *(name for name in ("pi0", "pi05") if name in backbones.here())]


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """Return a recipe's checkpoint, made once."""
    made = {"smolvla": checkpoint("smolvla")}

    def get(name):
        if name not in made:
            with backbones.narrow_gemma():
                made[name] = backbones.make_checkpoint(
                    name, tmp_path_factory.mktemp(name)
                )
        return made[name]

    return get


@pytest.fixture(scope="module")
def made(folders):
    return folders("smolvla")


def load(made, *, noise=None, num_steps=None, **overrides) -> LeRobotFlowPolicy:
    with backbones.narrow_gemma() if lerobot_is_new() else _nothing():
        return LeRobotFlowPolicy.from_pretrained(
            made.folder,
            noise=noise or FlowSDENoise(0.5),
            num_steps=num_steps,
            overrides=overrides,
        )


@contextlib.contextmanager
def _nothing():
    yield


@pytest.fixture(scope="module")
def policy(made):
    """A policy whose weights no test changes."""
    return load(made)


def decide(policy, made, rows=ROWS, *, seed=0):
    """What a policy writes when it explores, with what it read."""
    (td,) = observe(made, 1, rows, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        return policy(td)


def to_batch(decisions, advantage):
    """Decisions of which all was executed, as PPO reads them."""
    rows, size = decisions["element_log_probs"].shape[:2]
    decisions["advantage"] = torch.full((rows, 1), advantage)
    decisions["next", "is_executed"] = torch.ones(rows, size, dtype=torch.bool)
    return decisions


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_chunk_is_lerobots_own_bit_for_bit(name, folders):
    policy = load(folders(name))
    (td,) = observe(folders(name), 1, ROWS)
    start = torch.randn(ROWS, policy.chunk_size, policy.path_dim)
    own = policy.wrapper.pipeline
    batch = own.preprocessor(to_lerobot_batch(td))
    theirs = policy.wrapper.policy.predict_action_chunk(batch, noise=start)
    with torch.no_grad():
        dist = policy.get_dist(td)
        assert torch.equal(
            policy.decode(dist.flow_from(start)), own.postprocessor(theirs)
        )
        assert torch.equal(dist.mode, dist.flow_from(torch.zeros_like(start)))


@pytest.mark.skipif("pi0" not in NAMES, reason="0.4.4 has no relative actions")
def test_relative_chunks_are_anchored_to_the_state_that_they_were_planned_from(
    tmp_path,
):
    """This model moves nothing, so the chunk is the noise: mean 1, deviation 2."""
    with backbones.narrow_gemma():
        policy = load(backbones.make_relative_checkpoint(tmp_path))
    policy.noise = FlowSDENoise(1e-6)
    made = backbones.Made(tmp_path, backbones.RECIPES["pi0"][1], False, True)
    out = decide(policy, made)
    state = out["observation", "state"][:, None, :3]
    joints = 1 + 2 * out["denoising_path"][:, -1, :, :3] + state
    torch.testing.assert_close(out["action_chunk"][..., :3], joints)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("learned", [False, True])
def test_unchanged_weights_give_what_was_written_bit_for_bit(name, learned, folders):
    noise = LearnedNoise(S, *_sizes(name), hidden=8) if learned else None
    policy = load(folders(name), noise=noise)
    decisions = decide(policy, folders(name))
    assert torch.equal(
        policy.element_log_probs(decisions), decisions["element_log_probs"]
    )
    assert torch.equal(policy.log_prob(decisions), decisions["log_probs"])
    assert decisions["element_log_probs"].shape == (ROWS, policy.chunk_size, A)
    report = check_log_prob_consistency(policy, decisions, tolerance=OTHER_BATCH)
    assert report.clip_fraction == 0


def _sizes(name):
    return {"smolvla": 10}.get(name, 8), A


def test_it_keeps_the_contract_of_every_stochastic_policy(policy, made):
    (td,) = observe(made, 1, ROWS)
    check_policy(
        policy, td, row_tolerance=OTHER_BATCH, ratio_tolerance=OTHER_BATCH * A * 10
    )


def test_log_probabilities_are_those_of_a_naive_loop_over_the_steps(policy, made):
    """Flow-SDE in LeRobot's own time; padding goes on as its Euler step does."""
    decisions, scale, steps = decide(policy, made), 0.5, policy.num_steps
    path, dt = decisions["denoising_path"], 1 / policy.num_steps
    with torch.no_grad():
        prefix = policy.get_dist(decisions)._prefix
        total, x = torch.zeros(ROWS, 10, A), path[:, 0]
        for k in range(steps):
            theirs, clamped = 1 - k / steps, max(k / steps, dt)  # 1 = noise
            v = -prefix.velocity(x, torch.full((ROWS,), theirs))  # noise - data
            sigma = scale * math.sqrt((1 - clamped) / clamped)
            drift = v + sigma**2 / 2 * (x + (1 - theirs) * v) / theirs
            mean = (x - dt * drift)[..., :A]
            x = torch.cat([path[:, k + 1, :, :A], (x - dt * v)[..., A:]], -1)
            std = torch.tensor(sigma * math.sqrt(dt))
            total += torch.distributions.Normal(mean, std).log_prob(x[..., :A])
    torch.testing.assert_close(
        decisions["element_log_probs"], total, rtol=1e-4, atol=1e-4
    )


def test_padding_is_no_part_of_the_sample_but_for_its_initial_noise(policy, made):
    decisions = decide(policy, made)
    path = decisions["denoising_path"]
    decisions["denoising_path"] = path.clone()
    decisions["denoising_path"][:, 1:, :, A:] = float("nan")
    with torch.no_grad():
        again = policy.element_log_probs(decisions)
        assert torch.equal(again, decisions["element_log_probs"])
        decisions["denoising_path"] = path.clone()
        decisions["denoising_path"][:, 0, :, A:] += 1
        other = policy.element_log_probs(decisions)
    assert not torch.equal(other, again)


def test_the_gradient_is_that_of_the_log_probability(made):
    """A finite difference along it gives its norm, padding's share included."""
    policy = load(made)
    model = policy.wrapper.policy.model
    with torch.no_grad():  # padding that moves, and moves the rest
        model.action_in_proj.weight[:, A:] *= 10
        model.action_out_proj.weight[A:] *= 10
    decisions = decide(policy, made)
    weights = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        policy.log_prob(decisions).sum(), weights, allow_unused=True
    )
    pairs = [(p, g) for p, g in zip(weights, gradients) if g is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for _, g in pairs))
    values, step = [], 0.5 / norm
    for side in (1, -1):
        with torch.no_grad():
            for weight, gradient in pairs:
                weight += side * step / norm * gradient
            values.append(float(policy.log_prob(decisions).double().sum()))
            for weight, gradient in pairs:
                weight -= side * step / norm * gradient
    # Exact to 4e-6; without padding's share it is 2e-3 off.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(norm, rel=2e-4)


@pytest.mark.parametrize("expert_only", [True, False])
def test_gradients_reach_what_lerobot_trains_and_nothing_that_it_froze(
    expert_only, made
):
    policy = load(made, train_expert_only=expert_only)
    policy.log_prob(decide(policy, made)).sum().backward()
    grown = {
        name
        for name, parameter in policy.wrapper.policy.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    parts = ("lm_expert.layers", "action_in_proj", "action_out_proj", "state_proj")
    for part in parts:
        assert any(part in name for name in grown), part
    assert not any("vision_model" in name for name in grown)
    assert any(".vlm." in name for name in grown) != expert_only


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
def test_ppo_has_nothing_to_correct_before_the_first_update(granularity, policy, made):
    decisions = to_batch(decide(policy, made), 1.0)
    out = ChunkPPOLoss(policy, granularity=granularity, entropy_coeff=0.01)(decisions)
    assert out["clip_fraction"] == 0
    assert out["kl_approx"] == 0
    assert out["max_ratio"] == 1
    assert out["loss_objective"] == -1


def test_after_recomputing_every_ratio_is_one_in_the_learners_minibatches(policy, made):
    decisions = to_batch(decide(policy, made, 5), 1.0)
    recompute_log_probs(policy, decisions, minibatch_size=2)
    loss = ChunkPPOLoss(policy)
    for part in decisions.split(2):
        assert loss(part)["max_ratio"] == 1


def test_torchrls_own_ppo_takes_the_policy(policy, made):
    decisions = to_batch(decide(policy, made), 1.0)
    loss = ClipPPOLoss(policy, None, entropy_bonus=False, critic_coeff=None)
    loss.set_keys(action=policy.sample_key, sample_log_prob="log_probs")
    out = loss(decisions)
    assert out["kl_approx"] == 0
    assert out["clip_fraction"] == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_of_ppo_makes_what_was_good_likelier(advantage, made):
    policy = load(made)
    decisions = to_batch(decide(policy, made), advantage)
    loss = ChunkPPOLoss(policy).train()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-5)
    loss(decisions)["loss_objective"].backward()
    optimizer.step()
    with torch.no_grad():
        gain = policy.log_prob(decisions) - decisions["log_probs"]
    assert gain.sum() * advantage > 0


def test_lerobots_own_loss_trains_the_same_weights(made):
    policy = load(made)
    decisions = decide(policy, made)
    decisions["action_is_pad"] = torch.zeros(ROWS, policy.chunk_size, dtype=torch.bool)
    loss = LeRobotLoss(policy).train()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    loss(decisions)["loss_lerobot"].backward()
    optimizer.step()
    with torch.no_grad():
        assert (policy.log_prob(decisions) != decisions["log_probs"]).all()
    assert policy.wrapper.policy.training  # judging switched nothing


def test_training_mode_changes_neither_chunk_nor_likelihood(made):
    policy = load(made)
    modes = [(policy.train(mode), decide(policy, made))[1] for mode in (True, False)]
    for key in policy.out_keys:
        assert torch.equal(modes[0][key], modes[1][key]), key


def test_many_samples_are_evaluated_at_once_and_have_the_stated_entropy(policy, made):
    (td,) = observe(made, 1, 2)
    with torch.no_grad():
        dist = policy.get_dist(td)
        torch.manual_seed(0)
        paths = dist.sample((40,))
        log_probs = dist.log_prob(paths)
        assert torch.equal(log_probs[3], dist.log_prob(paths[3]))
        # 40 x 70 draws of 3 steps: the mean of -log_prob is within 4 deviations
        deviation = math.sqrt(0.5 * 3 * 10 * A / 40)
        error = (-log_probs.mean(0) - dist.entropy()).abs().max()
    assert paths.shape == (40, 2, policy.num_steps + 1, 10, policy.path_dim)
    assert error < 4 * deviation


def test_in_bfloat16_the_chunk_is_lerobots_and_the_identity_holds(made):
    policy = LeRobotFlowPolicy.from_pretrained(
        made.folder, noise=FlowSDENoise(0.5), dtype=torch.bfloat16
    )
    (td,) = observe(made, 1, ROWS)
    torch.manual_seed(4)
    theirs = policy.wrapper(td.clone())["action_chunk"]
    torch.manual_seed(4)
    start = torch.randn(ROWS, policy.chunk_size, policy.path_dim)
    with torch.no_grad():
        assert torch.equal(policy.decode(policy.get_dist(td).flow_from(start)), theirs)
    decisions = to_batch(decide(policy, made), 1.0)
    out = ChunkPPOLoss(policy)(decisions)
    assert out["max_ratio"] == 1
    assert out["clip_fraction"] == 0


def test_an_adapter_is_trained_and_what_is_under_it_is_not(made):
    import peft

    plain = load(made).wrapper
    lora = peft.LoraConfig(r=2, target_modules=r".*lm_expert.*\.(q|v)_proj")
    policy = LeRobotFlowPolicy(
        LeRobotPolicyWrapper(
            peft.get_peft_model(plain.policy, lora),
            pipeline=plain.pipeline,
        ),
        noise=FlowSDENoise(0.5),
    )
    decisions = decide(policy, made)
    new = policy.log_prob(decisions)
    assert torch.equal(new, decisions["log_probs"])
    new.sum().backward()
    grown = [n for n, p in policy.named_parameters() if p.grad is not None]
    assert grown
    assert all("lora_" in name for name in grown)


def test_fewer_steps_are_those_of_lerobots_own_with_that_number(made):
    policy, other = load(made, num_steps=2), load(made, num_steps=None)
    other.wrapper.config.num_steps = 2
    (td,) = observe(made, 1, ROWS)
    start = torch.randn(ROWS, policy.chunk_size, policy.path_dim)
    batch = other.wrapper.pipeline.preprocessor(to_lerobot_batch(td))
    theirs = other.wrapper.policy.predict_action_chunk(batch, noise=start)
    with torch.no_grad():
        path = policy.get_dist(td).flow_from(start)
    assert path.shape[1] == 3
    assert torch.equal(path[:, -1, :, :A], theirs)


def test_any_leading_batch_dimensions_are_welcome(policy, made):
    (td,) = observe(made, 1, 4)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        out = policy(td.reshape(2, 2))
    assert out["denoising_path"].shape == (2, 2, 4, 10, policy.path_dim)
    assert torch.equal(policy.element_log_probs(out), out["element_log_probs"])


def test_a_path_of_another_policy_is_refused(policy, made):
    decisions = decide(policy, made)
    with pytest.raises(SchemaError, match=r"expected a choice float32 \[3, 4, 10, 16"):
        policy.get_dist(decisions).log_prob(decisions["denoising_path"][..., :A])
    with pytest.raises(MissingKeyError, match=r"the policy's sample at 'denoising_pa"):
        policy.log_prob(decisions.exclude("denoising_path"))


def test_policy_and_noise_are_saved_together(made, tmp_path):
    noise = LearnedNoise(S, 10, A, hidden=8, max_std=0.3)
    torch.nn.init.normal_(noise.out.bias)
    policy = load(made, noise=noise)
    folder = tmp_path / "saved"
    policy.to_folder(folder)
    again = LeRobotFlowPolicy.from_pretrained(folder)
    decisions = decide(policy, made)
    assert torch.equal(
        again.element_log_probs(decisions), decisions["element_log_probs"]
    )
    assert type(read_lerobot_folder(folder)) is LeRobotFlowPolicy
    assert type(read_lerobot_folder(made.folder)) is LeRobotPolicyWrapper
    with pytest.raises(SchemaError, match=r"expected the noise that to_folder"):
        LeRobotFlowPolicy.from_pretrained(made.folder)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("act-cameras", "TinyGaussianVLA"),
        ("diffusion", "TinyDiffusionVLA"),
        ("vqbet", "TinyTokenVLA"),
        ("tdmpc", "lerobot-train"),
    ],
)
def test_a_policy_that_does_not_flow_is_refused_by_name(name, instead, checkpoint):
    wrapper = LeRobotPolicyWrapper.from_pretrained(checkpoint(name).folder)
    kind = name.split("-")[0]
    with pytest.raises(SchemaError, match=rf"from noise, got '{kind}'\. .*{instead}"):
        LeRobotFlowPolicy(wrapper, noise=FlowSDENoise(0.5))


def test_a_wrapper_becomes_stochastic_if_it_flows(made, checkpoint):
    wrapper = load(made).wrapper
    policy = wrapper.to_stochastic(flow_noise=0.3)
    assert policy.wrapper is wrapper
    assert policy.noise.scale == 0.3
    assert policy.policy_space == wrapper.policy_space == ROBOT_SPACE
    assert policy.cloning_loss == wrapper.cloning_loss == "lerobot"
    act = LeRobotPolicyWrapper.from_pretrained(checkpoint("act").folder)
    assert act.to_stochastic() is None
    assert "TinyGaussianVLA" in act.likelihood_advice


def test_joints_that_are_turned_round_after_the_flow_are_refused(made):
    with pytest.raises(SchemaError, match=r"'smolvla' with adapt_to_pi_aloha=True"):
        load(made, adapt_to_pi_aloha=True)


def test_real_time_chunking_takes_the_wrapper_and_not_the_likelihood(policy):
    with pytest.raises(ValueError, match=r"expected LeRobotFlowPolicy to have 'guide_"):
        RealTimeChunking(
            policy,
            replan_interval=4,
            inference_delay=1,
            action_reference="absolute",
        )
