from __future__ import annotations

from functools import partial

import anyio
import numpy as np
import pytest
import torch
from served_policies import TEXTS, A, Echo, H, observation, tiny

pytest.importorskip("vla_eval", reason="the extra vla-eval is not installed")

from vla_eval.connection import Connection
from vla_eval.model_servers.serve import serve_async
from vla_eval.protocol.numpy_codec import set_image_format

from torchrl_vla.errors import ServingError
from torchrl_vla.serving import make_vla_eval_server

CAMERAS = {"agentview": "front", "wrist": "wrist"}


def as_vla_eval(seed: int) -> dict[str, object]:
    seen = observation(seed)
    image = seen["observation", "image"]
    return {
        "images": {
            "agentview": image["front"][0].permute(1, 2, 0).numpy(),
            "wrist": image["wrist"][0].permute(1, 2, 0).numpy(),
        },
        "task_description": seen["language_instruction"][0],
        "states": seen["observation", "state"][0].numpy(),
    }


def actions_of(server, episodes: list[list[dict]]) -> list[list[np.ndarray]]:
    """Return what vla-eval's own client gets, episode by episode."""

    async def run() -> list[list[np.ndarray]]:
        out = []
        async with anyio.create_task_group() as group:
            port = await group.start(partial(serve_async, server, "127.0.0.1", 0))
            connection = Connection(f"ws://127.0.0.1:{port}", timeout=120.0)
            await connection.connect(benchmark="test")
            for steps in episodes:
                await connection.start_episode({"task": {"name": TEXTS[0]}})
                out.append([(await connection.act(obs))["actions"] for obs in steps])
                await connection.end_episode({"success": True})
            await connection.close()
            group.cancel_scope.cancel()
        return out

    return anyio.run(run)


def test_its_client_gets_the_chunks_of_a_local_policy_action_by_action():
    policy = tiny()
    set_image_format("png")  # its default, without loss
    server = make_vla_eval_server(policy, cameras=CAMERAS)
    episodes = [[as_vla_eval(seed + step) for step in range(H + 1)] for seed in (0, 50)]
    found = actions_of(server, episodes)
    for seed, actions in zip((0, 50), found):
        with torch.no_grad():
            first = policy(observation(seed))["action_chunk"][0].numpy()
            second = policy(observation(seed + H))["action_chunk"][0].numpy()
        np.testing.assert_array_equal(np.stack(actions[:H]), first)
        np.testing.assert_array_equal(actions[H], second[0])


def test_cameras_have_to_pair():
    with pytest.raises(ServingError, match=r"for each of \['front', 'wrist'\]"):
        make_vla_eval_server(tiny(), cameras={"agentview": "front"})


def test_it_declares_what_it_reads_and_writes():
    server = make_vla_eval_server(tiny(), cameras=CAMERAS)
    assert server.get_action_spec()["raw"].dims == A
    assert set(server.get_observation_spec()) == {"image", "language"}
    assert set(make_vla_eval_server(Echo()).get_observation_spec()) == set()
