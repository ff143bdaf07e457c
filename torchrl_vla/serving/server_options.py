"""Options of a policy server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from torchrl_vla.errors import SettingsError


@dataclass(frozen=True)
class ServerOptions:
    """Set where a server listens, whom it lets in and how much it takes.

    Args:
        host: address to listen at; the default is this machine alone.
        port: 0 = any free one.
        max_sessions: clients at once; more are refused.
        max_rows: rows that one call of the policy may have; 1 = each request alone,
            with the bits of a local policy. More serves several clients by one call,
            and their answers may differ from those in the last bits.
        max_message_bytes: of one message; a larger one closes its connection.
        max_requests_per_s: of one client, on average; more are refused.
        token: that clients have to send; None = none.
        certificate: file of the TLS certificate chain, PEM; None = no TLS.
        private_key: file of its key, PEM; None = in the certificate's file.
        drain_s: longest time for the answers of a server that shuts down, seconds.

    Raises:
        SettingsError: a number is not positive, or a key without certificate.

    Examples:
        >>> ServerOptions(max_sessions=0)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SettingsError: ServerOptions: expected max_sessions > 0, \
got 0. Leave it out for the default.
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_sessions: int = 16
    max_rows: int = 1
    max_message_bytes: int = 64 << 20
    max_requests_per_s: float = 200.0
    token: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        for name in (
            *("max_sessions", "max_rows", "max_message_bytes", "max_requests_per_s"),
            "drain_s",
        ):
            if not vars(self)[name] > 0:
                raise SettingsError(
                    f"ServerOptions: expected {name} > 0, got {vars(self)[name]}. "
                    "Leave it out for the default."
                )
        if self.private_key is not None and self.certificate is None:
            raise SettingsError(
                "ServerOptions: expected a certificate with the private key, got None. "
                "Give certificate=..., or neither."
            )
        if self.token is not None and not self.token.strip():
            raise SettingsError(
                f"ServerOptions: expected a token with characters, got {self.token!r}. "
                "Pass None for a server without one."
            )

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS settings, with the files read; None = no TLS.

        Raises:
            FileNotFoundError: there is no such file.
            SettingsError: a file is damaged, or the key is not the certificate's.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except FileNotFoundError:
            raise
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(
                f"ServerOptions: expected a certificate and its key in PEM form at "
                f"{str(self.certificate)!r}, got {error}. Make them with openssl req."
            ) from error
        return context


class RequestRate:
    """Allow a number of requests per second, with bursts of one second's worth.

    Args:
        per_s: requests per second.
        now: instant of the start on the caller's clock, seconds.

    Examples:
        >>> rate = RequestRate(2.0, now=10.0)
        >>> [rate.allows(now) for now in (10.0, 10.0, 10.0, 10.5, 10.6)]
        [True, True, False, True, False]
    """

    def __init__(self, per_s: float, now: float) -> None:
        self.per_s = per_s
        self._burst = max(1.0, per_s)
        self._left = self._burst
        self._last = now

    def allows(self, now: float) -> bool:
        """Return whether one more request is allowed, and count it then."""
        self._left = min(self._burst, self._left + (now - self._last) * self.per_s)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
