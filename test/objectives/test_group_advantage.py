from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.objectives.llm import MCAdvantage

from torchrl_vla.objectives import GRPOAdvantage, RLOOAdvantage
from torchrl_vla.schema import MissingKeyError, SchemaError


def decisions(rows: list[list[tuple[int, float, bool]]]) -> TensorDict:
    """Rows of (seed of the episode, reward, done)."""
    seeds, rewards, dones = zip(*(zip(*row) for row in rows))
    return TensorDict(
        {
            "episode_seed": torch.tensor(seeds),
            "place": torch.arange(len(rows) * len(rows[0])).view(len(rows), -1),
            "next": {
                "reward": torch.tensor(rewards).unsqueeze(-1),
                "done": torch.tensor(dones).unsqueeze(-1),
            },
        },
        batch_size=[len(rows), len(rows[0])],
    )


def drawn(rows: int, steps: int, seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    done = torch.rand(rows, steps, generator=generator) < 0.4
    number = done.long().cumsum(1) - done.long()  # the n-th episode of its row
    group = torch.arange(rows).unsqueeze(1) // 3
    return TensorDict(
        {
            "episode_seed": 10 * number + group,
            "place": torch.arange(rows * steps).view(rows, steps),
            "next": {
                "reward": torch.rand(rows, steps, 1, generator=generator).round(),
                "done": done.unsqueeze(-1),
            },
        },
        batch_size=[rows, steps],
    )


def naive(data: TensorDict, keep, relative) -> dict[int, float]:
    """Return the advantage of each decision that is kept, by its place."""
    episodes = []
    for row in data:
        current = []
        for step in row.unbind(0):
            current.append(step)
            if step["next", "done"]:
                episodes.append(current)
                current = []
    groups: dict[int, list] = {}
    for episode in episodes:
        groups.setdefault(episode[0]["episode_seed"].item(), []).append(episode)
    out = {}
    for group in groups.values():
        returns = [sum(step["next", "reward"].item() for step in e) for e in group]
        mean = sum(returns) / len(returns)
        if len(group) < 2 or (keep and not keep[0] < mean < keep[1]):
            continue
        for i, episode in enumerate(group):
            for step in episode:
                out[step["place"].item()] = relative(i, returns)
    return out


def grpo(i, returns):
    spread = statistics.stdev(returns)
    return (returns[i] - statistics.mean(returns)) / (spread or 1.0)


def grpo_without_spread(i, returns):
    return returns[i] - statistics.mean(returns)


def rloo(i, returns):
    others = returns[:i] + returns[i + 1 :]
    return returns[i] - sum(others) / len(others)


@pytest.mark.parametrize(
    ("make", "relative"),
    [
        (GRPOAdvantage, grpo),
        (lambda **o: GRPOAdvantage(divide_by_std=False, **o), grpo_without_spread),
        (RLOOAdvantage, rloo),
    ],
    ids=["grpo", "grpo without std", "rloo"],
)
@given(
    rows=st.integers(1, 7),
    steps=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    keep=st.sampled_from([None, (0.0, 1.0), (0.2, 2.5)]),
)
@settings(max_examples=40, deadline=None)
def test_it_compares_the_complete_episodes_of_a_group(
    make, relative, rows, steps, seed, keep
):
    data = drawn(rows, steps, seed)
    expected = naive(data, keep, relative)
    out = make(keep=keep)(data)
    assert out["place"].tolist() == sorted(expected)
    torch.testing.assert_close(
        out["advantage"].flatten(),
        torch.tensor([expected[place] for place in sorted(expected)]),
    )


def test_it_agrees_with_torchrl_s_mc_advantage():
    rows = [
        [(7, 0.0, False), (7, 1.0, True)],
        [(7, 0.0, False), (7, 0.0, True)],
        [(9, 1.0, False), (9, 1.0, True)],
        [(9, 0.0, False), (9, 1.0, True)],
    ]
    data = decisions(rows)
    peer = MCAdvantage(grpo_size=2, prompt_key="group", trajectory_return="sum")
    data["group"] = data["episode_seed"]
    written = [peer.inv(row) for row in data]
    theirs = torch.cat([out for out in written if out is not None])
    ours = GRPOAdvantage()(data)
    assert torch.equal(ours["place"], theirs["place"])
    torch.testing.assert_close(ours["advantage"], theirs["advantage"].view(-1, 1))


def test_a_group_s_mean_is_written():
    data = decisions([[(7, 0.0, True)], [(7, 1.0, True)], [(7, 1.0, True)]])
    torch.testing.assert_close(
        RLOOAdvantage()(data)["group_return"].flatten(), torch.full((3,), 2 / 3)
    )


def test_groups_that_all_succeed_are_dropped():
    data = decisions([[(7, 1.0, True)], [(7, 1.0, True)]])
    assert len(GRPOAdvantage(keep=(0.0, 1.0))(data)) == 0
    assert GRPOAdvantage()(data)["advantage"].flatten().tolist() == [0.0, 0.0]


def test_an_episode_that_the_batch_cuts_off_is_dropped():
    data = decisions(
        [[(7, 1.0, True), (8, 0.0, False)], [(7, 0.0, False), (7, 0, True)]]
    )
    assert GRPOAdvantage()(data)["place"].tolist() == [0, 2, 3]


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(
        ValueError, match=r"expected keep=\(low, high\) with low < high"
    ):
        RLOOAdvantage(keep=(1.0, 0.0))


def test_decisions_without_a_group_are_refused():
    data = decisions([[(7, 1.0, True)]]).exclude("episode_seed")
    with pytest.raises(MissingKeyError, match=r"expected 'episode_seed' of decisions"):
        GRPOAdvantage()(data)


def test_a_batch_without_time_is_refused():
    data = decisions([[(7, 1.0, True)]]).reshape(-1)
    with pytest.raises(SchemaError, match=r"expected decisions \[\*B, T\] with time"):
        GRPOAdvantage()(data)
