from __future__ import annotations

import logging
import random
import threading
from dataclasses import replace

import pytest
import torch
from served_policies import (
    ARM,
    TEXTS,
    A,
    Counting,
    Echo,
    H,
    health,
    http_get,
    observation,
    states,
    tiny,
    tiny_flow,
    wait_until,
)
from tensordict.nn import TensorDictModule

from torchrl_vla.errors import ServingError, SessionRefusedError, SpaceError
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata, mark_space
from torchrl_vla.schema.policy_space import PolicySpace
from torchrl_vla.serving import (
    ClientOptions,
    Leaves,
    Link,
    NativeConnection,
    PolicyServer,
    RemotePolicy,
    ServerOptions,
    describe_policy,
)
from torchrl_vla.spaces import ConvertedPolicy
from torchrl_vla.testing import check_policy

#: No test is about this machine's speed.
PATIENT = ClientOptions(request_timeout_s=120.0, max_age_s=None)


def remote(server: PolicyServer, **options) -> RemotePolicy:
    options.setdefault("robot", server.manifest.metadata)
    return RemotePolicy(server.address, options=PATIENT, **options)


@pytest.mark.parametrize("make", [tiny, tiny_flow])
def test_eight_interleaved_sessions_of_fifty_steps_have_the_bits_of_a_local_policy(
    make,
):
    policy, order = make(), random.Random(0)
    with PolicyServer(policy) as server:
        clients = [remote(server) for _ in range(8)]
        turns = [client for client in range(8) for _ in range(50)]
        order.shuffle(turns)
        steps = [0] * 8
        for client in turns:
            seed, steps[client] = 1000 * client + steps[client], steps[client] + 1
            with torch.no_grad():
                expected = policy(observation(seed))["action_chunk"]
            found = clients[client](observation(seed))["action_chunk"]
            assert torch.equal(found, expected), (client, seed)
        assert steps == [50] * 8
        assert server.metrics["answers"] == 400
        for client in clients:
            client.close()


def test_eight_clients_at_once_get_their_own_answers():
    policy = tiny()
    with PolicyServer(policy) as server:
        wrong: list[tuple[int, int]] = []

        def act(number: int) -> None:
            client = remote(server)
            for step in range(20):
                seed = 100 * number + step
                with torch.no_grad():
                    expected = policy(observation(seed))["action_chunk"]
                if not torch.equal(client(observation(seed))["action_chunk"], expected):
                    wrong.append((number, step))
            client.close()

        threads = [threading.Thread(target=act, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert server.metrics["answers"] == 160


def test_relative_actions_of_eight_sessions_are_measured_from_their_own_states():
    robot = RobotDatasetMetadata(
        "robot",
        action_names=("x", "y"),
        action_reference="absolute",
        state_names=("x", "y", "grip"),
    )
    trained = replace(robot, dataset_id="trained", action_reference=("relative",) * 2)
    step = TensorDictModule(
        lambda state: torch.ones(*state.shape[:-1], H, A),
        [("observation", "state")],
        ["action_chunk"],
    )
    step.chunk_size, step.action_dim = H, A
    policy = ConvertedPolicy(step, robot.conversion_to(trained))
    with PolicyServer(policy) as server:
        clients = [remote(server) for _ in range(8)]
        for step_index in range(3):
            for number, client in enumerate(clients):
                value = 10.0 * number + step_index
                chunk = client(states(value))["action_chunk"]
                assert torch.equal(chunk, torch.full((1, H, A), value + 1))
        for client in clients:
            client.close()


def test_an_executor_acts_with_a_remote_policy_as_with_a_local_one():
    policy = tiny()
    with PolicyServer(policy) as server:
        client = remote(server)
        local = MultiStepActorWrapper(policy, replan_interval=2)
        far = MultiStepActorWrapper(client, replan_interval=2)
        for step in range(7):
            seen = observation(step, rows=3)
            seen["is_init"] = torch.full((3, 1), step in (0, 3))
            with torch.no_grad():
                expected = local(seen.copy())
            found = far(seen.copy())
            assert torch.equal(found["action"], expected["action"])
            assert torch.equal(found["is_decision"], expected["is_decision"])
        client.close()


def test_a_remote_policy_keeps_the_contract_of_policies():
    with PolicyServer(tiny()) as server:
        client = remote(server)
        check_policy(client, observation(0, rows=3))
        assert (client.chunk_size, client.action_dim) == (H, A)
        client.close()


def test_instruction_ids_are_sent_as_texts_of_the_clients_table():
    policy, table = tiny(), InstructionTable(TEXTS)
    with PolicyServer(policy) as server:
        client = remote(server, instructions=table)
        seen = observation(5, rows=2)
        with torch.no_grad():
            expected = policy(seen.copy())["action_chunk"]
        seen["language_instruction"] = table.encode([TEXTS[1], TEXTS[0]])
        assert torch.equal(client(seen)["action_chunk"], expected)
        client.close()


def test_a_batch_of_robots_is_one_request():
    echo = Echo()
    with PolicyServer(echo) as server:
        client = remote(server)
        seen = states(0.0, rows=6).reshape(2, 3)
        seen["observation", "state"] = torch.arange(18.0).reshape(2, 3, 3)
        chunk = client(seen)["action_chunk"]
        expected = (
            seen["observation", "state"][..., None, :A] + torch.arange(4.0)[:, None]
        )
        assert torch.equal(chunk, expected)
        assert echo.rows == [6]
        client.close()


def test_requests_that_wait_share_one_call_of_the_policy():
    echo = Echo()
    echo.gate.clear()
    with PolicyServer(echo, options=ServerOptions(max_rows=16)) as server:
        clients = [remote(server) for _ in range(5)]
        answers: dict[int, torch.Tensor] = {}

        def ask(number: int) -> None:
            answers[number] = clients[number](states(number))["action_chunk"]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(5)]
        threads[0].start()
        assert echo.entered.acquire(timeout=60)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: health(server.address)["waiting_requests"] == 4)
        echo.gate.set()
        for thread in threads:
            thread.join()
        assert echo.rows == [1, 4]
        for number, chunk in answers.items():
            assert torch.equal(chunk[0, 0], torch.full((A,), float(number)))
        for client in clients:
            client.close()


def test_one_client_that_asks_wrongly_does_not_fail_the_others_of_its_batch():
    class Picky(Echo):
        def forward(self, tensordict):
            super().forward(tensordict)
            if (tensordict["observation", "state"] < 0).any():
                raise SpaceError("Picky: expected positive states.")
            return tensordict

    echo = Picky()
    echo.gate.clear()
    with PolicyServer(echo, options=ServerOptions(max_rows=16)) as server:
        clients = [remote(server) for _ in range(3)]
        outcomes: dict[int, object] = {}

        def ask(number: int, value: float) -> None:
            try:
                outcomes[number] = clients[number](states(value))["action_chunk"]
            except ServingError as error:
                outcomes[number] = str(error)

        threads = [
            threading.Thread(target=ask, args=(n, v)) for n, v in enumerate((1, 2, -1))
        ]
        threads[0].start()
        assert echo.entered.acquire(timeout=60)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: health(server.address)["waiting_requests"] == 2)
        echo.gate.set()
        for thread in threads:
            thread.join()
        assert torch.equal(outcomes[1][0, 0], torch.full((A,), 2.0))
        assert outcomes[2] == "Picky: expected positive states. No action was sent."
        for client in clients:
            client.close()


def test_a_newer_observation_replaces_one_that_waits():
    echo = Echo()
    echo.gate.clear()
    with PolicyServer(echo) as server:
        connection = NativeConnection(Link(server.address))
        connection.open(None, 60)
        for sequence, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
            state = torch.full((1, 3), value)
            connection.send(sequence, Leaves((1,), {("observation", "state"): state}))
            if sequence == 1:
                assert echo.entered.acquire(timeout=60)  # the first one is under way
        replaced = connection.receive(60)
        assert (replaced.sequence, replaced.failure.reason) == (2, "superseded")
        echo.gate.set()
        replies = [connection.receive(60), connection.receive(60)]
        assert [reply.sequence for reply in replies] == [1, 3]
        assert float(replies[1].leaves.tensors["action_chunk",][0, 0, 0]) == 3.0
        assert server.metrics["superseded"] == 1
        connection.close()


RULES = {
    "action_names": {"action_names": ("y", "x")},
    "action_units": {"action_units": ("mm", "mm")},
    "action_reference": {"action_reference": ("delta", "delta")},
    "cameras": {"cameras": ("front", "side")},
    "state_dim": {
        "state_dim": 2,
        "state_names": ("x", "y"),
        "state_units": ("m", "m"),
    },
    "state_units": {"state_units": ("m", "m", "deg")},
    "embodiment_id": {"embodiment_id": "three_joints"},
}


@pytest.mark.parametrize("name", RULES)
def test_a_robot_that_would_be_driven_wrongly_is_refused_by_name(name):
    with PolicyServer(tiny()) as server:
        with pytest.raises(SessionRefusedError, match=f"  - {name}: ") as refused:
            remote(server, robot=replace(ARM, **RULES[name]))
        assert refused.value.reason == "metadata"
        assert server.metrics["sessions_refused"] == 1
        assert health(server.address)["active_sessions"] == 0


def test_another_control_rate_is_a_warning():
    with PolicyServer(tiny()) as server:
        slower = replace(ARM, control_frequency_hz=5.0)
        with pytest.warns(UserWarning, match=r"frequency_hz: 10\.0 against 5.0"):
            client = remote(server, robot=slower)
        assert client(observation(0))["action_chunk"].shape == (1, H, A)
        client.close()


def test_a_client_without_a_robot_is_told_that_nothing_was_compared():
    with PolicyServer(tiny()) as server:
        with pytest.warns(UserWarning, match="nothing is compared with 'arm'"):
            client = RemotePolicy(server.address)
        client.close()


def test_a_full_server_refuses_with_its_load():
    with PolicyServer(Echo(), options=ServerOptions(max_sessions=2)) as server:
        clients = [remote(server), remote(server)]
        assert health(server.address)["load"] == 1.0
        with pytest.raises(SessionRefusedError, match="got 2 of 2 taken") as refused:
            remote(server)
        assert refused.value.reason == "capacity"
        clients[0].close()
        wait_until(lambda: health(server.address)["active_sessions"] < 2)
        clients.append(remote(server))
        for client in clients:
            client.close()


def test_a_policy_with_a_state_serves_one_client_at_a_time_and_begins_anew_for_each():
    with PolicyServer(Counting()) as server:
        assert server.manifest.mode == "exclusive"
        first = remote(server)
        values = [float(first(states(0))["action_chunk"][0, 0, 0]) for _ in range(3)]
        assert values == [1.0, 2.0, 3.0]
        with pytest.raises(SessionRefusedError, match="the policy is exclusive"):
            remote(server)
        first.close()
        wait_until(lambda: not health(server.address)["active_sessions"])
        second = remote(server)
        assert float(second(states(0))["action_chunk"][0, 0, 0]) == 1.0
        second.close()


def test_an_executor_is_refused_with_the_policy_to_serve():
    executor = MultiStepActorWrapper(Echo())
    with pytest.raises(ServingError, match=r"Serve the policy inside the executor"):
        PolicyServer(executor)


def test_a_policy_of_model_space_is_refused():
    policy = tiny()
    mark_space(policy, PolicySpace("model", "abc", "mean_std"))
    with pytest.raises(SpaceError, match="expected a policy in robot space"):
        PolicyServer(policy)


def test_a_missing_input_is_named_and_the_session_goes_on():
    with PolicyServer(tiny()) as server:
        client = remote(server)
        seen = observation(0)
        del seen["observation", "state"]
        with pytest.raises(ServingError, match=r"\('observation', 'state'\)\] missing"):
            client(seen)
        assert client(observation(0))["action_chunk"].shape == (1, H, A)
        client.close()


def test_an_input_that_the_policy_does_not_read_is_refused():
    with PolicyServer(Echo()) as server:
        connection = NativeConnection(Link(server.address))
        connection.open(None, 60)
        tensors = {
            ("observation", "state"): torch.zeros(1, 3),
            ("secret",): torch.ones(1),
        }
        connection.send(1, Leaves((1,), tensors))
        failure = connection.receive(60).failure
        assert failure.reason == "policy"
        assert "('secret',)" in failure.message
        connection.close()


def test_what_the_policy_raises_reaches_its_client_and_a_bug_does_not(caplog):
    class Broken(Echo):
        def forward(self, tensordict):
            raise KeyError("weights of /secret/path")

    with PolicyServer(Broken()) as server:
        connection = NativeConnection(Link(server.address))
        connection.open(None, 60)
        tensors = {("observation", "state"): torch.zeros(1, 3)}
        connection.send(1, Leaves((1,), tensors))
        failure = connection.receive(60).failure
        assert failure.reason == "internal"
        assert "secret" not in failure.message
        assert "secret" in caplog.text
        connection.close()


def test_damaged_messages_end_the_session_and_not_the_server():
    import websockets.sync.client

    with PolicyServer(Echo()) as server:
        for data in (b"", b"TVLA", b"\x80\x04.", "a text", b"x" * 100_000):
            with websockets.sync.client.connect(
                server.address + "/torchrl_vla", proxy=None
            ) as socket:
                socket.send(data)
                refusal = socket.recv(60)
                assert b"schema" in refusal
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    socket.recv(60)
        assert server.metrics["damaged_messages"] == 5
        client = remote(server)
        assert client(states(1))["action_chunk"].shape == (1, H, A)
        client.close()


def test_a_message_beyond_the_limit_closes_its_connection():
    with PolicyServer(Echo(), options=ServerOptions(max_message_bytes=2000)) as server:
        client = RemotePolicy(
            server.address,
            options=replace(PATIENT, request_timeout_s=1.0),
        )
        with pytest.raises(ServingError, match=r"1009|too big"):
            client(states(0, rows=1000))
        client.close()


def test_a_client_that_asks_too_often_is_refused_and_the_session_goes_on():
    with PolicyServer(
        Echo(), options=ServerOptions(max_requests_per_s=0.001)
    ) as server:
        client = remote(server)
        client(states(0))
        with pytest.raises(ServingError, match=r"expected at most 0\.001 requests per"):
            client(states(0))
        assert server.metrics["rate_limited"] == 1
        client.close()


def test_instructions_without_end_are_refused():
    with PolicyServer(tiny()) as server:
        client = remote(server)
        seen = observation(0)
        seen["language_instruction"] = ["x" * 5000]
        with pytest.raises(ServingError, match="at most 4096 characters"):
            client(seen)
        client.close()


def test_health_and_metrics_answer_over_http():
    with PolicyServer(Echo()) as server:
        client = remote(server)
        client(states(0))
        client(states(0))
        report = health(server.address)
        assert (report["status"], report["policy"]) == ("ok", "Echo")
        assert report["active_sessions"] == 1
        status, text = http_get(server.address, "/metrics")
        lines = text.splitlines()
        assert status == 200
        assert "torchrl_vla_serving_requests_total 2" in lines
        assert "torchrl_vla_serving_active_sessions 1" in lines
        assert "# TYPE torchrl_vla_serving_requests_total counter" in lines
        assert http_get(server.address, "/weights")[0] == 404
        client.close()


def test_every_request_is_one_line_of_the_audit(caplog):
    import json

    caplog.set_level(logging.INFO, "torchrl_vla.serving.audit")
    with PolicyServer(Echo()) as server:
        client = remote(server)
        client(states(0))
        client.close()
        wait_until(lambda: server.metrics["sessions_closed"] == 1)
    lines = [
        json.loads(record.message)
        for record in caplog.records
        if record.name == "torchrl_vla.serving.audit"
    ]
    assert [line["event"] for line in lines] == ["opened", "request", "closed"]
    request = lines[1]
    assert (request["outcome"], request["rows"], request["sequence"]) == (
        "answered",
        1,
        1,
    )
    assert request["waited_ms"] >= 0


def test_a_token_is_asked_for_everywhere_but_at_health():
    options = ServerOptions(token="open sesame")
    with PolicyServer(Echo(), options=options) as server:
        for link in (Link(server.address), Link(server.address, token="wrong")):
            with pytest.raises(
                SessionRefusedError, match="expected the token"
            ) as refused:
                RemotePolicy(link)
            assert refused.value.reason == "token"
        client = RemotePolicy(Link(server.address, token="open sesame"))
        assert client(states(0))["action_chunk"].shape == (1, H, A)
        client.close()
        assert http_get(server.address, "/metrics")[0] == 401
        assert http_get(server.address, "/metrics", "open sesame")[0] == 200
        assert http_get(server.address, "/health")[0] == 200


def test_a_server_that_drains_answers_what_was_asked_and_refuses_what_is_new():
    echo = Echo()
    echo.gate.clear()
    server = PolicyServer(echo, options=ServerOptions(drain_s=60)).start()
    client, answers = remote(server), []
    asking = threading.Thread(
        target=lambda: answers.append(client(states(7))["action_chunk"])
    )
    asking.start()
    assert echo.entered.acquire(timeout=60)
    draining = threading.Thread(target=server.drain)
    draining.start()
    wait_until(lambda: health(server.address)["status"] == "draining")
    with pytest.raises(SessionRefusedError, match="one that shuts down") as refused:
        remote(server)
    assert refused.value.reason == "draining"
    echo.gate.set()
    asking.join()
    draining.join()
    assert torch.equal(answers[0][0, 0], torch.full((A,), 7.0))
    server.drain()  # twice is once
    client.close()


def test_a_port_that_is_taken_is_an_error_where_the_server_starts():
    with PolicyServer(Echo()) as server:
        port = int(server.address.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            PolicyServer(Echo(), options=ServerOptions(port=port)).start()


def test_warming_up_calls_the_policy_once_and_refuses_what_it_cannot_read():
    echo = Echo()
    server = PolicyServer(echo)
    server.warm_up(states(0))
    assert echo.rows == [1]
    with pytest.raises(ServingError, match="expected the policy to answer"):
        server.warm_up(states(0).exclude(("observation", "state")))


def test_the_manifest_says_what_is_served():
    manifest = describe_policy(tiny(), revision="3f2a")
    assert manifest.policy == "TinyVLA"
    assert manifest.metadata == ARM
    assert ("language_instruction",) in manifest.in_keys
    assert manifest.out_keys == (("action_chunk",),)
