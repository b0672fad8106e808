#!/usr/bin/env python3
"""A web page on this machine: drop an image, see the crops of an index that are most like it.

    tools/serve.py logs/my-run --index crops.index
    tools/serve.py model.onnx --index crops.index --port 8080 --top 40

The index is one that tools/index.py has made with the same network. The page is for this machine
alone (127.0.0.1), has no login, and writes no file. Whoever is given more by --host sees all crops
of the index: docs/web.md says what to put in front. Ctrl-C or SIGTERM ends it, with exit code 0.
"""

import argparse
import contextlib
import errno
import functools
import importlib
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import caureid_plugin  # noqa: F401  (first: it makes the toolbox importable)
import psutil
from caureid_plugin.compat import shown
from caureid_plugin.retrieval.index import Index

from search_embedder import load_embedder

LOCAL = "localhost", "127.0.0.1", "[::1]"
THREADS = 4
SECONDS = 60  # for a request and its answer, and for a connection that waits for the next one
CONNECTIONS = 100  # open ones; of more the one that takes longest is closed
NAMED = 5  # folders that are named
INTERRUPTED = 130  # before there is a page


class Mistake(ValueError):
    """What the user can mend: it is said in one sentence."""


def web_module(name: str):
    """A module that needs the extra ``web``.

    Raises:
        Mistake: that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("flask", "waitress", "werkzeug"):
            raise
        raise Mistake(f"{missing} is not installed: pip install 'caureid-plugin[web]'") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        Mistake: it cannot, and which option to change.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise Mistake(f"--host {host} is no address of this machine ({error}): give one, or leave "
                      "it out for 127.0.0.1") from error
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs have the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise Mistake(_why_not(error, host, port)) from error
    return listening


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (f"port {port} of {host} is in use: end the program that uses it, or choose another "
                "with --port (0: any that is free)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return (f"port {port} is not allowed to this user ({error.strerror}): choose one from 1024 "
                "on with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return (f"--host {host} is no address of this machine: give one, or leave it out for "
                "127.0.0.1")
    return f"--host {host} --port {port} cannot be listened on: {error.strerror}"


def own_addresses() -> list[str]:
    """IP addresses of this machine, without the zone of local ones."""
    return [item.address.split("%")[0] for items in psutil.net_if_addrs().values()
            for item in items if item.family in (socket.AF_INET, socket.AF_INET6)]


def allowed_hosts(args: argparse.Namespace, address: str) -> list[str]:
    """Names by which the page may be asked for: local ones, what was given, or all addresses."""
    every = ipaddress.ip_address(address).is_unspecified
    return [*LOCAL, *args.allow_host, *(own_addresses() if every else [args.host, address])]


def make_channel(base: type) -> type:
    """waitress's connection, with a deadline for a request as a whole.

    Its own time limit begins anew with every byte: a few dozen connections that send one now and
    then would keep all others out for ever.

    Args:
        base: ``waitress.channel.HTTPChannel``.
    """

    class Channel(base):
        _since = 0.0

        def __init__(self, server, *args, **options) -> None:
            super().__init__(server, *args, **options)
            waiting = [channel for channel in server.active_channels.values()
                       if channel is not self and not channel.requests]
            if waiting and len(server.active_channels) > CONNECTIONS:
                # waitress marks those beyond its limit, and would wait until they can be written to
                min(waiting, key=lambda channel: channel.last_activity).handle_close()

        @property
        def last_activity(self) -> float:
            """Since when this request and its answer, or the waiting for one, has taken."""
            return self._since

        @last_activity.setter
        def last_activity(self, now: float) -> None:
            # not while a part of a request or of an answer is missing
            if self.request is None and not self.total_outbufs_len:
                self._since = now

    return Channel


def end_late(server, now: float) -> None:
    """Ends connections whose request and answer, or pause, take longer than ``SECONDS``.

    waitress leaves alone those that have asked for more, and waits for those that read nothing:
    four of them would hold its threads for ever.

    Args:
        server: of waitress, which calls this now and then.
        now: as of ``time.time()``.
    """
    for channel in server.active_channels.values():
        # what waits for a thread is not late
        if channel.last_activity < now - SECONDS and (
                channel.total_outbufs_len or not channel.requests):
            channel.will_close = True
            with contextlib.suppress(OSError):  # which lets it be written to, and closed then
                channel.socket.shutdown(socket.SHUT_RDWR)


def make_server(args: argparse.Namespace, listening: socket.socket):
    """The page's server, ready to run, and the index."""
    app, waitress = web_module("serve_app"), web_module("waitress")
    embedder = load_embedder(args.model)
    index = Index.open(args.index, embedder)
    if not len(index):
        raise Mistake(f"{args.index} holds no images: add some with tools/index.py")
    index.prepare()
    finder = app.Finder(embedder, index, args.false_match_rate, args.despite_verdict)
    address = listening.getsockname()[0].split("%")[0]
    limit = int(args.max_upload_mib * 2 ** 20)
    site = app.Site(finder, allowed_hosts(args, address), limit, args.top, args.allow_host)
    # a body is read before the application sees it: in memory, and never much beyond the limit
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page asks for many crops
    server = waitress.create_server(
        app.make_app(site), sockets=[listening], threads=THREADS, ident=None,
        channel_timeout=SECONDS, cleanup_interval=SECONDS / 4, connection_limit=2 * CONNECTIONS,
        max_request_body_size=2 * limit, inbuf_overflow=2 * limit + 1)
    server.channel_class = make_channel(server.channel_class)
    server.maintenance = functools.partial(end_late, server)
    return server, index


def sources(index: Index) -> str:
    """From where pictures are read: an index of someone else's may name any folder."""
    counts = Counter(entry.folder for entry in index.entries)
    said = [f"{shown(folder)} ({count})" for folder, count in counts.most_common() if folder]
    if len(said) > NAMED:
        said[NAMED:] = [f"{len(said) - NAMED} other folders"]
    if counts[""]:
        first = next(entry.path for entry in index.entries if not entry.folder)
        said.append(f"{counts['']} files by their names, the first {shown(first)}")
    return f"Crops are read from {', '.join(said)}."


def announce(listening: socket.socket, index: Index) -> None:
    """Says where the page is and what it shows, and warns of what others see."""
    address, port = listening.getsockname()[:2]
    ip = ipaddress.ip_address(address.split("%")[0])
    if not ip.is_loopback:
        print(f"Warning: the page is open to all who reach port {port} of this machine: they see "
              "all crops of the index, without a login.", file=sys.stderr)
    name = "localhost" if ip.is_unspecified else f"[{address}]" if ip.version == 6 else address
    print(f"http://{name}:{port} (Ctrl-C ends it)", sources(index), sep="\n", flush=True)


def serve(args: argparse.Namespace) -> None:
    """Runs the page until a signal ends it."""
    web_module("flask")
    listening = listen(args.host, args.port)  # a port in use is said before the network is loaded
    with listening:
        server, index = make_server(args, listening)
        announce(listening, index)
        server.run()  # returns on Ctrl-C and SystemExit
        server.close()


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="RUN_FOLDER_OR_ONNX",
                        help="OUTPUT_DIR of a run, or what tools/export.py made of it")
    parser.add_argument("--index", type=Path, required=True, help="folder made by tools/index.py")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any (default: %(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="another name by which the page is asked for, as of a proxy in front "
                             "of it; can be given several times")
    parser.add_argument("--max-upload-mib", type=float, default=8, metavar="MIB",
                        help="size of a query image, at most (default: %(default)s)")
    parser.add_argument("--top", type=int, default=20,
                        help="crops that are shown at first (default: %(default)s)")
    parser.add_argument("--false-match-rate", type=float, metavar="SHARE",
                        help="of pairs of different people that may be marked as the same "
                             "(default: 0.001, or the lowest that the run's pairs can tell)")
    parser.add_argument("--despite-verdict", action="store_true",
                        help="mark same and different although the run's verdict is bad")
    args = parser.parse_args(argv)
    _check(args, parser)
    return args


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not args.host:
        parser.error("--host is empty: give an address, or leave it out for 127.0.0.1")
    for name in args.allow_host:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*\]?", name):
            parser.error(f"--allow-host {name} must be a name or an address alone, without http:// "
                         "and without a port: reid.example.org")
    if not 0 <= args.port < 65536:
        parser.error(f"--port {args.port} must be from 0 to 65535")
    if not 0 < args.max_upload_mib <= 100:
        parser.error(f"--max-upload-mib {args.max_upload_mib} must be above 0 and at most 100")
    if not 1 <= args.top <= 500:
        parser.error(f"--top {args.top} must be from 1 to 500")
    if args.false_match_rate is not None and not 0 < args.false_match_rate < 1:
        parser.error(f"--false-match-rate {args.false_match_rate} must be between 0 and 1")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        serve(args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"tools/serve.py: {error}") from error


if __name__ == "__main__":
    main()
