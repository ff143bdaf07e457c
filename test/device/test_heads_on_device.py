"""Every tiny head on the device of ``--device``, next to its twin on the CPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from reference_fingerprints import CASES, make_case, make_dataset
from seeded_loss import Seeded

from torchrl_vla.policies import to_stochastic
from torchrl_vla.profiling import fingerprint_forward
from torchrl_vla.recipes import (
    TrainingSettings,
    load_checkpoint,
    make_policy,
    make_space,
    save_checkpoint,
    train_behavior_cloning,
)
from torchrl_vla.testing import check_loss, check_policy

# Without noise in the forward pass: the device's numbers are the CPU's.
DETERMINISTIC = {"tiny-regression", "tiny-gaussian", "tiny-tokens"}
every_case = pytest.mark.parametrize("case", CASES)


def lies_on(data, device):
    leaves = list(data.values(include_nested=True, leaves_only=True))
    return all(value.device.type == device.type for value in leaves)


@every_case
def test_outputs_lie_on_the_device_and_are_those_of_the_cpu(case, device):
    policy, batch = make_case(case)["forward"]
    with torch.no_grad():
        expected = policy(batch.clone())
        found = policy.to(device)(batch.to(device))
    assert lies_on(found, device)
    assert set(found.keys(True, True)) == set(expected.keys(True, True))
    assert found["action_chunk"].isfinite().all()
    if case in DETERMINISTIC:
        torch.testing.assert_close(
            found["action_chunk"].cpu(), expected["action_chunk"], atol=1e-3, rtol=1e-3
        )


@every_case
def test_every_weight_gets_its_gradient_on_the_device(case, device):
    loss, batch = make_case(case)["loss"]
    twin = deepcopy(loss)
    total = sum(loss.to(device)(batch.to(device)).values())
    total.backward()
    assert total.device.type == device.type
    expected = sum(twin(batch.clone()).values())
    expected.backward()
    for (name, weight), other in zip(
        loss.named_parameters(), twin.parameters(), strict=True
    ):
        assert (weight.grad is None) == (other.grad is None), name
        if weight.grad is None:
            continue
        assert weight.grad.device.type == device.type, name
        if case in DETERMINISTIC:
            torch.testing.assert_close(
                weight.grad.cpu(), other.grad, atol=1e-3, rtol=1e-2, msg=name
            )


@every_case
def test_padding_has_no_influence_on_the_device(case, device):
    loss, batch = make_case(case)["loss"]
    batch["action_is_pad"][0, -1] = True
    check_loss(
        Seeded(loss.to(device)),
        batch.to(device),
        out_key=next(key for key in loss.out_keys if str(key).startswith("loss")),
    )


@every_case
def test_the_contract_of_policies_holds_on_the_device(case, device):
    policy, batch = make_case(case)["forward"]
    check_policy(policy.to(device), batch.to(device), row_tolerance=1e-3)


@every_case
def test_a_stochastic_policy_recomputes_its_own_log_probabilities(case, device):
    policy, batch = make_case(case)["forward"]
    policy = to_stochastic(policy).to(device)
    # Kernels choose their order of summation by the size of the batch.
    tolerance = 0.0 if device.type != "cuda" else 1e-3
    check_policy(
        policy, batch.to(device), row_tolerance=1e-3, ratio_tolerance=tolerance
    )


@every_case
def test_a_fingerprint_repeats_itself_on_the_device(case, device):
    policy, batch = make_case(case)["forward"]
    policy, batch = policy.to(device), batch.to(device)
    policy(batch.clone())  # reads the table of instructions once
    first, second = (fingerprint_forward(policy, batch.clone()) for _ in range(2))
    assert first.output_fingerprint == second.output_fingerprint
    assert first.operator_fingerprint == second.operator_fingerprint
    assert lies_on(batch, device)


def fresh(case):
    dataset, head = make_dataset(), case.removeprefix("tiny-")
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=3, head=head, hidden=16, depth=1)
    return dataset, policy, make_space(dataset.metadata, head)


def weights(policy):
    return torch.cat([p.detach().flatten().cpu() for p in policy.parameters()])


@every_case
def test_three_steps_of_training_and_the_way_over_the_disk(case, device, tmp_path):
    dataset, policy, space = fresh(case)
    before = weights(policy)
    policy.to(device)
    settings = TrainingSettings(steps=3, batch_size=4)
    train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
    assert {p.device.type for p in policy.parameters()} == {device.type}
    assert not torch.equal(weights(policy), before)
    save_checkpoint(tmp_path / "p", policy, space)
    loaded, loaded_space = load_checkpoint(tmp_path / "p")
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert torch.equal(weights(loaded), weights(policy))
    _, batch = make_case(case)["forward"]
    assert loaded_space is not None
    with torch.no_grad():
        back = loaded.to(device).eval()(batch.to(device))
    assert lies_on(back, device)
    if case in DETERMINISTIC:
        with torch.no_grad():
            again = policy.eval()(batch.to(device))
        torch.testing.assert_close(back["action_chunk"], again["action_chunk"])


def test_a_training_that_was_cut_resumes_on_the_device(device, tmp_path):
    class CutError(Exception):
        pass

    def cut(step):
        if step == 3:
            raise CutError

    settings = TrainingSettings(
        steps=4, batch_size=4, log_interval=1, checkpoint_interval=2
    )

    def train(folder, **options):
        dataset, policy, space = fresh("tiny-flow")
        train_behavior_cloning(
            policy.to(device),
            dataset,
            settings,
            space=space,
            folder=tmp_path / folder,
            progress=False,
            **options,
        )
        return weights(policy)

    whole = train("whole")
    with pytest.raises(CutError):
        train("cut", callback=cut)
    torch.testing.assert_close(train("cut"), whole, atol=1e-5, rtol=1e-4)
