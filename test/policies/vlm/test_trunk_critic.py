import torch
from tiny_vlms import make_observations, tiny_trunk

from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy
from torchrl_vla.policies.vlm.trunk_critic import VLMCritic


def make_policy():
    return VLMChunkPolicy(
        tiny_trunk("smolvlm", state_dim=3), action_dim=2, chunk_size=4
    )


def wake(critic):
    torch.nn.init.normal_(critic.out.weight)
    return critic


def test_a_critic_on_the_policy_s_trunk_trains_its_own_head_alone():
    policy, data = make_policy(), make_observations(3)
    critic = policy.make_critic()
    assert torch.equal(critic(data)["state_value"], torch.zeros(3, 1))
    own = {id(p) for p in policy.parameters()}
    assert not [n for n, p in critic.named_parameters() if id(p) in own]
    wake(critic).value(data).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in policy.parameters())


def test_it_reads_the_trunk_as_it_is_at_each_time():
    policy, data = make_policy(), make_observations(3)
    critic = wake(policy.make_critic())
    with torch.no_grad():
        before = critic.value(data)
        policy.trunk.model.get_input_embeddings().weight.mul_(1.1)
        assert not torch.equal(critic.value(data), before)


def test_a_critic_with_a_trunk_of_its_own_trains_it():
    policy, data = make_policy(), make_observations(3)
    critic = wake(VLMCritic.with_own_trunk(policy.trunk))
    critic.value(data).sum().backward()
    gradients = {n: p.grad for n, p in critic.trunk.decoder.named_parameters()}
    assert gradients["layers.0.self_attn.k_proj.weight"].any()
    assert all(p.grad is None for p in policy.parameters())


def test_a_row_s_value_is_a_function_of_that_row_and_its_state():
    policy, data = make_policy(), make_observations(3)
    critic = wake(policy.make_critic())
    with torch.no_grad():
        together = critic.value(data)
        assert torch.equal(critic.value(data[1]), together[1])
        data["observation", "state"][1] += 1
        changed = critic.value(data) != together
    assert changed.flatten().tolist() == [False, True, False]
