"""Initial states of demonstrations and evaluations, in every environment."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import (
    AlohaEnv,
    GymnasiumEnv,
    MetaWorldEnv,
    PushTEnv,
    SimulatorInterface,
    TabletopEnv,
    ToyVLAEnv,
)
from torchrl_vla.evaluation import ComparisonError, EvaluationResult, compare, evaluate
from torchrl_vla.schema import RobotDatasetMetadata

EPISODES = 5


class Somewhere(gymnasium.Env):
    """State: a random place, drawn by gymnasium's own generator."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2), {}

    def step(self, action):
        return np.zeros(2), 0.0, True, False, {"is_success": False}


def make_gymnasium():
    return GymnasiumEnv(
        Somewhere,
        SimulatorInterface(lambda observation: {"state": observation}, "is_success"),
        instructions="stand",
        num_envs=2,
        max_steps=2,
        metadata=RobotDatasetMetadata("somewhere", action_dim=2, state_dim=2),
    )


MAKERS = {
    "toy": lambda: ToyVLAEnv(2, 4, success_steps=2, max_steps=2, batch_size=[2]),
    "tabletop": lambda: TabletopEnv(2, image_size=16, max_steps=2),
    "metaworld": lambda: MetaWorldEnv(("reach", "push"), num_envs=2, max_steps=2),
    "pusht": lambda: PushTEnv(
        num_envs=2, images=False, environment_state=True, max_steps=2
    ),
    "aloha": lambda: AlohaEnv(num_envs=2, quick_rendering=True, max_steps=1),
    "gymnasium": make_gymnasium,
}


class Still(TensorDictModuleBase):
    """Does nothing, and notes the first observation of each episode."""

    def __init__(self, env):
        super().__init__()
        self.in_keys, self.out_keys = ["is_init"], ["action"]
        self.action = torch.zeros(env.action_spec.shape)
        self.initial_states = {}

    def forward(self, td):
        for index in td["is_init"].flatten().nonzero().flatten().tolist():
            leaves = td["observation"][index].flatten_keys().items()
            state = b"".join(leaf.numpy().tobytes() for _, leaf in sorted(leaves))
            self.initial_states[int(td["episode_seed"][index])] = state
        return td.set("action", self.action.clone())


@pytest.fixture(params=MAKERS)
def env(request):
    if request.param == "aloha":  # the pose of its objects is in its images alone
        request.getfixturevalue("opengl")
    env = MAKERS[request.param]()
    yield env
    env.close()


def initial_states_of_demonstrations(env, folder, **options):
    policy = Still(env)
    dataset = collect(
        env,
        policy,
        EPISODES,
        folder=folder,
        successes_only=False,
        progress=False,
        **options,
    )
    seeds = set(dataset.frames["episode_seed"].tolist())
    return {seed: policy.initial_states[seed] for seed in seeds}


def initial_states_of_evaluation(env, **options):
    policy = Still(env)
    result = evaluate(env, policy, EPISODES, progress=False, **options)
    return {e.seed: policy.initial_states[e.seed] for e in result.episodes}


def test_collect_and_evaluate_share_no_initial_state_at_their_defaults(env, tmp_path):
    collected = initial_states_of_demonstrations(env, tmp_path)
    evaluated = initial_states_of_evaluation(env)
    states = [*collected.values(), *evaluated.values()]
    assert len(collected) == len(evaluated) == EPISODES
    assert len(set(states)) == 2 * EPISODES


def test_whoever_names_the_purpose_gets_the_demonstrations_episodes(tmp_path):
    env = MAKERS["tabletop"]()
    collected = initial_states_of_demonstrations(env, tmp_path, seed=4)
    evaluated = initial_states_of_evaluation(env, seed=4, purpose="demonstrations")
    assert collected == evaluated


def test_purpose_and_seed_are_recorded_and_read_back(tmp_path):
    env = MAKERS["tabletop"]()
    options = {"successes_only": False, "progress": False}
    dataset = collect(env, Still(env), 2, folder=tmp_path / "d", seed=3, **options)
    known = {"purpose": "demonstrations", "seed": 3, "attempts": 2}
    assert dataset.provenance == known
    again = DemonstrationDataset.from_folder(tmp_path / "d")
    assert again.provenance == known
    assert again.select_episodes(torch.tensor([1])).provenance == known
    for later in ("provenance.json", "files.json"):  # an older version has neither
        (tmp_path / "d" / later).unlink()
    assert DemonstrationDataset.from_folder(tmp_path / "d").provenance == {}

    result = evaluate(env, Still(env), 2, purpose="training", progress=False)
    read = EvaluationResult.from_json(result.to_json())
    assert (read.provenance["purpose"], read.provenance["seed"]) == ("training", 0)


def test_evaluations_of_two_purposes_are_no_pairs_and_the_training_s_is_remarked():
    env = MAKERS["tabletop"]()
    on_others, on_trained = (
        evaluate(env, Still(env), 2, purpose=purpose, progress=False)
        for purpose in ("evaluation", "demonstrations")
    )
    message = (
        r"expected episodes of one purpose, got 'evaluation' for a and "
        r"'demonstrations' for b: they share no initial state\."
    )
    with pytest.raises(ComparisonError, match=message):
        compare(on_others, on_trained)
    (remark,) = compare(on_others, on_trained, unpaired=True).remarks[:1]
    assert remark.startswith("b ran on the initial states of demonstrations, which")
    assert "initial states" not in str(compare(on_others, on_others).remarks)
