"""``caureid serve``: the process that listens, its limits, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil

from ..common.errors import MissingPackage, UserError
from ..common.text import printable
from ..export.load import load_embedder
from ..retrieval.index import Index

LOCAL = "localhost", "127.0.0.1", "[::1]"
THREADS = 4
SECONDS = 60  # for a request and its answer, and for a connection that waits for the next one
CONNECTIONS = 100  # open ones; of more the one that takes longest is closed
NAMED = 5  # folders that are named


def web_module(name: str) -> ModuleType:
    """A module that needs the extra ``web``.

    Args:
        name: with a dot before it, one of this package.

    Raises:
        MissingPackage: that is not installed.
    """
    try:
        return importlib.import_module(name, __package__)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("flask", "waitress", "werkzeug"):
            raise
        raise MissingPackage(
            f"{missing} is not installed: pip install 'caureid-plugin[web]'") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: it cannot, and which option to change.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine ({error}): give one, or "
                        "leave it out for 127.0.0.1") from error
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs have the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(_why_not(error, host, port)) from error
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


def allowed_hosts(args: SimpleNamespace, address: str) -> list[str]:
    """Names by which the page may be asked for: local ones, what was given, or all addresses."""
    every = ipaddress.ip_address(address).is_unspecified
    return [*LOCAL, *args.allow_host, *(own_addresses() if every else [args.host, address])]


def make_channel(base: Any) -> type:
    """waitress's connection, with a deadline for a request as a whole.

    Its own time limit begins anew with every byte: a few dozen connections that send one now and
    then would keep all others out for ever.

    Args:
        base: ``waitress.channel.HTTPChannel``.
    """

    class Channel(base):  # type: ignore[misc]
        _since = 0.0

        def __init__(self, server: Any, *args: Any, **options: Any) -> None:
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


def end_late(server: Any, now: float) -> None:
    """Ends connections whose request and answer, or pause, take longer than ``SECONDS``.

    waitress does not end those that have asked for more, and waits for those that read nothing:
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


def make_server(args: SimpleNamespace, listening: socket.socket) -> tuple[Any, Index]:
    """The page's server, ready to run, and the index."""
    app, waitress = web_module(".app"), web_module("waitress")
    embedder = load_embedder(args.run)
    index = Index.open(args.index, embedder)
    if not len(index):
        raise UserError(f"{args.index} holds no images: add some with caureid index")
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
    folders = [f"{printable(folder)} ({count})" for folder, count in counts.most_common() if folder]
    if len(folders) > NAMED:
        folders[NAMED:] = [f"{len(folders) - NAMED} other folders"]
    if counts[""]:
        first = next(entry.path for entry in index.entries if not entry.folder)
        folders.append(f"{counts['']} files by their names, the first {printable(first)}")
    return f"Crops are read from {', '.join(folders)}."


def announce(listening: socket.socket, index: Index) -> None:
    """Says where the page is and what it shows, and warns of what others see."""
    address, port = listening.getsockname()[:2]
    ip = ipaddress.ip_address(address.split("%")[0])
    if not ip.is_loopback:
        print(f"Warning: the page is open to all who reach port {port} of this machine: they see "
              "all crops of the index, without a login.", file=sys.stderr)
    name = "localhost" if ip.is_unspecified else f"[{address}]" if ip.version == 6 else address
    print(f"http://{name}:{port} (Ctrl-C ends it)", sources(index), sep="\n", flush=True)


def run(args: SimpleNamespace) -> None:
    """``caureid serve``: runs the page until a signal ends it.

    Args:
        args: its options.

    Raises:
        ValueError, OSError, ImportError: the network, the index or the address cannot be used;
            says why.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    web_module("flask")
    listening = listen(args.host, args.port)  # a port in use is said before the network is loaded
    with listening:
        server, index = make_server(args, listening)
        announce(listening, index)
        server.run()  # returns on Ctrl-C and SystemExit
        server.close()
