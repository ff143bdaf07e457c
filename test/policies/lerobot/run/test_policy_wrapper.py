from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from torch import nn

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
    space_of,
)

H, A, S = 4, 7, 5


class Dummy:
    """Records its batches; returns the state's first number and the step."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def predict_action_chunk(self, batch):
        self.seen.append(batch)
        first = batch["observation.state"][:, 0]
        steps = torch.arange(H).to(first)
        return (10 * first[:, None] + steps)[..., None].expand(-1, -1, A)

    def select_action(self, batch):
        raise AssertionError("a queue that all environments share")


def wrap(policy=None, **options) -> LeRobotPolicyWrapper:
    policy = Dummy() if policy is None else policy
    return LeRobotPolicyWrapper(policy, action_dim=A, chunk_size=H, **options)


def batch(*shape: int, texts=("pick", "place")) -> TensorDict:
    n = torch.Size(shape).numel()
    image = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)
    return TensorDict(
        {
            "observation": {"image": image, "state": torch.randn(n, S)},
            "language_instruction": NonTensorStack(*[texts[i % 2] for i in range(n)]),
        },
        [n],
    ).reshape(shape)


def test_the_policy_sees_lerobots_names_floats_and_a_list_of_tasks():
    wrapper, td = wrap(), batch(3)
    wrapper(td)
    (seen,) = wrapper.policy.seen
    assert set(seen) == {"observation.state", "observation.images.image", "task"}
    assert torch.equal(seen["observation.state"], td["observation", "state"])
    image = seen["observation.images.image"]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, td["observation", "image"] / 255)
    assert seen["task"] == ["pick", "place", "pick"]


def test_float_images_and_named_cameras_pass_as_they_are():
    wrapper, td = wrap(camera_name="top"), batch(2)
    image = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    td["observation", "image"] = image
    assert wrapper.adapter.make_batch(td)["observation.images.top"] is not None
    assert torch.equal(
        wrapper.adapter.make_batch(td)["observation.images.top"], image.float()
    )
    td["observation", "image"] = TensorDict({"front": image, "wrist": 1 - image}, [2])
    seen = wrapper.adapter.make_batch(td)
    assert torch.equal(seen["observation.images.wrist"], (1 - image).float())
    assert "observation.images.top" not in seen


@given(shape=st.lists(st.integers(1, 3), max_size=3).map(tuple))
@settings(max_examples=15, deadline=None)
def test_leading_batch_dimensions_are_flattened_for_it_and_brought_back(shape):
    wrapper, td = wrap(), batch(*shape) if shape else batch(1)[0]
    first = td["observation", "state"][..., 0]
    chunk = wrapper(td)["action_chunk"]
    assert chunk.shape == (*shape, H, A)
    expected = 10 * first[..., None] + torch.arange(H)
    torch.testing.assert_close(chunk, expected[..., None].expand(*shape, H, A))
    n = torch.Size(shape).numel()
    assert len(wrapper.policy.seen[0]["task"]) == n
    assert wrapper.policy.seen[0]["observation.images.image"].shape == (n, 3, 8, 8)


def test_ids_are_decoded_and_need_a_table():
    table, td = InstructionTable(), batch(2, 2)
    ids = table.encode(td.get("language_instruction"))
    td.set("language_instruction", ids)
    assert (
        wrap(instructions=table).adapter.make_batch(td)["task"] == ["pick", "place"] * 2
    )
    with pytest.raises(
        UnknownInstructionError,
        match=r"^LeRobotPolicyWrapper: expected a table for the instruction ids at "
        r"'language_instruction', got none\. Pass instructions=env\.instructions",
    ):
        wrap()(td)
    with pytest.raises(UnknownInstructionError, match=r"expected ids of \['wave'\]"):
        wrap(instructions=InstructionTable(["wave"]))(td)


def test_tokens_of_a_language_model_are_refused_with_the_way_out():
    td = batch(2).set("language_instruction", torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(SchemaError, match=r"no tokens \[\*B, L\].*give it the text"):
        wrap(instructions=InstructionTable(["wave"]))(td)


def test_inputs_that_are_switched_off_are_neither_read_nor_passed():
    wrapper = wrap(lambda b: torch.zeros(2, H, A), use_state=False, image_key=None)
    assert wrapper.in_keys == ["language_instruction"]
    td = batch(2).select("language_instruction")
    assert set(wrapper.adapter.make_batch(td)) == {"task"}
    assert wrapper(td)["action_chunk"].shape == (2, H, A)


@pytest.mark.parametrize("key", [("observation", "image"), ("observation", "state")])
def test_a_missing_input_is_named(key):
    td = batch(2)
    del td[key]
    with pytest.raises(
        MissingKeyError,
        match=r"^LeRobotPolicyWrapper: expected an input at \('observation', "
        rf"'{key[1]}'\), got only \[.*\]\. Name another key, or build the wrapper with "
        r"image_key=None or use_state=False\.$",
    ):
        wrap()(td)


def test_a_missing_instruction_is_named():
    td = batch(2).exclude("language_instruction")
    with pytest.raises(MissingKeyError, match="an input at 'language_instruction'"):
        wrap()(td)


def test_any_callable_is_a_policy_and_predict_fn_goes_before_it():
    td = batch(2)
    ones = wrap(lambda b: torch.ones(2, H, A))
    assert (ones(td)["action_chunk"] == 1).all()

    class Other(Dummy):
        def sample(self, b, scale):
            return torch.full((2, H, A), scale)

    twos = wrap(Other(), predict_fn=lambda policy, b: policy.sample(b, 2.0))
    assert (twos(td)["action_chunk"] == 2).all()


class NoSteps:
    steps = ()


def test_a_pipeline_that_no_batch_would_pass_is_refused():
    pipeline = LeRobotPipeline(NoSteps(), NoSteps())
    with pytest.raises(
        ValueError,
        match=r"^LeRobotPolicyWrapper: expected no pipeline for Dummy, which is called "
        r"with the batch as it is, got one, .*would have no effect\. Leave it out",
    ):
        wrap(pipeline=pipeline)


def test_what_is_none_of_lerobots_has_no_space_and_is_cloned_by_its_chunks(tmp_path):
    wrapper = wrap()
    assert space_of(wrapper) is None
    assert wrapper.cloning_loss == "chunk"
    assert wrapper.to_stochastic() is None
    assert wrapper.wrapper is wrapper
    with pytest.raises(
        SchemaError, match=r"to_folder: expected a policy of LeRobot's .* got Dummy"
    ):
        wrapper.to_folder(tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_a_module_is_called_as_it_is_in_its_mode_and_with_gradients():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(S, H * A)

        def forward(self, b):
            self.was_training = self.training
            return self.linear(b["observation.state"]).unflatten(-1, (H, A))

    net = Net()
    wrapper = wrap(net)
    assert {id(p) for p in wrapper.parameters()} == {id(p) for p in net.parameters()}
    wrapper(batch(2))["action_chunk"].sum().backward()
    assert net.was_training
    assert net.linear.bias.grad.tolist() == [2.0] * (H * A)
    wrapper.eval()(batch(2))
    assert not net.was_training


def test_a_policy_that_only_serves_single_actions_is_refused():
    class Queue:
        def select_action(self, b):
            return torch.zeros(2, A)

    with pytest.raises(
        TypeError,
        match=r"^LeRobotPolicyWrapper: expected a policy with predict_action_chunk"
        r"\(batch\), or a callable, got Queue\. Pass predict_fn=",
    ):
        wrap(Queue())


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(2, A), r"torch\.float32 \[2, 7\]"),
        (torch.zeros(2, H + 1, A), r"torch\.float32 \[2, 5, 7\]"),
        (torch.zeros(2, H, A, dtype=torch.int64), r"torch\.int64 \[2, 4, 7\]"),
        ((torch.zeros(2, H, A), {}), "tuple"),
    ],
)
def test_anything_but_a_float_chunk_is_refused(answer, got):
    with pytest.raises(
        SchemaError,
        match=r"^LeRobotPolicyWrapper: expected a float chunk \[B, H, A\] = "
        rf"\[2, 4, 7\] from function, got {got}\. Pass predict_fn=lambda policy, "
        r"batch: \.\.\. to call it another way, or build the wrapper with its "
        r"chunk_size and action_dim\.$",
    ):
        wrap(lambda b: answer)(batch(2))


@pytest.mark.parametrize(
    ("key", "value", "letters"),
    [
        ("state", torch.zeros(2, 1, S), "S"),
        ("image", torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8), "C, h, w"),
    ],
)
def test_an_input_has_the_batch_of_the_tensordict(key, value, letters):
    td = batch(2)
    td["observation", key] = value
    with pytest.raises(
        SchemaError,
        match=rf"expected \[\*B, {letters}\] with \*B = \[2\] at 'observation\."
        rf".*{key}', got \[2, 1, .*\*B is the tensordict's batch_size\.$",
    ):
        wrap()(td)


def test_images_outside_their_range_are_refused():
    td = batch(2)
    td["observation", "image"] = torch.full((2, 3, 8, 8), 255.0)
    with pytest.raises(
        SchemaError, match=r"^LeRobotPolicyWrapper: expected float images in 0\.\.1"
    ):
        wrap()(td)


def test_an_executor_calls_it_per_environment_and_not_through_its_queue():
    wrapper, td = wrap(), batch(3)
    executor = MultiStepActorWrapper(wrapper)
    first = td["observation", "state"][:, 0].clone()
    starts = [[True, True, True], [False] * 3, [False, True, False], [False] * 3]
    expected = [[0, 0, 0], [1, 1, 1], [2, 0, 2], [3, 1, 3]]
    for start, position in zip(starts, expected):
        step = td.clone().set("is_init", torch.tensor(start).unsqueeze(-1))
        action = executor(step)["action"][:, 0]
        torch.testing.assert_close(action, 10 * first + torch.tensor(position))
    assert [len(seen["task"]) for seen in wrapper.policy.seen] == [3, 1]
