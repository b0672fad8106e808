"""Fresh processes that do not pay for the imports.

The plugin's parts cost seconds of CPU to import, because of torch. The standard library's fork
server imports them once; every process that a test starts here is a fork of it. It shares nothing
with the process that runs the tests. It has its own session, working directory, environment, output
files, signal handlers and random state, and ends as a script ends.

Three things are the server's, not its own: the imports with what they print, PYTHONWARNINGS, and
the hash seed. A test of those needs a new interpreter (``run_python`` in conftest.py).
"""

import atexit
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS_ALONE = [str(REPOSITORY / "tests"), str(REPOSITORY / "tools")]  # on the tests' path

FORKED_RANKS = """
import multiprocessing
import caureid_plugin.common.launcher as launcher
launcher.torch.multiprocessing.get_context = lambda kind: multiprocessing.get_context("fork")
"""
"""``prepare`` of a script that starts processes: they too are forks."""

_context = multiprocessing.get_context("forkserver")


def environment(**changes):
    """The tests' environment, in which processes find the plugin and see no GPU."""
    paths = filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
    values = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "",
              **{name: str(value) for name, value in changes.items() if value is not None}}
    return {name: value for name, value in values.items()
            if name not in changes or changes[name] is not None}


class Process:
    """A running script; attributes and methods as of ``subprocess.Popen``."""

    def __init__(self, process, log):
        self._process, self.pid, self.log = process, process.pid, log

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=120):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.log), timeout)
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(arguments, *, out, err=None, cwd=None, env=None, prepare=""):
    """Starts ``python ARGUMENTS``: a script, ``-c`` code or ``-m`` module, with its arguments.

    Args:
        arguments: what would follow the interpreter's name.
        out, err: files for its output, which are added to; ``err`` None is the same as ``out``.
        cwd: its working directory; None is the tests' own.
        env: its environment; None is :func:`environment`'s.
        prepare: code that runs in the process before the script.
    """
    _start_server()
    process = _context.Process(target=_run, args=(
        [os.fspath(part) if isinstance(part, os.PathLike) else str(part) for part in arguments],
        str(out), str(err or out), str(cwd or os.getcwd()), env or environment(), prepare))
    process.start()
    return Process(process, out)


def run(arguments, folder, *, timeout=120, **options):
    """Runs ``python ARGUMENTS`` to its end, as ``subprocess.run`` does, with output as text.

    ``folder``: an existing one, for its output, and its working directory unless ``cwd`` is given.
    """
    files = [Path(folder) / f".{name}-{os.urandom(4).hex()}" for name in ("out", "err")]
    process = start(arguments, out=files[0], err=files[1], **{"cwd": folder, **options})
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        texts = "\n".join(file.read_text() for file in files)
        raise AssertionError(f"no end within {timeout} s:\n{texts[-6000:]}") from None
    texts = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    return subprocess.CompletedProcess(arguments, code, *texts)


@functools.cache
def _start_server():
    before = dict(os.environ)
    os.environ.update(environment())
    _context.set_forkserver_preload(["caureid_plugin.engine.training", "caureid_plugin.export"])
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def _run(arguments, out, err, cwd, env, prepare):
    """In the new process: what the interpreter does with its arguments."""
    os.setsid()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    build = sys.modules.get("fastreid.data.build")
    if build:  # read from the environment when it was imported
        build._root = env.get("FASTREID_DATASETS", "datasets")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.set_start_method(None, force=True)  # the server's own is inherited
    sys.path[:] = [path for path in sys.path if path not in TESTS_ALONE]
    random.seed()
    if "torch" in sys.modules:
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].seed()
    try:
        if prepare:
            exec(compile(prepare, "<prepare>", "exec"), {"__name__": "prepare"})
        _interpret(arguments)
    except SystemExit as leaving:
        _leave(leaving.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  shown, as the interpreter shows it
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _interpret(arguments):
    option, *rest = arguments
    if option == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(option).parent))
        sys.argv = arguments
        runpy.run_path(option, run_name="__main__")


def _leave(code):
    """Ends as the interpreter ends: threads are waited for, what was registered is called."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(code, str) else code or 0)
