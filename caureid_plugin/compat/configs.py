"""Repairs so that a config file or key that is wrong is named, and changes nothing."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import fastreid.modeling.meta_arch.build as _meta_build
from fastreid.config import CfgNode

from ..common.text import shown
from .repair import Patches, repair
from .yaml_files import DEEPEST_CONFIG, read_yaml, refuse_url, section_of

BASE_KEY = "_BASE_"


@repair(
    upstream="config/config.py:52-98 (load_yaml_with_base)",
    symptom="a config file that is empty, damaged, not UTF-8 or no mapping ends in an error that "
    "does not name it (a TypeError, an AssertionError); a missing _BASE_ does not say who asks for "
    "it, one that leads back to itself is a RecursionError",
    versions="all",
)
def _config_file(patch: Patches) -> None:
    load, merge = CfgNode.load_yaml_with_base, CfgNode.merge_from_file

    @functools.wraps(load)
    def load_yaml_with_base(filename, allow_unsafe=False):
        if allow_unsafe:  # runs the file's code: only where the caller says so
            return load(filename, allow_unsafe=True)
        return _load_config(str(filename), ())

    @functools.wraps(merge)
    def merge_from_file(self, cfg_filename, allow_unsafe=False):
        loaded = CfgNode.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        try:
            self.merge_from_other_cfg(type(self)(loaded))
        except (KeyError, ValueError) as error:
            kind = KeyError if isinstance(error, KeyError) else ValueError
            raise kind(f"The config {cfg_filename}: {error.args[0]}") from error

    patch.set(CfgNode, "load_yaml_with_base", staticmethod(load_yaml_with_base))
    patch.set(CfgNode, "merge_from_file", merge_from_file)


def _load_config(filename: str, derived: tuple[str, ...]) -> dict:
    """A config file over its _BASE_; ``derived`` are the files that led here by theirs."""
    if len(derived) > DEEPEST_CONFIG:
        raise ValueError(f"The config {derived[0]} has more than {DEEPEST_CONFIG} files above it, "
                         f"each the {BASE_KEY} of the one before: merge some of them.")
    if os.path.realpath(filename) in map(os.path.realpath, derived):
        circle = " -> ".join((*derived, filename))
        raise ValueError(f"The config {filename} is its own {BASE_KEY}: {circle}.")
    loaded = read_yaml(filename)
    if BASE_KEY not in loaded:
        return loaded
    path = _base_path(filename, loaded.pop(BASE_KEY))
    base = _load_config(path, (*derived, filename))
    _merge_sections(loaded, base, filename)
    return base


def _base_path(filename: str, base) -> str:
    if not isinstance(base, str) or not base:
        raise ValueError(f"The config {filename}: {BASE_KEY} {base!r} must be the path of a file.")
    refuse_url(base, f"{BASE_KEY} of the config {filename}")
    path = os.path.join(os.path.dirname(filename), os.path.expanduser(base))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The config {filename}: its {BASE_KEY} {base!r} is no file "
                                f"({path}).")
    return path


def _merge_sections(new: dict, base: dict, filename: str, prefix: str = "") -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise ValueError(f"The config {filename}: {prefix}{key} is a section, but a value "
                                 f"in its {BASE_KEY}.")
            _merge_sections(value, base[key], filename, f"{prefix}{key}.")
        else:
            base[key] = value


def _all_keys(cfg, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _check_known(key, known: set[str], root: CfgNode) -> None:
    if not isinstance(key, str):
        raise TypeError(f"A config key is text, got {key!r}.")
    if BASE_KEY in key.split("."):
        raise ValueError(f"{key!r}: the reserved key {BASE_KEY!r} can only be used in files.")
    told_by_yacs = root.key_is_deprecated(key) or root.key_is_renamed(key)
    if key not in known and not told_by_yacs:
        close = difflib.get_close_matches(key, known, n=3)
        raise KeyError(f"There is no config key {key!r}"
                       + (f", did you mean {' or '.join(close)}?" if close else "."))


def _check_known_keys(
        other: CfgNode, cfg: CfgNode, known: set[str], root: CfgNode, prefix: str = "") -> None:
    for key, value in other.items():
        if key not in cfg and not cfg.is_new_allowed():
            _check_known(f"{prefix}{key}" if isinstance(key, str) else key, known, root)
        elif isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _check_known_keys(value, cfg[key], known, root, f"{prefix}{key}.")


def _unknown_key_is_an_assertion() -> bool:
    try:
        CfgNode({"KEY": 1}).merge_from_list(["KEZ", 2])
    except KeyError:
        return False
    except AssertionError:
        return True
    return True


@repair(
    upstream="config/config.py:115 (merge_from_other_cfg) and :125 (merge_from_list) with yacs, "
    "whose merge_from_list asserts",
    symptom="a mistyped config key is a bare AssertionError, in a file a KeyError, without a hint",
    versions="all (yacs 0.1.8)",
    broken=_unknown_key_is_an_assertion,
)
def _unknown_key(patch: Patches) -> None:
    merge_list, merge_other = CfgNode.merge_from_list, CfgNode.merge_from_other_cfg

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        if len(cfg_list) % 2:
            raise ValueError(f"Config keys and values must come in pairs, got {list(cfg_list)}.")
        known = set(_all_keys(self))
        for key in cfg_list[0::2]:
            _check_known(key, known, self)
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if not isinstance(cfg_other, CfgNode):
            raise TypeError(f"A config is merged with a CfgNode, got {type(cfg_other).__name__}.")
        _check_known_keys(cfg_other, self, set(_all_keys(self)), self)
        return merge_other(self, cfg_other)

    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)


@repair(
    upstream="config/config.py:125 (merge_from_list) with yacs, which decodes its values",
    symptom="a dict given for a section replaces it, and every key it does not name is gone; text "
    "such as `{[]: 1}` or a thousand brackets ends in a TypeError or MemoryError without the key; "
    "a folder called 20240501 is a number, and the error does not say how to write it",
    versions="all (yacs 0.1.8)",
)
def _config_value(patch: Patches) -> None:
    decode, merge_list = CfgNode._decode_cfg_value, CfgNode.merge_from_list
    merge_other = CfgNode.merge_from_other_cfg

    def decode_cfg_value(cls, value):
        try:
            return decode(value)
        except (TypeError, MemoryError, RecursionError):  # of literal_eval: it is no literal
            if isinstance(value, str):
                return value
            raise

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=False):  # odd: refused below
            if isinstance(value, dict):
                raise ValueError(f"The value of {key} is a section: give its keys one by one, as "
                                 f"in {key}.KEY VALUE.")
            section, _, name = key.rpartition(".") if isinstance(key, str) else ("", "", "")
            _check_type(section_of(self, section), name, value, key)
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if isinstance(cfg_other, CfgNode):
            _check_types(self, cfg_other)
        return merge_other(self, cfg_other)

    patch.set(CfgNode, "_decode_cfg_value", classmethod(decode_cfg_value))
    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number with a decimal point",
          str: "text", list: "a list", tuple: "a list"}


def _check_types(cfg: CfgNode, other: CfgNode, prefix: str = "") -> None:
    for key, value in other.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _check_types(cfg[key], value, f"{prefix}{key}.")
        else:
            _check_type(cfg, key, value, f"{prefix}{key}")


def _check_type(cfg: CfgNode, name: str, given: object, key: str) -> None:
    """Says of a value of the wrong type how to write it; other types are for yacs to judge."""
    wanted = _KINDS.get(type(cfg.get(name)))
    value = CfgNode._decode_cfg_value(given)
    if wanted is None or value is None or _KINDS.get(type(value)) == wanted:
        return
    text = str(given)
    text = text if len(text) < 200 else f"{text[:200]}..."
    remedy = "."
    if wanted == _KINDS[str]:
        remedy = f": put it in quotes twice, as in \"{text!r}\"."
    elif type(value) is int and wanted == _KINDS[float]:
        remedy = f": write {value}.0."
    held = _KINDS.get(type(value), f"a {type(value).__name__}")
    raise ValueError(f"Type mismatch: config key {key} takes {wanted}, and {shown(text)} is {held}"
                     f"{remedy}")


_key_adders: list[Callable[[CfgNode], None]] = []


def offer_keys(add: Callable[[CfgNode], None]) -> None:
    """Has config keys added where a config that does not know them is given one, or is built from.

    Args:
        add: adds the keys to a config of the toolbox, in place.
    """
    _key_adders.append(add)


def _with_offered_keys(cfg: CfgNode) -> CfgNode:
    """The config itself, or a copy with the keys that are offered; its own values stay."""
    if "MODEL" not in cfg or "SOLVER" not in cfg:  # a part of a config
        return cfg
    full = cfg.clone()
    full.defrost()
    for add in _key_adders:
        add(full)
    if set(_all_keys(full)) == set(_all_keys(cfg)):
        return cfg
    _merge_known(full, cfg)
    if cfg.is_frozen():
        full.freeze()
    return full


def _merge_known(cfg: CfgNode, values: CfgNode) -> None:
    for key, value in values.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _merge_known(cfg[key], value)
        else:
            cfg[key] = value


def _take_offered_keys(cfg: CfgNode, asked: Sequence[str]) -> None:
    """Adds the keys that are offered to a config which is given one that it does not know."""
    if cfg.is_frozen() or set(asked) <= set(_all_keys(cfg)):
        return
    full = _with_offered_keys(cfg)
    if (set(asked) & set(_all_keys(full))) - set(_all_keys(cfg)):
        _merge_known(cfg, full)


@repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list), "
    "modeling/meta_arch/build.py:18-27 (build_model)",
    symptom="config.yaml of a run with the plugin is a KeyError in the toolbox's own tools "
    "(demo.py, a Distiller's teacher), which know the toolbox's keys alone; the plugin's head, "
    "named in a config without its keys, is an AttributeError",
    versions="all",
)
def _plugin_keys(patch: Patches) -> None:
    merge_list, merge_other = CfgNode.merge_from_list, CfgNode.merge_from_other_cfg
    original = _meta_build.build_model

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        _take_offered_keys(self, [key for key in cfg_list[0::2] if isinstance(key, str)])
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if isinstance(cfg_other, CfgNode):
            _take_offered_keys(self, list(_all_keys(cfg_other)))
        return merge_other(self, cfg_other)

    @functools.wraps(original)
    def build_model(cfg):
        return original(_with_offered_keys(cfg))

    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)
    patch.everywhere(original, build_model)


@repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list) with yacs",
    symptom="a merge that ends in an error has already changed every key before the wrong one",
    versions="all (yacs 0.1.8)",
)
def _half_merge(patch: Patches) -> None:
    for name in ("merge_from_list", "merge_from_other_cfg"):
        patch.set(CfgNode, name, _all_or_nothing(getattr(CfgNode, name)))


def _all_or_nothing(merge):
    @functools.wraps(merge)
    def merge_(self, other):
        merge(self.clone(), other)  # raises before anything is changed
        return merge(self, other)

    return merge_
