from __future__ import annotations

import json

import pytest
from fake_profiles import make_row

from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling import compare_profiles


def test_a_speed_up_that_changes_no_number_is_proved():
    comparison = compare_profiles(make_row(), make_row(1, forward=0.008))
    forward = comparison.times["forward_s"]
    assert forward.ratio == pytest.approx(0.8)
    # Medians 10 and 8 ms; quartiles 1 % away: notches 1.57 * 2 % / 3 of them.
    notch = 1.57 * 0.02 / 3
    low = 0.8 * (1 - notch) / (1 + notch) * 0.95
    assert forward.low == pytest.approx(low, rel=1e-6)
    assert forward.high == pytest.approx(0.8 * (1 + notch) / (1 - notch) * 1.05)
    assert (forward.verdict, comparison.numerics) == ("faster", "identical")
    assert comparison.times["dataloading_s"].verdict == "same"
    assert next(iter(comparison.times)) == "total_update_s"
    assert "numerics: identical; operators: identical" in str(comparison)


@pytest.mark.parametrize(
    ("forward", "verdict"), [(0.0097, "same"), (0.0103, "same"), (0.012, "slower")]
)
def test_a_change_within_the_noise_is_none(forward, verdict):
    comparison = compare_profiles(make_row(), make_row(forward=forward))
    assert comparison.times["forward_s"].verdict == verdict


def test_other_outputs_are_a_change():
    assert compare_profiles(make_row(), make_row(output="b")).numerics == "changed"


@pytest.mark.parametrize(
    ("fact", "value"),
    [("torch", "2.14.0"), ("threads", 2), ("device", "cuda"), ("deterministic", True)],
)
def test_another_environment_is_not_comparable_and_never_changed(fact, value):
    other = make_row(output="b", environment={fact: value})
    comparison = compare_profiles(make_row(), other)
    assert comparison.numerics == comparison.operators == "not comparable"
    assert set(comparison.numeric_differences) == {fact}
    assert f"numerics are of another {fact}" in str(comparison)


def test_another_machine_only_concerns_the_times():
    comparison = compare_profiles(make_row(), make_row(environment={"machine": "two"}))
    assert comparison.numerics == "identical"
    assert comparison.timing_differences == {"machine": ("one", "two")}


def test_another_mode_concerns_the_times():
    comparison = compare_profiles(make_row(), make_row(profile_mode="timing"))
    assert comparison.timing_differences == {"profile_mode": ("summary", "timing")}


def test_without_a_fingerprint_nothing_is_said_about_numbers():
    row = make_row(deterministic_forward={})
    assert compare_profiles(make_row(), row).numerics == "not comparable"


def test_another_batch_is_not_comparable():
    row = make_row()
    row["deterministic_forward"] |= {"reference_batch_size": 8}
    assert compare_profiles(make_row(), row).numerics == "not comparable"


def test_rows_are_read_from_files_and_those_of_two_cases_refused(tmp_path):
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    rows = (make_row(), make_row(policy="other"), {"policy": "x"})
    for path, row in zip(paths, rows, strict=True):
        path.write_text(json.dumps(row))
    assert compare_profiles(paths[0], paths[0]).numerics == "identical"
    with pytest.raises(
        SchemaError, match=r"two rows of one case, got 'fake' .* 'other'"
    ):
        compare_profiles(paths[0], paths[1])
    with pytest.raises(SchemaError, match=r"got none with \['spec', 'profile_mode', "):
        compare_profiles(paths[0], paths[2])
