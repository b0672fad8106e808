"""The application of ``caureid serve``: what it answers to a request, and which it refuses."""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from flask import Flask, Response, abort, jsonify, request
from PIL import Image
from werkzeug.exceptions import HTTPException

from ..common.pages import render
from ..common.text import percent, printable
from ..retrieval import decoding
from ..retrieval.decoding import NoImage, TooManyPixels
from ..retrieval.embedder import Embedder
from ..retrieval.index import Hit, Index
from ..retrieval.verdicts import (
    COPIES,
    is_query,
    pair_statistics,
    say_doubt,
    say_expected,
    verdict_of,
)
from . import images

logger = logging.getLogger("fastreid.caureid")
MOST_RESULTS = 500
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
# a name, an IPv4 or IPv6 address, and a port
HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no picture of this page in another one
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # nor on the disk of the browser
}
ICON = (b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="7" cy="7" r="5" '
        b'fill="none" stroke="#0a5cbf" stroke-width="2"/><path d="M11 11l4 4" stroke="#0a5cbf" '
        b'stroke-width="2"/></svg>')


class Finder:
    """Searches an index with images or with its own rows, one after the other.

    Args:
        embedder: makes embeddings as the index holds them.
        index: with ``entries``, ``cameras``, ``camera_counts`` and ``search``. If it standardises
            by camera, a row is so by its camera, an image by the statistics of all crops.
        false_match_rate: share of different pairs that may be marked as the same; None: the one
            that is suggested.
        despite_verdict: mark crops although the run's verdict is bad.
    """

    def __init__(self, embedder: Embedder, index: Index, false_match_rate: float | None = None,
                 despite_verdict: bool = False) -> None:
        self.embedder, self.index = embedder, index
        self.counts = dict(index.camera_counts)
        self.cameras = list(self.counts)
        self.statistics, self.why = pair_statistics(embedder, index, despite_verdict)
        self.threshold, self.expected = None, ""
        if self.statistics is not None:
            self.threshold = self.statistics.threshold(false_match_rate)
            self.expected = say_expected(
                self.statistics, self.threshold.value, self.counts, "✓ same") + say_doubt(
                    verdict_of(embedder, index))
        self._lock = threading.Lock()

    def read_row(self, row: int) -> Image.Image:
        """The image of a row.

        Raises:
            NoImage: there is no such row, or its file is not what was indexed.
        """
        if not 0 <= row < len(self.index):
            raise NoImage("There is no such crop in the index.")
        entry = self.index.entries[row]
        return images.read_crop(entry.name, entry.size, entry.mtime)

    def find(self, image: Image.Image, top: int, cameras: Collection[str] | None,
             without: int = -1, data: bytes | None = None) -> dict[str, Any]:
        """What the page shows of a search.

        Args:
            image: RGB.
            top: crops, at most.
            cameras: only crops of these; None: of all.
            without: a row that is left out, the query's own.
            data: the query's file, where it comes from outside: crops of the very same file are
                left out.
        """
        with self._lock:
            start = time.perf_counter()
            features = self.embedder.embed(image)
            embedded = time.perf_counter()
            own = self.index.standardize_by_camera and without >= 0
            hits = self.index.search(
                features, top + COPIES, cameras=cameras,
                query_cameras=[self.index.cameras[without]] if own else None)[0]
            end = time.perf_counter()
        copies = [] if data is None else [
            hit.row for hit in hits if is_query(self.index.entries[hit.row], None, data)]
        kept = [hit for hit in hits if hit.row not in (without, *copies)][:top]
        return {"own": [{"camera": self.camera(row), "name": self.name(row)} for row in copies],
                "hits": [self._hit(rank, hit) for rank, hit in enumerate(kept, start=1)],
                "embedding_ms": round(1000 * (embedded - start), 1),
                "search_ms": round(1000 * (end - embedded), 1)}

    def _hit(self, rank: int, hit: Hit) -> dict[str, Any]:
        return {"rank": rank, "row": hit.row, "camera": self.camera(hit.row),
                "name": self.name(hit.row), "score": hit.score,
                "same": None if self.threshold is None else hit.score >= self.threshold.value}

    def camera(self, row: int) -> str:
        return camera_name(self.index.cameras[row])

    def name(self, row: int) -> str:
        """The path below the folder that was indexed; nothing of what is above."""
        entry = self.index.entries[row]
        return printable(entry.path if entry.folder else Path(entry.path).name)


def camera_name(camera: str) -> str:
    return printable(camera) if camera else "unknown"


def host_name(text: str) -> str:
    """A host as it stands in the header of a request: lower case, IPv6 in brackets."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return text.lower()
    return f"[{address}]" if address.version == 6 else str(address)


class Site:
    """The requests that are answered.

    Args:
        finder: searches.
        hosts: names and addresses by which the page may be asked for.
        proxies: which of them belong to a proxy in front.
        max_upload: bytes of a query image.
        top: crops that are shown at first.
    """

    def __init__(self, finder: Finder, hosts: Collection[str], max_upload: int, top: int,
                 proxies: Collection[str] = ()) -> None:
        self.finder, self.max_upload, self.top = finder, max_upload, top
        self.hosts = {host_name(host) for host in hosts}
        self.proxies = {host_name(host) for host in proxies}
        self._page = render(Path(__file__).with_name("serve.html.j2"), self._content())
        self._assets = {"serve.css": (images.asset("serve.css"), "text/css"),
                        "serve.js": (images.asset("serve.js"), "text/javascript"),
                        "icon.svg": (ICON, "image/svg+xml")}

    def _content(self) -> dict[str, Any]:
        finder = self.finder
        return {"model": printable(finder.embedder.name), "images": len(finder.index),
                "cameras": [(camera_name(name), finder.counts[name]) for name in finder.cameras],
                "threshold": finder.threshold, "top": self.top, "most": MOST_RESULTS,
                "statistics": finder.statistics, "why": printable(finder.why),
                "expected": printable(finder.expected), "percent": percent,
                "standardized": finder.index.standardize_by_camera,
                "max_upload": self.max_upload, "formats": ", ".join(decoding.UPLOADS)}

    # ------------------------------------------------------------------------- refusing ----

    def guard(self) -> None:
        """Refuses requests that another page makes, by a name of its own or by its visitor.

        A page elsewhere can have its name lead to this machine (DNS rebinding) or have its
        visitor's browser ask for this one's addresses.
        """
        host = HOST.fullmatch(request.headers.get("Host", "").lower())
        if host is None or host_name(host[1]) not in self.hosts:
            abort(403, "This page does not answer to that host name. If it is the right one, "
                       "start it with --allow-host NAME.")
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in ("same-origin", "none") and request.path != "/":
            abort(403, "Another page asked for this: open this one by itself.")
        origin = request.headers.get("Origin")
        if request.method not in ("GET", "HEAD") and origin is not None and not self._is_own(
                origin.lower(), host[0]):
            abort(403, "Another page asked for this: open this one by itself.")

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether an Origin is this page's: that of the Host header, or of a proxy in front.

        A proxy may speak https, and may send a Host of its own in place of the visitor's: the names
        that were allowed by option belong to the proxy, whose port is not known here.
        """
        if re.fullmatch(rf"https?://{re.escape(host)}", origin):
            return True
        named = re.fullmatch(rf"https?://({HOST.pattern})", origin)
        return named is not None and host_name(named[2]) in self.proxies

    @staticmethod
    def harden(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    def refuse(self, error: HTTPException) -> tuple[Response, int]:
        text = error.description or error.name
        if error.code == 413 and not isinstance(error.__cause__, NoImage):
            text = (f"The file is larger than {self.max_upload / 2 ** 20:g} MiB, the most that is "
                    "taken (--max-upload-mib).")
        elif error.code == 404 and not isinstance(error.__cause__, NoImage):
            text = "There is nothing at this address."
        return jsonify(error=text), error.code or 500

    @staticmethod
    def fail(error: Exception) -> tuple[Response, int]:
        logger.error("A request failed.", exc_info=error)
        return jsonify(error="The server failed at this: its log says why."), 500

    # ------------------------------------------------------------------------ answering ----

    def page(self) -> Response:
        return Response(self._page, mimetype="text/html")

    def asset(self, name: str) -> Response:
        content, kind = self._assets[name]
        return Response(content, mimetype=kind)

    def crop(self, row: str) -> Response:
        """The thumbnail of a row."""
        if not NUMBER.fullmatch(row):
            abort(404)
        try:
            content = images.thumbnail(self.finder.read_row(int(row)))
        except NoImage as error:
            refuse(404, error)
        return Response(content, mimetype="image/jpeg")

    def search(self) -> Response:
        """The crops that are most similar to the image of the request, or to a row."""
        top = number("top", self.top)
        if not 1 <= top <= MOST_RESULTS:
            abort(400, f"top must be from 1 to {MOST_RESULTS}.")
        cameras = self._cameras()
        row = number("row", -1)
        data = self._body() if row < 0 else None
        image = self._row(row) if data is None else self._decoded(data)
        try:
            answer = self.finder.find(image, top, cameras, row, data)
        except ValueError as error:  # its text may name paths
            logger.warning("A query was refused: %s", error)
            abort(422, "The network makes no embedding of this image.")
        if row >= 0:
            answer["query"] = {"camera": self.finder.camera(row), "name": self.finder.name(row)}
        return jsonify(answer)

    def _cameras(self) -> list[str] | None:
        """Those that the request numbers, None if it does not."""
        texts = request.args.getlist("camera")
        count = len(self.finder.cameras)
        if any(not NUMBER.fullmatch(text) or int(text) >= count for text in texts):
            abort(400, f"camera must be a number from 0 to {count - 1}: the places in the page's "
                       "list.")
        return [self.finder.cameras[int(text)] for text in texts] or None

    def _row(self, row: int) -> Image.Image:
        try:
            return self.finder.read_row(row)
        except NoImage as error:
            refuse(404, error)

    def _body(self) -> bytes:
        # others are sent by forms of any page, without asking
        if not re.match(r"(image/|application/octet-stream\b)", request.mimetype):
            abort(415, "Send the image itself as the body, with the header Content-Type: "
                       "application/octet-stream.")
        data = request.get_data(cache=False)
        if not data:
            abort(400, "There is no image in the request: the file is empty.")
        return data

    def _decoded(self, data: bytes) -> Image.Image:
        try:
            return decoding.decode(data)
        except TooManyPixels as error:
            refuse(413, error)
        except NoImage as error:
            refuse(415, error)


def refuse(code: int, error: NoImage) -> NoReturn:
    """Ends the request with what the error says."""
    try:
        abort(code, str(error))
    except HTTPException as refusal:
        raise refusal from error


def number(name: str, default: int) -> int:
    """A number of the request's query string."""
    text = request.args.get(name)
    if text is None:
        return default
    if not NUMBER.fullmatch(text):
        abort(400, f"{name} must be a whole number.")
    return int(text)


def make_app(site: Site) -> Flask:
    """The application; it serves no folder."""
    app = Flask("caureid_serve", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = site.max_upload
    app.before_request(site.guard)
    app.after_request(site.harden)
    app.register_error_handler(HTTPException, site.refuse)
    app.register_error_handler(Exception, site.fail)
    app.add_url_rule("/", "page", site.page, methods=["GET"])
    for name in ("serve.css", "serve.js", "icon.svg"):
        app.add_url_rule(f"/{name}", name.replace(".", "_"), site.asset, defaults={"name": name},
                         methods=["GET"])
    app.add_url_rule("/crops/<row>", "crop", site.crop, methods=["GET"])
    app.add_url_rule("/search", "search", site.search, methods=["POST"])
    return app
