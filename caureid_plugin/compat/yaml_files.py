"""Reads a config file's YAML, within limits of depth and size."""

from __future__ import annotations

import yaml

from ..common.errors import UnknownName, UserError

# Of a config file: far above what a config needs, below what aliases of aliases could grow to.
# PyYAML takes 0.1 ms for a value, so that bytes and values are counted before they are read.
DEEPEST_CONFIG, LARGEST_CONFIG, LONGEST_CONFIG = 30, 20_000, 500_000
# Keys of earlier versions, each with the value of which this version does the same without it.
_GONE = {"MODEL.HEADS.CAMSEP.GAIN": 1.0}
# What PyYAML raises for text it cannot read: its own errors, and what Python's constructors raise.
_YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError,
                TypeError, ValueError)


class _CountingLoader(yaml.SafeLoader):
    """YAML's safe loader, which ends at what is too much while it reads it."""

    _nodes = 0
    _depth = 0
    _merged = 0

    def compose_node(self, parent, index):
        self._nodes += 1  # keys and values
        if self._nodes > 2 * LARGEST_CONFIG:
            raise UserError(f"it holds more than {LARGEST_CONFIG} values")
        self._depth += 1
        if self._depth > 2 * DEEPEST_CONFIG:
            raise UserError(f"it is nested more than {DEEPEST_CONFIG} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.value.count(":") > 3 and node.tag.endswith(
                (":int", ":float")):  # digits to the base 60, of any number
            raise UserError(f"{node.value[:20]!r} is read as a number to the base 60: put it in "
                            "quotes")
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:  # YAML keeps the last, without a word
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise UserError(f"{key.value[:80]} stands twice at one place, again in line "
                                    f"{key.start_mark.line + 1}: make one of the two")
                seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        super().flatten_mapping(node)  # which comes here for each mapping that "<<" names
        self._merged += 1 + len(node.value)  # copied next, however often it was before
        if self._merged > 2 * LARGEST_CONFIG:
            raise UserError(f"it holds more than {LARGEST_CONFIG} values, what << merges counted "
                            "each time")


def read_yaml(filename: str) -> dict:
    refuse_url(filename, "the config file")
    try:
        with open(filename, encoding="utf-8") as file:
            text = file.read(LONGEST_CONFIG + 1)
        if len(text) > LONGEST_CONFIG:
            raise UserError(f"it is longer than {LONGEST_CONFIG} characters")
        loaded = _CountingLoader(text).get_single_data()
    except _YAML_ERRORS as error:
        raise UserError(f"The config {filename} is not readable as YAML in UTF-8, of at most "
                        f"{LARGEST_CONFIG} values: {error}") from error
    if not isinstance(loaded, dict):
        held = "is empty" if loaded is None else f"holds a {type(loaded).__name__}"
        raise UserError(f"The config {filename} {held}: it must map config keys to values, as in "
                        "`SEED: 1`.")
    try:
        _check_section(loaded, "", (), {})
    except ValueError as error:
        raise UserError(f"The config {filename}: {error}") from None
    for key, value in _GONE.items():
        section, _, name = key.rpartition(".")
        given = section_of(loaded, section).pop(name, value)
        if given != value:
            raise UnknownName(f"The config {filename}: {key} {given} is of an earlier version of "
                              f"the plugin, and this one does what {value} did: take the key out.")
    return loaded


def _check_section(section, name: str, above: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Refuses what a config cannot hold; returns the number of values, aliases written out."""
    if not isinstance(section, (dict, list)):
        if type(section) not in (str, int, float, bool, type(None)):
            raise UserError(f"{name} is a {type(section).__name__}, and a config holds only "
                            "text, numbers, True, False, null and lists: put it in quotes.")
        return 1
    if id(section) in above or len(above) >= DEEPEST_CONFIG:
        raise UserError(f"{name} contains itself, or is nested more than {DEEPEST_CONFIG} deep.")
    if id(section) not in sizes:  # each alias is counted once: linear, however large it grows
        above = (*above, id(section))
        items = section.items() if isinstance(section, dict) else enumerate(section)
        size = 1
        for key, value in items:
            if isinstance(section, dict) and (not isinstance(key, str) or "." in key):
                raise UserError(f"{key!r} in {name or 'the file'} is no config key: a key is "
                                "text without a dot, sections are nested.")
            size += _check_section(value, f"{name}.{key}" if name else str(key), above, sizes)
        sizes[id(section)] = size
    if sizes[id(section)] > LARGEST_CONFIG:
        raise UserError(f"{name or 'the file'} holds more than {LARGEST_CONFIG} values.")
    return sizes[id(section)]


def refuse_url(path: str, what: str) -> None:
    if "://" in path:
        raise UserError(f"{path!r} as {what} is a URL, and configs are not fetched: download the "
                        "file and give its path.")


def section_of(cfg: dict, name: str) -> dict:
    """A section by its name; an empty one where there is none, which is for others to say."""
    for part in name.split(".") if name else ():
        cfg = cfg.get(part)
        if not isinstance(cfg, dict):
            return {}
    return cfg
