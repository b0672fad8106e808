"""caureid serve in a process of its own."""

import contextlib
import time

from helpers import warm


@contextlib.contextmanager
def served(arguments, folder, prepare=""):
    """Starts ``python ARGUMENTS``, a web server; gives its process, address and file of errors.

    It is ended afterwards, if it has not ended by itself. ``folder``: for its output. ``prepare``:
    code that runs in the process before.
    """
    output, errors = folder / "server.out", folder / "server.err"
    process = warm.start(arguments, out=output, err=errors, prepare=prepare)
    try:
        end = time.monotonic() + 100
        while not output.exists() or "\n" not in output.read_text():
            assert process.poll() is None and time.monotonic() < end, errors.read_text()
            time.sleep(0.02)
        yield process, output.read_text().split()[0], errors
    finally:
        process.kill()
        process.wait()
