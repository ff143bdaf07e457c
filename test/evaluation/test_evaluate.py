from __future__ import annotations

import re
from importlib.metadata import version

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.rollout import episode_seeds
from torchrl_vla.schema import ExecutionError, InstructionTable, MissingKeyError

TABLE = InstructionTable(["even", "odd"])


class SeedDecides(EnvBase):
    """Even seeds succeed after 2 steps, odd ones fail after 9.

    Counting the first episodes that end, instead of running each seed once, would find
    far more than half of them successful.
    """

    def __init__(self, num_envs, *, success_at=2, writes_success=True, has_table=True):
        super().__init__(batch_size=[num_envs])
        if has_table:
            self.instructions = TABLE
        self.success_at, self.writes_success = success_at, writes_success
        flag = Binary(shape=(num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(
            language_instruction=Unbounded((num_envs,), dtype=torch.int64),
            episode_seed=Unbounded((num_envs,), dtype=torch.int64),
            shape=(num_envs,),
        )
        if writes_success:
            self.observation_spec["success"] = flag
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, 1))
        self.reward_spec = Unbounded((num_envs, 1))
        self.full_done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), shape=(num_envs,)
        )
        self.seeds = torch.zeros(num_envs, dtype=torch.int64)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def _set_seed(self, seed):
        pass

    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        begins = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None and tensordict.get("_reset", None) is not None:
            begins = tensordict["_reset"].view(self.batch_size)
        self.seeds = torch.where(begins, episode_seeds, self.seeds)
        self.steps = torch.where(begins, 0, self.steps)
        return self._observe(torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        self.steps = self.steps + 1
        even = self.seeds % 2 == 0
        success = even & (self.steps == self.success_at)
        done = torch.where(even, self.steps >= 2, self.steps >= 9).unsqueeze(-1)
        out = self._observe(success.unsqueeze(-1))
        out["reward"] = self.steps.unsqueeze(-1).float()
        out["terminated"] = done
        out["done"] = done.clone()
        return out

    def _observe(self, success):
        out = TensorDict(
            language_instruction=TABLE.ids[self.seeds % 2],
            episode_seed=self.seeds,
            batch_size=self.batch_size,
        )
        return out.set("success", success) if self.writes_success else out


def still():
    return TensorDictModule(
        lambda seed: torch.zeros(*seed.shape, 1), ["episode_seed"], ["action"]
    )


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_each_seed_is_run_once_however_long_its_episode(num_envs):
    result = evaluate(SeedDecides(num_envs), still(), 11, progress=False)
    first = 2**29  # even
    expected = list(range(first, first + 11))
    assert [episode.seed for episode in result.episodes] == expected
    assert [episode.success for episode in result.episodes] == [True, False] * 5 + [
        True
    ]
    assert [episode.length for episode in result.episodes] == [2, 9] * 5 + [2]
    # Rewards 1, 2, 3, ... a step.
    assert [episode.episode_return for episode in result.episodes[:2]] == [3.0, 45.0]
    assert [episode.instruction for episode in result.episodes[:2]] == ["even", "odd"]


def test_a_success_on_the_way_counts_although_the_episode_goes_on():
    result = evaluate(SeedDecides(4, success_at=1), still(), 4, progress=False)
    assert result.success_rate == 0.5


def test_the_seeds_follow_from_the_seed_of_the_run():
    result = evaluate(SeedDecides(2), still(), 3, seed=7, progress=False)
    assert [episode.seed for episode in result.episodes] == episode_seeds(
        7, 3, "evaluation"
    )
    assert result.provenance["seed"] == 7
    assert result.provenance["purpose"] == "evaluation"
    assert result.provenance["deterministic"] is True
    assert result.provenance["versions"]["torch"] == version("torch")


def test_an_evaluation_can_go_on_where_another_ended():
    parts = [
        evaluate(SeedDecides(2), still(), count, seed=7, first=first, progress=False)
        for first, count in ((0, 3), (3, 2))
    ]
    whole = evaluate(SeedDecides(2), still(), 5, seed=7, progress=False)
    assert (*parts[0].episodes, *parts[1].episodes) == whole.episodes


def test_the_result_says_where_and_how_it_was_made_and_what_the_caller_knows():
    known = {"policy": {"sha256": "abc"}, "num_envs": "two"}
    result = evaluate(SeedDecides(2), still(), 2, provenance=known, progress=False)
    assert result.provenance["environment"] == {
        "class": "SeedDecides",
        "instructions": ["even", "odd"],
    }
    assert result.provenance["policy"] == {"sha256": "abc"}
    assert result.provenance["num_envs"] == "two"
    again = evaluate(SeedDecides(3), still(), 2, progress=False)
    assert again.provenance["num_envs"] == 3
    assert "policy" not in again.provenance


def test_the_result_does_not_depend_on_how_many_run_side_by_side():
    results = []
    for num_envs in (1, 3, 8):
        env = TabletopEnv(num_envs, image_size=16)
        results.append(evaluate(env, env.make_expert(), 9, seed=2, progress=False))
    first, second, third = (result.episodes for result in results)
    assert first == second == third
    assert results[0].success_rate == 1.0


def test_an_unbatched_environment_is_seeded_before_each_episode():
    env = ToyVLAEnv(action_dim=2, state_dim=4, max_steps=5, success_steps=2, seed=0)
    target = TensorDictModule(
        lambda state: state[..., 2:], [("observation", "state")], ["action"]
    )
    first = evaluate(env, target, 3, seed=1, progress=False)
    again = evaluate(env, target, 3, seed=1, progress=False)
    assert first == again
    assert [episode.seed for episode in first.episodes] == episode_seeds(
        1, 3, "evaluation"
    )


@pytest.mark.parametrize(
    ("deterministic", "kind"),
    [(True, ExplorationType.DETERMINISTIC), (False, ExplorationType.RANDOM)],
)
def test_the_policy_takes_its_mode_or_samples(deterministic, kind):
    seen = set()

    def act(seed):
        seen.add(exploration_type())
        return torch.zeros(*seed.shape, 1)

    policy = TensorDictModule(act, ["episode_seed"], ["action"])
    evaluate(SeedDecides(2), policy, 2, deterministic=deterministic, progress=False)
    assert seen == {kind}


def test_no_gradient_is_recorded():
    weight = torch.nn.Parameter(torch.zeros(1))
    needed = []

    def act(seed):
        action = weight.expand(*seed.shape, 1) * 1.0
        needed.append(action.requires_grad)
        return action

    policy = TensorDictModule(act, ["episode_seed"], ["action"])
    evaluate(SeedDecides(1), policy, 1, progress=False)
    assert not any(needed)


def test_an_environment_that_writes_no_success_is_refused():
    env = SeedDecides(2, writes_success=False)
    with pytest.raises(
        MissingKeyError, match=r"expected a bool at \('next', 'success'"
    ):
        evaluate(env, still(), 2, progress=False)


def test_an_environment_without_a_table_of_its_ids_is_refused():
    env = SeedDecides(2, has_table=False)
    with pytest.raises(MissingKeyError, match=r"expected env\.instructions"):
        evaluate(env, still(), 2, progress=False)


def test_an_episode_that_takes_too_long_is_refused():
    with pytest.raises(ExecutionError, match=r"at most max_steps=5, got a longer one"):
        evaluate(SeedDecides(2), still(), 2, max_steps=5, progress=False)


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="expected episodes >= 1, got 0"):
        evaluate(SeedDecides(2), still(), 0)


def test_the_progress_bar_ends_with_the_rate(capsys):
    evaluate(SeedDecides(2), still(), 4)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "4/4" in last
    assert "success=50 %" in last
    assert re.search(r"\[\d\d:\d\d<00:00, \d+\.\d ep/min, ", last)
