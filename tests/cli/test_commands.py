"""The command line as a new user meets it: wrong words, help and shell completion."""

import json
import re

import click
import pytest
from caureid_plugin.cli import COMMANDS, main
from caureid_plugin.cli.common import _KEY
from caureid_plugin.config import add_caureid_config
from click.shell_completion import BashComplete
from fastreid.config import CfgNode, get_cfg

from helpers import warm

MARKET = ["--config-file", "Market/caureid.yml"]
WRONG = {
    ("trian",): "There is no command 'trian': did you mean train?",
    ("nothing",): "No such command 'nothing'",
    ("report", "absent"): "'RUN_FOLDER': Directory 'absent' does not exist",
    ("report", "there", "--checkpoint", "absent"): "'--checkpoint': absent is not a file, neither",
    ("demo", "--output", "file/below"): "'--output': file/below cannot be made:",
    ("demo", "--videos", "file"): "'--videos': Directory 'file' is a file",
    ("ablation", "--family", "market", "--output", "file/x"): "file/x cannot be made:",
    ("index", "there", "there", "--index", "file"): "'--index': file is a file, and an index is a",
    ("eps", "--features", "file", "--eps", "0.4,-1"): "'--eps': -1 is no eps: 0 < eps < 1",
    ("people", "absent", "there", "--output", "x.csv"): "'RUN_FOLDER': Directory 'absent' does not",
    ("threshold", "absent"): "'RUN_FOLDER': Directory 'absent' does not exist",
    ("export", "absent", "--output", "x.onnx"): "'RUN_FOLDER': Path 'absent' does not exist",
    ("export", "there", "--output", "x.onnx", "--images", "absent"): "'--images': Directory 'abs",
    ("index", "absent", "there", "--index", "x"): "'RUN_FOLDER_OR_ONNX': Path 'absent' does not",
    ("index", "there", "absent", "--index", "x"): "'FOLDER': Directory 'absent' does not exist",
    ("index", "there", "there", "--index", "absent/x"): "absent does not exist.",
    ("search", "absent", "q.jpg", "--index", "there"): "'RUN_FOLDER_OR_ONNX': Path 'absent' does",
    ("search", "there", "q.jpg", "--index", "absent"): "'--index': Directory 'absent' does not",
    ("serve", "absent", "--index", "there"): "'RUN_FOLDER_OR_ONNX': Path 'absent' does not exist",
    ("serve", "there", "--index", "absent"): "'--index': Directory 'absent' does not exist",
    ("weights", "absent", "x.pth"): "'FILE': File 'absent' does not exist",
    **dict.fromkeys([
        ("report", "there"), ("threshold", "there"), ("export", "there", "--output", "x.onnx"),
        ("index", "there", "there", "--index", "x"), ("serve", "there", "--index", "there"),
        ("search", "there", "q.jpg", "--index", "there"),
    ], "there holds no config.yaml, which every run writes"),
    ("attention", *MARKET, "--folder", "absent"): "'--folder': Directory 'absent' does not exist",
    ("eps", "--config-file", "Market/caurid.yml"): "did you mean Market/caureid.yml",
    ("check", "--config-file", "Market/caurid.yml"): "did you mean Market/caureid.yml",
    ("train", "--config-fil", "Market/caureid.yml"): "No such option '--config-fil'",
    ("search", "there", "q.jpg", "--indx", "x"): "No such option '--indx'",
    ("search", "there", "--index", "there"): "Missing argument 'QUERY...'",
    ("train", *MARKET, "solver.max_epoch", "3"): "solver.max_epoch is no config key: write "
                                                 "SOLVER.MAX_EPOCH 3.",
    ("train", "seed", "3", *MARKET): "seed is no config key: write SEED 3.",
    ("train", *MARKET, "SEED", "1", "OUTPUT_DIR=a b"): "write OUTPUT_DIR 'a b'.",
    ("train", *MARKET, "SEED=1", "OUTPUT_DIR=a"): "SEED=1 is no config key: write SEED 1.",
    ("attention", *MARKET, "--images", "a.jpg", "SEED=1"): "SEED=1 is no config key: write SEED 1.",
    ("train", *MARKET, "SOLVER.IMS_PER_BATCHH", "3"): "There is no config key 'SOLVER.IMS_PER_BATCH"
                                                      "H', did you mean SOLVER.IMS_PER_BATCH or ",
    ("eps", *MARKET, "CAUREID.CLUSTR.EPS", "0.5"): "did you mean CAUREID.CLUSTER.EPS",
    ("train", *MARKET, "SEED", "1", "SOLVER.BASE_LR", "1"): "key SOLVER.BASE_LR takes a number with"
                                                            " a decimal point, and 1 is a whole num"
                                                            "ber: write 1.0.",
    ("check", *MARKET, "OUTPUT_DIR", "{[]: 1}", "SOLVER", "3"): "The value of SOLVER is a section",
}
CALL = """
import contextlib, io, json, pathlib, sys
from caureid_plugin.cli import main

pathlib.Path("there").mkdir()
pathlib.Path("file").touch()
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            main(words, prog_name="caureid")
        except SystemExit as ended:
            print(ended, file=text)
    said.append([text.getvalue(), "torch" in sys.modules])
print(json.dumps(said))
"""


def test_wrong_words_are_answered_at_once(run_python):
    """Before torch is imported, which takes seconds."""
    done = run_python("-c", CALL, json.dumps([*WRONG]))
    assert done.returncode == 0, done.stderr
    for (words, part), (text, slow) in zip(WRONG.items(), json.loads(done.stdout), strict=True):
        assert part in text and not slow, (words, text)


KEYS = """
import json, sys
import caureid_plugin
from caureid_plugin.cli.keys import known_keys

early, loaded = known_keys(), [name for name in sys.modules if name.startswith("fastreid")]
assert not loaded and "torch" not in sys.modules and not hasattr(caureid_plugin, "config"), loaded
from caureid_plugin import config
from fastreid.config import CfgNode, get_cfg
cfg = get_cfg()
config.add_caureid_config(cfg)
assert type(cfg.CAUREID) is CfgNode and early == known_keys() and early["CAUREID"] == cfg.CAUREID
assert "MODEL.LOSSES.CACC.SCALE" in early and early["SOLVER"]["MAX_EPOCH"] == cfg.SOLVER.MAX_EPOCH
"""


def test_the_keys_are_known_without_torch_and_the_toolbox_is_imported_anew_afterwards(run_python):
    done = run_python("-c", KEYS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hidden", ["fastreid", "yacs"])
def test_where_the_toolbox_is_missing_no_key_is_refused(run_python, hidden):
    done = run_python("-c", "from caureid_plugin.cli import keys\nassert keys.known_keys() == {}\n"
                            "keys.check(['SEEED', '1'])", hidden=[hidden])
    assert done.returncode == 0, done.stderr


def test_keys_and_values_are_as_they_were_given():
    given = ["OUTPUT_DIR", "a=b", "MODEL.DEVICE", "cpu", "SEED", "-1"]
    train = main.get_command(None, "train")
    assert train.make_context("train", [*MARKET, *given]).params["opts"] == given


def test_every_config_key_has_the_form_that_hints_rely_on():
    def keys(node, start=""):
        for name, value in node.items():
            yield from keys(value, f"{start}{name}.") if isinstance(value, CfgNode) else (
                start + name,)

    cfg = get_cfg()
    add_caureid_config(cfg)
    assert "SOLVER.MAX_EPOCH" in {*keys(cfg)}
    assert [key for key in keys(cfg) if not _KEY.fullmatch(key)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain_text(name):
    """It explains every option, and names no document that is not there."""
    command = main.get_command(None, name)
    text = command.get_help(click.Context(command, info_name=name))
    assert "`" not in text and "(default" not in text
    assert all(param.help for param in command.params if isinstance(param, click.Option))
    assert all((warm.REPOSITORY / path).is_file() for path in re.findall(r"docs/\S+\.md", text))


@pytest.mark.parametrize("words, incomplete, found", [
    ([], "tr", [("plain", "train")]),
    (["train"], "--re", [("plain", "--resume")]),
    (["train", "--config-file"], "OwnData/caureid_c", [
        ("file", "OwnData/caureid_c"), ("plain", "OwnData/caureid_cpu.yml")]),
    (["eps", "--config-file"], "logs/x", [("file", "logs/x")]),
    (["ablation", "--configs", "a.yml"], "b", [("file", "b")]),
    (["ablation", "--configs"], "Market/caureid_bes", [
        ("file", "Market/caureid_bes"), ("plain", "Market/caureid_best.yml")]),
    (["report"], "logs/x", [("dir", "logs/x")]),
    (["report", "logs/x", "MODEL.WEIGHTS"], "a", [("file", "a")]),
    (["report", "logs/x", "MODEL.WEIGHTS"], "SOLVER.MAX", [("file", "SOLVER.MAX")]),
    (["report", "logs/x", "SEED", "1"], "SOLVER.MAX", [
        ("file", "SOLVER.MAX"), ("plain", "SOLVER.MAX_EPOCH")]),
    (["check"], "CAUREID.CLUSTER.EPS_FIRST_", [
        ("file", "CAUREID.CLUSTER.EPS_FIRST_"), ("plain", "CAUREID.CLUSTER.EPS_FIRST_EPOCHS")]),
    (["check", "--output"], "a", [("file", "a")]),
    (["search", "absent", "--camera", "--index"], "a", [("dir", "a")]),  # wrong so far
    (["search", "absent", "a.jpg"], "b", [("file", "b")]),
    (["attention", "--resum", "--images"], "a", [("file", "a")]),
    (["weights"], "a", [("file", "a")])])
def test_shell_completion(words, incomplete, found):
    shell = BashComplete(main, {}, "caureid", "_CAUREID_COMPLETE")
    items = shell.get_completions(words, incomplete)
    assert [(item.type, item.value) for item in items] == found
