import pytest
import torch
from action_chunks import smooth_chunks
from tensordict import NonTensorStack, TensorDict

from torchrl_vla.objectives import TokenBCLoss
from torchrl_vla.policies import (
    BackboneConfig,
    TinySequenceVLA,
    TokenSampling,
    load_policy,
    save_policy,
)
from torchrl_vla.testing import check_log_prob_consistency, check_policy
from torchrl_vla.tokenizers import FASTActionTokenizer, UniformActionTokenizer

CHUNKS = smooth_chunks(200, size=4)


def make(tokenizer="fast", **options):
    torch.manual_seed(0)
    made = {
        "fast": lambda: FASTActionTokenizer.fit(CHUNKS, vocab_size=120),
        "bins": lambda: UniformActionTokenizer(8, low=-1.0, high=1.0),
    }
    backbone = BackboneConfig(state_dim=3, hidden=32, depth=1)
    return TinySequenceVLA(
        action_dim=2,
        chunk_size=4,
        action_tokenizer=made[tokenizer](),
        backbone=backbone,
        **options,
    )


def observations(n):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator
    )
    state = torch.randn(n, 3, generator=generator)
    texts = NonTensorStack(*(f"push block {i % 3}" for i in range(n)))
    observation = {"image": image, "state": state}
    return TensorDict({"observation": observation, "language_instruction": texts}, [n])


@pytest.mark.parametrize("tokenizer", ["fast", "bins"])
def test_the_contract_of_a_policy_holds(tokenizer):
    check_policy(make(tokenizer), observations(5))
    policy = make(tokenizer, sampling=TokenSampling(0.7, top_k=5))
    policy(data := observations(9))
    report = check_log_prob_consistency(policy, data.detach())
    assert report.n_different == 0


def test_saved_and_loaded_it_is_bit_equal(tmp_path):
    policy, data = make(), observations(4)
    again = load_policy(save_policy(tmp_path / "policy", policy))
    with torch.no_grad():
        expected, got = policy.eval()(data.clone()), again(data.clone())
    for key in ("action_tokens", "action_chunk", "element_log_probs"):
        assert torch.equal(expected[key], got[key])


def test_cloning_teaches_it_the_chunks():
    """What an observation asks for is found again, through tokens of any length."""
    policy, data = make(), observations(8)
    data["action_chunk"] = CHUNKS[:8]
    data["action_is_pad"] = torch.zeros(8, 4, dtype=torch.bool)
    batch = policy.make_target_transform()(data)
    loss = TokenBCLoss(policy)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss(batch)["loss_bc"].backward()
        optimizer.step()
    with torch.no_grad():
        chunk = policy(observations(8))["action_chunk"]
    assert (chunk - CHUNKS[:8]).abs().max() < 0.15  # the tokenizer's own error
