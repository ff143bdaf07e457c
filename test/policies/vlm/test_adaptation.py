import copy

import pytest
import torch
from tiny_vlms import KINDS, make_observations, tiny_trunk

from torchrl_vla.policies import load_policy, save_policy
from torchrl_vla.policies.vlm.adaptation import LoRAConfig, base_weights
from torchrl_vla.policies.vlm.adapter_folder import load_adapter, save_adapter
from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy
from torchrl_vla.schema import SchemaError

LORA = LoRAConfig(rank=4, targets=("q_proj", "v_proj"))


def make(kind="smolvlm", *, lora=LORA, **options):
    trunk = tiny_trunk(kind, lora=lora, **options)
    torch.manual_seed(1)
    return VLMChunkPolicy(trunk, action_dim=2, chunk_size=4)


def train(policy, steps=3):
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        policy(make_observations(3))["action_chunk"].square().mean().backward()
        optimizer.step()
    return policy


def act(policy):
    with torch.no_grad():
        return policy(make_observations(3))["action_chunk"]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_nothing_at_first_and_train_alone(kind):
    policy = make(kind)
    without = copy.deepcopy(policy)
    without.trunk.merge_adapters()
    assert torch.equal(act(policy), act(without))
    before = copy.deepcopy(base_weights(policy.trunk.model))
    moved = act(policy)
    train(policy)
    assert (act(policy) != moved).all()
    for name, value in base_weights(policy.trunk.model).items():
        assert torch.equal(value, before[name]), name
    trained = [n for n, p in policy.trunk.model.named_parameters() if p.requires_grad]
    # 2 layers, 2 targets, 2 factors each
    assert len(trained) == 8
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_unmerged_chunks_agree_within_1e_5(kind, tmp_path):
    policy = train(make(kind))
    expected = act(policy)
    policy.trunk.merge_adapters()
    assert not [n for n, _ in policy.named_parameters() if "lora" in n]
    torch.testing.assert_close(act(policy), expected, rtol=0, atol=1e-5)
    again = load_policy(save_policy(tmp_path / "merged", policy))
    assert torch.equal(act(again), act(policy))


def test_a_policy_with_adapters_comes_back_bit_equal(tmp_path):
    policy = train(make())
    again = load_policy(save_policy(tmp_path / "policy", policy))
    assert again.trunk.config.lora == LORA
    assert torch.equal(act(again), act(policy))
    state = again.state_dict()
    assert all(torch.equal(state[n], v) for n, v in policy.state_dict().items())


def test_an_adapter_alone_is_read_into_the_same_base(tmp_path):
    policy = train(make())
    save_adapter(tmp_path / "adapter", policy)
    again = load_adapter(tmp_path / "adapter", make())
    assert torch.equal(act(again), act(policy))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", train(make()))
    other = make()
    with torch.no_grad():
        next(other.trunk.model.parameters())[0, 0] += 1e-3
    with pytest.raises(SchemaError, match="expected an adapter of this base, sha256"):
        load_adapter(tmp_path / "adapter", other)


def test_an_adapter_of_another_size_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", make())
    with pytest.raises(SchemaError, match=r"differs at .*lora_A"):
        load_adapter(
            tmp_path / "adapter", make(lora=LoRAConfig(8, targets=LORA.targets))
        )


def test_a_base_that_is_trained_has_no_adapter_to_write(tmp_path):
    with pytest.raises(SchemaError, match="expected a policy whose base is frozen"):
        save_adapter(tmp_path, make(lora=None))


def test_targets_that_no_layer_has_are_named():
    with pytest.raises(
        SchemaError, match=r"targets among \['down_proj', .* got \['wq'"
    ):
        make(lora=LoRAConfig(targets=("wq",)))


def test_a_frozen_trunk_keeps_every_bit_and_its_head_trains():
    policy = make(lora=None, frozen=True)
    before = copy.deepcopy(policy.trunk.state_dict())
    chunk = act(policy)
    train(policy)
    assert all(torch.equal(policy.trunk.state_dict()[n], v) for n, v in before.items())
    assert (act(policy) != chunk).all()


@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpointed_layers_have_the_same_gradient(lora):
    gradients = []
    for checkpoints in (False, True):
        policy = make(lora=lora, checkpoints_layers=checkpoints)
        policy(make_observations(2))["action_chunk"].square().sum().backward()
        gradients.append(
            {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
        )
    plain, checkpointed = gradients
    assert set(plain) == set(checkpointed)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_checkpointed_layers_run_again_in_the_backward_pass():
    policy, calls = make(lora=None, checkpoints_layers=True), []
    attention = policy.trunk.decoder.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(1))
    chunk = policy(make_observations(2))["action_chunk"]
    assert len(calls) == 2  # the prompt and the placeholders
    chunk.sum().backward()
    assert len(calls) == 4
