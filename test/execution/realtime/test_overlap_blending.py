from __future__ import annotations

import math

import pytest
import torch
from late_policies import ClockPolicy, actions, observe, play
from tensordict.nn import TensorDictModule

from torchrl_vla.execution import (
    ACTEnsemble,
    AsyncExecutor,
    Replace,
    StepClockWorker,
    TemporalEnsemble,
    WeightedAverage,
)


def make(overlap, policy=None, request_at=2, delay=1, **options):
    return AsyncExecutor(
        ClockPolicy(4) if policy is None else policy,
        request_at=request_at,
        action_reference="absolute",
        worker=StepClockWorker(delay),
        overlap=overlap,
        **options,
    )


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (Replace(), 10.0),
        (WeightedAverage(0.3), 0.3 * 2 + 0.7 * 10),
        (WeightedAverage(0.5), 6.0),
        (WeightedAverage(0.7), 0.7 * 2 + 0.3 * 10),
        (ACTEnsemble(0.0), (3 * 2 + 10) / 4),
        (
            ACTEnsemble(0.5),
            (2 * (1 + math.exp(-0.5) + math.exp(-1)) + 10 * math.exp(-1.5))
            / (1 + math.exp(-0.5) + math.exp(-1) + math.exp(-1.5)),
        ),
    ],
)
def test_two_predictions_become_one(overlap, expected):
    old, new = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 10.0)
    count = torch.full((1, 1, 1), 3)
    assert overlap(old, new, count).item() == pytest.approx(expected, rel=1e-6)


def test_the_chunks_meet_where_they_are_due_on_the_same_step():
    # Requests at steps 2 and 4 (two actions left), each entered one step later.
    got = actions(play(make(WeightedAverage(0.5)), 6))
    #     t=3: old 1003, new 3001. t=4: only new. t=5: old 3003, new 5001.
    assert got == [1000, 1001, 1002, 2002, 3002, (3003 + 5001) / 2]


def test_without_blending_the_new_chunk_counts():
    assert actions(play(make(Replace()), 4)) == actions(play(make(Replace()), 4))
    assert actions(play(make(Replace()), 4))[3] == 3001


@pytest.mark.parametrize("coefficient", [0.0, 0.01, -0.3])
def test_an_ensemble_of_every_step_is_temporal_ensembling_bit_for_bit(coefficient):
    def policy():
        ahead = torch.arange(5.0).view(5, 1) / 7
        return TensorDictModule(
            lambda clock: (1.3 * clock.float().view(-1, 1, 1) + ahead).sin(),
            ["clock"],
            ["action_chunk"],
        )

    ensemble = TemporalEnsemble(
        policy(), action_reference="absolute", coefficient=coefficient
    )
    blended = make(ACTEnsemble(coefficient), policy(), request_at=4, delay=0)
    for t in range(25):
        begins = [t == 0, t in (0, 7), t in (0, 7, 20)]
        clock = [3 * t, 3 * t + 1, 3 * t + 2]
        expected = ensemble(observe(clock, begins))["action"]
        assert torch.equal(blended(observe(clock, begins))["action"], expected)


def test_an_episode_begins_without_what_was_planned_in_the_last_one():
    executor = make(WeightedAverage(0.5))
    out = []
    for t in range(6):
        td = executor(observe([t + 1, t + 1], [t == 0, t in (0, 3)]))
        out.append(td["action"].flatten().tolist())
    assert [row[1] for row in out] == [1000, 1001, 1002, 4000, 4001, 4002]
    assert [row[0] for row in out][3] == (1003 + 3001) / 2


@pytest.mark.parametrize("batch_size", [(), (2, 2)])
def test_batches_of_any_shape_are_blended(batch_size):
    executor = make(WeightedAverage(0.5))
    for t in range(4):
        td = observe([t + 1], [t == 0])[0]
        td = td.expand(*batch_size) if batch_size else td
        action = executor(td.clone())["action"]
    assert (action == 2002).all()
    assert action.shape == (*batch_size, 1)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_beyond_its_range_is_refused(weight):
    with pytest.raises(ValueError, match=r"old_weight in 0..1, got"):
        WeightedAverage(weight)


def test_a_coefficient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"a finite coefficient, got inf"):
        ACTEnsemble(float("inf"))


def test_equal_blendings_are_equal_and_print_their_numbers():
    assert WeightedAverage(0.3) == WeightedAverage()
    assert WeightedAverage(0.3) != WeightedAverage(0.5)
    assert len({ACTEnsemble(0.1), ACTEnsemble(0.1), Replace()}) == 2
    assert repr(WeightedAverage()) == "WeightedAverage(old_weight=0.3)"
    assert repr(Replace()) == "Replace()"
