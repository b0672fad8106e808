"""Configs: mistyped names are errors that list the known ones, a bad file is named."""

import contextlib
import copy
import re
import shlex
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from caureid_plugin import compat
from caureid_plugin.common.errors import UserError
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, MGN, Baseline
from fastreid.utils.events import EventStorage


def test_a_mistyped_key_names_close_ones(cfg):
    with pytest.raises(KeyError, match=r"did you mean CAUREID\.CLUSTER\.K1"):
        cfg.merge_from_list(["CAUREID.CLUSTR.K1", 20])
    with pytest.raises(KeyError, match=r"no config key 'qqqqqqqq'\.$"):
        cfg.merge_from_list(["qqqqqqqq", 1])
    says = r"'SOLVER\.BASE_LRR', did you mean SOLVER\.BASE_LR"
    with pytest.raises(KeyError, match=says):
        cfg.merge_from_other_cfg(CfgNode({"SOLVER": {"BASE_LRR": 0.1}}))
    mistyped = ["SOLVER.BASE_LRR", 0.1]
    with pytest.raises(KeyError, match=says):
        cfg.merge_from_list(mistyped)
    with compat.without("unknown_key"), pytest.raises(AssertionError):
        cfg.merge_from_list(mistyped)


def test_base_files_stay_reserved_for_files(cfg):
    for merge, given in ((cfg.merge_from_list, ["_BASE_", "other.yml"]),
                         (cfg.merge_from_other_cfg, CfgNode({"_BASE_": "other.yml"}))):
        with pytest.raises(ValueError, match="'_BASE_' can only be used in files"):
            merge(given)


def test_sections_and_values_are_not_mistaken_for_each_other(cfg):
    with pytest.raises(TypeError, match="CfgNode, got dict"):
        cfg.merge_from_other_cfg({"SEED": 1})
    with pytest.raises(ValueError, match="SOLVER"):
        cfg.merge_from_other_cfg(CfgNode({"SOLVER": 3}))
    with pytest.raises((KeyError, ValueError), match="SEED"):
        cfg.merge_from_other_cfg(CfgNode({"SEED": {"X": 1}}))
    open_for_more = CfgNode({"A": 1}, new_allowed=True)
    open_for_more.merge_from_other_cfg(CfgNode({"B": {"C": 2}}))
    assert open_for_more.B.C == 2


def test_a_section_is_not_replaced_by_a_dict(cfg):
    with pytest.raises(ValueError, match=r"The value of SOLVER is a section.*SOLVER\.KEY VALUE"):
        cfg.merge_from_list(["SOLVER", {"BASE_LR": 0.1}])
    with pytest.raises(ValueError, match="SOLVER"):
        cfg.merge_from_list(["SOLVER", "{'BASE_LR': 0.1}"])  # as on the command line
    assert "MAX_EPOCH" in cfg.SOLVER
    with compat.without("config_value"):
        cfg.merge_from_list(["SOLVER", {"BASE_LR": 0.1}])
    assert set(cfg.SOLVER) == {"BASE_LR"}


def test_values_are_literals_and_nothing_is_called(cfg, tmp_path):
    call = f"__import__('pathlib').Path({str(tmp_path / 'called')!r}).touch()"
    with pytest.raises(ValueError, match="SOLVER.BASE_LR"):
        cfg.merge_from_list(["SOLVER.BASE_LR", call])
    cfg.merge_from_list(["OUTPUT_DIR", call, "SOLVER.STEPS", "[1, 2]", "SEED", "5"])
    assert (cfg.OUTPUT_DIR, cfg.SOLVER.STEPS, cfg.SEED) == (call, [1, 2], 5)
    with pytest.raises(ValueError, match="SEED"):
        cfg.merge_from_list(["SEED", "2 + 3"])
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("given, held", [
    (20240501, "a whole number"), ("1e3", "a number with a"), ("(1, 2)", "a list"),
    ("True", "True or False")])
def test_text_that_reads_as_something_else_is_quoted_twice(cfg, given, held):
    says = (rf"^Type mismatch: config key OUTPUT_DIR takes text, and {re.escape(str(given))} is "
            rf"{held}.*: put it in quotes twice, as in (.*)\.$")
    with pytest.raises(ValueError, match=says):
        cfg.merge_from_other_cfg(CfgNode({"OUTPUT_DIR": given}))
    with pytest.raises(ValueError, match=says) as caught:
        cfg.merge_from_list(["OUTPUT_DIR", given])
    # what a shell and YAML make of the advice
    advice = re.match(says, str(caught.value))[1]
    cfg.merge_from_list(["OUTPUT_DIR", *shlex.split(advice)])
    other = cfg.clone()
    other.OUTPUT_DIR = ""
    other.merge_from_other_cfg(CfgNode(yaml.safe_load(f"OUTPUT_DIR: {advice}")))
    assert cfg.OUTPUT_DIR == other.OUTPUT_DIR == str(given)
    with compat.without("config_value"), pytest.raises(ValueError) as caught:
        cfg.merge_from_list(["OUTPUT_DIR", given])
    assert "quotes" not in str(caught.value)


def test_what_a_key_takes_is_said_in_words(cfg):
    for key, given, says in [
            ("SOLVER.BASE_LR", "1", "takes a number with a decimal point.*write 1.0"),
            ("SEED", "five", "takes a whole number, and five is text"),
            ("SOLVER.STEPS", "5", "takes a list, and 5 is a whole number")]:
        with pytest.raises(ValueError, match=f"config key {key} {says}"):
            cfg.merge_from_list([key, given])
    cfg.merge_from_list(["DATASETS.NAMES", "['a']", "SOLVER.STEPS", "(1, 2)", "OUTPUT_DIR", "5x"])
    assert (cfg.DATASETS.NAMES, cfg.SOLVER.STEPS, cfg.OUTPUT_DIR) == (("a",), [1, 2], "5x")


@pytest.mark.parametrize("key, content, message", [
    ("SOLVER.BASE_LR", "SOLVER: {BASE_LR: }", "takes a number with .* nothing: give it a value"),
    ("INPUT.SIZE_TEST", "INPUT: {SIZE_TEST: null}", "takes a list, and None is nothing"),
    ("OUTPUT_DIR", "OUTPUT_DIR:", r"and None is nothing: put it in quotes twice, .*'None'"),
    ("SOLVER", "SOLVER:", r"SOLVER is a section: give its keys .*SOLVER\.KEY VALUE")])
def test_a_key_without_a_value_is_named(cfg, write, key, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message):
        cfg.merge_from_file(path)
    with pytest.raises(UserError, match=message):
        cfg.merge_from_list([key, "None"])
    with compat.without("config_value"), contextlib.suppress(ValueError):  # a section is yacs's own
        cfg.merge_from_file(path)
        assert attrgetter(key)(cfg) is None


def test_a_merge_that_fails_changes_nothing(cfg):
    before = cfg.dump()
    for pairs in (["SEED", 5, "SOLVER.BASE_LR", "fast"], ["SEED", 5, "SOLVER.BASE_LRR", 0.1]):
        with pytest.raises((KeyError, ValueError)):
            cfg.merge_from_list(pairs)
    other = CfgNode({"SEED": 5, "SOLVER": {"MAX_EPOCH": 7, "BASE_LR": "fast"}})
    with pytest.raises(ValueError, match="SOLVER.BASE_LR"):
        cfg.merge_from_other_cfg(other)
    assert cfg.dump() == before
    with (compat.without("half_merge"), compat.without("config_value"),
          pytest.raises(ValueError)):
        cfg.merge_from_list(["SEED", 5, "SOLVER", "{'BASE_LR': 0.1}"])
    assert cfg.SEED == 5


def test_one_wrapper_takes_the_steps_of_the_repairs_that_are_applied(cfg):
    merges = CfgNode.merge_from_list, CfgNode.merge_from_other_cfg
    with compat.without("half_merge"):
        alone = CfgNode.merge_from_list
    assert not any(hasattr(merge.toolbox, "toolbox") for merge in (*merges, alone))
    repair = compat.REPAIRS["config_value"]  # others are applied after it
    repair.revert()
    try:
        cfg.merge_from_list(["SOLVER", {"BASE_LR": 0.1}])  # was refused by this one
        before = cfg.dump()
        with pytest.raises(KeyError, match="'SEEED', did you mean"):
            cfg.merge_from_list(["SEED", 5, "SEEED", 6])
        assert cfg.dump() == before and set(cfg.SOLVER) == {"BASE_LR"}
    finally:
        repair.apply()
    with pytest.raises(ValueError, match="The value of SOLVER is a section"):
        cfg.merge_from_list(["SOLVER", {"BASE_LR": 0.2}])


def test_a_merge_keeps_the_sections_that_others_hold(cfg):
    solver = cfg.SOLVER
    cfg.merge_from_other_cfg(CfgNode({"SOLVER": {"MAX_EPOCH": 7}}))
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.5])
    assert cfg.SOLVER is solver and (solver.MAX_EPOCH, solver.BASE_LR) == (7, 0.5)


# --------------------------------------------------------------------------------- files ----


@pytest.fixture
def write(tmp_path):
    """Writes a config file of text or bytes; gives its path."""

    def write_file(content, name="run.yml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


def test_a_config_file_over_its_bases(cfg, write, tmp_path):
    (tmp_path / "deep").mkdir()
    write("SEED: 4\nSOLVER: {BASE_LR: 0.5, STEPS: [3]}\n"
          "INPUT: {SIZE_TRAIN: &s [64, 32], SIZE_TEST: *s}\n"
          "MODEL: {HEADS: {CAMSEP: {GAIN: 1.0}}}  # of an earlier version", "root.yml")
    write("_BASE_: ../root.yml\nSOLVER: {STEPS: [5, 6]}", "deep/middle.yml")
    write("\ufeff_BASE_: deep/middle.yml\nOUTPUT_DIR: läufe/年", "run.yml")
    cfg.merge_from_file(str(tmp_path / "run.yml"))
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS) == (4, 0.5, [5, 6])
    assert (cfg.INPUT.SIZE_TEST, cfg.OUTPUT_DIR) == ([64, 32], "läufe/年")


def test_every_shipped_config_is_read_as_the_toolbox_reads_it():
    files = list(map(str, (Path(compat.__file__).parents[2] / "configs").rglob("*.yml")))
    assert len(files) > 20
    repaired = list(map(CfgNode.load_yaml_with_base, files))
    with compat.without("config_file"):
        assert list(map(CfgNode.load_yaml_with_base, files)) == repaired


ALIASES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 9))

# without PyYAML's own care of doubles, which is new, it would have 2 ** 40 keys
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 41))
# of what is merged again and again: one mapping with values, or a list of many without
COPIES = ("a: &a {" + "".join(f"k{i}: 1, " for i in range(300)) + "}\n"
          "b: {<<: [" + 300 * "*a, " + "]}\n")
HOLLOW = "a: &a {}\nc: &c [" + 300 * "*a, " + "]\n" + "".join(
    f"b{i}: {{<<: *c}}\n" for i in range(300))
UNREAD = "is not readable as YAML.* it (holds|is)"  # ended before it was whole

BAD_FILES = {
    "empty": ("# SEED: 1", "is empty: it must map config keys"),
    "latin-1": (b"OUTPUT_DIR: l\xe4ufe", "not readable as YAML in UTF-8"),
    "brackets": ("SEED: " + "[" * 1_000, "not readable as YAML"),
    "deep": ("SEED: " + "[" * 40 + "]" * 40, "SEED.* contains itself, or is nested more than"),
    "too many keys": ("".join(f"A{i}:\n" for i in range(20_001)),
                      f"{UNREAD} more than 20000 values"),
    "too many values": (f"SEED: [{40_000 * '1,'}]", f"{UNREAD} more than 20000 values"),
    "too long": ("# " + 500_000 * "x", f"{UNREAD} longer than 500000 characters"),
    "too deep": ("".join(i * " " + "A:\n" for i in range(70)), f"{UNREAD} nested more than 30"),
    "merges of merges": (MERGES, "'a1' is no config key|no config key 'a0'|more than 20000"),
    "merges of one mapping": (COPIES, f"{UNREAD} more than 20000 values, what << merges counted"),
    "merges of nothing": (HOLLOW, f"{UNREAD} more than 20000 values, what << merges counted"),
    "a key twice": ("SOLVER:\n  BASE_LR: 1.0\nSEED: 1\nSOLVER:\n  MAX_EPOCH: 2\n",
                    "SOLVER stands twice at one place, again in line 4"),
    "base 60": ("SEED: 1" + 1000 * ":1", "'1:1:1:1:.*' is read as a number to the base 60"),
    "itself": ("SOLVER: &a {X: *a}", "SOLVER.X contains itself"),
    "aliases of aliases": (ALIASES, "holds more than"),
    "a date": ("SEED: 2020-01-02", "SEED is a date"),
    "a dotted key": ("SOLVER.BASE_LR: 0.1", "'SOLVER.BASE_LR' in the file is no config key"),
    "code": ("SEED: !!python/object/apply:os.system [touch called]", "python/object/apply"),
    "a key that is gone": ("MODEL: {HEADS: {CAMSEP: {GAIN: 10.0}}}",
                           r"CAMSEP\.GAIN 10\.0 .* this one does what 1\.0 did: take the key out"),
    "an unknown key": ("SOLVER: {BASE_LRR: 0.1}", "did you mean SOLVER.BASE_LR"),
    "a wrong type": ("SOLVER: {BASE_LR: fast}", "Type mismatch.*SOLVER.BASE_LR"),
    "no such base": ("_BASE_: no/such.yml", "its _BASE_ 'no/such.yml' is no file .*/no/such.yml"),
    "its own base": ("_BASE_: run.yml", "is its own _BASE_: .*run.yml -> .*run.yml"),
    "a base on the web": ("_BASE_: https://x.org/a.yml", "'https://x.org/a.yml' as _BASE_ of"),
    "a section for a value": ("_BASE_: root.yml\nSEED: {X: 1}",
                              "SEED is a section, but a value in its _BASE_"),
}


@pytest.mark.parametrize("content, message", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_config_file_is_named(cfg, write, content, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("SEED: 1", "root.yml")
    path, before = write(content), cfg.dump()
    with pytest.raises((KeyError, ValueError, FileNotFoundError),
                       match=re.compile(message, re.DOTALL)) as caught:
        cfg.merge_from_file(path)
    assert path in str(caught.value)
    assert cfg.dump() == before and not (tmp_path / "called").exists()


def test_a_chain_of_files_ends(cfg, write):
    for number in range(40):
        write(f"_BASE_: {number + 1}.yml", f"{number}.yml")
    write("SEED: 7", "40.yml")
    with pytest.raises(ValueError, match=r"8\.yml has more than 30 files above it.*_BASE_"):
        cfg.merge_from_file(write("_BASE_: 9.yml", "8.yml"))
    cfg.merge_from_file(write("_BASE_: 11.yml", "10.yml"))
    assert cfg.SEED == 7


def test_without_the_repair_a_bad_file_is_not_named(cfg, write):
    with compat.without("config_file"), pytest.raises(TypeError, match="NoneType"):
        cfg.merge_from_file(write(""))


def test_code_in_yaml_runs_where_the_caller_asks_for_it(cfg, write):
    cfg.merge_from_file(write("SEED: !!python/object/apply:int ['7']"), allow_unsafe=True)
    assert cfg.SEED == 7


def test_a_config_that_is_not_there_or_not_local(cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yml"):
        cfg.merge_from_file(str(tmp_path / "absent.yml"))
    with pytest.raises(ValueError, match="'https://x.org/a.yml' as the config file is a URL"):
        cfg.merge_from_file("https://x.org/a.yml")


# --------------------------------------------------------------- names in registries, losses ----


def test_an_unknown_name_lists_the_known_ones(make_model):
    known = compat.registered_names(BACKBONE_REGISTRY)
    assert "build_resnet_backbone" in known and known == sorted(known)
    assert BACKBONE_REGISTRY.get("build_resnet_backbone").__name__ == "build_resnet_backbone"
    with pytest.raises(KeyError, match=r"'Nonsense' in the BACKBONE registry.*'build_resnet_back"):
        BACKBONE_REGISTRY.get("Nonsense")
    with pytest.raises(KeyError, match="'Nonsense'.*known are"):
        make_model("MODEL.HEADS.NAME", "Nonsense")
    with compat.without("unknown_name"), pytest.raises(KeyError) as caught:
        BACKBONE_REGISTRY.get("Nonsense")
    assert "build_resnet_backbone" not in str(caught.value)


def losses(model):
    model.train()
    batch = {"images": 255 * torch.rand(4, 3, 32, 16, device=model.device),
             "targets": torch.tensor([0, 0, 1, 1], device=model.device)}
    with EventStorage(0):
        return model(batch)


@pytest.mark.parametrize("architecture", ["Baseline", "MoCo"])
def test_an_unknown_loss_lists_the_known_ones(make_model, architecture):
    known = losses(make_model("MODEL.LOSSES.NAME", compat.TOOLBOX_LOSSES))
    assert set(known) == {"loss_cls", "loss_triplet", "loss_circle", "loss_cosface"}
    mistyped = ("MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLos"),
                "MODEL.META_ARCHITECTURE", architecture)
    with pytest.raises(ValueError, match=r"\['TripletLos'\] of MODEL\.LOSSES\.NAME.*'TripletLoss'"):
        losses(make_model(*mistyped))
    with compat.without("unknown_loss"):
        assert set(losses(make_model(*mistyped))) - {"loss_mb"} == {"loss_cls"}


class OfTheForeground(Baseline):
    """As PartialBaseline of FastReID's repository, which is made for a head of its own."""

    def losses(self, outputs, gt_labels):
        found = super().losses(outputs, gt_labels)
        return {**found, "loss_fore": outputs["fore_cls_outputs"].square().mean()}


@pytest.mark.parametrize("head", ["CamSepHead", "EmbeddingHead"])
def test_an_output_that_the_head_does_not_give_is_named(make_model, head, monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "OfTheForeground", OfTheForeground)
    words = ("MODEL.META_ARCHITECTURE", "OfTheForeground", "MODEL.HEADS.NAME", head,
             "MODEL.HEADS.CAMSEP.ATTENTION", "none")
    says = (rf"OfTheForeground asks its head for 'fore_cls_outputs', which {head} "
            r"\(MODEL\.HEADS\.NAME\) does not give: it gives \['cls_outputs', 'features', "
            r"'pred_class_logits'\]")
    model = make_model(*words)
    for network in (model, copy.deepcopy(model)):
        with pytest.raises(KeyError, match=says):
            losses(network)
    with compat.without("missing_output"), pytest.raises(KeyError, match="^'fore_cls_outputs'$"):
        losses(make_model(*words))


def test_mgn_does_not_know_the_pairwise_losses_either():
    """Its network is large; the check looks only at the names, before the nine arguments."""
    model = SimpleNamespace(loss_kwargs={"loss_names": ("CrossEntropyLoss", "CircleLoss")})
    with pytest.raises(ValueError, match=r"does not know the losses \['CircleLoss'\]"):
        MGN.losses(model, *[None] * 9)
    with compat.without("unknown_loss"), pytest.raises(TypeError, match="not subscriptable"):
        MGN.losses(model, *[None] * 9)  # it went on to the outputs
