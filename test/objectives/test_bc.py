from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.schema import InstructionTable, MissingKeyError, SchemaError
from torchrl_vla.testing import check_loss


class Echo(nn.Module):
    """Predicts ``weight * prediction``, so that the expected loss is arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, prediction):
        return self.weight * prediction


def echo_loss(**options) -> BCLoss:
    return BCLoss(TensorDictModule(Echo(), ["prediction"], ["action_chunk"]), **options)


def batch(pad=((False, False), (False, True))) -> TensorDict:
    pad = torch.tensor(pad)
    return TensorDict(
        {
            "prediction": torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]]),
            "action_chunk": torch.tensor([[[1.0], [4.0]], [[2.0], [500.0]]]),
            "action_is_pad": pad,
        },
        batch_size=[2],
    )


@pytest.mark.parametrize(
    ("loss_function", "expected"),
    [
        ("l1", (1 + 3 + 0) / 3),
        ("l2", (1 + 9 + 0) / 3),
        (None, (1 + 9 + 0) / 3),
        ("smooth_l1", (0.5 + 2.5 + 0) / 3),
        (lambda prediction, target: (prediction - target) * 2, (-2 - 6 + 0) / 3),
    ],
)
def test_the_mean_is_over_valid_elements(loss_function, expected):
    loss = echo_loss(loss_function=loss_function)(batch())["loss_bc"]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_the_sum_is_over_valid_elements():
    assert echo_loss(loss_function="l1", reduction="sum")(batch())["loss_bc"] == 4.0


def test_no_reduction_returns_the_valid_elements():
    loss = echo_loss(loss_function="l1", reduction="none")(batch())["loss_bc"]
    assert loss.tolist() == [1.0, 3.0, 0.0]


def test_the_keys_of_the_seed_example_change_nothing():
    plain, named = echo_loss(loss_function="l1"), echo_loss(loss_function="l1")
    named.set_keys(action="action_chunk", pad_mask="action_is_pad")
    assert named(batch())["loss_bc"] == plain(batch())["loss_bc"]


def test_other_keys_can_be_named():
    loss = BCLoss(TensorDictModule(Echo(), ["prediction"], ["target"]))
    loss.set_keys(action="target", pad_mask=("info", "past_end"))
    data = batch().rename_key_("action_chunk", "target")
    data["info", "past_end"] = data.pop("action_is_pad")
    torch.testing.assert_close(loss(data)["loss_bc"], torch.tensor(10 / 3))


def test_no_pad_mask_takes_every_element_when_it_is_said():
    loss = echo_loss(loss_function="l1")
    loss.set_keys(pad_mask=None)
    expected = (1 + 3 + 0 + 497) / 4
    assert loss(batch().exclude("action_is_pad"))["loss_bc"] == expected


def test_the_loss_can_be_called_with_tensors():
    data = batch()
    loss = echo_loss(loss_function="l1")
    loss.select_out_keys("loss_bc")
    value = loss(
        prediction=data["prediction"],
        action_chunk=data["action_chunk"],
        action_is_pad=data["action_is_pad"],
    )
    torch.testing.assert_close(value, torch.tensor(4 / 3))


def test_the_batch_is_left_as_it_was():
    data = batch()
    kept = data.clone()
    echo_loss()(data)
    assert (data == kept).all()
    assert set(data.keys()) == set(kept.keys())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["l1", "l2", "smooth_l1"]),
)
def test_padding_has_no_gradient_and_no_influence(flags, loss_function):
    pad = torch.tensor(flags)
    pad[0, 0] = False
    pad = pad | pad[:, :1]  # True at first and False later raises: it is inverted
    generator = torch.Generator().manual_seed(0)
    shape = (*pad.shape, 2)
    prediction = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randn(shape, generator=generator).requires_grad_()
    data = TensorDict(prediction=prediction, action_chunk=target, action_is_pad=pad)
    data.batch_size = pad.shape[:1]
    loss = echo_loss(loss_function=loss_function)
    value = loss(data)["loss_bc"]
    value.backward()
    for gradient in (prediction.grad, target.grad):
        assert (gradient[pad] == 0).all()
        assert (gradient[~pad] != 0).all()
    with torch.no_grad():
        garbage = data.clone()
        garbage["action_chunk"][pad] = torch.nan
    assert loss(garbage)["loss_bc"] == value


def test_nan_under_the_padding_does_not_reach_the_weights():
    data = batch()
    data["action_chunk"][1, 1] = torch.nan
    loss = echo_loss()
    loss(data)["loss_bc"].backward()
    (gradient,) = (p.grad for p in loss.parameters())
    # d/dw mean((w x - y)^2) over (x, y) = (0, 1), (1, 4), (2, 2) at w = 1
    torch.testing.assert_close(gradient, torch.tensor(2 * (0 - 3 + 0) / 3))


def test_a_misspelt_mask_key_raises_and_lists_the_bool_keys():
    loss = echo_loss()
    loss.set_keys(pad_mask="actions_is_pad")
    with pytest.raises(
        MissingKeyError,
        match=r"BCLoss: expected a bool mask \[\*B, H\] at 'actions_is_pad', got none. "
        r"Bool keys in the batch: \['action_is_pad'\]",
    ):
        loss(batch())


def test_a_mask_of_another_dtype_raises_and_explains_the_polarity():
    data = batch()
    data["action_is_pad"] = data["action_is_pad"].float()
    with pytest.raises(
        SchemaError, match=r"dtype bool .* got torch.float32. True = padded"
    ):
        echo_loss()(data)


@pytest.mark.parametrize("shape", [(2, 2, 1), (2,), (2, 3)])
def test_a_mask_of_another_shape_raises(shape):
    data = batch()
    data["action_is_pad"] = torch.zeros(shape, dtype=torch.bool)
    with pytest.raises(SchemaError, match=r"shape \[2, 2\] at 'action_is_pad'"):
        echo_loss()(data)


def test_a_batch_that_is_all_padding_raises():
    data = batch(pad=((True, True), (True, True)))
    with pytest.raises(SchemaError, match=r"padded\) everywhere. Nothing is left"):
        echo_loss()(data)


def test_a_missing_target_raises_and_lists_what_is_there():
    with pytest.raises(MissingKeyError, match=r"at 'action_chunk', got only .*predict"):
        echo_loss()(batch().exclude("action_chunk"))


def test_tokens_are_refused():
    data = batch()
    data["action_chunk"] = data["action_chunk"].long()
    with pytest.raises(SchemaError, match=r"float actions .*int64. Use TokenBCLoss"):
        echo_loss()(data)


def test_a_policy_that_writes_another_key_raises():
    loss = BCLoss(TensorDictModule(Echo(), ["prediction"], ["action"]))
    with pytest.raises(MissingKeyError, match=r"write 'action_chunk', got .*'action'"):
        loss(batch())


def test_a_chunk_of_another_length_raises_instead_of_broadcasting():
    data = batch()
    data["prediction"] = torch.zeros(2, 1, 1)
    with pytest.raises(SchemaError, match=r"prediction \[2, 2, 1\] .* got \[2, 1, 1\]"):
        echo_loss(loss_function="l1")(data)


# tensordict reads a torch option that torch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules:FutureWarning")
def test_the_loss_compiles_to_one_graph():
    loss = echo_loss(loss_function="l1")
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert compiled(batch())["loss_bc"] == loss(batch())["loss_bc"]


def test_cloning_teaches_a_tiny_vla_what_the_instruction_says():
    torch.manual_seed(0)
    table = InstructionTable(["go left", "go right"])
    policy = TinyVLA(
        action_dim=1,
        chunk_size=2,
        instructions=table,
        backbone=BackboneConfig(state_dim=1, cameras=(), hidden=32),
    )
    loss = BCLoss(policy, loss_function="l1")
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    sign = torch.tensor([-1.0, 1.0]).repeat(16)
    data = TensorDict(
        {
            "observation": {"state": torch.rand(32, 1)},
            "language_instruction": table.ids.repeat(16),
            "action_chunk": sign[:, None, None].expand(32, 2, 1),
            "action_is_pad": torch.zeros(32, 2, dtype=torch.bool),
        },
        batch_size=[32],
    )
    for _ in range(60):
        value = loss(data)["loss_bc"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.2  # a policy that cannot read stays at 1
    assert policy(data.clone())["action_chunk"][0].max() < 0  # the weights are shared


@pytest.mark.parametrize("loss_function", ["l1", "l2", "smooth_l1"])
def test_the_loss_keeps_its_contract(loss_function):
    policy = TinyVLA(
        action_dim=2,
        chunk_size=3,
        backbone=BackboneConfig(state_dim=4, cameras=(), hidden=16),
    )
    data = TensorDict(
        {
            "observation": {"state": torch.randn(4, 4)},
            "language_instruction": "pick",
            "action_chunk": torch.randn(4, 3, 2),
            "action_is_pad": torch.arange(3) >= torch.tensor([[3], [2], [1], [3]]),
        },
        batch_size=[4],
    )
    check_loss(BCLoss(policy, loss_function=loss_function), data)


def test_dimensions_that_a_robot_lacks_do_not_count():
    prediction = torch.zeros(2, 1, 2, requires_grad=True)
    data = TensorDict(
        prediction=prediction,
        action_chunk=torch.tensor([[[1.0, torch.nan]], [[3.0, 5.0]]]),
        action_is_pad=torch.zeros(2, 1, dtype=torch.bool),
        absent=torch.tensor([[False, True], [False, False]]),
    )
    for pad_mask in ("action_is_pad", None):
        loss = echo_loss(loss_function="l1")
        loss.set_keys(pad_mask=pad_mask, dim_pad_mask="absent")
        assert "absent" in loss.in_keys
        value = loss(data)["loss_bc"]
        assert value == (1 + 3 + 5) / 3
        (gradient,) = torch.autograd.grad(value, prediction)
        torch.testing.assert_close(
            gradient, torch.tensor([[[-1.0, 0]], [[-1, -1]]]) / 3
        )


def absent_dimensions(mask, key="action_dim_is_pad"):
    return batch().set(key, mask)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            batch(),
            MissingKeyError,
            r"padded dimensions at 'action_dim_is_pad', got none",
        ),
        (absent_dimensions(torch.zeros(2, 1)), SchemaError, r"bool \[2, 1\].*float32"),
        (
            absent_dimensions(torch.zeros(2, 2, dtype=torch.bool)),
            SchemaError,
            r"bool \[2, 1\].*\[2, 2\]",
        ),
        (
            absent_dimensions(torch.tensor([[False], [True]])),
            SchemaError,
            "got one that is True",
        ),
    ],
)
def test_a_mask_of_dimensions_that_cannot_be_one_raises(data, error, message):
    loss = echo_loss()
    loss.set_keys(dim_pad_mask="action_dim_is_pad")
    with pytest.raises(error, match=message):
        loss(data)


def test_padded_dimensions_that_nobody_mentioned_raise():
    data = absent_dimensions(torch.tensor([[False], [False]]))
    with pytest.raises(SchemaError, match=r"a key of padded dimensions.*set_keys"):
        echo_loss()(data)
