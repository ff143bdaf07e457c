from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.schema import (
    ExecutionError,
    MissingKeyError,
    SchemaError,
    VLAError,
    check_actions,
    describe_place,
    read_action,
    round_actions,
)


def check_chunk(chunk):
    return check_actions(
        "Demo", "plan", chunk, chunk.shape[:-2], (None, None), error=ExecutionError
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_becomes_float32_with_its_value(dtype):
    action = torch.tensor([[0.5, -0.25]], dtype=dtype)
    read = read_action("Demo", TensorDict({"action": action}), [1], 2)
    assert read.dtype == torch.float32
    assert read.tolist() == [[0.5, -0.25]]


def test_finite_numbers_pass_integers_too():
    for chunk in (torch.zeros(2, 3, 1), torch.ones(3, 1, dtype=torch.int64)):
        check_chunk(chunk)
    check_chunk(torch.zeros(0, 3, 1))


def test_a_float64_that_float32_cannot_hold_is_refused():
    with pytest.raises(SchemaError, match=r"got 1e\+300 at env index 0, dimension 1"):
        check_actions(
            "Demo",
            "action",
            torch.tensor([[0.0, 1e300]], dtype=torch.float64),
            [1],
            [2],
        )


@pytest.mark.parametrize(
    "shape", [(2, 1), (2, 1, 4), (4,), (1, 4), (3, 4), (2, 5), (2, 0), ()]
)
def test_another_shape_is_refused_and_both_are_named(shape):
    with pytest.raises(SchemaError, match=r"\*B = \[2\], A = 4 at 'action', got ") as e:
        check_actions("Demo", "action", torch.zeros(shape), [2], [4])
    assert f"got {list(shape)}." in str(e.value)


def test_a_chunk_of_any_length_has_at_least_one_action():
    with pytest.raises(
        ExecutionError, match=r"a chunk .* \*B = \[2\] at 'plan', got \[2, 0, 1\]"
    ):
        check_chunk(torch.zeros(2, 0, 1))


@pytest.mark.parametrize(
    "action",
    [
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 1, dtype=torch.complex64),
        torch.ones(1, 1, device="meta"),
        [[0.0]],
        None,
    ],
)
def test_what_is_no_tensor_of_real_numbers_is_refused(action):
    with pytest.raises(SchemaError, match="expected a tensor of real numbers at 'act"):
        check_actions("Demo", "action", action, [1], [1])


def test_the_first_places_are_named_and_the_others_counted():
    chunk = torch.zeros(2, 6, 1)
    chunk[1, :5] = torch.nan
    chunk[1, 5] = -torch.inf
    with pytest.raises(
        ExecutionError, match=r"^Demo: expected finite.* at 'plan'"
    ) as e:
        check_chunk(chunk)
    assert "nan at env index 1, step 0, dimension 0; nan at env index 1, st" in str(
        e.value
    )
    assert "-inf at env index 1, step 5, dimension 0. Look" in str(e.value)
    assert e.value.env_indices == (1,)
    with pytest.raises(ExecutionError, match="dimension 1; 4 more"):
        check_chunk(torch.full((6, 2), torch.nan))


def test_rows_that_are_not_executed_may_hold_anything():
    action = torch.tensor([[torch.nan], [1.0]])
    rows = torch.tensor([[False], [True]])
    step = TensorDict({"action": action})
    assert read_action("Demo", step, [2], 1, rows=rows) is action
    with pytest.raises(SchemaError, match="nan at env index 0, dimension 0"):
        check_actions("Demo", "action", action, [2], [1], rows=~rows)


def test_an_index_without_a_batch_has_no_environment():
    assert describe_place([4, 1]) == "step 4, dimension 1"
    assert describe_place([2, 3, 4, 1]) == "env index 2, 3, step 4, dimension 1"
    assert describe_place([2, 1], has_steps=False) == "env index 2, dimension 1"


def test_integer_actions_are_rounded_and_never_clipped():
    rounded = round_actions("Demo", torch.tensor([[1.9], [-0.4]]), [0], [2])
    assert rounded.tolist() == [[2.0], [0.0]]
    with pytest.raises(SchemaError, match=r"got 2\.5\d* at env index 1, dimension 0"):
        round_actions("Demo", torch.tensor([[2.4], [2.51]]), [0], [2])


def test_a_step_without_an_action_is_told_what_to_do_with_its_chunk():
    step = TensorDict({"action_chunk": torch.zeros(1, 4, 2)}, [1])
    with pytest.raises(
        MissingKeyError,
        match=r"'action' \[\*B, A\], got only \['action_chunk'\].*space\.exec",
    ):
        read_action("Demo", step, [1], 2)
    with pytest.raises(MissingKeyError, match="Check its out_keys"):
        read_action("Demo", TensorDict({}, [1]), [1], 2)


dtypes = st.sampled_from(
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ]
)


@settings(deadline=None)
@given(
    dtypes,
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([0.0, -1.5, 1e30, float("nan"), float("inf")]),
    st.sampled_from([[], [2], [2, 3]]),
)
def test_an_action_passes_with_its_values_or_is_refused(dtype, shape, value, batch):
    action = torch.zeros(shape, dtype=torch.float64)
    if action.numel():
        action.view(-1)[-1] = value
    action = action.nan_to_num().to(dtype) if not dtype.is_floating_point else action
    action = action.to(dtype)
    try:
        read = read_action("Demo", TensorDict({"action": action}), batch, 3)
    except VLAError:
        legal = shape == [*batch, 3] and bool(action.isfinite().all())
        assert not (legal and dtype not in (torch.bool, torch.complex64))
    else:
        assert list(read.shape) == [*batch, 3]
        assert read.dtype == torch.float32
        assert read.isfinite().all()
        assert torch.equal(read, action.to(torch.float32))
