from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import ExcludeTransform, TransformedEnv

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation.ablations import (
    blank_images,
    make_ablation,
    reword_instructions,
    shuffle_instructions,
    zero_state,
)
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    UnknownInstructionError,
    Wordings,
)

TABLE = InstructionTable(["red", "green", "blue"])


def observation(seeds) -> TensorDict:
    n = len(seeds)
    return TensorDict(
        {
            "observation": {
                "image": {"top": torch.full((n, 3, 2, 2), 7, dtype=torch.uint8)},
                "state": torch.ones(n, 2),
            },
            "language_instruction": TABLE.ids[:1].expand(n),
            "episode_seed": torch.tensor(seeds),
        },
        [n],
    )


def echo(key) -> TensorDictModule:
    return TensorDictModule(lambda value: value.clone(), [key], ["action"])


def test_blank_images_are_black_for_the_policy_and_intact_for_the_record():
    data = observation([0])
    policy = blank_images(echo(("observation", "image", "top")))
    assert policy(data)["action"].eq(0).all()
    assert data["observation", "image", "top"].eq(7).all()


def test_the_state_is_zero_for_the_policy_and_intact_for_the_record():
    data = observation([0])
    assert zero_state(echo(("observation", "state")))(data)["action"].eq(0).all()
    assert data["observation", "state"].eq(1).all()


def test_a_shuffled_instruction_is_a_function_of_the_episode_seed():
    policy = shuffle_instructions(echo("language_instruction"), TABLE)
    together = policy(observation(list(range(50))))["action"]
    alone = torch.cat([policy(observation([seed]))["action"] for seed in range(50)])
    assert torch.equal(together, alone)


def test_shuffled_instructions_cover_the_table_evenly():
    policy = shuffle_instructions(echo("language_instruction"), TABLE)
    rows = TABLE.rows(policy(observation(list(range(3000))))["action"])
    # 1000 expected each; 5 standard deviations of a binomial are 129
    assert (rows.bincount() - 1000).abs().max() < 130


def test_the_true_instruction_stays_in_the_record():
    data = observation([0, 1, 2])
    shuffle_instructions(echo("language_instruction"), TABLE)(data)
    assert data["language_instruction"].eq(TABLE.ids[0]).all()


def test_shuffling_needs_the_seed_of_the_episode():
    data = observation([0]).exclude("episode_seed")
    with pytest.raises(MissingKeyError, match="expected int64 seeds at 'episode_seed'"):
        shuffle_instructions(echo("language_instruction"), TABLE)(data)


@pytest.mark.parametrize(
    ("name", "key", "is_changed"),
    [
        ("shuffled-instruction", "language_instruction", True),
        ("blank-images", ("observation", "image"), True),
        ("zero-state", ("observation", "state"), True),
        ("zero-state", "episode_seed", False),
    ],
)
def test_an_ablation_takes_away_the_input_of_its_name(name, key, is_changed):
    env = TabletopEnv(8, image_size=16, seed=0)
    data = env.reset()
    given = make_ablation(name, echo(key), env)(data)["action"]
    assert torch.equal(given, data[key]) != is_changed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deaf", r"expected one of \('shuffled-instruction', .*\), got 'deaf'"),
        ("shuffled-instruction", r"several instructions to shuffle, got 1\. Evaluate"),
        ("blank-images", r"expected \('observation', 'image'\) in the observations"),
    ],
)
def test_an_ablation_that_would_change_nothing_is_refused(name, message):
    blind = ExcludeTransform(("observation", "image"))
    env = TransformedEnv(ToyVLAEnv(action_dim=2, state_dim=4, seed=0), blind)
    with pytest.raises(ValueError, match=message):
        make_ablation(name, echo("episode_seed"), env)


WORDINGS = Wordings({"red": ["crimson", "ruby"], "green": ["jade"], "blue": ["azure"]})


def test_the_reworded_instruction_follows_from_the_episodes_seed():
    ablated = reword_instructions(echo("language_instruction"), WORDINGS)
    data = observation(list(range(64)))
    first = ablated(data.clone())
    texts = WORDINGS.table.decode(first["action"])
    assert set(texts) == {"crimson", "ruby"}
    assert torch.equal(first["language_instruction"], data["language_instruction"])
    backwards = ablated(data[range(63, -1, -1)].clone())["action"]
    assert torch.equal(backwards.flip(0), first["action"])


def test_the_policy_learns_the_texts_of_the_wordings():
    backbone = BackboneConfig(state_dim=2, cameras=(), hidden=8)
    policy = TinyVLA(action_dim=1, chunk_size=1, backbone=backbone, instructions=TABLE)
    data = observation([1, 2]).contiguous()
    before = policy(data.clone())["action_chunk"]
    reworded = reword_instructions(policy, WORDINGS)(data.clone())
    assert set(WORDINGS.table) <= set(policy.instructions)
    assert not torch.equal(reworded["action_chunk"], before)
    assert torch.equal(policy(data)["action_chunk"], before)


def test_wordings_belong_to_the_reworded_instruction_and_cover_the_environment():
    env = TabletopEnv(2, image_size=16, tasks=("reach",))
    with pytest.raises(ValueError, match="--wordings FILE"):
        make_ablation("reworded-instruction", env.make_expert(), env)
    with pytest.raises(ValueError, match="with no other"):
        make_ablation("zero-state", env.make_expert(), env, WORDINGS)
    with pytest.raises(UnknownInstructionError, match="reach the blue block"):
        make_ablation("reworded-instruction", env.make_expert(), env, WORDINGS)
