from __future__ import annotations

import copy

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from tiny_options import make_tiny

from torchrl_vla.policies import BackboneConfig, StdConfig, TinyGaussianVLA, TinyVLA
from torchrl_vla.schema import InstructionTable
from torchrl_vla.testing import check_log_prob_consistency, check_policy

H, A, S = 4, 3, 5
TEXTS = ("reach the red block", "open the door")
SIZES = {"action_dim": A, "chunk_size": H, "hidden": 32, "text_dim": 16}

both_spreads = pytest.mark.parametrize("reads", [False, True])


def tiny(**options) -> TinyGaussianVLA:
    torch.manual_seed(0)
    return make_tiny(TinyGaussianVLA, **{"state_dim": S, **SIZES, **options})


def batch(n: int) -> TensorDict:
    generator = torch.Generator().manual_seed(n)
    image = torch.randint(0, 256, (n, 3, 16, 16), generator=generator)
    return TensorDict(
        {
            "observation": {
                "image": image.to(torch.uint8),
                "state": torch.randn(n, S, generator=generator),
            },
            "language_instruction": NonTensorStack(*[TEXTS[i % 2] for i in range(n)]),
        },
        [n],
    )


def sample(policy, td):
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        return policy(td)


@both_spreads
@pytest.mark.parametrize("cameras", [None, ()])
def test_it_keeps_the_contract_of_policies(reads, cameras):
    policy = tiny(std_reads_inputs=reads, cameras=cameras)
    check_policy(policy, batch(5), row_tolerance=0)


@both_spreads
def test_every_number_starts_with_the_initial_spread(reads):
    policy = tiny(std_reads_inputs=reads, initial_std=0.3)
    spread = policy.get_dist(batch(3)).log_std.exp()
    assert spread.shape == ((3, H, A) if reads else (A,))
    torch.testing.assert_close(spread, torch.full_like(spread, 0.3))


@both_spreads
def test_one_step_of_learning_moves_the_spread_where_it_is_wanted(reads):
    policy = tiny(std_reads_inputs=reads)
    td = sample(policy, batch(6))
    td["chunk_sample"] = policy.get_dist(td).mean.detach()
    before = policy.get_dist(td).log_std.clone()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
    policy.log_prob(td).mean().neg().backward()
    optimizer.step()
    assert (policy.get_dist(td).log_std < before).all()


@both_spreads
def test_a_cloned_policy_is_the_mean_of_its_twin(reads):
    torch.manual_seed(1)
    table = InstructionTable(TEXTS)
    cloned = make_tiny(
        TinyVLA, **SIZES, instructions=table, backbone=BackboneConfig(state_dim=S)
    )
    twin = TinyGaussianVLA.from_cloned(
        cloned, StdConfig(initial=0.1, reads_inputs=reads)
    )
    td = batch(7)
    expected = cloned(td.copy())["action_chunk"]
    assert torch.equal(twin(td.copy())["action_chunk"], expected)
    assert twin.instructions is table
    torch.testing.assert_close(
        twin.get_dist(td).log_std.exp().mean(), torch.tensor(0.1)
    )
    with torch.no_grad():
        twin.backbone.entry.bias += 1.0
    assert torch.equal(cloned(td.copy())["action_chunk"], expected)


def test_a_cloned_policy_that_learned_its_state_s_size_can_be_taken_over():
    cloned = make_tiny(TinyVLA, **SIZES).double()
    td = batch(2)
    expected = cloned(td.copy())["action_chunk"]
    twin = TinyGaussianVLA.from_cloned(cloned)
    assert twin(td.copy())["action_chunk"].dtype == torch.float64
    assert torch.equal(twin(td.copy())["action_chunk"], expected)


@both_spreads
def test_a_folder_gives_back_the_same_policy(tmp_path, reads):
    policy = tiny(
        std_reads_inputs=reads,
        initial_std=0.4,
        min_std=0.3,
        max_std=0.5,
        instructions=InstructionTable(TEXTS),
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    policy.to_folder(tmp_path)
    again = TinyGaussianVLA.from_folder(tmp_path)
    td = sample(policy, batch(6))
    assert torch.equal(again.log_prob(td), td["log_probs"])
    assert again.config == policy.config
    assert list(again.instructions.texts) == list(TEXTS)


def test_the_compiled_log_prob_and_its_gradient_equal_the_eager_ones():
    policy = tiny(std_reads_inputs=True, instructions=InstructionTable(TEXTS))
    td = batch(8)
    ids = policy.instructions.encode(td.get("language_instruction"))
    td = sample(policy, td.set("language_instruction", ids))
    compiled = torch.compile(policy.log_prob, fullgraph=True, backend="aot_eager")
    weights = tuple(policy.parameters())
    value = compiled(td)
    assert torch.equal(value, td["log_probs"])
    expected = torch.autograd.grad(policy.log_prob(td).sum(), weights)
    for one, other in zip(torch.autograd.grad(value.sum(), weights), expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_copy_learns_alone():
    policy = tiny()
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.log_std += 1.0
    torch.testing.assert_close(policy.log_std.exp(), torch.full((A,), 0.2))


@both_spreads
def test_its_ratio_is_one_in_any_batch(reads):
    policy = tiny(std_reads_inputs=reads)
    if reads:  # a spread that differs from row to row
        with torch.no_grad():
            policy.backbone.out.weight[H * A :].normal_(std=0.1)
    check_log_prob_consistency(
        policy, sample(policy, batch(21)), batch_sizes=(None, 1, 2, 3, 8, 9)
    )


def test_an_initial_spread_out_of_bounds_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^StdConfig: expected min <= initial <= max, got 2\.0 "
        r"outside \[0\.01, 1\.0\]\.$",
    ):
        tiny(initial_std=2.0)
