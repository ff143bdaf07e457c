"""LIBERO: 130 language-conditioned tasks of one arm, and their LIBERO-PRO variants."""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torchrl_vla.envs.libero.libero_env import LiberoEnv
    from torchrl_vla.envs.libero.libero_protocol import LiberoProtocol
    from torchrl_vla.envs.libero.libero_provider import LiberoProvider, ProviderError

_HERE = "torchrl_vla.envs.libero"
_MODULES = {
    f"{_HERE}.libero_env": ("LiberoEnv",),
    f"{_HERE}.libero_provider": ("LiberoProvider", "ProviderError"),
    f"{_HERE}.libero_protocol": ("LiberoProtocol",),
}

__all__ = [
    "LiberoEnv",
    "LiberoProtocol",
    "LiberoProvider",
    "ProviderError",
]

__getattr__ = lazy_names(__name__, _MODULES)
