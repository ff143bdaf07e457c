from __future__ import annotations

import sys
from types import ModuleType

import pytest

from torchrl_vla.errors import ArgumentTypeError, SettingsError
from torchrl_vla.profiling.profile_cases import (
    PROFILE_CASES,
    CaseResources,
    ProfileCase,
    find_cases,
)


def test_the_table_has_these_cases_and_not_those():
    assert set(PROFILE_CASES) == {
        *("tiny-regression", "tiny-tokens", "tiny-gaussian", "tiny-flow"),
        *("tiny-diffusion", "act", "diffusion", "smolvla", "pi0"),
    }
    for name in ("sac", "sarm", "tdmpc", "vqbet", "reward_classifier"):
        assert name not in PROFILE_CASES
    for name, case in PROFILE_CASES.items():
        assert case.name == name
        assert case.steps == 12
        assert (case.extra is None) == name.startswith("tiny")
    assert find_cases() == list(PROFILE_CASES.values())


def test_large_models_have_no_optimizer_state_and_determinism_is_per_case():
    assert PROFILE_CASES["pi0"].resources == CaseResources("sgd", True, True, False)
    assert PROFILE_CASES["act"].resources.deterministic
    assert not PROFILE_CASES["smolvla"].resources.deterministic
    spec = PROFILE_CASES["pi0"].spec()
    assert {"optimizer=sgd", "bf16=True", "checkpointing=True"} <= {*spec["train_args"]}


def test_a_case_that_is_not_known_is_refused():
    with pytest.raises(
        SettingsError, match=r"got 'tiny-flo'\. Did you mean 'tiny-flow'"
    ):
        find_cases(["tiny-flo"])


def test_a_case_of_ones_own_comes_from_a_function(monkeypatch):
    module = ModuleType("my_cases")
    module.make = lambda: ProfileCase("mine", "tiny")
    module.wrong = lambda: "mine"
    monkeypatch.setitem(sys.modules, "my_cases", module)
    assert [case.name for case in find_cases(["my_cases:make"])] == ["mine"]
    with pytest.raises(ArgumentTypeError, match=r"a ProfileCase from .* got str"):
        find_cases(["my_cases:wrong"])
