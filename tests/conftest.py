"""Fixtures shared by all tests: tiny images, a complete config, a tiny run.

With ``CI`` in the environment, a test that is skipped, or fails as expected, fails the run unless
EXPECTED_SKIPS has it.
"""

import logging
import os
import signal
import subprocess
import sys

# Before torch is imported, here and in the processes that tests start: on tensors as small as
# these, threads cost more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from helpers import warm
from helpers.tiny import KEYS, write_crops, write_market

# A run in the background has SIGINT ignored, one under nohup SIGHUP, and so would the processes of
# its tests.
for number, handler in ((signal.SIGINT, signal.default_int_handler),
                        (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# What the machines of the project's CI cannot run: a part of the test's id, and the reason.
EXPECTED_SKIPS = {
    "test_idf1_is_that_of_trackeval": "trackeval is not installed",
    "cuda": "needs a GPU",
}

_skipped = []


def pytest_runtest_logreport(report):
    if report.skipped:
        reason = getattr(report, "wasxfail", None) or str(report.longrepr[2])
        _skipped.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_collectreport(report):
    if report.skipped:
        _skipped.append((report.nodeid, str(report.longrepr[2])))


def pytest_terminal_summary(terminalreporter, config):
    """Says how to repeat the order, which `-q` hides."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"order and random numbers: --randomly-seed={seed}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fails a run of CI in which something vanished."""
    if not os.environ.get("CI") or hasattr(session.config, "workerinput"):
        return
    vanished = [f"{test}: {reason}" for test, reason in _skipped
                if not any(part in test and reason == known
                           for part, known in EXPECTED_SKIPS.items())]
    if vanished:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nskipped, and not in EXPECTED_SKIPS of tests/conftest.py:", *vanished, sep="\n  ",
              file=sys.stderr)


@pytest.fixture(autouse=True)
def as_it_was():
    """Gives back what training and its tests set for the whole process; seeds torch.

    Loggers (``setup_logger`` adds handlers and never stops), signal handlers, torch's settings.
    """
    logs = {name: logging.getLogger(name)
            for name in ("fastreid", "fastreid.caureid", "caureid_plugin")}
    before = {name: (log.handlers[:], log.level, log.propagate, log.disabled)
              for name, log in logs.items()}
    handlers = {number: signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    torch = sys.modules.get("torch")
    if torch:
        torch.manual_seed(0)
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    for name, log in logs.items():
        for handler in set(log.handlers) - set(before[name][0]):
            handler.close()
        log.handlers, log.level, log.propagate, log.disabled = before[name]
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    if torch:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False


@pytest.fixture
def messages():
    """What FastReID and the plugin log from now on, as a list of texts."""
    texts = []

    class Collect(logging.Handler):
        def emit(self, record):
            texts.append(record.getMessage())

    for name in ("fastreid", "caureid_plugin"):
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.addHandler(Collect())
    return texts


@pytest.fixture
def tiny_market(tmp_path, monkeypatch):
    """Folder with :func:`helpers.tiny.write_market`'s images; FastReID looks for data sets there.

    So do the processes that a test starts.
    """
    import caureid_plugin  # noqa: F401
    from fastreid.data import build as data_build

    root = write_market(tmp_path / "datasets")
    monkeypatch.setattr(data_build, "_root", str(root))
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    return root


@pytest.fixture
def tiny_crops(tmp_path):
    """Folder with a folder for each of two cameras and 12 images in each."""
    return write_crops(tmp_path / "crops")


@pytest.fixture
def cfg():
    """A fresh config with the toolbox's and the plugin's keys."""
    from caureid_plugin import add_caureid_config
    from fastreid.config import get_cfg

    config = get_cfg()
    add_caureid_config(config)
    return config


@pytest.fixture
def train_as_script(tiny_market, tmp_path, monkeypatch):
    """Trains as tools/train_net.py does, by its own functions, in this process; gives the trainer.

    Arguments: keys and values as on the command line; ``folder``: below tmp_path, for the output;
    ``watch``: called with the trainer before it trains.
    """
    from caureid_plugin.engine import training as train_net
    from fastreid.engine import defaults

    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here

    def run(*options, config="Synthetic/caureid.yml", folder="run", watch=lambda trainer: None):
        command = ["--config-file", config, *KEYS, "OUTPUT_DIR", tmp_path / folder, *options]
        args = defaults.default_argument_parser().parse_args([str(part) for part in command])
        trainer = train_net.build_trainer(train_net.setup(args))
        watch(trainer)
        trainer.resume_or_load(resume=False)
        trainer.train()
        return trainer

    return run


@pytest.fixture
def script_keys():
    """Keys and values of a tiny training for the command line of tools/train_net.py."""
    return KEYS


@pytest.fixture
def small_run(tmp_path):
    """Makes a run folder as training leaves it, of a network with random weights, in no time.

    Called with config keys and values it gives the folder. The memory bank has 60 images in 6
    clusters and of 2 cameras, and 6 outliers; those of a cluster are alike.
    """
    import torch
    from caureid_plugin.engine import build_network, load_config
    from torch.nn.functional import normalize

    def make(*options, folder="small_run"):
        cfg = load_config("Synthetic/caureid.yml", [*KEYS, *options])
        model = build_network(cfg)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in model.state_dict().items():  # an attention that has left its start
                if name.endswith("combine.1.weight"):
                    value.normal_(0, 0.5, generator=generator)
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.momentum = 1.0
            for _ in range(6):  # batch norm sees images, one layer after the other
                blocks = 255 * torch.rand(32, 3, 4, 2, generator=generator)
                images = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
                model.heads(model.backbone((images - model.pixel_mean) / model.pixel_std),
                            torch.zeros(32, dtype=torch.int64))
        labels = torch.cat([torch.arange(6).repeat_interleave(10), torch.full((6,), -1)])
        centres = torch.randn(7, 16, generator=generator)
        features = centres[labels] + 0.7 * torch.randn(66, 16, generator=generator)
        home = tmp_path / folder
        home.mkdir()
        (home / "config.yaml").write_text(cfg.dump())
        torch.save({"model": model.state_dict(), "memory_bank": {
            "features": normalize(features, dim=1), "labels": labels,
            "camids": torch.arange(66) % 2}}, home / "model_final.pth")
        (home / "last_checkpoint").write_text("model_final.pth")
        return home

    return make


_HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding:
    def find_spec(name, path=None, target=None):
        hidden = name.split(".")[0] in {names}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def run_python(tmp_path):
    """Runs a command of a new interpreter that can import the plugin; gives its finished process.

    For tests of the imports themselves; others take `helpers.warm`, which imports once.

    ``hidden``: modules that code given by ``-c`` does not find, as if they were not installed.
    """

    def run(*arguments, timeout=120, hidden=(), **environment):
        if hidden:
            option, code, *rest = arguments
            assert option == "-c"
            arguments = (option, _HIDE.format(names=set(hidden)) + code, *rest)
        return subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True,
            timeout=timeout, cwd=tmp_path, check=False, env=warm.environment(**environment))

    return run
