"""A trained network as a file for other programs, and such files used here."""

from .files import export_network, load_export
from .graph import ExportError
from .hub import HubNetwork, Origin
from .sidecar import Sidecar

__all__ = ["ExportError", "HubNetwork", "Origin", "Sidecar", "export_network", "load_export"]
