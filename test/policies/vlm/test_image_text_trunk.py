import pytest
import torch
from tiny_vlms import KINDS, make_observations, tiny_trunk

EVERY = (*KINDS, "gemma3")
WITH_IMAGES = tuple(kind for kind in EVERY if kind != "causal")


def reference(trunk, data, row):
    """What the model's own forward pass makes of its own processor's answer."""
    images = [data["observation", "image", c][row] for c in trunk.config.cameras]
    text = trunk.processor._image_text * len(images) + data["language_instruction"][row]
    found = trunk.processor.processor(text=[text], images=[images], return_tensors="pt")
    found = {name: value for name, value in found.items() if name != "labels"}
    return trunk.model.base_model(**found).last_hidden_state[0]


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_a_padded_prefix_equals_the_model_s_own_forward_pass(kind):
    trunk = tiny_trunk(kind, attention="eager")
    data = make_observations(3)
    with torch.no_grad():
        prefix = trunk.encode(data)
        for row in range(3):
            tokens = prefix.states[row][prefix.mask[row]]
            torch.testing.assert_close(tokens, reference(trunk, data, row))
    assert not prefix.mask.all(1).any()  # each row has padding


@pytest.mark.parametrize("kind", EVERY)
def test_a_row_does_not_depend_on_the_rows_beside_it_in_the_last_bit(kind):
    trunk, data = tiny_trunk(kind), make_observations(5)
    together = trunk.encode(data)
    with torch.no_grad():
        for rows in ([0], [3, 1], [4, 2, 0]):
            alone = trunk.encode(data[rows])
            assert torch.equal(alone.states, together.states[rows])
            for ours, theirs in zip(alone.cache, together.cache):
                assert all(torch.equal(a, b[rows]) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("kind", EVERY)
def test_tokens_behind_a_cached_prefix_equal_those_of_one_pass(kind):
    trunk, data = tiny_trunk(kind, attention="eager"), make_observations(2)
    tokens = torch.tensor([[7, 301, 12], [302, 9, 11]])
    with torch.no_grad():
        prefix = trunk.encode(data)
        at_once, longer = trunk.extend(prefix, trunk.embed(tokens), causal=True)
        states = []
        for step in range(3):
            token = trunk.embed(tokens[:, step : step + 1])
            state, prefix = trunk.extend(prefix, token, causal=True)
            states.append(state)
    torch.testing.assert_close(torch.cat(states, 1), at_once)
    assert torch.equal(prefix.mask, longer.mask)
    assert torch.equal(prefix.positions, longer.positions)


def test_tokens_see_no_padding_and_no_later_token():
    trunk, data = tiny_trunk("smolvlm"), make_observations(2)
    prefix = trunk.encode(data)
    new = torch.randn(2, 3, trunk.hidden_size, requires_grad=True)
    states, _ = trunk.extend(prefix, new, causal=True)
    (gradient,) = torch.autograd.grad(states[:, 1].sum(), new)
    assert gradient[:, :2].abs().sum((0, 2)).min() > 0
    assert torch.equal(gradient[:, 2], torch.zeros_like(gradient[:, 2]))
    keys = prefix.cache[1][0]
    (gradient,) = torch.autograd.grad(
        trunk.extend(prefix, new, causal=True)[0].sum(), keys
    )
    is_pad = ~prefix.mask[:, None, :, None].expand_as(gradient)
    assert not gradient[is_pad].any()
    assert gradient[~is_pad].all(-1).any()


def test_without_order_all_new_tokens_see_each_other_but_no_padding_of_them():
    trunk, data = tiny_trunk("smolvlm"), make_observations(2)
    prefix = trunk.encode(data)
    new = torch.randn(2, 3, trunk.hidden_size, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    states, longer = trunk.extend(prefix, new, causal=False, mask=mask)
    (gradient,) = torch.autograd.grad(states[:, 0].sum(), new)
    seen = gradient.abs().sum(-1) > 0
    assert torch.equal(seen, mask)
    assert longer.positions.tolist() == (prefix.positions + mask.sum(1)).tolist()


@pytest.mark.parametrize("state", ["token", "text"])
def test_the_state_is_read_behind_the_prompt(state):
    trunk = tiny_trunk("smolvlm", state=state, state_dim=3)
    data = make_observations(2)
    before = trunk.encode(data)
    data["observation", "state"] = data["observation", "state"] + 1.0
    after = trunk.encode(data)
    length = trunk.prompt_length
    assert torch.equal(before.states[:, :length], after.states[:, :length])
    assert not torch.equal(before.states[:, length:], after.states[:, length:])
    assert before.states.shape[1] > length


def test_float_images_are_read_as_the_bytes_they_came_from():
    trunk, data = tiny_trunk("smolvlm"), make_observations(2)
    expected = trunk.encode(data).states
    for camera in ("a", "b"):
        key = ("observation", "image", camera)
        data[key] = data[key] / 255
    assert torch.equal(trunk.encode(data).states, expected)


def test_in_bfloat16_the_trunk_returns_float32():
    data = make_observations(2)
    prefix = tiny_trunk("smolvlm", precision="bfloat16").encode(data)
    exact = tiny_trunk("smolvlm").encode(data)
    assert prefix.states.dtype == torch.float32
    assert 0 < (prefix.states - exact.states).abs().max() < 0.3
