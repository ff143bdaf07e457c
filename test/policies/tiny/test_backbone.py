from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import NonTensorData, NonTensorStack, TensorDict

from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
    MissingKeyError,
    ObservationKeys,
    SchemaError,
    UnknownInstructionError,
)

TEXTS = ("reach the red block", "open the door", "push it left")


def backbone(**options) -> TinyBackbone:
    torch.manual_seed(0)
    keys = {name: options.pop(name) for name in ("image", "state") if name in options}
    sizes = {"state_dim": 5, "hidden": 32, "text_dim": 16, "text_max_bytes": 32}
    config = BackboneConfig(**{**sizes, **options})
    return TinyBackbone(6, config, ObservationKeys(**keys))


def batch(n: int, texts=TEXTS) -> TensorDict:
    image = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8)
    return TensorDict(
        {
            "observation": {"image": image, "state": torch.randn(n, 5)},
            "language_instruction": NonTensorStack(
                *[texts[i % len(texts)] for i in range(n)]
            ),
        },
        [n],
    )


def with_ids(td: TensorDict, table: InstructionTable) -> TensorDict:
    return td.clone().set(INSTRUCTION_KEY, table.encode(td.get(INSTRUCTION_KEY)))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """How many threads share the rows of a matrix product."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(n=st.integers(1, 40), data=st.data())
def test_a_row_does_not_depend_on_the_rows_beside_it_to_the_last_bit(threads, n, data):
    torch.manual_seed(n)
    net, td = backbone(), batch(n)
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    with torch.no_grad():
        assert torch.equal(net(td)[rows], net(td[torch.tensor(rows)]))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 10, 11, 12, 17, 33])
def test_one_row_alone_and_in_a_batch_has_the_same_bits(threads, n):
    net, td = backbone(), batch(1)
    with torch.no_grad():
        alone, many = net(td), net(td[torch.zeros(n, dtype=torch.int64)])
    assert torch.equal(many, alone.expand(n, -1))


def test_ids_and_text_of_one_instruction_are_the_same_to_it():
    net, td = backbone(), batch(10)
    by_text = net(td)
    # A table in another order, with a text that no row uses.
    net.instructions = InstructionTable(["wave", *reversed(TEXTS)])
    assert torch.equal(net(with_ids(td, net.instructions)), by_text)
    assert torch.equal(net(td), by_text)


def test_one_text_for_a_single_row_and_for_every_row():
    net = backbone()
    td = batch(3, texts=TEXTS[:1])
    expected = net(td)
    td.set(INSTRUCTION_KEY, NonTensorData(TEXTS[0], batch_size=[3]))
    assert torch.equal(net(td), expected)
    row = td[0]
    assert row.batch_size == ()
    assert torch.equal(net(row), expected[0])


def test_texts_are_encoded_once_each_however_many_rows_there_are():
    net, seen = backbone(), []
    net.text.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    many = batch(100)
    net(many)
    net.instructions = InstructionTable(TEXTS)
    net(with_ids(many, net.instructions))
    assert seen == [8, 8]  # three texts, filled up to eight rows
    big = InstructionTable([f"text {i}" for i in range(200)])
    net.instructions = big
    few = batch(10, texts=("text 7",))
    net(with_ids(few, big))
    assert seen[2:] == [16]  # a table longer than the batch: only the batch's rows


def test_a_table_that_grows_is_read_again():
    table = InstructionTable(TEXTS[:1])
    net, td = backbone(), batch(4, texts=TEXTS[:1])
    net.instructions = table
    assert net.instructions is table
    net(with_ids(td, table))
    later = batch(4, texts=TEXTS[1:2])
    expected = net(later)
    assert torch.equal(net(with_ids(later, table)), expected)


def test_ids_without_a_table_say_where_to_get_one():
    td = with_ids(batch(2), InstructionTable())
    with pytest.raises(
        UnknownInstructionError,
        match=r"^TinyBackbone: expected a table for the instruction ids at "
        r"'language_instruction', got none\. Set policy\.instructions = "
        r"env\.instructions \(or the dataset's\)\.$",
    ):
        backbone()(td)


def test_ids_of_another_table_are_never_another_text():
    net = backbone()
    net.instructions = InstructionTable(["wave"])
    with pytest.raises(
        UnknownInstructionError, match=r"expected ids of \['wave'\], got"
    ):
        net(with_ids(batch(2), InstructionTable()))


def test_one_id_per_row():
    net, td = backbone(), batch(2)
    net.instructions = InstructionTable(TEXTS)
    td = with_ids(td, net.instructions)
    td.set(INSTRUCTION_KEY, td[INSTRUCTION_KEY].unsqueeze(-1))
    with pytest.raises(
        SchemaError,
        match=r"expected one id per env index at 'language_instruction', shape "
        r"\[2\], got \[2, 1\]",
    ):
        net(td)


def test_tokens_of_a_language_model_are_refused_with_the_way_out():
    td = batch(2).set(INSTRUCTION_KEY, torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(SchemaError, match=r"no tokens \[\*B, L\].*give it the text"):
        backbone()(td)


def test_one_text_per_row():
    td, (one, other, _) = batch(2), TEXTS
    two = NonTensorStack(one, other)
    td.set(INSTRUCTION_KEY, NonTensorStack(two, two))
    with pytest.raises(
        SchemaError,
        match=r"^TinyBackbone: expected one text per env index at "
        r"'language_instruction', got 4 for a batch \[2\]\.$",
    ):
        backbone()(td)


def test_a_missing_instruction_is_named():
    with pytest.raises(
        MissingKeyError,
        match=r"^TinyBackbone: expected an instruction at 'language_instruction', got "
        r"only \[.*\]\. Name another key, or build the policy without this input\.$",
    ):
        backbone()(batch(4).exclude(INSTRUCTION_KEY))


@pytest.mark.parametrize(
    ("key", "what"), [(IMAGE_KEY, "an image"), (STATE_KEY, "a state")]
)
def test_a_missing_input_is_named(key, what):
    td = batch(2)
    del td[key]
    with pytest.raises(MissingKeyError, match=rf"expected {what} at \('observation', "):
        backbone()(td)


@pytest.mark.parametrize(
    "state",
    [torch.zeros(2, 4), torch.zeros(2, 1, 5), torch.zeros(2, 5, dtype=torch.int64)],
)
def test_a_state_of_another_size_or_dtype_is_refused(state):
    td = batch(2)
    td[STATE_KEY] = state
    with pytest.raises(
        SchemaError,
        match=r"^TinyBackbone: expected a float state \[2, 5\] at \('observation', "
        r"'state'\), got torch\..*\. Build the policy with state_dim equal to the last "
        r"dimension, and check the tensordict's batch_size\.$",
    ):
        backbone()(td)


def test_a_state_dim_that_is_not_given_is_that_of_the_first_call():
    net, td = backbone(state_dim=None), batch(2)
    assert net(td).shape == (2, 6)
    assert net.state.in_features == 5
    td[STATE_KEY] = torch.zeros(2, 4)
    with pytest.raises(SchemaError, match=r"float state \[2, 5\]"):
        net(td)


def test_a_double_state_is_read_in_the_precision_of_the_weights():
    net, td = backbone(), batch(2)
    expected = net(td)
    td[STATE_KEY] = td[STATE_KEY].double()
    assert torch.equal(net(td), expected)


@pytest.mark.parametrize(
    "shape", [(2, 3, 16), (3, 16, 16), (2, 1, 3, 16, 16), (1, 3, 16, 16)]
)
def test_images_have_the_batch_of_the_tensordict(shape):
    net = backbone()
    td = batch(2).exclude(IMAGE_KEY)
    observation = TensorDict({"state": td[STATE_KEY]})  # no batch size: any image fits
    observation["image"] = torch.zeros(shape, dtype=torch.uint8)
    bare = TensorDict({"language_instruction": td.get(INSTRUCTION_KEY)}, [2])
    bare._set_str("observation", observation, validated=True, inplace=False)
    with pytest.raises(
        SchemaError, match=r"expected images \[\*B, C, h, w\] with \*B = \[2\] at"
    ):
        net(bare)


def test_a_policy_for_one_image_names_the_cameras_that_it_got_instead():
    td = batch(2)
    image = td[IMAGE_KEY]
    td[IMAGE_KEY] = TensorDict({"wrist": image, "front": image}, [2])
    with pytest.raises(
        SchemaError,
        match=r"expected one image at \('observation', 'image'\), got cameras "
        r"\['front', 'wrist'\]\. Build the policy with cameras=\('front', 'wrist'\)",
    ):
        backbone()(td)


def test_cameras_are_neither_dropped_nor_made_up():
    net = backbone(cameras=("front", "wrist"))
    td = batch(2)
    image = td[IMAGE_KEY]
    with pytest.raises(
        SchemaError,
        match=r"expected cameras \('front', 'wrist'\) at \('observation', 'image'\), "
        r"got a single image \[2, 3, 16, 16\]\. None is dropped or made up",
    ):
        net(td)
    for names in (("front",), ("front", "wrist", "top"), ("front", "top")):
        td[IMAGE_KEY] = TensorDict(dict.fromkeys(names, image), [2])
        with pytest.raises(
            SchemaError, match=rf"got \[{', '.join(map(repr, sorted(names)))}\]"
        ):
            net(td)


def test_each_camera_has_its_own_eye_and_keeps_its_name():
    net, td = backbone(cameras=("front", "wrist")), batch(2)
    one, other = td[IMAGE_KEY], td[IMAGE_KEY].flip(0)
    td[IMAGE_KEY] = TensorDict({"front": one, "wrist": other}, [2])
    expected = net(td)
    td[IMAGE_KEY] = TensorDict(
        {"wrist": other, "front": one}, [2]
    )  # order of no matter
    assert torch.equal(net(td), expected)
    td[IMAGE_KEY] = TensorDict({"front": other, "wrist": one}, [2])
    assert not torch.allclose(net(td), expected, atol=1e-4)


def test_an_empty_batch_gives_an_empty_answer():
    net = backbone()
    net.instructions = InstructionTable(TEXTS)
    td = with_ids(batch(2), net.instructions)
    assert net(td[:0]).shape == (0, 6)


def test_every_weight_gets_a_gradient():
    net = backbone()
    net(batch(6)).square().sum().backward()
    without = [
        n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert without == []
