from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.data import OnlineReplay
from torchrl_vla.errors import ResumeError, SettingsError
from torchrl_vla.schema import SchemaError

SHARES = {"demonstrations": 0.5, "online": 0.3, "corrections": 0.2}


def rows(n, source=0, first=0):
    data = TensorDict({"source": torch.full((n,), source)}, [n])
    data["next", "number"] = torch.arange(first, first + n).float()
    return data


def filled(folder, shares=None, **options):
    shares = SHARES if shares is None else shares
    replay = OnlineReplay(folder, shares, **options)
    for number, name in enumerate(shares):
        replay.add(name, rows(7, number))
    return replay


def test_the_shares_are_exact_over_a_thousand_draws(tmp_path):
    replay = filled(tmp_path)
    seen = torch.zeros(3)
    for draw in range(1, 1001):
        batch = replay.sample(7)
        seen += torch.bincount(batch["source"], minlength=3)
        expected = 7 * draw * torch.tensor([0.5, 0.3, 0.2])
        assert (seen - expected).abs().max() < 1 + 1e-6
    assert seen.tolist() == [3500.0, 2100.0, 1400.0]


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_no_source_is_ever_a_whole_row_away_from_its_share(
    tmp_path_factory, weights, sizes
):
    shares = {f"s{i}": w / sum(weights) for i, w in enumerate(weights)}
    replay = filled(tmp_path_factory.mktemp("replay"), shares)
    seen, total = torch.zeros(len(weights)), 0
    for size in sizes:
        batch = replay.sample(size)
        assert len(batch) == size
        seen += torch.bincount(batch["source"], minlength=len(weights))
        total += size
    wanted = total * torch.tensor(list(shares.values()))
    assert (seen - wanted).abs().max() < len(weights) / 2 + 1


def test_a_source_without_rows_leaves_its_share_to_the_others(tmp_path):
    replay = OnlineReplay(tmp_path, SHARES)
    replay.add("demonstrations", rows(3, 0))
    assert replay.sample(5)["source"].tolist() == [0] * 5
    replay.add("online", rows(3, 1))
    seen = torch.zeros(2)
    for _ in range(80):  # 0.5 to 0.3
        seen += torch.bincount(replay.sample(4)["source"], minlength=2)
    assert seen.tolist() == [200.0, 120.0]


def test_the_oldest_segments_are_forgotten_in_memory_and_on_disk(tmp_path):
    replay = OnlineReplay(tmp_path, {"online": 1.0}, capacity=10)
    for number in range(6):
        replay.add("online", rows(4, first=4 * number))
    assert replay.count("online") == 8
    numbers = torch.cat([replay.sample(64)["next", "number"] for _ in range(4)])
    assert numbers.unique().tolist() == list(map(float, range(16, 24)))
    assert len(list((tmp_path / "online").iterdir())) == 6  # an older state reads them
    replay.prune()
    assert len(list((tmp_path / "online").iterdir())) == 2


def test_a_segment_that_is_larger_than_the_bound_is_kept_whole(tmp_path):
    replay = OnlineReplay(tmp_path, {"online": 1.0}, capacity=3)
    replay.add("online", rows(8))
    assert replay.count("online") == 8


def test_a_killed_training_goes_on_with_the_same_draws(tmp_path):
    replay = filled(tmp_path)
    torch.manual_seed(0)
    replay.sample(7)
    state = replay.state_dict()
    random = torch.get_rng_state()
    expected = [replay.sample(7) for _ in range(3)]
    replay.add("online", rows(5, 1, first=100))  # lost: no state names it
    replay.prune()
    again = OnlineReplay(tmp_path, SHARES)
    again.load_state_dict(state)
    assert len(again) == 21
    torch.set_rng_state(random)
    for batch in expected:
        assert (again.sample(7) == batch).all()
    assert sorted(p.name for p in (tmp_path / "online").iterdir()) == ["00000002-7.pt"]


def test_a_missing_or_damaged_segment_is_refused(tmp_path):
    replay = filled(tmp_path)
    state = replay.state_dict()
    segment = tmp_path / "online" / "00000002-7.pt"
    segment.write_bytes(segment.read_bytes()[:100])
    with pytest.raises(ResumeError, match=r"OnlineReplay: expected a complete file"):
        OnlineReplay(tmp_path, SHARES).load_state_dict(state)
    segment.unlink()
    with pytest.raises(ResumeError, match=r"expected the segment '00000002-7\.pt'"):
        OnlineReplay(tmp_path, SHARES).load_state_dict(state)


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"add up to 1, got \{'online': 0\.5\}"):
        OnlineReplay(tmp_path, {"online": 0.5})
    replay = OnlineReplay(tmp_path, SHARES)
    with pytest.raises(SettingsError, match="expected rows of a source with a share"):
        replay.sample(3)
    with pytest.raises(SettingsError, match=r"a source of \['corrections', "):
        replay.add("onlin", rows(2))
    text = rows(2).set("language_instruction", ["pick", "place"])
    with pytest.raises(SchemaError, match=r"expected tensors, got .* at 'language_ins"):
        replay.add("online", text)
