from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from tiny_options import make_tiny

from torchrl_vla.policies import (
    FlowSDENoise,
    LearnedNoise,
    TinyDiffusionVLA,
    TinyFlowVLA,
)
from torchrl_vla.schema import InstructionTable
from torchrl_vla.testing import check_policy

H, A, S, K = 4, 3, 5, 4
TEXTS = ("reach the red block", "open the door")
SMALL = {"hidden": 32, "text_dim": 16, "text_max_bytes": 32, "num_steps": K}


def build(cls, **options):
    torch.manual_seed(0)
    arguments = {"action_dim": A, "chunk_size": H, "state_dim": S, **SMALL}
    return make_tiny(cls, **{**arguments, **options})


def ode(**options) -> TinyFlowVLA:
    return build(TinyFlowVLA, **options)


def sde(**options) -> TinyFlowVLA:
    return build(TinyFlowVLA, noise=FlowSDENoise(0.5), **options)


def learned(**options) -> TinyFlowVLA:
    policy = build(TinyFlowVLA, **options)
    policy.noise = LearnedNoise(policy.condition_dim, H, A, hidden=8)
    torch.nn.init.normal_(policy.noise.out.weight)
    return policy


def diffusion(**options) -> TinyDiffusionVLA:
    return build(TinyDiffusionVLA, **options)


every_policy = pytest.mark.parametrize("make", [ode, sde, learned, diffusion])
stochastic = pytest.mark.parametrize("make", [sde, learned, diffusion])


def batch(n: int) -> TensorDict:
    generator = torch.Generator().manual_seed(n)
    image = torch.randint(0, 256, (n, 3, 16, 16), generator=generator)
    state = torch.randn(n, S, generator=generator)
    texts = NonTensorStack(*[TEXTS[i % 2] for i in range(n)])
    observation = {"image": image.to(torch.uint8), "state": state}
    return TensorDict(
        {"observation": observation, "language_instruction": texts}, batch_size=[n]
    )


def act(policy, td, kind=InteractionType.DETERMINISTIC) -> TensorDict:
    with torch.no_grad(), set_interaction_type(kind):
        return policy(td.copy())


@every_policy
def test_it_keeps_the_contract_of_a_policy_to_the_last_bit(make):
    check_policy(make(), batch(5), row_tolerance=0.0)


@stochastic
@given(data=st.data(), n=st.sampled_from([1, 3, 8, 13, 40]))
@settings(max_examples=15, deadline=None)
def test_rows_asked_again_in_any_batch_have_the_same_bits(make, data, n):
    policy = make()
    written = act(policy, batch(n), InteractionType.RANDOM)
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=30))
    rows = torch.tensor(rows)
    again = policy.element_log_probs(written[rows])  # with a gradient this time
    assert torch.equal(again, written["element_log_probs"][rows])
    assert torch.equal(policy.log_prob(written[rows]), written["log_probs"][rows])


@every_policy
@pytest.mark.parametrize("what", ["image", "state", "instruction"])
def test_each_input_changes_the_chunk_of_its_row_alone(make, what):
    policy, td = make(), batch(4)
    changed = td.clone()
    if what == "image":
        changed["observation", "image"][1] = 255 - td["observation", "image"][1]
    elif what == "state":
        changed["observation", "state"][1] += 1.0
    else:
        texts = [TEXTS[0], "close the drawer", TEXTS[0], TEXTS[1]]
        changed.set("language_instruction", NonTensorStack(*texts))
    before, after = (act(policy, x)["action_chunk"] for x in (td, changed))
    difference = (before - after).abs().amax((1, 2))
    assert difference[1] > 1e-3
    assert (difference[[0, 2, 3]] == 0).all()


@stochastic
def test_the_log_probability_teaches_every_part(make):
    policy = make()
    written = act(policy, batch(3), InteractionType.RANDOM)
    policy.log_prob(written).sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@every_policy
def test_it_comes_back_from_its_folder(make, tmp_path):
    table = InstructionTable(TEXTS)
    policy, td = make(instructions=table), batch(4)
    td.set("language_instruction", table.encode(td.get("language_instruction")))
    policy.to_folder(tmp_path)
    again = type(policy).from_folder(tmp_path)
    assert again.out_keys == policy.out_keys
    assert again.instructions.texts == table.texts
    for kind in (InteractionType.DETERMINISTIC, InteractionType.RANDOM):
        torch.manual_seed(2)
        before = act(policy, td, kind)
        torch.manual_seed(2)
        after = act(again, td, kind)
        for key in policy.out_keys:
            assert torch.equal(before[key], after[key]), key


def test_a_cloned_flow_is_read_with_noise_and_the_other_way_round(tmp_path):
    policy, td = ode(), batch(3)
    policy.to_folder(tmp_path)
    noisy = TinyFlowVLA.from_folder(tmp_path)
    assert noisy.noise is None
    noisy.noise = FlowSDENoise(0.7)
    assert torch.equal(act(policy, td)["action_chunk"], act(noisy, td)["action_chunk"])
    assert "log_probs" in act(noisy, td, InteractionType.RANDOM)
    noisy.to_folder(tmp_path)
    assert noisy.noise.scale == 0.7
    assert TinyFlowVLA.from_folder(tmp_path).noise.scale == 0.7


def test_the_noise_of_a_flow_is_part_of_its_state_dict():
    trained, fresh = learned(), learned()
    torch.nn.init.normal_(trained.noise.out.weight)
    assert any(name.startswith("noise.") for name in trained.state_dict())
    fresh.load_state_dict(trained.state_dict())
    written = act(trained, batch(2), InteractionType.RANDOM)
    assert torch.equal(fresh.log_prob(written), written["log_probs"])


@stochastic
def test_a_copy_judges_as_the_original(make):
    policy = make()
    written = act(policy, batch(2), InteractionType.RANDOM)
    assert torch.equal(copy.deepcopy(policy).log_prob(written), written["log_probs"])


@stochastic
def test_other_weights_give_another_log_probability(make):
    policy = make()
    written = act(policy, batch(2), InteractionType.RANDOM)
    with torch.no_grad():
        policy.denoiser.out.bias += 0.1
    assert (policy.log_prob(written) != written["log_probs"]).all()


def test_the_untrained_velocity_is_that_of_normal_data_where_nothing_is_known():
    policy = ode()
    torch.nn.init.zeros_(policy.denoiser.out.weight)
    torch.nn.init.zeros_(policy.denoiser.out.bias)
    x, t = torch.ones(3, H, A), torch.tensor([0.0, 0.25, 1.0])
    velocity = policy.velocity(torch.zeros(3, policy.condition_dim), x, t)
    # E[data - noise | x] = (t - (1 - t)) / (t^2 + (1 - t)^2) x for data from N(0, 1)
    expected = torch.tensor([-1.0, -0.5 / 0.625, 1.0])
    torch.testing.assert_close(velocity[:, 0, 0], expected)
    assert velocity.std(dim=(1, 2)).max() == 0


def test_the_untrained_noise_is_that_of_normal_data_where_nothing_is_known():
    policy = diffusion()
    torch.nn.init.zeros_(policy.denoiser.out.weight)
    torch.nn.init.zeros_(policy.denoiser.out.bias)
    level = torch.tensor([1, 50, 100])
    noise = policy.predict_noise(
        torch.zeros(3, policy.condition_dim), torch.ones(3, H, A), level
    )
    torch.testing.assert_close(noise[:, 0, 0], (1 - policy.signal[level]).sqrt())


def test_the_error_of_diffusion_is_that_of_its_networks_answer():
    policy = diffusion()
    data = torch.randn(3, H, A, generator=torch.Generator().manual_seed(1))
    td = batch(3).set("action_chunk", data)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        errors = policy.denoising_errors(td, generator=generator)
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(data.shape, generator=generator)
        level = torch.randint(1, 101, (3,), generator=generator)
        kept = policy.signal[level][:, None, None]
        x = kept.sqrt() * data + (1 - kept).sqrt() * noise
        answer = policy.denoiser(policy.encode(td), x, level / 100)
        expected = (answer - (kept.sqrt() * noise - (1 - kept).sqrt() * data)) ** 2
    # Float32 knows the noise to 1e-7, of which the last level divides by 5e-4.
    torch.testing.assert_close(errors, expected, rtol=2e-3, atol=2e-3)


def test_several_draws_see_one_encoding_and_are_averaged():
    class Counting(TinyFlowVLA):
        calls = 0

        def encode(self, tensordict):
            self.calls += 1
            return super().encode(tensordict)

    policy = build(Counting)
    td = batch(2).set("action_chunk", torch.randn(2, H, A))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        errors = policy.denoising_errors(td, generator=generator, num_samples=3)
        assert policy.calls == 1
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(3, 2, H, A, generator=generator)
        t = 1 - torch.rand(3, 2, generator=generator)
        expected, condition = torch.zeros(2, H, A), policy.encode(td)
        for draw in range(3):
            time, data = t[draw][:, None, None], td["action_chunk"]
            x = (1 - time) * noise[draw] + time * data
            velocity = policy.velocity(condition, x, t[draw])
            expected += (velocity - (data - noise[draw])) ** 2 / 3
    torch.testing.assert_close(errors, expected)
