"""What is registered in the toolbox, by name."""

from __future__ import annotations


def registered_names(registry) -> list[str]:
    """Names known to one of the toolbox's registries, sorted; the registry itself has no list."""
    return sorted(registry._obj_map)
