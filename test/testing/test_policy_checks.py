from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tiny_options import make_tiny
from torch import nn

from torchrl_vla.policies import (
    ContinuousVLAWrapper,
    GaussianVLAWrapper,
    LeRobotPolicyWrapper,
    TinyTokenVLA,
    TinyVLA,
    TokenDistribution,
    TokenSampling,
    TokenVLAWrapper,
)
from torchrl_vla.schema import InstructionTable, ObservationKeys
from torchrl_vla.testing import check_policy
from torchrl_vla.tokenizers import UniformActionTokenizer

H, A, S, V = 3, 2, 4, 5
SIZES = {"action_dim": A, "chunk_size": H}
TEXTS = ("pick", "place")


def batch(n: int = 5, cameras: tuple[str, ...] | None = None) -> TensorDict:
    image = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)
    if cameras:
        image = TensorDict(dict.fromkeys(cameras, image), [n])
    return TensorDict(
        {
            "observation": {"image": image, "state": torch.randn(n, S)},
            "language_instruction": NonTensorStack(*[TEXTS[i % 2] for i in range(n)]),
        },
        [n],
    )


def tokenizer() -> UniformActionTokenizer:
    return UniformActionTokenizer(V, low=-1.0, high=1.0)


class Linear(ContinuousVLAWrapper):
    """A right policy, for the wrong ones below to inherit from."""

    def __init__(self):
        super().__init__(**SIZES, keys=ObservationKeys(image=None))
        torch.manual_seed(0)
        self.net = nn.Linear(S, H * A)

    def predict_chunk(self, td):
        return self.net(td["observation", "state"]).unflatten(-1, (H, A))


class LinearTokens(TokenVLAWrapper):
    def __init__(self, **options):
        super().__init__(
            **SIZES,
            action_tokenizer=tokenizer(),
            **options,
            keys=ObservationKeys(image=None),
        )
        torch.manual_seed(0)
        # Unlike states have unlike tokens.
        self.register_buffer("weights", 3 * torch.randn(S, H * A * V))
        self.bias = nn.Parameter(torch.zeros(H * A * V))

    def predict_logits(self, td):
        state = td["observation", "state"].unsqueeze(-1)
        # Not a matrix product: those round a row as the rows beside it have them do.
        return ((state * self.weights).sum(-2) + self.bias).unflatten(-1, (H, A, V))


class Gaussian(GaussianVLAWrapper):
    def __init__(self):
        super().__init__(**SIZES, keys=ObservationKeys(image=None))
        self.bias = nn.Parameter(torch.zeros(H, A))

    def predict_mean_and_log_std(self, td):
        state = td["observation", "state"]
        return state[..., :1, None] + self.bias, torch.full((A,), -1.0)


@pytest.mark.parametrize("cameras", [None, (), ("front", "wrist")])
@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_the_tiny_policies_pass(cameras, by_id, state):
    td, table = batch(cameras=cameras), None
    if by_id:
        table = InstructionTable(TEXTS)
        ids = table.encode(td.get("language_instruction"))
        td.set("language_instruction", ids)
    options = {"cameras": cameras, "instructions": table, "hidden": 16, **SIZES}
    options |= {"state_dim": S} if state else {"state_key": None}
    check_policy(make_tiny(TinyVLA, **options), td, row_tolerance=0)
    token_policy = make_tiny(TinyTokenVLA, **options, action_tokenizer=tokenizer())
    check_policy(token_policy, td, row_tolerance=0)


def test_a_wrapped_policy_passes():
    net = nn.Linear(S, H * A)

    def policy(seen):
        return net(seen["observation.state"]).unflatten(-1, (H, A))

    check_policy(LeRobotPolicyWrapper(policy, **SIZES), batch())


def test_users_policies_pass():
    check_policy(Linear(), batch())
    check_policy(LinearTokens(), batch())
    sharp = TokenSampling(temperature=0.5, top_k=3)
    check_policy(LinearTokens(sampling=sharp), batch())
    check_policy(Gaussian(), batch())


@pytest.mark.parametrize("shape", [[1], [], [2, 2]])
def test_a_batch_that_shows_too_little_is_refused(shape):
    with pytest.raises(
        ValueError, match=rf"a batch size \[N\] with N >= 2, got \[{str(shape)[1:-1]}\]"
    ):
        check_policy(Linear(), batch(4)[: torch.Size(shape).numel()].reshape(shape))


class Scratch(Linear):
    def forward(self, td):
        return super().forward(td).set("hidden", torch.zeros(*td.batch_size, 1))


class Promising(Linear):
    def __init__(self):
        super().__init__()
        self.out_keys = [*self.out_keys, "value"]

    def forward(self, td):
        out = super().forward(td)
        return (
            out.set("value", torch.zeros(*td.batch_size, 1)) if len(td) == 99 else out
        )


class InPlace(Linear):
    def predict_chunk(self, td):
        td["observation", "state"] += 0.0
        chunk = super().predict_chunk(td)
        td["observation", "state"].mul_(2.0)
        return chunk


class Peeking(Linear):
    """Reads the image without announcing it."""

    def predict_chunk(self, td):
        image = td.get(("observation", "image"), torch.zeros(1))
        return super().predict_chunk(td) + image.float().mean()


class Wrong(Linear):
    """Writes one action too few, past the base class's check."""

    def forward(self, td):
        return td.set("action_chunk", self.predict_chunk(td)[..., :-1, :])


class NaN(Linear):
    def predict_chunk(self, td):
        return super().predict_chunk(td) * torch.nan


class Rolling(Linear):
    """Answers from a queue."""

    calls = 0.0

    def predict_chunk(self, td):
        self.calls += 1.0
        return super().predict_chunk(td) + self.calls


class BatchNorm(Linear):
    def predict_chunk(self, td):
        chunk = super().predict_chunk(td)
        return chunk - chunk.mean(tuple(range(td.ndim)))


class FirstDimension(Linear):
    """Takes the first batch dimension for the only one."""

    def predict_chunk(self, td):
        first = torch.arange(td.batch_size[0] if td.ndim else 1).float()
        shape = (*first.shape, *[1] * (td.ndim + 1)) if td.ndim else (1, 1)
        return super().predict_chunk(td) + first.view(shape)


class Freezing(Linear):
    def predict_chunk(self, td):
        self.eval()
        return super().predict_chunk(td)


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (Scratch, r"^Scratch: expected to write its out_keys \['action_chunk'\], got "),
        (Promising, r"out_keys \['action_chunk', 'value'\], got \['action_chunk'\]"),
        (InPlace, r"^InPlace: expected its input \('observation', 'state'\) unchanged"),
        (Peeking, "same 'action_chunk' whatever else lies in the batch"),
        (Wrong, r"^Wrong: expected a finite float chunk \[5, 3, 2\].* got \[5, 2, 2\]"),
        (NaN, r"got \[5, 3, 2\] torch\.float32, not finite\.$"),
        (Rolling, "^Rolling: expected the same 'action_chunk'"),
        (BatchNorm, "^BatchNorm: expected the same 'action_chunk' for a row alone"),
        (FirstDimension, r"same 'action_chunk' as a batch \[1, 5\]"),
        (
            Freezing,
            r"^Freezing: expected training=True after a call as before, got Fal",
        ),
    ],
)
def test_a_broken_policy_is_found(policy, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_policy(policy(), batch())


class Stale(LinearTokens):
    """Believes the log-probs that lie in the batch."""

    def log_prob(self, td):
        return td["log_probs"] + 0.0 * self.bias.sum()


class StaleLogits(LinearTokens):
    def get_dist(self, td):
        logits = td.get("logits", None)
        fresh = self.predict_logits(td)
        return TokenDistribution(fresh if logits is None else fresh * 0.0)


class Mean(LinearTokens):
    """The mean over the tokens where the sum is promised."""

    def log_prob(self, td):
        return self.token_log_probs(td).mean((-2, -1))


class Detached(LinearTokens):
    def log_prob(self, td):
        return super().log_prob(td).detach() + 0.0 * self.bias.sum()


class FloatTokens(LinearTokens):
    def forward(self, td):
        super().forward(td)
        return td.set("action_tokens", td["action_tokens"].float())


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (Stale, "^Stale: expected log_prob from the current weights, got a value"),
        (StaleLogits, r"a value that depends on one of \['log_probs', .*'logits'\] in"),
        (Mean, "expected log_prob to return what was written at 'log_probs', bit for"),
        (Detached, "^Detached: expected log_prob to have a gradient, got none"),
        (FloatTokens, r"int64 \[5, 3, 2\] at 'action_tokens', as .* got .*float32"),
    ],
)
def test_a_broken_token_policy_is_found(policy, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_policy(policy(), batch())


class Attached(Gaussian):
    """Leaves the choice in the graph."""

    def forward(self, td):
        super().forward(td)
        return td.set("chunk_sample", td["action_chunk"])


class Denormalized(Gaussian):
    """Takes the chunk, which transforms rewrite, for the choice."""

    def element_log_probs(self, td):
        return self.get_dist(td).element_log_probs(td["action_chunk"])


class Unsummed(Gaussian):
    """Takes the first action's log-probability for the chunk's."""

    def forward(self, td):
        super().forward(td)
        return td.set("log_probs", td["element_log_probs"][..., 0, :].sum(-1))


class Flat(Gaussian):
    def forward(self, td):
        super().forward(td)
        return td.set("element_log_probs", td["element_log_probs"].flatten(-2))


class ProductRounding(Gaussian):
    """Rounds a row as the rows beside it have it do."""

    def predict_mean_and_log_std(self, td):
        mean, log_std = super().predict_mean_and_log_std(td)
        return mean * (1 + 1e-6 * (td.batch_size.numel() < 4)), log_std


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (
            Attached,
            r"^Attached: expected a choice without a gradient at 'chunk_sample'",
        ),
        (
            Denormalized,
            r"depends on one of \[.*'action_chunk', 'logits'\] in the batch",
        ),
        (Unsummed, r"'log_probs' to be the sum of 'element_log_probs' over H and A"),
        (
            Flat,
            r"their terms \[5, 3, 2\] at 'element_log_probs', got \[5\] and \[5, 6\]",
        ),
        (ProductRounding, r"ratio 1, got 5 of 5 decisions that differ.* is rounding"),
    ],
)
def test_a_broken_stochastic_policy_is_found(policy, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_policy(policy(), batch())


def test_rounding_is_allowed_if_one_says_so():
    check_policy(ProductRounding(), batch(), ratio_tolerance=1e-4)
