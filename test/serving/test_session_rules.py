from __future__ import annotations

from dataclasses import replace

import pytest
from served_policies import ARM, Counting, Echo, tiny
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.errors import SchemaError
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import as_policy
from torchrl_vla.serving import (
    ServerManifest,
    check_robot_of_client,
    describe_policy,
    serving_capacity,
    serving_mode,
)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        # 0.8 / (2 * 0.1) = 4; (50 / 30 / 2) / 0.1 = 8.3
        ((0.1, 2.0, 50, 30.0, 0.0), 4),
        # 0.8 / (1 * 0.05) = 16; (10 / 20 / 2 - 0.05) / 0.05 = 4
        ((0.05, 1.0, 10, 20.0, 0.05), 4),
        # the network alone takes longer than half a chunk
        ((0.1, 0.1, 10, 50.0, 0.2), 0),
        # 0.8 / (4 * 0.3) = 0.67: not one robot
        ((0.3, 4.0, 100, 10.0, 0.0), 0),
    ],
)
def test_the_capacity_is_the_formulas(numbers, expected):
    inference_s, requests_per_s, chunk_size, rate_hz, round_trip_s = numbers
    assert (
        serving_capacity(
            inference_s,
            requests_per_s=requests_per_s,
            chunk_size=chunk_size,
            rate_hz=rate_hz,
            round_trip_s=round_trip_s,
        )
        == expected
    )


def test_a_capacity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected positive numbers"):
        serving_capacity(0.0, requests_per_s=1, chunk_size=4, rate_hz=10)


def test_policies_are_shared_exclusive_or_refused():
    assert serving_mode(tiny()) == "shared"
    assert serving_mode(Counting()) == "exclusive"
    assert serving_mode(MultiStepActorWrapper(Echo())) == "refused"
    acts = TensorDictModule(lambda state: state, ["state"], ["action"])
    assert serving_mode(acts) == "refused"


def test_a_module_of_ones_own_says_itself_that_it_remembers():
    class Remembers(nn.Module):
        chunk_size, action_dim, keeps_state = 2, 1, True

        def forward(self, tensordict):
            return tensordict["observation", "state"].unsqueeze(-1)

    assert serving_mode(as_policy(Remembers())) == "exclusive"


def test_the_manifest_survives_json_and_refuses_unknown_fields_by_name():
    manifest = describe_policy(tiny(), revision="3f2a")
    assert ServerManifest.from_json(manifest.to_json()) == manifest
    strange = manifest.to_json().replace('"revision"', '"weights_url"')
    with pytest.raises(SchemaError, match=r"also \['weights_url'\]"):
        ServerManifest.from_json(strange)
    with pytest.raises(SchemaError, match="expected chunk_size >= 1, got 0"):
        replace(manifest, chunk_size=0)


def test_differences_of_two_manifests_are_named():
    manifest = describe_policy(tiny())
    assert manifest.differences(manifest) == []
    other = replace(manifest, revision="new", chunk_size=9)
    assert manifest.differences(other) == ["chunk_size", "revision"]


def test_a_robot_like_the_policys_is_let_in_without_a_warning():
    manifest = describe_policy(tiny())
    assert check_robot_of_client(manifest, ARM) == []
    renamed = replace(ARM, dataset_id="another data set")
    assert check_robot_of_client(manifest, renamed) == []
    undeclared = replace(manifest, metadata=None)
    assert check_robot_of_client(undeclared, ARM) == []
