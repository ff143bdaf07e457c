from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from served_policies import A, Echo, H, states

from torchrl_vla.errors import ServingError, SettingsError
from torchrl_vla.serving import (
    ClientOptions,
    ConnectionTimes,
    Link,
    PolicyServer,
    RemotePolicy,
    ServerOptions,
)
from torchrl_vla.serving.server_options import RequestRate

BRIEF = ClientOptions(times=ConnectionTimes(open_s=0.2))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine's address, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=robot"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(chain)),
        ],
        check=True,
        capture_output=True,
    )
    return chain, key


def test_a_tls_server_serves_clients_that_trust_it_and_no_others(certificate):
    chain, key = certificate
    options = ServerOptions(certificate=chain, private_key=key)
    with PolicyServer(Echo(), options=options) as server:
        assert server.address.startswith("wss://")
        client = RemotePolicy(Link(server.address, ca_file=chain))
        chunk = client(states(3.0))["action_chunk"]
        assert torch.equal(chunk[0, 0], torch.full((A,), 3.0))
        assert chunk.shape == (1, H, A)
        client.close()
        with pytest.raises(ServingError, match="CERTIFICATE_VERIFY_FAILED"):
            RemotePolicy(Link(server.address), options=BRIEF)
        plain = server.address.replace("wss", "ws", 1)
        with pytest.raises(ServingError, match="expected a session within"):
            RemotePolicy(plain, options=BRIEF)


def test_a_damaged_certificate_is_refused_where_the_server_starts(
    certificate, tmp_path
):
    chain, key = certificate
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("no certificate")
    for options, error in (
        (ServerOptions(certificate=damaged), SettingsError),
        (ServerOptions(certificate=chain, private_key=chain), SettingsError),
        (ServerOptions(certificate=tmp_path / "absent.pem"), FileNotFoundError),
    ):
        with pytest.raises(error):
            PolicyServer(Echo(), options=options).start()
    assert key.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "expected max_rows > 0, got 0"),
        ({"max_requests_per_s": -1.0}, "expected max_requests_per_s > 0"),
        ({"drain_s": float("nan")}, "expected drain_s > 0, got nan"),
        ({"token": " "}, "expected a token with characters"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(SettingsError, match=message):
        ServerOptions(**options)


def test_a_key_without_a_certificate_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="a certificate with the private key"):
        ServerOptions(private_key=tmp_path / "key.pem")


def test_a_rate_allows_a_second_of_requests_at_once_and_then_its_pace():
    rate = RequestRate(10.0, now=0.0)
    allowed = [rate.allows(0.0) for _ in range(12)]
    assert allowed == [True] * 10 + [False] * 2
    # 100 asked in the next ten seconds: as many as refill, and no more.
    assert sum(rate.allows(step / 10 + 0.05) for step in range(100)) in (99, 100)
