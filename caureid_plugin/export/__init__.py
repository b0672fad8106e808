"""A trained network as a file for other programs, and such files used here."""

from .files import export_network, load_export
from .graph import ExportError
from .sidecar import Sidecar

__all__ = ["ExportError", "Sidecar", "export_network", "load_export"]
