"""Weights of rows, in every cloning loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_loss import Seeded
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from tiny_options import make_tiny
from torch import nn

from torchrl_vla.objectives import (
    BCLoss,
    DiffusionBCLoss,
    FlowMatchingLoss,
    TokenBCLoss,
)
from torchrl_vla.policies import TinyDiffusionVLA, TinyFlowVLA, TinyVLA
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.testing import check_loss

B, H, A = 4, 2, 2
PAD = torch.tensor([[False, False], [False, True], [False, False], [True, True]])


class Answer(TensorDictModuleBase):
    """Predicts a table, so that the elements of every loss are arithmetic."""

    chunk_key = "action_chunk"

    def __init__(self, out_key: str) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["row"], [out_key]
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.rand(B, H, A, generator=generator))

    def forward(self, td):
        return td.set(self.out_keys[0], self.table[td["row"]])

    def token_log_probs(self, td):
        return -self.table[td["row"]] * (1 + td["action_tokens"])

    def denoising_errors(self, td, **options):
        return (self.table[td["row"]] - td["action_chunk"]) ** 2


def make(kind):
    if kind is TokenBCLoss:
        return TokenBCLoss(Answer("action_tokens"))
    return kind(Answer("action_chunk"))


def batch(kind, weight=None, pad=PAD):
    generator = torch.Generator().manual_seed(1)
    td = TensorDict({"row": torch.arange(B), "action_is_pad": pad}, [B])
    if kind is TokenBCLoss:
        td["action_tokens"] = torch.randint(3, (B, H, A), generator=generator)
    else:
        td["action_chunk"] = torch.randn(B, H, A, generator=generator)
    if weight is not None:
        td["sample_weight"] = torch.tensor(weight)
    return td


def element(kind, table, td, i, h, a):
    if kind is TokenBCLoss:
        return table[i, h, a] * (1 + td["action_tokens"][i, h, a])
    return (table[i, h, a] - td["action_chunk"][i, h, a]) ** 2


def naive(kind, table, td, weight):
    """The formula, element by element."""
    total = count = 0.0
    for i in range(B):
        for h in range(H):
            for a in range(A):
                if not td["action_is_pad"][i, h]:
                    total += weight[i] * element(kind, table, td, i, h, a).item()
                    count += weight[i]
    return total / count


KINDS = [BCLoss, TokenBCLoss, FlowMatchingLoss, DiffusionBCLoss]
every_loss = pytest.mark.parametrize("kind", KINDS)


@every_loss
def test_the_loss_is_the_weighted_mean_over_valid_elements(kind):
    loss, weight = make(kind), [0.5, 3.0, 0.0, 2.0]
    loss.set_keys(weight="sample_weight")
    assert "sample_weight" in loss.in_keys
    td = batch(kind, weight)
    expected = naive(kind, loss.actor_network_params["table"], td, weight)
    assert loss(td)["loss_bc"].item() == pytest.approx(expected, rel=1e-5)


@every_loss
def test_weights_of_one_give_the_bits_of_the_plain_loss(kind):
    loss, td = make(kind), batch(kind)
    plain = loss(td)["loss_bc"]
    loss.set_keys(weight="sample_weight")
    td["sample_weight"] = torch.ones(B)
    assert torch.equal(loss(td)["loss_bc"], plain)
    loss.set_keys(weight="sample_weight", pad_mask=None)
    unmasked = loss(td)["loss_bc"]
    loss.set_keys(weight=None)
    assert torch.equal(loss(td.exclude("sample_weight"))["loss_bc"], unmasked)


@every_loss
@settings(max_examples=15, deadline=None)
@given(
    weight=st.lists(st.sampled_from([0.0, 0.25, 1.0, 7.0]), min_size=3, max_size=3),
    flags=st.lists(st.booleans(), min_size=B * H - 1, max_size=B * H - 1),
)
def test_rows_of_weight_zero_and_padding_have_no_gradient(kind, weight, flags):
    pad = torch.tensor([False, *flags]).view(B, H)
    pad = pad | pad[:, :1]  # True at first and False later raises: it is inverted
    td = batch(kind, [1.0, *weight], pad)
    loss = make(kind)
    loss.set_keys(weight="sample_weight")
    (gradient,) = torch.autograd.grad(loss(td)["loss_bc"], loss.parameters())
    dead = (td["sample_weight"] == 0).unsqueeze(-1) | pad
    assert (gradient[dead] == 0).all()
    assert (gradient[~dead] != 0).all()


@pytest.mark.parametrize("kind", [BCLoss, FlowMatchingLoss, DiffusionBCLoss])
def test_nan_in_a_row_of_weight_zero_reaches_neither_loss_nor_weights(kind):
    loss, td = make(kind), batch(kind, [1.0, 2.0, 0.0, 1.0])
    loss.set_keys(weight="sample_weight")
    value = loss(td)["loss_bc"]
    td["action_chunk"][2] = torch.nan
    garbage = loss(td)["loss_bc"]
    assert torch.equal(garbage, value)
    (gradient,) = torch.autograd.grad(garbage, loss.parameters())
    assert gradient.isfinite().all()


@every_loss
def test_a_common_factor_of_the_weights_changes_nothing(kind):
    loss = make(kind)
    loss.set_keys(weight="sample_weight")
    weight = torch.tensor([0.5, 3.0, 0.0, 2.0])
    first = loss(batch(kind, weight.tolist()))["loss_bc"]
    assert torch.equal(loss(batch(kind, (4 * weight).tolist()))["loss_bc"], first)


@every_loss
def test_weights_that_nobody_named_are_refused(kind):
    with pytest.raises(SchemaError, match=r"a key of weights.*set_keys\(weight="):
        make(kind)(batch(kind, [1.0] * B))


@every_loss
def test_weights_that_are_not_there_are_refused(kind):
    loss = make(kind)
    loss.set_keys(weight="sample_weight")
    message = rf"{kind.__name__}: expected weights .* at 'sample_weight', got only"
    with pytest.raises(MissingKeyError, match=message):
        loss(batch(kind))


@every_loss
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, math.nan, 1.0, 1.0], r"finite weights >= 0 .* got \[nan\] in 1 of 4"),
        ([1.0, math.inf, 1.0, 1.0], r"finite weights >= 0 .* got \[inf\] in 1 of 4"),
        ([1.0, -1.0, 1.0, -2.0], r"weights >= 0 .* got \[-1.0, -2.0\] in 2 of 4"),
        ([0.0] * 4, r"at least one weight above 0 .* got 0 in all 4 samples"),
        ([0.0, 0.0, 0.0, 1.0], r"a valid position in a sample of weight above 0"),
        ([1, 1, 1, 1], r"float \[4\] at 'sample_weight', .* torch.int64"),
        ([[1.0]] * 4, r"float \[4\] .* got torch.float32 \[4, 1\]"),
    ],
)
def test_weights_that_cannot_be_are_refused(kind, weight, message):
    loss = make(kind)
    loss.set_keys(weight="sample_weight")
    with pytest.raises(SchemaError, match=message):
        loss(batch(kind, weight))


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 8.0), ("none", None)])
def test_the_other_reductions_multiply_each_element(reduction, expected):
    policy = Answer("action_chunk")
    with torch.no_grad():
        policy.table.zero_()
    loss = BCLoss(policy, loss_function="l1", reduction=reduction)
    loss.set_keys(weight="sample_weight")
    td = batch(BCLoss, [1.0, 2.0, 0.0, 5.0])
    td["action_chunk"] = torch.ones(B, H, A)
    value = loss(td)["loss_bc"]
    if expected is None:  # rows of 4, 2, 4 and 0 valid elements
        assert value.tolist() == [1.0] * 4 + [2.0] * 2 + [0.0] * 4
    else:
        assert value == expected  # 4 * 1 + 2 * 2
    assert value.sum() == 8.0


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (TinyVLA, BCLoss),
        (TinyFlowVLA, FlowMatchingLoss),
        (TinyDiffusionVLA, DiffusionBCLoss),
    ],
)
def test_the_losses_of_real_policies_keep_their_contract_with_weights(policy, kind):
    torch.manual_seed(0)
    options = {"action_dim": A, "chunk_size": H, "state_dim": 1, "cameras": ()}
    loss = kind(make_tiny(policy, hidden=16, depth=1, **options))
    loss.set_keys(weight="sample_weight")
    td = batch(kind, [1.0, 2.0, 0.0, 1.0]).exclude("row")
    td["observation"] = TensorDict(state=torch.randn(B, 1), batch_size=[B])
    td["language_instruction"] = "push"
    check_loss(Seeded(loss), td)
    target = td["action_chunk"].clone().requires_grad_()
    value = Seeded(loss)(td.clone().set("action_chunk", target))["loss_bc"]
    (gradient,) = torch.autograd.grad(value, target)
    assert (gradient[2] == 0).all()
    assert (gradient[0] != 0).all()


# tensordict reads a torch option that torch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules:FutureWarning")
def test_the_weighted_loss_compiles_to_one_graph():
    loss, td = make(BCLoss), batch(BCLoss, [1.0, 2.0, 0.0, 1.0])
    loss.set_keys(weight="sample_weight")
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(td)["loss_bc"], loss(td)["loss_bc"])


def test_half_precision_keeps_its_dtype():
    loss = make(BCLoss).to(torch.bfloat16)
    td = batch(BCLoss, [1.0, 2.0, 0.0, 1.0])
    td["action_chunk"] = td["action_chunk"].to(torch.bfloat16)
    loss.set_keys(weight="sample_weight")
    value = loss(td)["loss_bc"]
    exact = make(BCLoss)
    exact.set_keys(weight="sample_weight")
    wanted = exact(batch(BCLoss, [1.0, 2.0, 0.0, 1.0]))["loss_bc"]
    assert value.dtype == torch.bfloat16
    assert value.item() == pytest.approx(wanted.item(), rel=0.03)  # 8 bits a term
