from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from tiny_options import make_tiny
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiStepActorWrapper, select_decisions
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA, TinyVLA, TokenSampling
from torchrl_vla.schema import InstructionTable, MissingKeyError
from torchrl_vla.tokenizers import UniformActionTokenizer

H, A, S = 4, 3, 5
TEXTS = ("reach the red block", "open the door")
SMALL = {"hidden": 32, "text_dim": 16, "text_max_bytes": 32}


def tiny(**options) -> TinyVLA:
    torch.manual_seed(0)
    arguments = {"action_dim": A, "chunk_size": H, "state_dim": S, **SMALL}
    return make_tiny(TinyVLA, **{**arguments, **options})


def tiny_tokens(**options) -> TinyTokenVLA:
    torch.manual_seed(0)
    arguments = {"action_dim": A, "chunk_size": H, "state_dim": S, **SMALL}
    tokenizer = UniformActionTokenizer(7, low=-1.0, high=1.0)
    return make_tiny(
        TinyTokenVLA, **{**arguments, "action_tokenizer": tokenizer, **options}
    )


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


def id_batch(n: int) -> tuple[TensorDict, InstructionTable]:
    td, table = batch(n), InstructionTable(TEXTS)
    ids = table.encode(td.get("language_instruction"))
    return td.set("language_instruction", ids), table


def ask(policy, td: TensorDict) -> TensorDict:
    with torch.no_grad():
        return policy(td.copy())


def judge(policy, td: TensorDict) -> torch.Tensor:
    """What the head says, before a choice of tokens hides small differences."""
    with torch.no_grad():
        if isinstance(policy, TinyTokenVLA):
            return policy.predict_logits(td)
        return policy.predict_chunk(td)


both_heads = pytest.mark.parametrize("make", [tiny, tiny_tokens])


@both_heads
@pytest.mark.parametrize("what", ["image", "state", "instruction"])
def test_each_input_changes_the_output_of_its_row_alone(make, what):
    policy, td = make(), batch(4)
    changed = td.clone()
    if what == "image":
        changed["observation", "image"][1] = 255 - td["observation", "image"][1]
    elif what == "state":
        changed["observation", "state"][1] += 1.0
    else:
        texts = [TEXTS[0], "close the drawer", TEXTS[0], TEXTS[1]]
        changed.set("language_instruction", NonTensorStack(*texts))
    difference = (judge(policy, td) - judge(policy, changed)).abs().amax((1, 2))
    difference = difference.flatten(1).amax(1) if difference.ndim > 1 else difference
    assert difference[1] > 1e-3
    assert (difference[[0, 2, 3]] == 0).all()


@both_heads
def test_each_camera_changes_the_output(make):
    policy, td = make(cameras=("front", "wrist")), batch(2)
    image = td["observation", "image"]
    td["observation", "image"] = TensorDict({"front": image, "wrist": image}, [2])
    before = judge(policy, td)
    for camera in ("front", "wrist"):
        changed = td.clone()
        changed["observation", "image", camera] = 255 - image
        assert (judge(policy, changed) - before).abs().max() > 1e-3, camera


@both_heads
def test_a_policy_without_cameras_does_not_read_images(make):
    policy, td = make(cameras=()), batch(3)
    assert policy.in_keys == [("observation", "state"), "language_instruction"]
    blind = td.exclude(("observation", "image"))
    assert torch.equal(judge(policy, blind), judge(policy, td))


@both_heads
def test_a_policy_without_a_state_does_not_read_it(make):
    policy, td = make(state_key=None, state_dim=None), batch(3)
    assert policy.in_keys == [("observation", "image"), "language_instruction"]
    numb = td.exclude(("observation", "state"))
    assert torch.equal(judge(policy, numb), judge(policy, td))


@both_heads
def test_inputs_lie_where_the_keys_say(make):
    policy = make(image_key=("cam", "top"), state_key="pose", instruction_key="task")
    td, expected = batch(3), judge(make(), batch(3))
    moved = TensorDict(
        {
            "cam": {"top": td["observation", "image"]},
            "pose": td["observation", "state"],
            "task": td.get("language_instruction"),
        },
        [3],
    )
    assert torch.equal(judge(policy, moved), expected)
    with pytest.raises(MissingKeyError, match=r"an instruction at 'task', got only"):
        policy(td)


@both_heads
@given(
    shape=st.sampled_from([(), (1,), (6,), (2, 3), (3, 2), (1, 6, 1), (3, 1, 2)]),
    by_ids=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_any_leading_batch_dimensions_give_the_flat_answer(make, shape, by_ids):
    td, table = id_batch(6) if by_ids else (batch(6), None)
    policy = make(instructions=table)
    flat = ask(policy, td)
    shaped = td[0] if shape == () else td[:1] if shape == (1,) else td.reshape(shape)
    answer = ask(policy, shaped)
    n = shaped.batch_size.numel()
    for key in policy.out_keys:
        value = answer[key]
        assert value.shape == (*shape, *flat[key].shape[1:])
        assert torch.equal(value.reshape(n, *flat[key].shape[1:]), flat[key][:n])


@both_heads
def test_ids_and_text_give_the_same_answer(make):
    by_id, table = id_batch(6)
    policy = make(instructions=table)
    answer, other = ask(policy, batch(6)), ask(policy, by_id)
    for key in policy.out_keys:
        assert torch.equal(answer[key], other[key])


@both_heads
def test_instructions_may_be_set_later(make):
    policy = make()
    assert policy.instructions is None
    td, table = id_batch(2)
    policy.instructions = table
    assert policy.instructions is table
    assert torch.equal(judge(policy, td), judge(policy, batch(2)))


@both_heads
def test_the_observation_stays_as_it_was(make):
    policy, td = make(), batch(3)
    before = td.clone()
    after = policy(td)
    assert after is td
    for key in (("observation", "image"), ("observation", "state")):
        assert torch.equal(td[key], before[key])
    assert set(td.keys()) == {*before.keys(), *policy.out_keys}


def test_the_chunk_has_a_gradient_and_the_declared_sizes():
    policy = tiny()
    chunk = policy(batch(2))["action_chunk"]
    assert chunk.shape == (2, H, A) == (2, policy.chunk_size, policy.action_dim)
    assert chunk.dtype == torch.float32
    assert chunk.requires_grad


def test_tokens_are_those_of_the_tokenizer():
    policy = tiny_tokens()
    logits = judge(policy, batch(2))
    assert policy.vocab_size == 7
    assert logits.shape == (2, H, A, 7)
    td = ask(policy, batch(2))
    assert torch.equal(td["action_tokens"], logits.argmax(-1))
    decoded = policy.action_tokenizer.decode(td["action_tokens"])
    assert torch.equal(td["action_chunk"], decoded)


@both_heads
def test_the_compiled_policy_equals_the_eager_one_without_a_graph_break(make):
    td, table = id_batch(8)
    policy = make(instructions=table)
    compiled = torch.compile(policy, fullgraph=True, backend="aot_eager")
    got, expected = ask(compiled, td), ask(policy, td)
    for key in policy.out_keys:
        assert torch.equal(got[key], expected[key]), key


def test_the_compiled_log_prob_and_its_gradient_equal_the_eager_ones():
    td, table = id_batch(8)
    policy = tiny_tokens(instructions=table)
    td = ask(policy, td)
    compiled = torch.compile(policy.log_prob, fullgraph=True, backend="aot_eager")
    weights = tuple(policy.parameters())
    expected = torch.autograd.grad(policy.log_prob(td).sum(), weights)
    value = compiled(td)
    assert torch.equal(value, td["log_probs"])
    for one, other in zip(torch.autograd.grad(value.sum(), weights), expected):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_default_size_is_what_the_documentation_says():
    policy = TinyVLA(action_dim=7, chunk_size=8, backbone=BackboneConfig(state_dim=8))
    count = sum(p.numel() for p in policy.parameters())
    assert 0.5e6 < count < 0.7e6


@both_heads
def test_a_copy_answers_alike_and_learns_alone(make):
    td, table = id_batch(3)
    policy = make(instructions=table)
    other = copy.deepcopy(policy)
    before = judge(policy, td)
    assert torch.equal(judge(other, td), before)
    with torch.no_grad():
        other.backbone.out.bias += 1.0
    assert torch.equal(judge(policy, td), before)
    assert not torch.equal(judge(other, td), before)


def test_a_state_dim_left_open_is_learned_from_the_first_call():
    policy = make_tiny(TinyVLA, action_dim=A, chunk_size=H, **SMALL)
    assert policy(batch(2))["action_chunk"].shape == (2, H, A)
    assert policy.backbone.state.in_features == S


def test_it_imitates_what_only_the_instruction_tells_apart():
    td, table = id_batch(8)
    td["observation", "image"][:] = 128
    td["observation", "state"][:] = 0.0
    td["action_chunk"] = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0).view(
        8, 1, 1
    ) * torch.ones(8, H, A)
    td["action_is_pad"] = torch.zeros(8, H, dtype=torch.bool)
    policy = tiny(instructions=table)
    loss = BCLoss(policy, loss_function="l2")
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss(td)["loss_bc"].backward()
        optimizer.step()
    chunk = judge(policy, td)
    assert (chunk.sign() == td["action_chunk"]).all()
    assert (chunk - td["action_chunk"]).abs().max() < 0.3


def collected(n: int) -> tuple[TinyTokenVLA, TensorDict]:
    """Tokens sampled as an executor asks for them: in batches of other sizes."""
    td, table = id_batch(n)
    policy = tiny_tokens(instructions=table)
    with set_interaction_type(InteractionType.RANDOM):
        parts = [ask(policy, td[:1]), ask(policy, td[1:4]), ask(policy, td[4:])]
    td = torch.cat(parts)
    td["advantage"] = torch.linspace(-2.0, 2.0, n).unsqueeze(-1) + 0.1
    return policy, td


def ppo(policy, **options) -> ClipPPOLoss:
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False, **options)
    loss.set_keys(
        action="action_tokens", sample_log_prob="log_probs", advantage="advantage"
    )
    return loss


def test_ppo_with_unchanged_weights_has_ratio_one_and_clips_nothing():
    policy, td = collected(21)
    assert td["log_probs"].dtype == torch.float32
    assert torch.equal(policy.log_prob(td), td["log_probs"])
    out = ppo(policy, reduction="none")(td.copy())
    # -ratio * advantage is -advantage, bit for bit, only if each ratio is exactly 1.
    assert torch.equal(out["loss_objective"].flatten(), -td["advantage"].flatten())
    assert (out["clip_fraction"] == 0.0).all()
    assert (out["kl_approx"] == 0.0).all()


def test_ppo_has_ratio_one_on_the_decisions_of_a_rollout():
    table = InstructionTable(TEXTS[:1])
    env = ToyVLAEnv(
        A,
        S,
        batch_size=[5],
        max_steps=7,
        instructions=table,
        seed=0,
    )
    env = TransformedEnv(env, InitTracker())
    policy = tiny_tokens(instructions=table)
    executor = MultiStepActorWrapper(policy, replan_interval=3)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        rollout = env.rollout(20, executor, break_when_any_done=False)
    decisions = select_decisions(rollout, chunk_size=H)
    assert len(decisions) == 5 * 8  # steps 0, 3, 6 of two episodes, 0 and 3 of a third
    decisions["advantage"] = torch.linspace(-2.0, 2.0, 40).unsqueeze(-1)
    loss = ppo(policy, reduction="none")
    for minibatch in decisions[torch.randperm(40)].split(9):
        out = loss(minibatch.copy())
        expected = -minibatch["advantage"].flatten()
        assert torch.equal(out["loss_objective"].flatten(), expected)
        assert (out["clip_fraction"] == 0.0).all()


def test_ppo_has_the_policy_gradient():
    policy, td = collected(21)
    loss = ppo(policy)
    weights = [p for p in loss.parameters() if p.requires_grad]
    out = loss(td.copy())
    got = torch.autograd.grad(out["loss_objective"], weights)
    assert len(weights) == len(list(policy.parameters()))
    # At ratio 1 the gradient is that of -mean(advantage * log_prob).
    surrogate = -(td["advantage"].squeeze(-1) * policy.log_prob(td)).mean()
    expected = torch.autograd.grad(surrogate, list(policy.parameters()))
    assert all(gradient.any() for gradient in got)
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_ppo_sees_weights_that_changed():
    policy, td = collected(21)
    loss = ppo(policy)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    out = loss(td.copy())
    assert out["clip_fraction"] > 0
    assert out["kl_approx"] != 0


def test_a_folder_keeps_how_tokens_are_drawn(tmp_path):
    mask = torch.tensor([True, False, True, True, True, False, True])
    policy = tiny_tokens(allowed_tokens=mask)
    policy.sampling = TokenSampling(temperature=0.5, top_k=3)
    policy.to_folder(tmp_path)
    again = TinyTokenVLA.from_folder(tmp_path)
    assert again.sampling == policy.sampling
    assert torch.equal(again.allowed_tokens, mask)
    with set_interaction_type(InteractionType.RANDOM):
        td = ask(policy, batch(5))
    assert torch.equal(again.log_prob(td), td["log_probs"])
    again.sampling = None
    again.to_folder(tmp_path)
    plain = TinyTokenVLA.from_folder(tmp_path)
    assert plain.sampling is None


def test_the_compiled_controlled_log_prob_equals_the_eager_one():
    td, table = id_batch(8)
    mask = torch.arange(7) != 3
    policy = tiny_tokens(
        instructions=table, sampling=TokenSampling(0.7, 4, 0.9), allowed_tokens=mask
    )
    with set_interaction_type(InteractionType.RANDOM):
        td = ask(policy, td)
    compiled = torch.compile(policy.log_prob, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(td), td["log_probs"])
