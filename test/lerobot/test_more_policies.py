"""LeRobot's larger policies, on tiny backbones: the facts and the actions."""

from __future__ import annotations

import contextlib
from unittest import mock

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import SIDE, TWO, A, features, lerobot_is_new, observe
from lerobot_streams import Stream, lerobot_actions

from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot.registry import KINDS, NOT_EXERCISED
from torchrl_vla.schema import SchemaError

pytestmark = pytest.mark.lerobot

STEPS, ROWS = 11, 3
NAMES = backbones.here()


@pytest.fixture(scope="module", autouse=True)
def narrow_backbones():
    with backbones.narrow_gemma():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def make(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = backbones.make_checkpoint(name, folder)
        return made[name]

    return make


def load(made, **options) -> LeRobotPolicyWrapper:
    return LeRobotPolicyWrapper.from_pretrained(made.folder, **options)


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_those_of_lerobots_own_loop_bit_for_bit(name, checkpoint):
    made = checkpoint(name)
    observations = observe(made, STEPS, ROWS)
    expected = lerobot_actions(made.folder, observations, seed=11)
    stream = Stream(load(made))
    torch.manual_seed(11)
    for step, (td, action) in enumerate(zip(observations, expected)):
        assert torch.equal(stream.act(td), action), step
    assert len({a.sum().item() for a in expected}) == STEPS  # it does move


@pytest.mark.parametrize("name", NAMES)
def test_two_streams_through_one_policy_are_what_each_is_alone(name, checkpoint):
    made = checkpoint(name)
    policy = load(made)
    streams = [observe(made, STEPS, rows, seed=rows) for rows in (2, 3)]
    alone = []
    for observations in streams:
        stream, actions = Stream(load(made)), []
        for step, td in enumerate(observations):
            torch.manual_seed(step)
            actions.append(stream.act(td))
        alone.append(actions)
    together = [Stream(policy), Stream(policy)]
    for step in range(STEPS):
        for stream, observations, actions in zip(together, streams, alone):
            torch.manual_seed(step)
            assert torch.equal(stream.act(observations[step]), actions[step]), step


def test_sizes_are_read_from_the_checkpoint_and_any_batch_gives_a_chunk(checkpoint):
    facts = {}
    for name in NAMES:
        policy, (td,) = load(checkpoint(name)), observe(checkpoint(name), 1, 4)
        if policy.history_size > 1:
            Stream(policy).history.begin(td)
        facts[name] = (
            tuple(policy(td.reshape(2, 2))["action_chunk"].shape),
            policy.n_action_steps,
            policy.history_size,
            policy.metadata.cameras,
        )
    expected = {
        "multi_task_dit": ((2, 2, 3, A), 3, 2, ("front", "wrist")),
        "xvla": ((2, 2, 8, A), 3, 1, ("front", "wrist")),
        "pi0": ((2, 2, 8, A), 3, 1, ("front", "wrist")),
        "pi05": ((2, 2, 8, A), 3, 1, ()),
    }
    assert facts == {name: expected[name] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_listens_to_the_padding_mask_where_it_is_said_to(name, checkpoint):
    changes = {"do_mask_loss_for_padding": True} if name == "multi_task_dit" else {}
    for overrides in {str(value): value for value in ({}, changes)}.values():
        policy = load(checkpoint(name), overrides=overrides).train()
        loss = LeRobotLoss(policy, train_on_padding=True)
        (td,) = observe(checkpoint(name), 1, 2)
        if policy.history_size > 1:
            Stream(policy).history.begin(td)
        steps = len(policy.target_steps)
        td["action_chunk"] = torch.randn(2, steps, A)
        values = []
        for valid in (steps, 1):
            td["action_is_pad"] = (torch.arange(steps) >= valid).expand(2, -1)
            torch.manual_seed(0)
            values.append(loss(td)["loss_lerobot"].item())
        assert (values[0] != values[1]) == policy.masks_padding
        assert policy.masks_padding == bool(overrides)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_another_size_is_resized_by_the_policy_or_refused(name, checkpoint):
    """Multi-task DiT would squeeze it; the others keep its proportions."""
    policy, (td,) = load(checkpoint(name)), observe(checkpoint(name), 1, 2)
    expected = (
        pytest.raises(SchemaError, match="the size that the policy was trained with")
        if name == "multi_task_dit"
        else contextlib.nullcontext()
    )
    images = td["observation", "image"]
    cameras = [images] if name == "pi05" else list(images.values())
    tall = [torch.nn.functional.pad(image, (0, 0, 0, SIDE)) for image in cameras]
    if name == "pi05":
        td["observation", "image"] = tall[0]
    else:
        td["observation", "image"] = dict(zip(images.keys(), tall))
    if policy.history_size > 1:
        Stream(policy).history.begin(td)
    with expected:
        assert policy(td)["action_chunk"].shape == (2, policy.chunk_size, A)


needs_pi0 = pytest.mark.skipif("pi0" not in NAMES, reason="lerobot 0.4.4 has no pi0")


@needs_pi0
def test_a_chunk_of_relative_actions_stays_with_the_observation_that_made_it(tmp_path):
    """Normalized actions are 0.5 here; mean 1 and deviation 2 make 2 of them.

    The first three are relative to the state, the gripper is not.
    """
    from lerobot.policies.pi0 import modeling_pi0

    made = backbones.make_relative_checkpoint(tmp_path)
    observations = observe(made, 6, 2)
    states = [td["observation", "state"] for td in observations]

    def expected(state):
        return torch.cat([2 + state[:, :3], torch.full((len(state), 1), 2.0)], -1)

    def constant(shape, device):
        return torch.full(shape, 0.5, device=device)

    with mock.patch.object(modeling_pi0, "sample_noise", constant):
        policy = load(made)
        stream, other = Stream(policy), Stream(policy)
        for step, td in enumerate(observations):
            anchor = states[step - step % 3]
            torch.testing.assert_close(stream.act(td), expected(anchor))
            # Another robot, at another place and later in its chunk.
            if step:
                other.act(observations[-step])
        # LeRobot's own loop adds the state of the moment, so that its chunk drifts.
        theirs = lerobot_actions(made.folder, observations, seed=0)
    for state, action in zip(states, theirs):
        torch.testing.assert_close(action, expected(state))


@needs_pi0
def test_the_targets_of_relative_actions_are_relative_to_their_observation(tmp_path):
    made = backbones.make_relative_checkpoint(tmp_path)
    policy, (td,) = load(made), observe(made, 1, 2)
    state = td["observation", "state"]
    chunk = torch.full((2, 8, 4), 2.0)
    chunk[..., :3] += state[:, None, :3]
    td["action_chunk"], td["action_is_pad"] = chunk, torch.zeros(2, 8).bool()
    target = policy.make_training_batch(td)["action"]
    torch.testing.assert_close(target, torch.full((2, 8, 4), 0.5))


@needs_pi0
def test_a_checkpoint_with_openpis_names_of_the_weights_loads(tmp_path):
    from safetensors.torch import load_file, save_file

    made = backbones.make_checkpoint("pi0", tmp_path)
    expected = load(made).state_dict()
    path = made.folder / "model.safetensors"
    weights = load_file(path)
    save_file({k.removeprefix("model."): v for k, v in weights.items()}, path)
    got = load(made).state_dict()
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@needs_pi0
def test_weights_that_pi0_could_not_load_do_not_stay_random_in_silence(checkpoint):
    with pytest.raises(SchemaError, match=r"action_in_proj.*would stay random"):
        load(checkpoint("pi0"), overrides={"max_action_dim": 12})


@pytest.mark.skipif("pi0" in NAMES, reason="lerobot 0.6 has a pi0 that runs")
def test_the_pi0_of_an_older_lerobot_says_what_it_lacks(tmp_path):
    from lerobot.policies.factory import make_policy_config
    from safetensors.torch import save_file

    config = make_policy_config("pi0", **features(TWO, False))
    config.save_pretrained(tmp_path)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).write_text("{}")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SchemaError, match="incorrect transformer version"):
        LeRobotPolicyWrapper.from_pretrained(tmp_path)


def test_every_policy_that_lerobot_registers_was_exercised_or_has_a_reason():
    import lerobot.policies.factory  # noqa: F401  it registers them
    from lerobot.configs.policies import PreTrainedConfig

    choices = PreTrainedConfig.get_known_choices()
    registered = {n for n, k in choices.items() if k.__module__.startswith("lerobot.")}
    assert registered <= set(KINDS) | set(NOT_EXERCISED)
    assert not set(KINDS) & set(NOT_EXERCISED)
    if lerobot_is_new():
        assert set(KINDS) <= registered
