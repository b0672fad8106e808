"""The documents follow the code: what they name exists, and the code in them runs.

Python blocks are run, each document's in one namespace. Command lines are parsed by the commands
themselves up to the point where these would begin to work, and their configs merged. A block that
is neither is marked by a comment above it, ``<!-- not run: REASON -->``.
"""

import argparse
import ast
import importlib
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from caureid_plugin import add_caureid_config, compat, get_config_file
from caureid_plugin.cli import COMMANDS
from fastreid.config import get_cfg
from markdown_it import MarkdownIt

from helpers.tiny import KEYS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MARK = re.compile(r"<!-- not run: \S.{5,}-->\s*")


def test_every_repair_is_listed_as_the_code_describes_it():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    for repair in compat.REPAIRS.values():
        row = f"| `{repair.name}` | {repair.upstream} | {repair.symptom} | {repair.versions} |"
        assert row in text, repair.name
    assert text.count("\n| `") == len(compat.REPAIRS)


def test_the_architecture_shows_every_room():
    drawn = re.findall(r"^      (\w+(?:/|\.py)) ", (ROOT / "docs" / "architecture.md").read_text(),
                       re.MULTILINE)
    package = ROOT / "caureid_plugin"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(drawn) == rooms | {path.name for path in package.glob("[!_]*.py")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_files_and_config_keys_exist(path, cfg):
    """A key written in capitals, as in `CAUREID.CLUSTER.EPS`, is one of the config."""
    text = path.read_text()
    files = re.findall(
        r"(?:^|[\s`])((?:tools|configs|tests|caureid_plugin)/[\w/.-]+\.(?:py|yml))", text)
    assert [name for name in files if not (ROOT / name).is_file()] == []
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    for key in set(re.findall(r"`((?:[A-Z][A-Z0-9_]+\.)+[A-Z][A-Z0-9_]+)", text)):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


# ---------------------------------------------------------------- what the documents hold ----


def code_blocks(text):
    """(first line, code) of every block, indented or fenced, but for those marked as not run."""
    marked = False
    for token in MarkdownIt().parse(text):
        if token.type in ("code_block", "fence") and not marked:
            yield token.map[0] + 1, token.content
        marked = token.type == "html_block" and MARK.fullmatch(token.content) is not None


def inline_commands(text):
    """Command lines within a sentence: a command or script with arguments, pip, make."""
    for token in MarkdownIt().parse(text):
        for child in token.children or ():
            if child.type == "code_inline" and re.match(
                    r"(tools/[\w/]+\.py |caureid [a-z]+ |pip |make )\S", child.content):
                yield token.map[0] + 1, child.content


def command_lines(block):
    """Words of each command line of a block, without comments; variables that it sets are put in.

    Of variables before a command (``OMP_NUM_THREADS=1 tools/...``) nothing is left.
    """
    variables = {}
    for line in block.replace("\\\n", " ").splitlines():
        text = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)
        words = shlex.split(text, comments=True)
        while words and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assigned[1]] = assigned[2]
            words = words[1:]
        if words:
            yield words


def is_shell(block):
    try:
        lines = list(command_lines(block))
    except ValueError:  # quotes that do not close
        return False
    return all(words[0] in CHECKS or words[0].startswith("tools/") for words in lines)


# ------------------------------------------------------------------------- command lines ----


class Parsed(Exception):
    """Ends a script once its command line is parsed."""


def options_of(script, words, monkeypatch):
    """(options, config keys and values) as the script at ``script`` reads them.

    Raises:
        SystemExit: the script's parser refuses the command line.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parser.allow_abbrev = False  # a part of an option's name is no documentation
        options = parse(parser, args, namespace)
        raise Parsed(vars(options), getattr(options, "opts", []))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [str(script), *words])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args
    raise AssertionError(f"{script} parses no command line")


def check_script(words, monkeypatch):
    script = ROOT / words[0]
    assert os.access(script, os.X_OK), f"{words[0]} cannot be executed"
    if script.name == "train_net.py":
        check_caureid(["caureid", "train", *words[1:]], monkeypatch)
    else:
        check_keys(*options_of(script, words[1:], monkeypatch))


def check_caureid(words, monkeypatch):
    """What click makes of the words, as far as that does not depend on the files that are here."""
    name, *rest = words[1:]
    assert name in COMMANDS, f"caureid has no command {name}"
    command = importlib.import_module(f"caureid_plugin.cli.{name}").command
    with monkeypatch.context() as patch:
        patch.setattr(click.Path, "convert", lambda _self, value, *_: Path(value))
        options = command.make_context(f"caureid {name}", rest).params
    check_keys(options, options.get("opts", ()))


def check_keys(options, keys):
    """The config file is there, and the keys are known and of the right kind."""
    cfg = get_cfg()
    add_caureid_config(cfg)
    if name := options.get("config_file"):
        path = ROOT / name
        cfg.merge_from_file(str(path) if path.is_file() else get_config_file(name))
    cfg.merge_from_list(list(keys))


def check_torchrun(words, monkeypatch):
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words[1:])
    script = options.training_script
    if options.module:
        assert script == "caureid_plugin", script
        script = "caureid"
    check_command([script, *options.training_script_args], monkeypatch)


def check_make(words, _):
    text = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, *value = word.split("=")
        kind = rf"^{name} \?=" if value else rf"^{name}:"
        assert re.search(kind, text, re.MULTILINE), f"the Makefile has no {word}"


def check_pip(words, _):
    """Names what setup.py declares, or the toolbox in the version that is pinned."""
    if words[1:] == ["check"]:
        return
    assert words[1] == "install", words
    setup = ast.parse((ROOT / "setup.py").read_text())
    extras = next(ast.literal_eval(keyword.value) for keyword in ast.walk(setup)
                  if isinstance(keyword, ast.keyword) and keyword.arg == "extras_require")
    pins = (ROOT / "requirements-fastreid.txt").read_text()
    for word in words[2:]:
        own = re.fullmatch(r"(?:\.|caureid-plugin)(?:\[([\w,-]+)\])?", word)
        if word.startswith("-"):
            assert word in ("--no-deps", "-e", "-r", "--extra-index-url"), word
        elif words[words.index(word) - 1] == "--extra-index-url":
            assert word == "https://download.pytorch.org/whl/cpu", word
        elif own:
            assert set((own[1] or "test").split(",")) <= set(extras), word
        elif (ROOT / word).is_file():
            assert words[words.index(word) - 1] == "-r", word
        else:
            assert re.search(rf"^{re.escape(word)} ", pins, re.MULTILINE), word


def check_export(words, _):
    for word in words[1:]:
        assert re.fullmatch(r"(FASTREID_DATASETS|OMP_NUM_THREADS)=\S+", word), word


CHECKS = {"caureid": check_caureid, "make": check_make, "pip": check_pip, "export": check_export,
          "torchrun": check_torchrun}


def check_command(words, monkeypatch):
    if words[0].startswith("tools/"):
        check_script(words, monkeypatch)
    else:
        CHECKS[words[0]](words, monkeypatch)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_command_lines_are_what_the_commands_take(path, monkeypatch):
    text = path.read_text()
    blocks = [block for block in code_blocks(text) if is_shell(block[1])]
    for line, block in [*blocks, *inline_commands(text)]:
        for words in command_lines(block):
            try:
                check_command(words, monkeypatch)
            except (SystemExit, click.ClickException, KeyError, ValueError, AssertionError,
                    OSError) as error:
                pytest.fail(f"{path.name}:{line}: {shlex.join(words)}: {error!r}")


TRAIN = "tools/train_net.py --config-file configs/Market/caureid.yml "


@pytest.mark.parametrize("command, error", [
    (TRAIN + "--num-gpu 2", click.UsageError),  # a part of the name
    (TRAIN + "SOLVER.MAX_EPOCH", click.UsageError),  # no value
    (TRAIN + "SOLVER.MAX_EPOCHS 2", click.UsageError),
    (TRAIN + "SOLVER.MAX_EPOCH many", click.UsageError),
    (TRAIN.replace("caureid", "caureids"), click.UsageError),
    ("caureid ablation --family market SOLVER.MAX_EPOCHS 1", click.UsageError),
    ("caureid ablation --family markets", click.UsageError),
    ("caureid ablations --family market", AssertionError),
    ("caureid search logs/run --index a.index", click.UsageError),
    ("caureid search logs/run a.jpg --index a.index --picture a.jpg", click.UsageError),
    ("tools/train.py", AssertionError),
    ("tools/benchmarks/measure.py", AssertionError),
    ("tools/benchmarks/step.py --ouput step.csv", SystemExit),
    ("torchrun --nproc-per-node 2 tools/train_net.py --resum", click.UsageError),
    ("torchrun --nproc-per-node 2 -m caureid_plugin trains", AssertionError),
    ("make demos", AssertionError),
    ("make SEEDS=2 demo", AssertionError),
    ("pip install .[gpu]", AssertionError),
    ("pip install . --extra-index-url https://example.org/whl", AssertionError),
    ("pip install --no-deps fastreid==1.3.0", AssertionError),
    ("export DATASETS=/data", AssertionError),
])
def test_a_wrong_command_is_found(command, error, monkeypatch):
    with pytest.raises(error):
        check_command(shlex.split(command), monkeypatch)


def test_what_a_command_line_is():
    block = "A=1 tools/a.py 'x y' \\\n    B  # why\nC='K 2'\n\ntools/b.py $C $D\n"
    assert list(command_lines(block)) == [
        ["tools/a.py", "x y", "B"], ["tools/b.py", "K", "2", "$D"]]
    assert is_shell(block) and not is_shell("x = 1\n") and not is_shell("print('a')\n")


# ------------------------------------------------------------------------------- Python ----


def make_trainer(names, output):
    """FastReID's trainer as one's own script has it, on tiny data, from the block's ``cfg``."""
    from fastreid.engine import DefaultTrainer

    cfg = names["cfg"]
    cfg.merge_from_file(get_config_file("Synthetic/caureid.yml"))
    cfg.merge_from_list([*KEYS, "OUTPUT_DIR", str(output)])
    return DefaultTrainer(cfg)


def random_features(count, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(12, 32))[np.arange(count) % 12] + 0.3 * rng.normal(size=(count, 32))


class Session:
    """Runs blocks one after the other; what they use without making it is made on first use."""

    def __init__(self, output):
        self.names = {}
        cameras = np.arange(120) // 12 % 3
        self._makers = {
            "features": lambda: random_features(120, 0), "query": lambda: random_features(20, 1),
            "gallery": lambda: random_features(60, 2), "cameras": lambda: cameras,
            "camids": lambda: cameras, "torch": lambda: torch, "cfg": get_cfg,
            "trainer": lambda: make_trainer(self.names, output),
        }

    def run(self, block, place="block"):
        for statement in ast.parse(block, place).body:
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            for name in sorted(used & self._makers.keys() - self.names.keys()):
                self.names[name] = self._makers[name]()
            code = compile(ast.Module([statement], []), place, "exec")
            exec(code, self.names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_blocks_run(path, tiny_market, tmp_path):
    session = Session(tmp_path / "run")
    for line, block in code_blocks(path.read_text()):
        if is_shell(block):
            continue
        try:
            session.run(block, f"{path.name}:{line}")
        except SyntaxError as error:
            pytest.fail(f"{path.name}:{line} is neither Python nor command lines ({error}); a "
                        "drawing is marked by <!-- not run: REASON --> above it")
    if path.name == "training.md":  # the trainer is ready to train
        hooks = [type(hook).__name__ for hook in session.names["trainer"]._hooks]
        assert "UnsupervisedHook" in hooks


def test_a_wrong_python_block_is_found(tmp_path):
    with pytest.raises(TypeError):
        Session(tmp_path).run("import caureid_plugin\n"
                              "caureid_plugin.clustering.jaccard_graph(features, k3=1)\n")
    with pytest.raises(NameError):
        Session(tmp_path).run("print(embeddings)\n")


def test_blocks_and_marks():
    text = ("Text\n\n    make demo\n\n- list\n\n      x = 1\n\n```python\ny = 2\n```\n\n"
            "<!-- not run: a drawing -->\n\n    a -> b\n\n<!-- not run: -->\n\n    c -> d\n\n"
            "`make test` and `make`\n")
    assert [code for _, code in code_blocks(text)] == [
        "make demo\n", "x = 1\n", "y = 2\n", "c -> d\n"]
    assert [code for _, code in inline_commands(text)] == ["make test"]
