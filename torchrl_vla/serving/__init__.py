"""A policy behind a WebSocket, and policies of servers, without pickle."""

from torchrl_vla.serving.client_connection import (
    ClientConnection,
    ConnectionLostError,
    Link,
    NativeConnection,
    Reply,
    is_server_address,
)
from torchrl_vla.serving.connection_state import (
    Clock,
    ConnectionMonitor,
    ConnectionState,
    ConnectionTimes,
)
from torchrl_vla.serving.fallbacks import (
    Fallback,
    HoldPosition,
    RepeatLast,
    ZeroAction,
)
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.openpi_connection import OpenPIConnection
from torchrl_vla.serving.openpi_keys import OpenPIKeys
from torchrl_vla.serving.policy_server import PolicyServer
from torchrl_vla.serving.remote_policy import ClientOptions, RemotePolicy
from torchrl_vla.serving.server_manifest import ServerManifest, ServingMode
from torchrl_vla.serving.server_options import ServerOptions
from torchrl_vla.serving.serving_metrics import ServingMetrics
from torchrl_vla.serving.serving_mode import describe_policy, serving_mode
from torchrl_vla.serving.session_rules import check_robot_of_client, serving_capacity
from torchrl_vla.serving.vla_eval_server import make_vla_eval_server
from torchrl_vla.serving.wire_format import SCHEMA_VERSION, Message, TensorDictCodec

__all__ = [
    "SCHEMA_VERSION",
    "ClientConnection",
    "ClientOptions",
    "Clock",
    "ConnectionLostError",
    "ConnectionMonitor",
    "ConnectionState",
    "ConnectionTimes",
    "Fallback",
    "HoldPosition",
    "Leaves",
    "Link",
    "Message",
    "NativeConnection",
    "OpenPIConnection",
    "OpenPIKeys",
    "PolicyServer",
    "RemotePolicy",
    "RepeatLast",
    "Reply",
    "ServerManifest",
    "ServerOptions",
    "ServingMetrics",
    "ServingMode",
    "TensorDictCodec",
    "ZeroAction",
    "check_robot_of_client",
    "describe_policy",
    "is_server_address",
    "make_vla_eval_server",
    "serving_capacity",
    "serving_mode",
]
