from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.policies import OutputKeys, TokenSampling, TokenVLAWrapper
from torchrl_vla.schema import MissingKeyError, ObservationKeys, SchemaError, TokenError
from torchrl_vla.tokenizers import UniformActionTokenizer, VocabTailActionTokenizer

H, A, V = 2, 3, 4


class LinearTokens(TokenVLAWrapper):
    """Logits that are linear in the state."""

    def __init__(self, **keys):
        tokenizer = UniformActionTokenizer(V, low=-1.0, high=1.0)
        super().__init__(
            action_dim=A,
            chunk_size=H,
            action_tokenizer=tokenizer,
            **keys,
            keys=ObservationKeys(image=None),
        )
        self.net = nn.Linear(5, H * A * V)

    def predict_logits(self, tensordict):
        state = tensordict["observation", "state"]
        return self.net(state).unflatten(-1, (H, A, V))


def states(*batch: int) -> TensorDict:
    return TensorDict({"observation": {"state": torch.randn(*batch, 5)}}, batch)


def naive_log_prob(logits, tokens):
    """Sum log softmax over every token of a chunk, one at a time, in float64."""
    out = torch.zeros(len(tokens), dtype=torch.float64)
    for n in range(len(tokens)):
        for h in range(H):
            for a in range(A):
                weights = logits[n, h, a].double().exp()
                out[n] += (weights[tokens[n, h, a]] / weights.sum()).log()
    return out


def test_logits_of_another_shape_are_refused():
    policy = LinearTokens()
    policy.predict_logits = lambda td: torch.zeros(4, H, A, V + 1)
    with pytest.raises(
        SchemaError,
        match=r"expected \[\*B, H, A, V\] = \[4, 2, 3, 4\] from predict_logits, got "
        r"\[4, 2, 3, 5\]",
    ):
        policy(states(4))


def test_a_token_policy_writes_tokens_their_log_prob_and_the_actions_they_mean():
    policy = LinearTokens()
    td = policy(states(6))
    assert policy.out_keys == [
        "action_chunk",
        "action_tokens",
        "log_probs",
        "element_log_probs",
    ]
    assert policy.in_keys == [("observation", "state"), "language_instruction"]
    assert policy.vocab_size == V
    assert td["action_tokens"].dtype == torch.int64
    # The middles of four bins of [-1, 1].
    middles = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert torch.equal(td["action_chunk"], middles[td["action_tokens"]])
    assert not td["action_chunk"].requires_grad
    assert td["log_probs"].requires_grad


def test_a_token_policy_writes_under_the_keys_that_it_was_given():
    policy = LinearTokens(
        output_keys=OutputKeys("c", ("m", "t"), "p", ("m", "e")),
    )
    td = policy(states(2))
    written = set(td.keys(True, True)) - {("observation", "state")}
    assert written == {"c", ("m", "t"), "p", ("m", "e")}
    assert policy.sample_key == policy.tokens_key == ("m", "t")
    assert torch.equal(policy.log_prob(td), td["p"])
    assert torch.equal(policy.element_log_probs(td), td["m", "e"])


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_log_prob_is_the_naive_sum_over_all_tokens(seed):
    torch.manual_seed(seed)
    policy, td = LinearTokens(), states(3)
    td["action_tokens"] = torch.randint(V, (3, H, A))
    expected = naive_log_prob(policy.predict_logits(td), td["action_tokens"])
    got = policy.log_prob(td)
    assert got.shape == (3,)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(policy.token_log_probs(td).sum((-2, -1)), got)


def test_a_uniform_policy_has_the_log_prob_of_counting():
    policy = LinearTokens()
    nn.init.zeros_(policy.net.weight)
    nn.init.zeros_(policy.net.bias)
    td = policy(states(2))
    # Six tokens, each one of four.
    torch.testing.assert_close(td["log_probs"].exp(), torch.full((2,), 0.25**6))


def test_log_prob_and_get_dist_use_the_weights_of_now_and_nothing_in_the_batch():
    policy = LinearTokens()
    with torch.no_grad():
        td = policy(states(4))
        old = td["log_probs"].clone()
        policy.net.weight.add_(torch.randn_like(policy.net.weight))
        td["logits"] = torch.zeros(4, H, A, V)
        td["log_probs"] = torch.full((4,), 123.0)
        td["action_chunk"] = torch.full((4, H, A), torch.nan)
        new = policy.log_prob(td)
        logits = policy.predict_logits(td)
    torch.testing.assert_close(
        new.double(), naive_log_prob(logits, td["action_tokens"]), rtol=1e-5, atol=1e-5
    )
    assert not torch.isclose(new, old).any()
    assert torch.equal(policy.get_dist(td).mode, logits.argmax(-1))
    assert (td["log_probs"] == 123.0).all()


@pytest.mark.parametrize(
    "kind", [None, InteractionType.MODE, InteractionType.DETERMINISTIC]
)
def test_tokens_are_the_most_likely_ones_unless_sampling_is_asked_for(kind):
    policy, td = LinearTokens(), states(50)
    with set_interaction_type(kind):
        tokens = policy(td)["action_tokens"]
    assert torch.equal(tokens, policy.predict_logits(td).argmax(-1))


def test_sampled_tokens_follow_the_distribution():
    policy = LinearTokens()
    odds = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        policy.net.weight.zero_()
        policy.net.bias.copy_(odds.log().repeat(H * A))
    torch.manual_seed(0)
    with set_interaction_type(InteractionType.RANDOM):
        td = policy(states(4000))
    share = torch.bincount(td["action_tokens"].flatten(), minlength=V) / (4000 * H * A)
    # 24000 draws: a standard deviation of a share is at most 0.0032; this is 5 of them.
    torch.testing.assert_close(share, odds / 10, rtol=0, atol=0.016)
    assert torch.equal(policy.log_prob(td), td["log_probs"])


@pytest.mark.parametrize("kind", [InteractionType.MEAN, InteractionType.MEDIAN])
def test_tokens_have_no_mean(kind):
    with (
        set_interaction_type(kind),
        pytest.raises(
            ValueError,
            match=rf"^LinearTokens: expected interaction type RANDOM, MODE or "
            rf"DETERMINISTIC, got {kind.name}\. Tokens have no mean: use MODE\.$",
        ),
    ):
        LinearTokens()(states(1))


def test_log_prob_without_tokens_says_what_there_is():
    with pytest.raises(
        MissingKeyError,
        match=r"^LinearTokens: expected the policy's sample at 'action_tokens', got "
        r"only \[.*'state'.*\]\. Call the policy to make one",
    ):
        LinearTokens().log_prob(states(2))


def test_log_prob_refuses_tokens_of_another_shape_or_tokenizer():
    policy, td = LinearTokens(), states(2)
    td["action_tokens"] = torch.zeros(2, H * A, dtype=torch.int64)
    with pytest.raises(
        SchemaError, match=r"choice int64 \[2, 2, 3\], got int64 \[2, 6\]"
    ):
        policy.log_prob(td)
    td["action_tokens"] = torch.full((2, H, A), V)
    with pytest.raises(TokenError, match=r"tokens in \[0, 4\), got values from 4 to 4"):
        policy.log_prob(td)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 3)])
def test_any_leading_batch_dimensions_are_kept(batch):
    td = LinearTokens()(states(*batch))
    assert td["action_tokens"].shape == (*batch, H, A)
    assert td["action_chunk"].shape == (*batch, H, A)
    assert td["log_probs"].shape == batch


def ppo(policy) -> ClipPPOLoss:
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    loss.set_keys(
        action="action_tokens", sample_log_prob="log_probs", advantage="advantage"
    )
    return loss


def test_ppo_moves_the_weights_toward_tokens_of_positive_advantage():
    policy, td = LinearTokens(), states(8)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        policy(td)
    td["advantage"] = torch.zeros(8, 1)
    td["advantage"][0] = 1.0
    loss = ppo(policy)
    out = loss(td)
    assert out["clip_fraction"] == 0.0
    out["loss_objective"].backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter -= 0.05 * parameter.grad
    assert policy.log_prob(td)[0] > td["log_probs"][0]


CONTROLS = [
    {"sampling": TokenSampling(temperature=0.5)},
    {"sampling": TokenSampling(temperature=2.0, top_k=2)},
    {"sampling": TokenSampling(top_p=0.7)},
    {"allowed_tokens": torch.tensor([True, False, True, False])},
    {
        "allowed_tokens": torch.tensor([True, False, True, True]).expand(A, V),
        "sampling": TokenSampling(top_k=2),
    },
]


@pytest.mark.parametrize("controls", CONTROLS)
def test_a_controlled_policy_has_ratio_one_and_stays_within_its_set(controls):
    torch.manual_seed(0)
    policy, td = LinearTokens(**controls), states(64)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        td = policy(td)
    assert torch.equal(policy.log_prob(td), td["log_probs"])
    assert torch.equal(policy.element_log_probs(td), td["element_log_probs"])
    logits = policy.predict_logits(td)
    allowed = controls.get("allowed_tokens", torch.ones(V, dtype=torch.bool))
    sampling = controls.get("sampling", TokenSampling())
    masked = (logits / sampling.temperature).masked_fill(~allowed, -torch.inf)
    index = td["action_tokens"].unsqueeze(-1)
    assert sampling.kept(masked).gather(-1, index).all()
    td["advantage"] = torch.randn(64, 1)
    assert ppo(policy)(td)["clip_fraction"] == 0.0


def test_the_sampling_may_be_set_later_and_leaves_the_most_likely_tokens_alone():
    torch.manual_seed(0)
    policy, td = LinearTokens(), states(20)
    best = policy(td.copy())["action_tokens"]
    policy.sampling = TokenSampling(temperature=0.01, top_k=3)
    assert torch.equal(policy(td.copy())["action_tokens"], best)
    with set_interaction_type(InteractionType.RANDOM):
        sharp = policy(td.copy())["action_tokens"]
    assert (sharp == best).float().mean() > 0.9  # hardly random any more


class TailTokens(TokenVLAWrapper):
    """A language model's vocabulary of which the last four ids are actions."""

    def __init__(self, **options):
        tokenizer = VocabTailActionTokenizer(4, full_vocab_size=10)
        super().__init__(
            action_dim=A, chunk_size=H, action_tokenizer=tokenizer, **options
        )
        self.logits = nn.Parameter(torch.zeros(H, A, 10))
        with torch.no_grad():
            self.logits[..., 0] = 5.0  # it would rather say a word

    def predict_logits(self, tensordict):
        return self.logits.expand(*tensordict.batch_size, H, A, 10)


@pytest.mark.parametrize("kind", [InteractionType.RANDOM, InteractionType.MODE])
def test_only_the_tail_of_a_vocabulary_is_chosen_and_learned(kind):
    policy = TailTokens()
    with set_interaction_type(kind):
        td = policy(TensorDict(batch_size=[50]))
    assert (td["action_tokens"] >= 6).all()
    torch.testing.assert_close(td["log_probs"].exp(), torch.full((50,), 0.25**6))
    policy.log_prob(td).sum().backward()
    assert (policy.logits.grad[..., :6] == 0).all()
    assert policy.logits.grad[..., 6:].any()


def test_a_mask_narrows_the_tail_per_dimension():
    mask = torch.zeros(A, 10, dtype=torch.bool)
    mask[0, 7], mask[1, 8], mask[2, [0, 9]] = True, True, True
    td = TailTokens(allowed_tokens=mask)(TensorDict(batch_size=[2]))
    assert td["action_tokens"].tolist() == [[[7, 8, 9]] * H] * 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(10), r"a bool \[V\] = \[10\] or \[A, V\] = \[3, 10\] at argument "),
        (torch.ones(9, dtype=torch.bool), r"'allowed_tokens', got torch.bool \[9\]\.$"),
        (torch.arange(10) < 6, "an action token for each dimension at argument"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask, message):
    with pytest.raises(TokenError, match=rf"^TailTokens: expected .*{message}"):
        TailTokens(allowed_tokens=mask)


def test_the_mask_is_no_weight_but_moves_with_the_policy():
    policy = TailTokens()
    assert "allowed_tokens" not in policy.state_dict()
    assert policy.to("meta").allowed_tokens.device.type == "meta"
