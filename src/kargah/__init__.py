"""Kargah: a self-hosted, Persian-first workshop for approved models, real training and checkpoints that stay."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kargah.client import ApiError, Client

__version__ = "0.1.0"
__all__ = ["ApiError", "Client", "__version__"]

_OF_THE_CLIENT = frozenset({"ApiError", "Client"})


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for (PEP 562): the training program imports this package too and needs no HTTP.
    if name in _OF_THE_CLIENT:
        return getattr(import_module("kargah.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
