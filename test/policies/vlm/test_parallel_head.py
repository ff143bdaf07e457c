import pytest
import torch
from tiny_vlms import KINDS, make_observations, tiny_trunk

from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import load_policy, save_policy
from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy
from torchrl_vla.testing import check_policy

SIZES = {"action_dim": 2, "chunk_size": 4}


def make(kind="smolvlm", **options):
    options = {"state_dim": 3, **options}
    return VLMChunkPolicy(tiny_trunk(kind, **options), **SIZES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_keep_the_contract(kind):
    policy, data = make(kind), make_observations(3)
    check_policy(policy, data)
    check_policy(policy.to_stochastic(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_comes_back_bit_equal(kind, tmp_path):
    policy, data = make(kind).to_stochastic().eval(), make_observations(3)
    again = load_policy(save_policy(tmp_path / "policy", policy))
    assert type(again) is type(policy)
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with torch.no_grad():
        expected = policy(data.clone())
        assert torch.equal(
            again(data.clone())["action_chunk"], expected["action_chunk"]
        )


def test_a_loss_trains_trunk_placeholders_and_readout():
    policy, data = make(), make_observations(4)
    data["action_chunk"] = torch.randn(4, 4, 2)
    data["action_is_pad"] = torch.zeros(4, 4, dtype=torch.bool)
    loss = BCLoss(policy)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(data)["loss_bc"]
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


def test_every_action_depends_on_every_placeholder_and_on_the_state():
    policy, data = make(), make_observations(2)
    state = data["observation", "state"].requires_grad_()
    chunk = policy(data)["action_chunk"]
    (gradient, to_state) = torch.autograd.grad(
        chunk[0, 0].sum(), [policy.readout.placeholders, state]
    )
    assert gradient.abs().sum(-1).min() > 0
    assert to_state[0].abs().min() > 0
    assert not to_state[1].any()


def test_tokens_of_padding_have_no_gradient():
    policy, data = make(), make_observations(2)
    policy(data)["action_chunk"].sum().backward()
    gradient = policy.trunk.model.get_input_embeddings().weight.grad
    used = policy.trunk.rows.prompts(data, torch.device("cpu"))
    real = used["input_ids"][used["attention_mask"].bool()]
    assert gradient[policy.trunk.tokenizer.pad_token_id].abs().max() == 0
    text = [t for t in real.unique().tolist() if t != 4]  # images replace theirs
    assert gradient[text].abs().sum(-1).min() > 0
