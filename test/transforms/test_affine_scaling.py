from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.schema import (
    FeatureStatistics,
    MetadataError,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.schema import GripperConvention as Gripper
from torchrl_vla.transforms import ActionScaling, AffineScaling, StateScaling

NAN, INF = torch.nan, torch.inf
BOTH = pytest.mark.parametrize("scaling_class", [ActionScaling, StateScaling])


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make_metadata():
    statistics = FeatureStatistics(
        mean=tensor(1.0, 0.5, 7.0),
        std=tensor(2.0, 0.5, 0.0),
        min=tensor(-4.0, 0.0, 7.0),
        max=tensor(6.0, 1.0, 7.0),
        q01=tensor(-2.0, 0.0, 7.0),
        q99=tensor(2.0, 1.0, 7.0),
        count=100,
    )
    return RobotDatasetMetadata(
        "bridge",
        action_dim=3,
        grippers=(Gripper(dim=1, open=1.0, closed=0.0),),
        action_statistics=statistics,
        state_statistics=statistics,
    )


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        AffineScaling(0.0, 1.0, None)


@BOTH
@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        ({"mean": tensor(1.0, -2.0), "std": tensor(2.0, 0.5)}, [1.0, 8.0]),
        ({"low": tensor(-1.0, 0.0), "high": tensor(3.0, 8.0)}, [1.0, -0.5]),
        ({"q01": tensor(1.0, 2.0), "q99": tensor(2.0, 6.0)}, [3.0, -1.0]),
    ],
)
def test_each_pair_of_statistics_maps_as_worked_out_by_hand(
    scaling_class, statistics, expected
):
    scaling = scaling_class.from_stats(**statistics)
    value = torch.tensor([3.0, 2.0])
    assert scaling.normalize(value).tolist() == expected
    assert scaling.denormalize(torch.tensor(expected)).tolist() == [3.0, 2.0]


def test_bounds_map_to_minus_one_and_one():
    low, high = torch.tensor([-0.5, 10.0]), torch.tensor([1.5, 14.0])
    scaling = ActionScaling.from_stats(low=low, high=high)
    assert scaling.normalize(low).tolist() == [-1.0, -1.0]
    assert scaling.normalize(high).tolist() == [1.0, 1.0]


def test_numbers_scale_features_of_any_size():
    scaling = ActionScaling(1.0, 2.0)
    assert scaling.normalize(torch.tensor([[5.0, 1.0, -1.0]])).tolist() == [[2, 0, -1]]


def test_the_mask_passes_a_dimension_through_even_if_it_cannot_be_scaled():
    scaling = ActionScaling.from_stats(
        low=torch.tensor([-2.0, NAN]),
        high=torch.tensor([2.0, NAN]),
        mask=[True, False],
    )
    value = torch.tensor([1.0, 0.1])
    assert torch.equal(scaling.normalize(value), torch.tensor([0.5, 0.1]))
    assert torch.equal(scaling.denormalize(value), torch.tensor([2.0, 0.1]))


@BOTH
@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": tensor(5.0, 0.0), "std": tensor(0.0, 2.0)},
        {"q01": tensor(5.0, -2.0), "q99": tensor(5.0, 2.0)},
        {"mean": tensor(5.0, 0.0), "std": tensor(1e-9, 2.0)},
        {"q01": tensor(5.0, -2.0), "q99": tensor(5.0 + 1e-9, 2.0)},
    ],
)
def test_a_constant_dimension_is_only_centred(scaling_class, statistics):
    scaling = scaling_class.from_stats(**statistics)
    value = torch.tensor([5.5, 3.0])
    assert scaling.normalize(value).tolist() == [0.5, 1.5]
    assert scaling.denormalize(torch.tensor([0.5, 1.5])).tolist() == [5.5, 3.0]


def test_a_constant_is_told_by_its_own_size():
    moving = StateScaling.from_stats(mean=tensor(0.0), std=tensor(1e-5))
    assert moving.scale.item() == pytest.approx(1e-5)
    constant = StateScaling.from_stats(mean=tensor(1e4), std=tensor(1e-3))
    assert constant.scale.item() == 1.0


FINITE = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(FINITE, st.floats(0.0, 1e3), FINITE, st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([("mean", "std"), ("low", "high"), ("q01", "q99")]),
)
def test_denormalize_undoes_normalize(rows, names):
    first, spread, value, mask = zip(*rows)
    first, spread = tensor(*first), tensor(*spread)
    second = spread if names[1] == "std" else first + spread
    if names == ("low", "high"):
        second = second + 1e-3
    pair = dict(zip(names, (first, second)))
    scaling = ActionScaling.from_stats(**pair, mask=list(mask))
    value = torch.tensor(value)
    # Cancellation loses what float32 cannot hold of |loc| + |value|.
    tolerance = 4e-7 * (value.abs() + scaling.loc.abs() + scaling.scale)
    error = (scaling.denormalize(scaling.normalize(value)) - value).abs()
    assert (error <= tolerance).all()
    untouched = ~torch.tensor(mask)
    assert torch.equal(scaling.normalize(value)[untouched], value[untouched])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=20))
def test_normalize_undoes_denormalize_and_keeps_the_order(rows):
    loc, value = (torch.tensor(column) for column in zip(*rows))
    scaling = StateScaling(loc, torch.full_like(loc, 2.0))
    back = scaling.normalize(scaling.denormalize(value))
    assert ((back - value).abs() <= 4e-7 * (value.abs() + loc.abs())).all()
    rising = scaling.normalize(value.sort().values[:, None].expand(-1, len(loc)))
    assert (rising.diff(dim=0) >= 0).all()


@BOTH
@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            {"mean": tensor(0.0, NAN), "std": tensor(1.0, 1.0)},
            r"from_stats: expected finite 'mean', got mean=\[0.0, nan\] at dimensions "
            r"\[1\]. Repair the statistics, or leave",
        ),
        (
            {"mean": tensor(0.0), "std": tensor(-1.0)},
            r"expected std >= 0, got \[-1.0\]",
        ),
        (
            {"mean": tensor(0.0), "std": tensor(INF)},
            r"expected finite 'std', got std=\[inf\]",
        ),
        (
            {"low": tensor(-1.0, 2.0, 3.0), "high": tensor(1.0, 2.0, 1.0)},
            r"expected low < high, got low=\[2.0, 3.0\] and high=\[2.0, 1.0\] at "
            r"dimensions \[1, 2\]",
        ),
        (
            {"low": tensor(NAN), "high": tensor(1.0)},
            r"expected finite 'low', got low=\[nan\]",
        ),
        (
            {"q01": tensor(1.0), "q99": tensor(0.0)},
            r"expected q01 <= q99, got q01=\[1.0\] and q99=\[0.0\]",
        ),
        ({}, r"expected exactly one complete pair of .*'q99'\)\], got \[\]"),
        ({"mean": tensor(1.0)}, r"expected exactly one complete pair .*\['mean', 'std"),
        (
            {"mean": tensor(1.0), "std": tensor(1.0), "low": tensor(0.0)},
            r"exactly one complete pair .* got \['mean', 'std', 'low', 'high'\]",
        ),
        (
            {"low": tensor(-1.0), "high": tensor(1.0, 2.0)},
            r"expected low, high and mask of one shape, got \(1,\), \(2,\) and \(1,\)",
        ),
        (
            {"mean": tensor(0.0, 0.0), "std": tensor(1.0, 1.0), "mask": [True]},
            r"mean, std and mask of one shape, got \(2,\), \(2,\) and \(1,\)",
        ),
    ],
)
def test_statistics_that_cannot_be_raise(scaling_class, statistics, message):
    with pytest.raises(ValueError, match=f"{scaling_class.__name__}.*{message}"):
        scaling_class.from_stats(**statistics)


@BOTH
@pytest.mark.parametrize(
    ("loc", "scale", "mask", "message"),
    [
        (0.0, 0.0, None, "finite loc and positive scale, got loc=0.0, scale=0.0"),
        (tensor(0.0, NAN), tensor(1.0, 1.0), None, r"positive scale, got loc=\[0.0, n"),
        (tensor(0.0), tensor(-1.0), None, r"positive scale, got .*scale=\[-1.0\]"),
        (tensor(0.0, 1.0), tensor(1.0), None, r"one shape \[D\], got \(2,\), \(1,\)"),
        (tensor(0.0), tensor(1.0), [True, False], r"\(1,\), \(1,\) and \(2,\)"),
        (torch.zeros(2, 2), torch.ones(2, 2), None, r"one shape \[D\], got \(2, 2\)"),
        (0.0, 1e300, None, "loc and scale that torch.float32 can hold, got .*Change"),
        (0.0, 1e-300, None, "loc and scale that torch.float32 can hold, got"),
    ],
)
def test_arguments_that_cannot_be_raise(scaling_class, loc, scale, mask, message):
    name = scaling_class.__name__
    with pytest.raises(ValueError, match=f"{name}: expected.*{message}"):
        scaling_class(loc, scale, mask=mask)


@BOTH
def test_values_of_another_feature_raise(scaling_class):
    scaling = scaling_class(torch.zeros(3), torch.ones(3))
    message = r"expected \[..., 3\], got shape \(5, 4\). The statistics belong to ano"
    for direction in (scaling.normalize, scaling.denormalize):
        with pytest.raises(SchemaError, match=message):
            direction(torch.zeros(5, 4))
        with pytest.raises(SchemaError, match=r"expected \[..., 3\], got shape \(1,\)"):
            direction(torch.zeros(1))  # would broadcast
        with pytest.raises(SchemaError, match=r"a floating dtype, got torch\.u"):
            direction(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean_std", [1.0, 0.25, 1.0]),  # (3 - 1) / 2, gripper, 8 - 7
        ("min_max", [0.4, 0.25, 1.0]),  # (3 - 1) / 5
        ("quantile", [1.5, 0.25, 1.0]),  # (3 - 0) / 2
    ],
)
def test_metadata_scale_an_action_but_not_its_gripper(mode, expected):
    scaling = ActionScaling.from_metadata(make_metadata(), mode)
    value = torch.tensor([3.0, 0.25, 8.0])
    assert scaling.normalize(value).tolist() == pytest.approx(expected)
    assert scaling.normalize(value)[1] == 0.25


def test_quantiles_of_a_dimension_that_rarely_moves_are_replaced_with_a_warning():
    # Case A15: a rotation that moves in 0.5 % of the frames by 0.3.
    samples = torch.linspace(-1.0, 1.0, 4000)[:, None].repeat(1, 2)
    samples[:, 1] *= 1e-5
    samples[100:120, 1] = 0.3
    metadata = RobotDatasetMetadata(
        "arm", action_statistics=FeatureStatistics.from_samples(samples)
    )
    with pytest.warns(UserWarning, match=r"of 'arm', dimensions \[1\] move so r"):
        scaling = ActionScaling.from_metadata(metadata, "quantile")
    # From -1e-5 to 0.3; the quantiles' range would give 12 thousands.
    assert scaling.normalize(samples)[:, 1].aminmax() == pytest.approx((-1.0, 1.0))
    # Quantiles of 4000 even steps: 1 % of 2 inside of either end.
    assert scaling.normalize(samples)[:, 0].max() == pytest.approx(1 / 0.98, rel=1e-4)


def test_a_dimension_that_moves_by_rounding_is_centred_with_a_warning():
    samples = torch.tensor([[0.0, 1e4, 5.0], [1.0, 1e4 + 1e-2, 5.0]])
    stats = FeatureStatistics.from_samples(samples)
    metadata = RobotDatasetMetadata("arm", state_statistics=stats)
    for mode in ("mean_std", "min_max", "quantile"):
        with pytest.warns(UserWarning, match=r"of 'arm', dimensions \[1\] move by l"):
            scaling = StateScaling.from_metadata(metadata, mode)
        assert scaling.scale[1:].tolist() == [1.0, 1.0]


def test_metadata_scale_every_dimension_of_a_state():
    scaling = StateScaling.from_metadata(make_metadata())
    assert scaling.normalize(torch.tensor([3.0, 0.25, 8.0])).tolist() == [1, -0.5, 1]


def test_a_mask_of_ones_own_replaces_the_grippers():
    metadata = make_metadata()
    scaling = ActionScaling.from_metadata(metadata, mask=[False, True, False])
    value = torch.tensor([3.0, 0.25, 8.0])
    assert scaling.normalize(value).tolist() == [3.0, -0.5, 8.0]


@BOTH
def test_metadata_without_statistics_raise(scaling_class):
    message = (
        rf"{scaling_class.__name__}.from_metadata: expected statistics in 'bridge', got"
        " None. Compute them with FeatureStatistics.from_samples"
    )
    with pytest.raises(MetadataError, match=message):
        scaling_class.from_metadata(RobotDatasetMetadata("bridge", action_dim=3))


@BOTH
def test_an_unknown_mode_raises_and_names_the_known_ones(scaling_class):
    message = "expected mode 'mean_std', 'min_max' or 'quantile', got 'minmax'"
    with pytest.raises(ValueError, match=message):
        scaling_class.from_metadata(make_metadata(), "minmax")


def test_the_statistics_travel_in_the_state_dict():
    trained = ActionScaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    fresh = ActionScaling(torch.zeros(2), torch.ones(2))
    fresh.load_state_dict(trained.state_dict())
    assert fresh.normalize(torch.tensor([4.0, 6.0])).tolist() == [1.0, 1.0]
    assert repr(fresh) == "ActionScaling(loc=[1.0, 2.0], scale=[3.0, 4.0])"


def test_a_gripper_in_percent_is_scaled_and_one_within_one_is_not():
    samples = torch.tensor([[0.0, 10.0], [0.0, 30.0]])
    for open_, scaled in ((100.0, [-1.0, 1.0]), (1.0, [10.0, 30.0])):
        metadata = RobotDatasetMetadata(
            "arm",
            action_dim=2,
            grippers=(Gripper(1, open=open_, closed=0.0),),
            action_statistics=FeatureStatistics.from_samples(samples),
        )
        scaling = ActionScaling.from_metadata(metadata, "min_max")
        out = scaling(TensorDict({"action": samples.clone()}, [2]))["action"]
        assert out[:, 1].tolist() == scaled
        assert torch.equal(scaling.denormalize(out), samples)
