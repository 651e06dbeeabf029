"""Network architectures, and the table that lets a checkpoint rebuild one from its name and settings.

An architecture is a frozen settings dataclass and an `nn.Module` that takes it and keeps it as `.settings`; the module
is called as `network(x, noise, context)`. A user's own goes into a dictionary of the same form, passed to
`load_checkpoint(..., architectures=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from assimilate.errors import UnknownName
from assimilate.learning.networks.fno import FNO, FNOSettings
from assimilate.learning.networks.mlp import MLP, MLPSettings
from assimilate.learning.networks.transolver import Transolver, TransolverSettings
from assimilate.learning.networks.unet import UNet, UNetSettings

__all__ = [
    "ARCHITECTURES",
    "FNO",
    "MLP",
    "FNOSettings",
    "MLPSettings",
    "Transolver",
    "TransolverSettings",
    "UNet",
    "UNetSettings",
    "architecture_name",
    "build_network",
    "sized_network",
]

Architectures = Mapping[str, tuple[type, type[nn.Module]]]

ARCHITECTURES: Architectures = {
    "fno": (FNOSettings, FNO),
    "mlp": (MLPSettings, MLP),
    "transolver": (TransolverSettings, Transolver),
    "unet": (UNetSettings, UNet),
}
"""Name -> (settings class, module class)."""


def build_network(name: str, settings: Mapping[str, Any], architectures: Architectures | None = None) -> nn.Module:
    """A new network of a named architecture.

    Args:
        name: key of the table.
        settings: arguments of its settings class, as read from JSON.
        architectures: further architectures by name.

    Raises:
        UnknownName: no architecture of that name.
        ValueError: settings that the architecture does not have.
    """
    table = {**ARCHITECTURES, **(architectures or {})}
    if name not in table:
        raise UnknownName("architecture", name, table)
    settings_class, module_class = table[name]
    try:
        return module_class(settings_class(**settings))
    except TypeError as error:
        raise ValueError(f"architecture {name!r} does not take these settings: {error}") from error


def architecture_name(network: nn.Module, architectures: Architectures | None = None) -> str:
    """The name under which a network's class stands in the table.

    Raises:
        UnknownName: the class is in no table.
    """
    table = {**ARCHITECTURES, **(architectures or {})}
    for name, (_, module_class) in table.items():
        if type(network) is module_class:
            return name
    raise UnknownName("architecture", type(network).__name__, table, hint=" (add it to `architectures`)")


def sized_network(
    name: str,
    settings: Mapping[str, Any] | None,
    channels: int,
    outputs: int,
    *,
    context: int = 0,
    noise: bool = False,
) -> nn.Module:
    """A new network whose sizes come from the data and whose other settings from the user.

    Args:
        name: key of the table.
        settings: settings without the sizes; None = the architecture's defaults.
        channels: channels of the input.
        outputs: channels of the output.
        context: channels of the context.
        noise: whether it is given a noise level (a U-Net always is).
    """
    sizes = {"channels": channels, "outputs": outputs, "context": context}
    if name != "unet":
        sizes["noise_features"] = int(noise)
    return build_network(name, {**(settings or {}), **sizes})
