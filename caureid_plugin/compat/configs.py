"""Repairs so that a config file or key that is wrong is named, and changes nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import fastreid.modeling.meta_arch.build as _meta_build
from fastreid.config import CfgNode

from ..common.errors import UnknownName, UserError
from ..common.keys import check_key, check_value, decoded, every_key
from .repair import REPAIRS, Patches, repair
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
    load = CfgNode.load_yaml_with_base

    @functools.wraps(load)
    def load_yaml_with_base(filename, allow_unsafe=False):
        if allow_unsafe:  # runs the file's code: only where the caller says so
            return load(filename, allow_unsafe=True)
        return _load_config(str(filename), ())

    @patch.wrap(CfgNode, "merge_from_file")
    def merge_from_file(_, self, cfg_filename, allow_unsafe=False):
        loaded = CfgNode.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        try:
            self.merge_from_other_cfg(type(self)(loaded))
        except (KeyError, ValueError) as error:
            kind = UnknownName if isinstance(error, KeyError) else UserError
            raise kind(f"The config {cfg_filename}: {error.args[0]}") from error

    patch.set(CfgNode, "load_yaml_with_base", staticmethod(load_yaml_with_base))


def _load_config(filename: str, derived: tuple[str, ...]) -> dict:
    """A config file over its _BASE_; ``derived`` are the files that led here by theirs."""
    if len(derived) > DEEPEST_CONFIG:
        raise UserError(f"The config {derived[0]} has more than {DEEPEST_CONFIG} files above it, "
                        f"each the {BASE_KEY} of the one before: merge some of them.")
    if os.path.realpath(filename) in map(os.path.realpath, derived):
        circle = " -> ".join((*derived, filename))
        raise UserError(f"The config {filename} is its own {BASE_KEY}: {circle}.")
    loaded = read_yaml(filename)
    if BASE_KEY not in loaded:
        return loaded
    path = _base_path(filename, loaded.pop(BASE_KEY))
    base = _load_config(path, (*derived, filename))
    _merge_sections(loaded, base, filename)
    return base


def _base_path(filename: str, base) -> str:
    if not isinstance(base, str) or not base:
        raise UserError(f"The config {filename}: {BASE_KEY} {base!r} must be the path of a file.")
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
                raise UserError(f"The config {filename}: {prefix}{key} is a section, but a value "
                                f"in its {BASE_KEY}.")
            _merge_sections(value, base[key], filename, f"{prefix}{key}.")
        else:
            base[key] = value


class _Given(NamedTuple):
    """A key that is merged into a config, its new value, and its place there."""

    key: str
    value: object
    present: object  # the config's value or section, None where it has no such key
    fits: bool  # the key is there, or may be added


def _pairs(cfg: CfgNode, given: Sequence) -> Iterator[_Given]:
    """What merge_from_list is given."""
    if len(given) % 2:
        raise UserError(f"Config keys and values must come in pairs, got {list(given)}.")
    for key, value in zip(given[0::2], given[1::2], strict=True):
        if not isinstance(key, str):
            raise UserError(f"A config key is text, got {key!r}.")
        section, _, name = key.rpartition(".")
        place = section_of(cfg, section)
        yield _Given(key, value, place.get(name), name in place and not key.startswith("."))


def _leaves(cfg: CfgNode, given: CfgNode, prefix: str = "") -> Iterator[_Given]:
    """What merge_from_other_cfg is given; a section that the config lacks is one value."""
    if not isinstance(given, CfgNode):
        raise TypeError(f"A config is merged with a CfgNode, got {type(given).__name__}.")
    for name, value in given.items():
        present = cfg.get(name)
        if isinstance(value, CfgNode) and isinstance(present, CfgNode):
            yield from _leaves(present, value, f"{prefix}{name}.")
        else:
            yield _Given(f"{prefix}{name}", value, present, name in cfg or cfg.is_new_allowed())


def _merge_in_steps(patch: Patches) -> None:
    """One wrapper around each merge of the toolbox, for all the repairs of merging together."""
    for name, read in (("merge_from_list", _pairs), ("merge_from_other_cfg", _leaves)):
        present = getattr(CfgNode, name)
        patch.set(CfgNode, name, _in_steps(getattr(present, "toolbox", present), read))


def _in_steps(merge, read):
    @functools.wraps(merge)
    def merged(self, given):
        steps = [step for name, step in _STEPS.items() if REPAIRS[name].applied]
        # what raises on the copy has changed nothing
        for cfg in (self.clone(), self) if REPAIRS["half_merge"].applied else (self,):
            for step in steps:
                step(cfg, list(read(cfg, given)))
            merge(cfg, given)

    merged.toolbox = merge
    return merged


def _unknown_key_is_an_assertion() -> bool:
    try:
        CfgNode({"KEY": 1}).merge_from_list(["KEZ", 2])
    except KeyError:
        return False
    except AssertionError:
        pass
    return True


@repair(
    upstream="config/config.py:115 (merge_from_other_cfg) and :125 (merge_from_list) with yacs, "
    "whose merge_from_list asserts",
    symptom="a mistyped config key is a bare AssertionError, in a file a KeyError, without a hint",
    versions="all (yacs 0.1.8)",
    broken=_unknown_key_is_an_assertion,
)
def _unknown_key(patch: Patches) -> None:
    _merge_in_steps(patch)


def _check_known(cfg: CfgNode, given: Sequence[_Given]) -> None:
    for key in (item.key for item in given if not item.fits):
        if BASE_KEY in key.split("."):
            raise UserError(f"{key!r}: the reserved key {BASE_KEY!r} can only be used in files.")
        if not (cfg.key_is_deprecated(key) or cfg.key_is_renamed(key)):  # which yacs tells
            check_key(key, every_key(cfg))


@repair(
    upstream="config/config.py:125 (merge_from_list) with yacs, which decodes its values",
    symptom="a dict given for a section replaces it, and every key it does not name is gone; text "
    "such as `{[]: 1}` or a thousand brackets ends in a TypeError or MemoryError without the key; "
    "a key without a value becomes None, and an error of something else, in the end; "
    "a folder called 20240501 is a number, and the error does not say how to write it",
    versions="all (yacs 0.1.8)",
)
def _config_value(patch: Patches) -> None:
    decode = CfgNode._decode_cfg_value

    def decode_cfg_value(cls, value):
        return decoded(value) if isinstance(value, str) else decode(value)

    patch.set(CfgNode, "_decode_cfg_value", classmethod(decode_cfg_value))
    _merge_in_steps(patch)


def _check_values(_: CfgNode, given: Sequence[_Given]) -> None:
    """Says of a value of the wrong type how to write it; other types are for yacs to judge."""
    for key, raw, present, _fits in given:
        value = raw if isinstance(raw, dict) else CfgNode._decode_cfg_value(raw)
        check_value(key, raw, value, present)


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
    if every_key(full).keys() == every_key(cfg).keys():
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


def _take_offered_keys(cfg: CfgNode, given: Sequence[_Given]) -> None:
    """Adds the keys that are offered to a config which is given one that it does not know."""
    asked = {item.key for item in given}.difference(every_key(cfg))
    if asked and not cfg.is_frozen():
        full = _with_offered_keys(cfg)
        if not asked.isdisjoint(every_key(full)):
            _merge_known(cfg, full)


@repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list), "
    "modeling/meta_arch/build.py:18-27 (build_model)",
    symptom="config.yaml of a run with the plugin is a KeyError in the toolbox's own tools "
    "(demo.py, a Distiller's teacher), which know only the toolbox's keys; the plugin's head, "
    "named in a config without its keys, is an AttributeError",
    versions="all",
)
def _plugin_keys(patch: Patches) -> None:
    @patch.wrap(_meta_build, "build_model")
    def build_model(original, cfg):
        return original(_with_offered_keys(cfg))

    _merge_in_steps(patch)


@repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list) with yacs",
    symptom="a merge that ends in an error has already changed every key before the wrong one",
    versions="all (yacs 0.1.8)",
)
def _half_merge(patch: Patches) -> None:
    _merge_in_steps(patch)


# What is done before the toolbox merges, in this order, each for the repair of its name; where
# half_merge is applied, all of it and the merge are done on a copy first.
_STEPS: dict[str, Callable[[CfgNode, Sequence[_Given]], None]] = {
    "plugin_keys": _take_offered_keys,
    "config_value": _check_values,
    "unknown_key": _check_known,
}
