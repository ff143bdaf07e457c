from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from mutations import damaged_bytes
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served_policies import ARM, TEXTS, A, Echo, H, observation, states, tiny
from tensordict import TensorDict

from torchrl_vla.errors import ServingError, WireError
from torchrl_vla.serving import (
    ClientOptions,
    Link,
    OpenPIConnection,
    OpenPIKeys,
    PolicyServer,
    RemotePolicy,
    ServerOptions,
)
from torchrl_vla.serving.openpi_wire import OpenPICodec

PATIENT = ClientOptions(request_timeout_s=120.0, max_age_s=None)


def openpi_client(server: PolicyServer, **options) -> WebsocketClientPolicy:
    host, port = server.address.removeprefix("ws://").rsplit(":", 1)
    return WebsocketClientPolicy(host, int(port), **options)


def as_openpi(seen: TensorDict) -> dict[str, object]:
    """Return an observation of ``[1]`` as a robot of openpi's sends it."""
    image = seen["observation", "image"]
    return {
        "observation/front": image["front"][0].permute(1, 2, 0).numpy(),
        "observation/wrist": image["wrist"][0].permute(1, 2, 0).numpy(),
        "observation/state": seen["observation", "state"][0].numpy(),
        "prompt": seen["language_instruction"][0],
    }


def test_openpis_client_gets_the_bits_of_a_local_policy():
    policy = tiny()
    with PolicyServer(policy) as server:
        client = openpi_client(server)
        metadata = client.get_server_metadata()
        assert (metadata["action_horizon"], metadata["action_dim"]) == (H, A)
        assert metadata["image_keys"] == ["observation/front", "observation/wrist"]
        for seed in range(20):
            with torch.no_grad():
                expected = policy(observation(seed))["action_chunk"][0].numpy()
            answer = client.infer(as_openpi(observation(seed)))
            np.testing.assert_array_equal(answer["actions"], expected)
            assert answer["server_timing"]["infer_ms"] >= 0
        client._ws.close()


def test_openpis_chunk_broker_serves_one_action_at_a_time():
    with PolicyServer(Echo()) as server:
        client = openpi_client(server)
        broker = ActionChunkBroker(client, action_horizon=H)
        seen = {"observation/state": np.full(3, 5.0)}  # float64, as NumPy makes it
        actions = [broker.infer(seen)["actions"][0] for _ in range(H + 1)]
        assert actions == [5.0, 6.0, 7.0, 8.0, 5.0]
        client._ws.close()


def test_what_openpis_client_lacks_is_named_and_the_session_goes_on():
    with PolicyServer(tiny()) as server:
        client = openpi_client(server)
        whole = as_openpi(observation(0))
        for name, kind in (("prompt", "text"), ("observation/wrist", "array")):
            part = {key: value for key, value in whole.items() if key != name}
            with pytest.raises(RuntimeError, match=f"expected an? {kind} at '{name}'"):
                client.infer(part)
        floats = {**whole, "observation/front": np.zeros((16, 16, 3), np.float32)}
        with pytest.raises(RuntimeError, match=r"an image uint8 \[h, w, 3\]"):
            client.infer(floats)
        assert client.infer(whole)["actions"].shape == (H, A)
        client._ws.close()


def test_openpis_api_key_is_the_token():
    with PolicyServer(Echo(), options=ServerOptions(token="abc")) as server:
        client = openpi_client(server, api_key="abc")
        assert client.infer({"observation/state": np.zeros(3)})["actions"].shape == (
            H,
            A,
        )
        client._ws.close()
        with pytest.raises(Exception, match="401"):
            openpi_client(server, api_key="wrong")


def test_names_of_another_robot_are_given_to_the_server():
    keys = OpenPIKeys(vectors={"joint_position": ("observation", "state")})
    with PolicyServer(Echo(), openpi_keys=keys) as server:
        client = openpi_client(server)
        answer = client.infer({"joint_position": np.full(3, 2.0, np.float32)})
        assert answer["actions"][0, 0] == 2.0
        client._ws.close()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_remote_policy_uses_a_server_of_openpis_protocol(rows):
    policy = tiny()
    with PolicyServer(policy) as server:
        connection = OpenPIConnection(Link(server.address), server.manifest)
        remote = RemotePolicy(connection, options=PATIENT)
        assert connection.server_metadata["policy"] == "TinyVLA"
        for seed in range(5):
            seen = observation(seed, rows=rows).exclude("noise_seed")
            found = remote(seen.copy())["action_chunk"]
            for row in range(rows):
                with torch.no_grad():
                    expected = policy(seen[row : row + 1].copy())["action_chunk"]
                assert torch.equal(found[row : row + 1], expected)
        remote.close()


def test_an_error_of_openpis_server_is_raised():
    with PolicyServer(tiny()) as server:
        keys = replace(OpenPIKeys.of(server.manifest), prompt=None)
        connection = OpenPIConnection(Link(server.address), server.manifest, keys)
        remote = RemotePolicy(connection, options=PATIENT)
        with pytest.raises(ServingError, match="an error: OpenPIKeys: expected a text"):
            remote(observation(0))
        remote.close()


def test_a_chunk_of_another_size_than_declared_is_refused():
    with PolicyServer(Echo()) as server:
        longer = replace(server.manifest, chunk_size=H + 1)
        remote = RemotePolicy(
            OpenPIConnection(Link(server.address), longer), options=PATIENT
        )
        with pytest.raises(ServingError, match=r"expected \[H, A\] = \[5, 2\]"):
            remote(states(0))
        remote.close()


def test_messages_are_those_of_openpis_own_codec():
    codec = OpenPICodec()
    values = {
        "observation/state": np.arange(3, dtype=np.float32),
        "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "step": np.int64(4),
        "prompt": TEXTS[0],
        "nested": {"flag": np.array([True, False])},
    }
    assert codec.encode(values) == msgpack_numpy.packb(values)
    back = codec.decode(msgpack_numpy.packb(values))
    theirs = msgpack_numpy.unpackb(codec.encode(values))
    for name in ("observation/state", "image"):
        np.testing.assert_array_equal(back[name], values[name])
        np.testing.assert_array_equal(theirs[name], values[name])
    assert (back["step"], back["prompt"]) == (4, TEXTS[0])


def test_ten_thousand_damaged_messages_raise_one_error_class_each():
    codec, keys = OpenPICodec(), OpenPIKeys.of(PolicyServer(tiny()).manifest)
    whole = codec.encode(as_openpi(observation(0)))
    ends = (whole[:200] + whole[-200:], whole)
    refused = 0
    for seed in range(10_000):
        data = damaged_bytes(ends[seed % 2], random.Random(seed))
        try:
            keys.to_leaves(codec.decode(data))
        except WireError:
            refused += 1
    assert refused > 5_000


@pytest.mark.parametrize(
    "array",
    [
        {b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "<V8", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"x", b"dtype": "<f4", b"shape": [1 << 30]},
        {b"__ndarray__": True, b"data": b"x", b"dtype": "f4,f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"xx", b"dtype": "<f2", b"shape": [-1]},
        {b"__ndarray__": True},
    ],
)
def test_arrays_of_objects_and_false_sizes_are_refused(array):
    import msgpack

    with pytest.raises(WireError, match="OpenPICodec: expected"):
        OpenPICodec().decode(msgpack.packb({"x": array}))


def test_keys_follow_from_the_manifest():
    keys = OpenPIKeys.of(PolicyServer(tiny()).manifest)
    assert dict(keys.images) == {
        f"observation/{name}": ("observation", "image", name) for name in ARM.cameras
    }
    assert keys.vectors == {"observation/state": ("observation", "state")}
    assert keys.prompt == "prompt"
