from __future__ import annotations

import pytest

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101 import HardwareEffects


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command_latency_s", -0.1),
        ("camera_latency_s", float("inf")),
        ("state_noise", float("nan")),
        ("max_speed_deg_s", 0.0),
    ],
)
def test_impossible_values_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"expected {name} .*, got {value}"):
        HardwareEffects(**{name: value})


def test_none_switches_everything_off():
    effects = HardwareEffects.none()
    assert effects.max_speed_deg_s == float("inf")
    rest = {n: v for n, v in vars(effects).items() if n != "max_speed_deg_s"}
    assert set(rest.values()) == {0.0}
    assert len(rest) == 6
