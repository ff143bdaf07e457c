from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Unbounded
from torchrl.data import Categorical as CategoricalSpec

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import ArgumentTypeError
from torchrl_vla.evaluation import evaluate
from torchrl_vla.rollout import RandomActions


def draw(spec, seeds):
    seeds = torch.as_tensor(seeds)
    step = TensorDict({"noise_seed": seeds}, seeds.shape)
    return RandomActions(spec)(step)["action"]


def test_actions_fill_their_bounds_evenly():
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([6.0, 0.5])
    spec = Bounded(low.expand(4000, 2), high.expand(4000, 2))
    part = (draw(spec, torch.arange(4000)) - low) / (high - low)
    counts = torch.stack([torch.histc(x, 4, 0, 1) for x in part.unbind(-1)])
    # 1000 of each quarter are expected, and 27 is the standard deviation
    assert ((counts - 1000).abs() < 140).all()


def test_an_action_is_a_function_of_its_own_seed():
    one, many = Bounded(-1, 1, (1, 3)), Bounded(-1, 1, (5, 3))
    rows = draw(many, [9, 8, 7, 6, 5])
    assert torch.equal(draw(one, [7])[0], rows[2])
    assert (rows[0] != rows[1]).all()


def test_an_action_without_bounds_is_drawn_normally():
    drawn = draw(Unbounded((4000, 2), dtype=torch.float64), torch.arange(4000))
    assert drawn.dtype == torch.float64
    assert drawn.mean(0).abs().max() < 0.1
    assert (drawn.std(0) - 1).abs().max() < 0.1


def test_without_seeds_the_global_generator_is_drawn_from():
    torch.manual_seed(0)
    policy = RandomActions(Bounded(-1, 1, (2, 3)))
    first, second = (policy(TensorDict({}, [2]))["action"] for _ in range(2))
    assert (first != second).all()
    torch.manual_seed(0)
    assert torch.equal(policy(TensorDict({}, [2]))["action"], first)


def test_actions_that_are_no_numbers_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"got Categorical of torch.int64. Use"):
        RandomActions(CategoricalSpec(4))


def test_an_evaluation_does_not_depend_on_the_number_of_environments():
    episodes = []
    for count in (1, 3):
        env = TabletopEnv(count, image_size=16)
        policy = RandomActions(env.action_spec)
        result = evaluate(env, policy, 4, progress=False)
        assert result.provenance["noise_source"] == "noise_seed"
        episodes.append(result.episodes)
    assert episodes[0] == episodes[1]
