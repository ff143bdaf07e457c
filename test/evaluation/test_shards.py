from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import (
    EpisodeRecord,
    EvaluationResult,
    Shard,
    ShardError,
    evaluate,
    merge_shards,
)


def run(shard=None, episodes=5, num_envs=2, seed=0, **options):
    env = TabletopEnv(num_envs, image_size=16)
    options = {"progress": False, "shard": shard, "seed": seed, **options}
    return evaluate(env, env.make_expert(), episodes, **options)


@pytest.fixture(scope="module")
def parts():
    return [run((number, 2), num_envs=number) for number in (1, 2)]


@given(st.integers(1, 9), st.integers(0, 40))
def test_shards_share_no_episode_and_leave_none_out(count, more):
    episodes = count + more
    parts = [Shard(number, count).indices(episodes) for number in range(1, count + 1)]
    assert sorted(index for part in parts for index in part) == list(range(episodes))


def test_a_merged_result_is_the_file_of_one_run(parts):
    whole = json.loads(run().to_json())
    merged = json.loads(merge_shards(parts[::-1]).to_json())
    shards = merged["provenance"].pop("shards")
    assert shards == [{"num_envs": 1}, {"num_envs": 2}]
    assert whole["provenance"].pop("num_envs") == 2
    assert merged == whole
    assert EvaluationResult.from_json(parts[0].to_json()) == parts[0]


def test_one_shard_of_one_is_the_whole_run():
    merged = merge_shards([run((1, 1), num_envs=2)])
    assert merged == run().with_provenance(shards=[{}])


def test_a_missing_shard_is_named_with_its_command(parts):
    with pytest.raises(ShardError, match=r"got 1: 2/2 missing\. .* --shard 2/2"):
        merge_shards(parts[:1])


def test_a_shard_that_is_there_twice_is_refused(parts):
    with pytest.raises(ShardError, match="every shard once, got 1/2 twice"):
        merge_shards([parts[0], parts[0]])


def test_a_shard_of_another_run_is_refused(parts):
    other = run((2, 2), seed=1)
    with pytest.raises(ShardError, match="shards of one run, got seed 0 and 1"):
        merge_shards([parts[0], other])


def test_shards_of_other_lengths_are_refused(parts):
    with pytest.raises(ShardError, match="got episodes 5 and 7"):
        merge_shards([parts[0], run((2, 2), episodes=7)])


def test_shards_of_another_policy_are_refused(parts):
    other = parts[1].with_provenance(policy={"sha256": "1"})
    with pytest.raises(ShardError, match=r"got policy None and \{'sha256': '1'\}"):
        merge_shards([parts[0], other])


def test_a_shard_that_lost_an_episode_is_refused(parts):
    short = replace(parts[1], episodes=parts[1].episodes[:1])
    with pytest.raises(ShardError, match=r"expected 2 episodes in shard 2/2.*got 1"):
        merge_shards([parts[0], short])


def test_a_whole_run_is_no_shard(parts):
    with pytest.raises(ShardError, match="expected a shard at position 1"):
        merge_shards([parts[0], run()])
    with pytest.raises(ShardError, match="at least one shard, got none"):
        merge_shards([])


def test_an_episode_apart_keeps_its_place(parts):
    one, two = parts
    lost = replace(two.episodes[0], error="it fell", success=False)
    two = replace(two, episodes=two.episodes[1:], apart=[lost])
    merged = merge_shards([one, two.with_provenance(on_error="apart")])
    seeds = [2**29 + index for index in (0, 2, 3, 4)]
    assert [episode.seed for episode in merged.episodes] == seeds
    assert [episode.seed for episode in merged.apart] == [2**29 + 1]
    assert merged.provenance["on_error"] == "apart"


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_there_is_not_is_refused(shard):
    with pytest.raises(ShardError, match=f"got {shard[0]}/{shard[1]}"):
        Shard(*shard)


def test_more_shards_than_episodes_are_refused():
    with pytest.raises(ShardError, match="got 6 shards of 5 episodes"):
        run((1, 6))


@pytest.mark.parametrize("text", ["3", "3/", "a/b", "-1/2", "1/2/3"])
def test_a_shard_is_written_as_two_numbers(text):
    with pytest.raises(ShardError, match="expected a shard such as 3/8"):
        Shard.parse(text)


def test_records_without_a_seed_s_twin_are_no_shard():
    record = EpisodeRecord(0, "", True, 0.0, 1)
    about = {"number": 1, "count": 1, "episodes": 2, "seeds": [0, 1]}
    result = EvaluationResult([record, record], {"shard": about})
    with pytest.raises(ShardError, match="each seed once"):
        merge_shards([result])
