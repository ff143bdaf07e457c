import math

import pytest
import torch
from tensordict.nn import InteractionType, set_interaction_type
from tiny_vlms import KINDS, make_observations, tiny_trunk
from torch import nn

from torchrl_vla.objectives import FlowMatchingLoss
from torchrl_vla.policies import FlowSDENoise, LearnedNoise, load_policy, save_policy
from torchrl_vla.policies.vlm.action_expert import ExpertConfig
from torchrl_vla.policies.vlm.vlm_flow_policy import FlowTrainingConfig, VLMFlowPolicy
from torchrl_vla.schema import SchemaError
from torchrl_vla.testing import check_policy

H, A, S, K = 4, 2, 3, 3
SMALL, PLAIN = ExpertConfig(hidden=24), FlowTrainingConfig()


def make(kind="smolvlm", *, noise=None, training=PLAIN, **options):
    trunk = tiny_trunk(kind, **{"state_dim": S, **options})
    torch.manual_seed(1)
    return VLMFlowPolicy(
        trunk,
        action_dim=A,
        chunk_size=H,
        num_steps=K,
        noise=noise,
        expert=SMALL,
        training=training,
    )


def targets(n=3):
    data = make_observations(n)
    data["action_chunk"] = torch.randn(n, H, A, generator=torch.Generator())
    data["action_is_pad"] = torch.zeros(n, H, dtype=torch.bool)
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_with_and_without_noise(kind):
    policy, data = make(kind), make_observations(3)
    check_policy(policy, data)
    policy.noise = FlowSDENoise(0.5)
    check_policy(policy, data)


@pytest.mark.parametrize("state", ["token", "text"])
def test_the_contract_holds_where_the_trunk_reads_the_state(state):
    policy = make(state=state, noise=FlowSDENoise(0.5))
    assert policy.expert.state is None
    check_policy(policy, make_observations(2))


def full_pass(policy, data, x, t):
    """The expert beside the trunk, layer by layer, without a cache or fused kernels."""
    seen = {}
    decoder = policy.trunk.decoder
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    prefix = policy.trunk.encode(data)
    hook.remove()
    hidden, expert = seen["inputs_embeds"], policy.expert
    angles = decoder.rotary_emb(hidden, seen["position_ids"])
    state = data["observation", "state"]
    count = H + 1
    places = prefix.positions[:, None] + torch.arange(count)
    own_angles = decoder.rotary_emb(hidden, places)
    waves = t[:, None, None] * expert.frequencies
    time = expert.time(torch.cat([waves.sin(), waves.cos()], -1))
    actions = expert.mix(nn.functional.silu(expert.action(x) + time))
    tokens = torch.cat([expert.state(state)[:, None], actions], 1)
    mask = torch.cat([prefix.mask, torch.ones(len(x), count, dtype=torch.bool)], 1)

    def rotate(v, cosine_and_sine):
        cosine, sine = (part.unsqueeze(1) for part in cosine_and_sine)
        half = v.shape[-1] // 2
        return v * cosine + torch.cat([-v[..., half:], v[..., :half]], -1) * sine

    def heads(v):
        return v.unflatten(-1, (-1, 8)).transpose(1, 2)

    for block, own in zip(decoder.layers, expert.layers):
        normed = block.input_layernorm(hidden)
        keys = rotate(heads(block.self_attn.k_proj(normed)), angles)
        values = heads(block.self_attn.v_proj(normed))
        hidden = block(
            hidden,
            attention_mask=seen["attention_mask"],
            position_ids=seen["position_ids"],
            position_embeddings=angles,
        )
        normed = own.before_attention(tokens)
        query = rotate(heads(own.query(normed)), own_angles)
        keys = torch.cat([keys, rotate(heads(own.key(normed)), own_angles)], 2)
        values = torch.cat([values, heads(own.value(normed))], 2)
        keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
        score = query @ keys.mT / math.sqrt(8)
        score = score.masked_fill(~mask[:, None, None], -torch.inf)
        out = (score.softmax(-1) @ values).transpose(1, 2).flatten(2)
        tokens = tokens + own.merge(out)
        normed = own.before_mlp(tokens)
        gated = nn.functional.silu(own.gate(normed)) * own.up(normed)
        tokens = tokens + own.down(gated)
    answer = expert.out(expert.norm(tokens))[:, 1:]
    t = t[:, None, None]
    return ((2 * t - 1) * x + answer) / ((1 - t) ** 2 + t**2)


@pytest.mark.parametrize("kind", ["smolvlm", "causal", "paligemma"])
def test_one_prefix_pass_and_expert_steps_give_the_velocity_of_the_full_pass(kind):
    policy, data = make(kind, attention="eager"), make_observations(3)
    with torch.no_grad():
        condition = policy.encode(data)
        for step in range(K):
            x = torch.randn(3, H, A)
            t = torch.full((3,), step / K)
            expected = full_pass(policy, data, x, t)
            got = policy.velocity(condition, x, t)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_trunk_runs_once_per_decision():
    policy, calls = make(noise=FlowSDENoise(0.5)), []
    policy.trunk.decoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        decisions = policy(make_observations(2))
    assert len(calls) == 1
    policy.log_prob(decisions)
    assert len(calls) == 2


def test_an_expert_may_attend_to_every_second_layer():
    trunk = tiny_trunk("smolvlm")
    policy = VLMFlowPolicy(
        trunk,
        action_dim=A,
        chunk_size=H,
        num_steps=K,
        expert=ExpertConfig(hidden=8, layer_interval=2),
    )
    assert policy.expert.reads == [1]
    check_policy(policy, make_observations(2))


def test_the_velocity_does_not_depend_on_what_padding_holds():
    policy, data = make(), make_observations(3)
    with torch.no_grad():
        condition = policy.encode(data)
        x, t = torch.randn(3, H, A), torch.rand(3)
        before = policy.velocity(condition, x, t)
        is_pad = ~condition.prefix.mask[:, None, :, None]
        for keys, values in condition.prefix.cache:
            keys.add_(is_pad * 1e3)
            values.add_(is_pad * 1e3)
        assert torch.equal(policy.velocity(condition, x, t), before)


def test_the_loss_trains_and_its_gradient_reaches_trunk_and_expert():
    torch.manual_seed(0)
    policy, data = make(), targets(4)
    loss = FlowMatchingLoss(policy, num_samples=4)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(data)["loss_bc"]
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    weights = dict(policy.trunk.decoder.named_parameters())
    assert all(
        weights[f"layers.{i}.self_attn.k_proj.weight"].grad.any() for i in (0, 1)
    )


def test_repeated_samples_are_averaged_over_one_encoding():
    policy, data = make(), targets(3)
    torch.manual_seed(5)
    together = policy.denoising_errors(data, num_samples=2)
    torch.manual_seed(5)
    apart = policy.denoising_errors(torch.cat([data, data])).unflatten(0, (2, 3))
    torch.testing.assert_close(together, apart.mean(0), rtol=1e-5, atol=1e-5)


INSULATED = FlowTrainingConfig(num_bins=16)


def test_the_flow_of_an_insulated_expert_has_no_gradient_in_the_trunk():
    policy, data = make(training=INSULATED), targets(3)
    flow = FlowTrainingConfig(num_bins=16, token_coeff=0.0)
    policy.flow_training = flow
    policy.denoising_errors(data).mean().backward()
    for name, weight in policy.trunk.named_parameters():
        assert weight.grad is None or not weight.grad.any(), name
    assert policy.expert.layers[0].key.weight.grad.any()
    policy.zero_grad()
    prefix = policy.trunk.encode(data)
    policy.action_bins.surprise(
        policy.trunk, prefix, data["action_chunk"]
    ).sum().backward()
    decoder = dict(policy.trunk.decoder.named_parameters())
    still = [n for n, w in decoder.items() if w.grad is None or not w.grad.any()]
    assert still == []
    assert policy.expert.layers[0].key.weight.grad is None


def test_the_expert_does_not_see_the_action_tokens_of_the_target():
    policy, data = (
        make(training=FlowTrainingConfig(num_bins=16, token_coeff=0.0)),
        targets(3),
    )
    bins = policy.action_bins

    def errors(tokens):
        bins.encode = lambda chunk: tokens
        torch.manual_seed(0)
        return policy.denoising_errors(data)

    first, second = (torch.full((3, H, A), token) for token in (2, 9))
    surprise = [
        bins.surprise(policy.trunk, policy.trunk.encode(data), data["action_chunk"])
        for bins.encode in (lambda c: first, lambda c: second)
    ]
    assert not torch.equal(*surprise)
    assert torch.equal(errors(first), errors(second))


def test_action_bins_cover_the_numbers_evenly_and_each_token_sees_those_before():
    policy, data = make(training=INSULATED), targets(2)
    edges = torch.tensor([-9.0, -3.0, -2.7, 0.0, 2.99, 9.0])
    # 16 bins of 0.375 in [-3, 3]
    assert policy.action_bins.encode(edges).tolist() == [0, 0, 0, 8, 15, 15]
    prefix = policy.trunk.encode(data)
    chunk = data["action_chunk"]
    before = policy.action_bins.surprise(policy.trunk, prefix, chunk)
    changed = chunk.clone()
    changed[:, 2, 1] = -changed[:, 2, 1].sign() * 2.9
    after = policy.action_bins.surprise(policy.trunk, prefix, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert torch.equal(before[:, 2, 0], after[:, 2, 0])
    assert (before[:, 2, 1] != after[:, 2, 1]).all()
    assert (before[:, 3] != after[:, 3]).all()


RTC = FlowTrainingConfig(max_delay=2)


def guided(n, committed):
    data = make_observations(n)
    data["guide_chunk"] = torch.full((n, H, A), 0.7)
    weight = torch.tensor([1.0] * committed + [0.5] * (H - committed))
    data["guide_weight"] = weight.expand(n, H)
    data["guide_chunk"][:, committed:] = torch.nan  # not read
    return data


@pytest.mark.parametrize("committed", [1, 2])
def test_committed_actions_stand_in_the_chunk_and_the_others_know_of_them(committed):
    policy = make(training=RTC)
    with torch.no_grad():
        chunk = policy(guided(2, committed))["action_chunk"]
        free = policy(make_observations(2))["action_chunk"]
    assert torch.equal(chunk[:, :committed], torch.full((2, committed, A), 0.7))
    assert (chunk[:, committed:] != free[:, committed:]).all()


def test_more_committed_actions_than_in_training_raise():
    with pytest.raises(SchemaError, match=r"at most 2 committed actions .* got 3"):
        make(training=RTC)(guided(2, 3))


def test_committed_actions_have_no_error_in_training_and_are_not_noisy():
    policy, data = make(training=RTC), targets(3)
    seen = []
    velocity = policy.velocity
    policy.velocity = lambda c, x, t: seen.append((x, t)) or velocity(c, x, t)
    torch.manual_seed(2)
    errors = policy.denoising_errors(data, num_samples=5)
    (x, t) = seen[0]
    delays = (t == 1).sum(1)
    assert set(delays.tolist()) == {0, 1, 2}
    clean = data["action_chunk"].repeat(5, 1, 1)
    for row in range(15):
        assert (t[row, : delays[row]] == 1).all()
        assert torch.equal(x[row, : delays[row]], clean[row, : delays[row]])
        assert len(t[row, delays[row] :].unique()) == 1
    rows = delays.view(5, 3)
    everywhere = (rows[:, :, None] > torch.arange(H)).all(0)
    assert not errors[everywhere].any()


def test_the_delay_leaves_an_action_to_learn():
    with pytest.raises(ValueError, match="max_delay below chunk_size=4, got 4"):
        make(training=FlowTrainingConfig(max_delay=4))


def test_a_saved_policy_comes_back_with_its_noise_bit_equal(tmp_path):
    policy = make(training=INSULATED).eval()
    policy.noise = LearnedNoise(policy.condition_dim, H, A, hidden=8)
    again = load_policy(save_policy(tmp_path / "policy", policy))
    assert again.flow_training == INSULATED
    state = policy.state_dict()
    assert set(state) == set(again.state_dict())
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)
    data = make_observations(3)
    data["noise_seed"] = torch.arange(3)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        expected, got = policy(data.clone()), again(data.clone())
    for key in policy.out_keys:
        assert torch.equal(expected[key], got[key]), key
