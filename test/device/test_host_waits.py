"""How often the host waits for the device, in one call each; counted in a rehearsal."""

from __future__ import annotations

import pytest
import torch
from reference_fingerprints import CASES, make_case

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.policies import to_stochastic

every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def waits(device):
    if device.type != "rehearsal":
        pytest.skip("only the rehearsal counts")
    from rehearsal_device import host_waits

    def count(call):
        call()  # what is prepared once, such as a table of instructions
        with host_waits() as found:
            call()
        return len(found)

    return count


@every_case
def test_a_policy_waits_for_the_checks_of_what_it_reads(case, waits, device):
    policy, batch = make_case(case)["forward"]
    policy, batch = policy.to(device), batch.to(device)
    # Is the instruction known? Of tokens: are they ours (drawn, counted, decoded)?
    expected = 4 if case == "tiny-tokens" else 1
    with torch.no_grad():
        assert waits(lambda: policy(batch.clone())) == expected
        if case != "tiny-regression":
            actor = to_stochastic(policy)
            assert waits(lambda: actor(batch.clone())) == expected


@every_case
def test_a_loss_waits_for_its_mask_and_what_the_policy_reads(case, waits, device):
    loss, batch = make_case(case)["loss"]
    loss, batch = loss.to(device), batch.to(device)

    def step():
        sum(loss(batch.clone()).values()).backward()

    # Is everything padded, is the mask the wrong way round, is the instruction known?
    # Of tokens: are the targets ours?
    assert waits(step) == (4 if case == "tiny-tokens" else 3)


def test_the_ppo_loss_waits_for_what_ran_and_the_instruction(waits, device):
    policy, batch = make_case("tiny-gaussian")["forward"]
    policy = to_stochastic(policy).to(device)
    with torch.no_grad():
        batch = policy(batch.to(device))
    batch["advantage"] = torch.ones(len(batch), 1, device=device)
    executed = torch.ones(len(batch), 3, dtype=torch.bool, device=device)
    batch["next", "is_executed"] = executed
    loss = ChunkPPOLoss(policy)
    assert waits(lambda: loss(batch.clone())["loss_objective"].backward()) == 2


@pytest.mark.parametrize(
    ("begins", "expected"),
    # Does an episode begin, who has to plan, all of them?, is the chunk finite, and is
    # the instruction known?
    # Without a decision: does one begin, who has to plan, is it the same stream?
    [(True, 5), (False, 3)],
)
def test_an_executor_waits_to_know_who_plans(begins, expected, waits, device):
    policy, batch = make_case("tiny-regression")["forward"]
    executor = MultiStepActorWrapper(policy.to(device))
    batch = batch.to(device)

    def step(is_init):
        flag = torch.full((len(batch), 1), is_init, device=device)
        return executor(batch.clone().set("is_init", flag))

    with torch.no_grad():
        step(True)
        assert waits(lambda: step(begins)) == expected
