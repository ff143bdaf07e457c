"""The library's exceptions.

Each also derives from the builtin that a caller would expect, so that
``except ValueError`` keeps working where a library error is refined later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class VLAError(Exception):
    """Base of every error that torchrl_vla raises on purpose."""

    #: Environments of a batch that caused it, flattened; empty = it is not known which.
    env_indices: tuple[int, ...] = ()

    #: True = no other episode would mean anything, so an evaluation ends at once.
    is_fatal: bool = False

    def fatal(self) -> Self:
        """Mark that no other episode would mean anything; return itself."""
        self.is_fatal = True
        return self

    def at_envs(self, envs: Tensor) -> Self:
        """Note the environments that caused it, bool ``[*B]``; return itself."""
        self.env_indices = tuple(envs.reshape(-1).nonzero()[:, 0].tolist())
        return self


class SchemaError(VLAError, ValueError):
    """A tensordict does not follow the canonical schema."""


class MetadataError(VLAError, ValueError):
    """Robot metadata contradicts itself."""


class IncompatibleMetadataError(MetadataError):
    """Two metadata describe robots whose data must not be mixed."""


class SpaceError(VLAError, ValueError):
    """A policy or data are used in another space than their own."""


class TokenError(VLAError, ValueError):
    """An action cannot be encoded, or a token is none of ours."""


class ExecutionError(VLAError, RuntimeError):
    """A chunk executor cannot go on without risking a wrong action."""


class ActionGuardError(VLAError, ValueError):
    """A chunk of actions is not what the embodiment takes; none of it was sent."""


class ServingError(VLAError, RuntimeError):
    """A policy server refuses, cannot be reached or does not answer in time."""


class WireError(ServingError, ValueError):
    """Bytes from the network are no message of this schema version."""


class SessionRefusedError(ServingError):
    """A policy server does not take a client; another try would not change it.

    ``reason`` names the rule: ``"metadata"``, ``"capacity"``, ``"draining"``,
    ``"schema"``, ``"token"`` or ``"manifest"``.
    """

    def __init__(self, message: str, reason: str = "metadata") -> None:
        super().__init__(message)
        self.reason = reason


class ActionProviderError(VLAError, RuntimeError):
    """A provider cannot answer a request with actions; none was sent."""


class ArgumentTypeError(VLAError, TypeError):
    """An argument is of another kind than a function takes."""


class MissingExtraError(VLAError, ImportError):
    """An optional package is needed and not installed."""


class _ReadableKeyError(VLAError, KeyError):
    # KeyError prints repr(message), which turns a sentence into quoted text.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingKeyError(_ReadableKeyError):
    """A tensordict lacks a key that a component needs."""


class UnknownInstructionError(_ReadableKeyError):
    """An instruction id or text is not in the table."""


class NamedObjectError(VLAError, ValueError):
    """A name such as ``module:function`` does not lead to what was asked for."""


class SettingsError(VLAError, ValueError):
    """Settings contradict each other, or what they are for."""


class NoTrainingError(VLAError, RuntimeError):
    """A training step does not train what it should."""


class ResumeError(VLAError, ValueError):
    """A training cannot be resumed from what is in its folder."""
