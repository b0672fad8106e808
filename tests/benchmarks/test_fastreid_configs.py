"""FastReID's own configs under the plugin: what is run, what becomes of it, the drawn images."""

import json
import subprocess
import sys
import types
from pathlib import Path

import caureid_plugin  # noqa: F401
import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from benchmarks import fastreid_configs as tool
from benchmarks import fastreid_data
from helpers import warm
from helpers.tool_output import refusal, table_rows

# as FastReID's own, shorter
TRAIN_NET = """
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
args = default_argument_parser().parse_args()
cfg = get_cfg()
cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)
default_setup(cfg, args)
if not args.eval_only:
    DefaultTrainer(cfg).train()
"""
OSNET = """
_BASE_: ../Base.yml
MODEL: {BACKBONE: {NAME: build_osnet_backbone, DEPTH: x0_25, FEAT_DIM: 128}}
INPUT: {REA: {ENABLED: true}}
DATASETS: {NAMES: [DukeMTMC], TESTS: [DukeMTMC]}
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with what the tool reads of a clone; gives a function that adds files."""

    def add(path, text=""):
        file = tmp_path / "clone" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path / "clone"

    add("tools/train_net.py", TRAIN_NET)
    add("configs/Base.yml", "SOLVER: {AMP: {ENABLED: true}}")
    return add


def test_what_is_run(clone):
    clone("configs/Market1501/a.yml", "_BASE_: ../Base.yml")
    clone("configs/Market1501/notes.txt")
    clone("projects/HAA/Readme.md")
    for name in ("Base-r", "cars"):
        clone(f"projects/FastRetri/configs/{name}.yml", "_BASE_: Base-r.yml" * (name == "cars"))
    clone("projects/FastRetri/train_net.py")
    for name in ("r34-ibn", "submit"):
        clone(f"projects/NAIC20/configs/{name}.yml", "SEED: 1")
    folder = clone("projects/NAIC20/train_net.py")
    jobs = {job.name: job for job in tool.plan(folder)}
    assert list(jobs) == [
        "configs/Base.yml", "configs/Market1501/a.yml", "projects/FastRetri/configs/cars.yml",
        "projects/HAA", "projects/NAIC20/configs/r34-ibn.yml", "projects/NAIC20/configs/submit.yml"]
    first = jobs["configs/Market1501/a.yml"]
    assert (first.script, first.words, first.steps) == ("tools/train_net.py", tuple(tool.KEYS), 2)
    assert jobs["projects/HAA"].script == ""
    cars = jobs["projects/FastRetri/configs/cars.yml"]
    assert cars.script == "projects/FastRetri/train_net.py"
    assert cars.words[:len(tool.KEYS)] == tuple(tool.KEYS) and "[64,64]" in cars.words

    submit = jobs["projects/NAIC20/configs/submit.yml"]
    assert submit.after == "projects/NAIC20/configs/r34-ibn.yml" and submit.steps == 0
    command = submit.command(Path("start.py"), folder, Path("out"), Path("runs"))
    assert command[:7] == [sys.executable, "start.py", str(folder / "projects/NAIC20/train_net.py"),
                           "--config-file", str(folder / submit.name), "--eval-only", "--commit"]
    weights = command[command.index("MODEL.WEIGHTS") + 1]
    assert weights == "runs/projects-NAIC20-configs-r34-ibn.yml/model_final.pth"
    assert command[-2:] == ["OUTPUT_DIR", "out"]


def traceback(*paths, error):
    frames = "".join(f'  File "{path}", line 3, in f\n    f()\n' for path in paths)
    return f"a line\nTraceback (most recent call last):\n{frames}{error}\n"


OF_PLUGIN, OF_TOOLBOX = "/x/caureid_plugin/compat.py", "/x/fastreid/engine/defaults.py"


@pytest.mark.parametrize("code, steps, text, reason, by", [
    (0, 2, "ValueError: an old one", None, None),
    (0, 0, "", "ended as if all were well after 0 of 2 steps", "FastReID"),
    (None, 1, "", "did not end in time", "FastReID"),
    (-9, 1, "", "ended by SIGKILL", "FastReID"),
    (1, 0, "", "exit status 1", "FastReID"),
    (2, 0, "usage:\nwrong  words", "wrong words", "FastReID"),
    (1, 0, traceback("/x/projects/A/a.py", OF_PLUGIN, "/x/torch/nn.py", error="KeyError: 'k'"),
     "KeyError: 'k'", "plugin"),
    (1, 0, traceback(OF_PLUGIN, OF_TOOLBOX, error="torch.cuda.OtherError: a\nof two lines"),
     "torch.cuda.OtherError: a", "FastReID"),
    (1, 0, traceback("/c/projects/A/a.py", error="ModuleNotFoundError: No module named 'ray'"),
     "needs ray, which is not installed", "project"),
    (1, 0, traceback("/c/projects/A/a.py", error="ModuleNotFoundError: No module named 'a.b'"),
     "ModuleNotFoundError: No module named 'a.b'", "project")])
def test_what_became_of_a_run(code, steps, text, reason, by):
    expected = {"outcome": "cannot", "reason": reason, "by": by} if by else {"outcome": "runs"}
    assert tool.outcome(code, text, steps, 2) == expected


def test_steps_are_counted_from_the_first(tmp_path):
    assert tool.steps_of(tmp_path) == 0
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\n{"iteration": 1, "a": 2}\n{"it')
    assert tool.steps_of(tmp_path) == 2


@pytest.fixture
def run_tool(tmp_path, monkeypatch):
    """The tool, whose processes are forks and have one dataset; gives what it wrote."""

    def run(command, *, check, **options):
        if command[0] != sys.executable:
            return subprocess.run(command, check=check, **options)
        process = warm.start(command[1:], out=options["stdout"].name, cwd=options["cwd"],
                             env=options["env"])
        return types.SimpleNamespace(returncode=process.wait(options["timeout"]))

    monkeypatch.setattr(tool, "write_all", fastreid_data.write_in_folders)
    monkeypatch.setattr(tool, "subprocess", types.SimpleNamespace(
        run=run, DEVNULL=None, STDOUT=None, TimeoutExpired=subprocess.TimeoutExpired))
    output = tmp_path / "out"

    def main(clone, *words):
        assert tool.main(["--clone", str(clone), "--output", str(output), *words]) == 0
        lines = (output / "results.jsonl").read_text().splitlines()
        return list(map(json.loads, lines)), (output / "results.md").read_text()

    return main


def test_configs_that_run_and_that_cannot(clone, run_tool, capsys, tmp_path):
    clone("configs/Duke/osnet.yml", OSNET)
    folder = clone("configs/Duke/wrong.yml", "MODEL: {BACKBONE: {NAME: build_nothing}}")
    clone("projects/HAA/Readme.md")
    before = sorted(folder.rglob("*"))
    records, page = run_tool(folder, "--only", "[DH]*")  # without the base, whose network is large
    assert [(r["name"], r["outcome"]) for r in records] == [
        ("configs/Duke/osnet.yml", "runs"), ("configs/Duke/wrong.yml", "cannot"),
        ("projects/HAA", "cannot")], (tmp_path / "out/logs/configs-Duke-osnet.txt").read_text()
    assert "'build_nothing' in the BACKBONE registry" in records[1]["reason"]
    assert records[1]["by"] == "plugin" and "torch " in records[0]["versions"]
    rows = table_rows(page)
    assert rows[2][:2] == ["configs/Duke", "1 of 2"] and "wrong.yml: " in rows[2][2]
    assert rows[3] == ["projects/HAA", "0 of 1", "has no script in Python that trains (project)"]
    assert sorted(folder.rglob("*")) == before  # the clone stays as it is

    capsys.readouterr()
    clone("configs/Duke/wrong.yml", "SOLVER: {OPT: 3}")
    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"name": "configs/Duke/osn')  # of a call that was ended
    assert tool.read_results(tmp_path / "out" / "results.jsonl").keys() == {
        record["name"] for record in records}
    (tmp_path / "out" / "results.jsonl").write_text("".join(
        json.dumps(record) + "\n" for record in records))
    records, page = run_tool(folder, "--only", "Duke")  # what ran is kept, the rest tried again
    assert "osnet.yml: ran before" in capsys.readouterr().out and len(records) == 4
    # without its own path, so that configs of one fault are one in the table
    assert "The config ...: Type mismatch: config key SOLVER.OPT takes text" in page
    assert "build_nothing" not in page and "projects/HAA" in page


@pytest.mark.parametrize("words, message", [
    ("--clone {tmp}/none --output {tmp}/out", "none must hold configs/ and tools/train_net.py"),
    ("--clone {tmp}/clone --output {tmp}/clone/logs", "is in the clone, which stays as it is"),
    ("--clone {tmp}/clone --output {tmp}/out --seconds 0", "--seconds 0 must be positive")])
def test_bad_options(clone, tmp_path, capsys, words, message):
    assert message in refusal(tool.main, words.format(tmp=tmp_path).split(), capsys)


def test_a_pattern_that_matches_nothing(clone, tmp_path, capsys):
    words = ["--clone", str(tmp_path / "clone"), "--output", str(tmp_path), "--only", "swin"]
    assert tool.main(words) == 2
    assert "--only 'swin' matches none of 1 configs, as configs/Base.yml" in capsys.readouterr().err


# ------------------------------------------------------------------------------- images ----


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    fastreid_data.write_all(root)
    return root


VEHICLES = [f"{size}{name}" for name in ("VehicleID", "VeRiWild")
            for size in ("", "Small", "Medium", "Large")]


@pytest.mark.parametrize("name", ["Market1501", "DukeMTMC", "MSMT17", "VeRi", *VEHICLES])
def test_the_toolboxs_datasets_read_what_is_drawn(drawn, name):
    data = DATASET_REGISTRY.get(name)(root=str(drawn))
    cars = name.endswith("VehicleID")  # one image of each vehicle is its gallery
    assert [len(data.train), len(data.query), len(data.gallery)] == [
        16, *((20, 4) if cars else (8, 16))]
    assert len({item[1] for item in data.train}) == 4
    assert len({item[2] for item in data.train}) == (16 if cars else 2)
    assert {item[1] for item in data.query} == {item[1] for item in data.gallery}
    for item in (*data.train, *data.query, *data.gallery):
        with Image.open(item[0]) as image:
            assert image.size == (32, 96)


def test_the_projects_lists_name_what_is_drawn(drawn):
    lists = {"naic/2020_NAIC/fusai/train/naic20r2_train_list_clean.txt": ("images/", ":", 16),
             "naic/2020_NAIC/chusai/train/label.txt": ("images/", ":", 16),
             "naic/2019_NAIC/fusai/train_list_clean.txt": ("", " ", 16),
             "Cars_196/train.txt": ("", ",", 16), "InShop/test_gallery.txt": ("", ",", 16)}
    for name, (folder, separator, count) in lists.items():
        lines = [line.split(separator) for line in (drawn / name).read_text().split("\n")]
        assert len(lines) == count and len({label for _, label in lines}) == 4
        assert all((drawn / name).parent.joinpath(folder + image).is_file() for image, _ in lines)
