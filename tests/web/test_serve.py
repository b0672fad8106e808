"""caureid serve: what it answers, by plain numpy; what it refuses; how it listens and ends.

The network is a stand-in, whose embedding is the image itself, shrunk.
"""

import http.client
import io
import os
import re
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import psutil
import pytest
from caureid_plugin.cli.common import call
from caureid_plugin.cli.serve import command
from caureid_plugin.common.errors import UserError
from caureid_plugin.retrieval.decoding import decode
from caureid_plugin.retrieval.index import Index
from caureid_plugin.retrieval.index_files import Entry
from caureid_plugin.runs.threshold import PairStatistics, RunVerdict
from caureid_plugin.web import app, server
from fastreid.data.data_utils import read_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers import shrunk
from helpers.server import served
from helpers.shrunk import HOSTILE, Shrunk

LIMIT = 200_000  # bytes of an upload
CAMERAS = ["door", "", "yard"]
IMAGE = {"Content-Type": "application/octet-stream"}


def paint(seed):
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(256, size=(4, 2, 3)), np.ones((16, 16, 1)))
    noise = rng.normal(scale=4, size=blocks.shape)
    return Image.fromarray((blocks + noise).clip(0, 255).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_index(folder):
    """Index of 12 painted crops of three cameras, one of them not known."""
    embedder, crops = Shrunk(), folder / "crops"
    crops.mkdir()
    features, entries = [], []
    for row in range(12):
        name = f"{row:02d} {HOSTILE.replace('/', '')}.png"
        paint(row).save(crops / name)
        now = (crops / name).stat()
        entries.append(Entry(str(crops), name, CAMERAS[row % 3], now.st_size, now.st_mtime_ns))
        features.append(embedder.embed(Image.open(crops / name).convert("RGB"))[0])
    index = Index.create(folder / "crops.index", embedder)
    index.add(np.array(features), entries)
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """One that no test changes."""
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def own_index(tmp_path):
    """One that the test may change, with its files."""
    return make_index(tmp_path)


def client_of(index, hosts=("localhost", "127.0.0.1", "[::1]"), rate=None, proxies=()):
    finder = app.Finder(Shrunk(), index, rate)
    return app.make_app(app.Site(finder, hosts, LIMIT, 5, proxies)).test_client()


@pytest.fixture(scope="module")
def client(index):
    return client_of(index)


def plainly(index, image, cameras=CAMERAS):
    """[(row, score)] by falling score, by a loop over the files."""
    query = Shrunk().embed(image)[0].astype(np.float64)
    scores = [(row, float(query @ Shrunk().embed(Image.open(path).convert("RGB"))[0]))
              for row, path in enumerate(index.paths) if index.cameras[row] in cameras]
    return sorted(scores, key=lambda pair: -pair[1])


def error_of(response, code):
    assert response.status_code == code, (response.status_code, response.data[:200])
    return response.get_json()["error"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_upload_finds_what_numpy_finds(client, index, kind):
    data = encoded(paint(3), kind, **{"compress_level": 1} if kind == "PNG" else {})
    hits = client.post("/search", data=data, headers=IMAGE).get_json()["hits"]
    expected = plainly(index, Image.open(io.BytesIO(data)).convert("RGB"))[:5]
    assert expected[0][0] == 3
    assert [(hit["row"], hit["rank"]) for hit in hits] == [
        (row, rank) for rank, (row, _) in enumerate(expected, 1)]
    for hit, (row, score) in zip(hits, expected, strict=True):
        assert hit["score"] == pytest.approx(score, abs=1e-3)
        assert hit["camera"] == (CAMERAS[row % 3] or "unknown")
        assert hit["name"].startswith(f"{row:02d} ")
        assert hit["same"] == (hit["score"] >= Shrunk.statistics.threshold().value)


def test_a_crop_finds_others_and_not_itself(client, index):
    answer = client.post("/search?row=4&top=100").get_json()
    assert [hit["row"] for hit in answer["hits"]] == [
        row for row, _ in plainly(index, paint(4)) if row != 4]
    assert len(answer["hits"]) == 11 and answer["query"]["camera"] == "unknown"


def test_the_querys_own_file_is_no_match(own_index):
    """Where the index has it, and its copies; another file of the same picture is one."""
    folder = own_index.folder.parent / "crops"
    data = Path(own_index.paths[4]).read_bytes()
    for name in ("copy.png", "changed.png", "gone.png"):
        (folder / name).write_bytes(data)
    query = Shrunk().embed(paint(4))
    own_index.add(np.repeat(query, 3, axis=0), [
        Entry(str(folder), "copy.png", "yard"), Entry(str(folder), "changed.png", "", len(data)),
        Entry(str(folder), "gone.png", "", len(data))])
    (folder / "changed.png").write_bytes(data[:-1] + b"x")
    (folder / "gone.png").unlink()
    client = client_of(own_index)
    for top in (5, 15):
        answer = client.post(f"/search?top={top}", data=data, headers=IMAGE).get_json()
        rows = [hit["row"] for hit in answer["hits"]]
        assert set(rows[:2]) == {13, 14} and not {4, 12} & set(rows)
        assert len(rows) == min(top, 13)
        assert [hit["rank"] for hit in answer["hits"]] == list(range(1, len(rows) + 1))
        assert sorted(own["name"] for own in answer["own"]) == [
            own_index.entries[4].path, "copy.png"]
    answer = client.post("/search", data=encoded(paint(4), "BMP"), headers=IMAGE).get_json()
    assert answer["own"] == [] and {4, 12} < {hit["row"] for hit in answer["hits"]}


def test_cameras_and_number_are_chosen(client, index):
    names = list(index.camera_counts)
    chosen = [names.index("door"), names.index("")]
    answer = client.post(f"/search?top=3&camera={chosen[0]}&camera={chosen[1]}",
                         data=encoded(paint(2)), headers=IMAGE).get_json()
    assert [hit["row"] for hit in answer["hits"]] == [
        row for row, _ in plainly(index, paint(2), ["door", ""])[:3]]


def test_the_page_states_the_errors_and_escapes_names(index):
    for rate in (None, 0.3):
        page = client_of(index, rate=rate).get("/").text
        threshold = Shrunk.statistics.threshold(rate)
        for number in (f"{threshold.value:.3f}", f"{100 * threshold.false_match_rate:.3g} %",
                       f"{100 * threshold.false_non_match_rate:.3g} %", "12 crops of 3 cameras"):
            assert number in page
    assert HOSTILE not in page and "&lt;img src=x" in page
    assert not re.search(r"https?://|<style|style=|onload=", page)


def test_without_statistics_nothing_is_marked(own_index, monkeypatch):
    monkeypatch.setattr(Shrunk, "statistics", None)
    own_index.statistics, own_index.why_no_statistics = None, "there is no memory bank"
    client = client_of(own_index)
    assert "there is no memory bank" in client.get("/").text
    hits = client.post("/search?row=0").get_json()["hits"]
    assert {hit["same"] for hit in hits} == {None}


@pytest.mark.parametrize("whose", ["network", "index"])
def test_of_a_run_that_went_wrong_nothing_is_marked(own_index, monkeypatch, whose):
    """Whichever knows of it, unless it is asked for."""
    monkeypatch.setattr(Shrunk if whose == "network" else own_index, "verdict", RunVerdict(
        "bad", "Training went wrong: for a reason."))
    client = client_of(own_index)
    page = client.get("/").text
    assert "not shown, because training went wrong (for a reason). --despite-verdict shows" in page
    assert "expects as" not in page
    hits = client.post("/search?row=0").get_json()["hits"]
    assert {hit["same"] for hit in hits} == {None} and hits[0]["score"] > hits[-1]["score"]
    finder = app.Finder(Shrunk(), own_index, None, despite_verdict=True)
    client = app.make_app(app.Site(finder, ["localhost"], LIMIT, 5)).test_client()
    assert "despite the run&#39;s verdict. Training went wrong: for a" in client.get("/").text
    assert None not in {hit["same"] for hit in client.post("/search?row=0").get_json()["hits"]}


def test_the_page_says_how_much_is_expected_to_be_right(index, monkeypatch):
    assert "is not known: measure the run anew" in client_of(index).get("/").text
    known = Shrunk.statistics
    monkeypatch.setattr(Shrunk, "statistics", PairStatistics(
        known.same, known.different, mates=3.0, within=PairStatistics(
            known.same, known.different, False, mates=0.5)))
    found = Shrunk.statistics.expected(known.threshold().value, {"door": 4, "": 4, "yard": 4})
    page = client_of(index).get("/").text
    assert "Of this index of 12 crops" in page and len(found) == 2
    for name, part in found.items():
        assert (f"from {name} {part.right:.2g} right and {part.wrong:.2g} wrong "
                f"({100 * part.share_right:.0f} % right)") in page.replace("&#39;", "'")


def test_a_crop_is_standardised_by_its_camera_and_an_upload_by_all(own_index):
    own_index.set_standardize_by_camera(True)
    client = client_of(own_index)
    page = client.get("/").text
    assert 'id="standardized"' in page and "The index standardises by camera" in page
    uploaded = client.post("/search?top=12", data=encoded(paint(3), "BMP"),
                           headers=IMAGE).get_json()
    crop = client.post("/search?row=3&top=12").get_json()
    query = Shrunk().embed(Image.open(own_index.paths[3]).convert("RGB"))
    for answer, camera in ((uploaded, ""), (crop, "door")):
        expected = [(hit.row, pytest.approx(hit.score, abs=1e-5)) for hit in own_index.search(
            query, 12, query_cameras=[camera])[0] if answer is uploaded or hit.row != 3]
        assert [(hit["row"], hit["score"]) for hit in answer["hits"]] == expected
        assert {hit["same"] for hit in answer["hits"]} == {None}
    assert [hit["score"] for hit in crop["hits"]] != [hit["score"] for hit in uploaded["hits"]][1:]


def test_a_turned_photo_is_taken_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(paint(5).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    hit = client.post("/search", data=data, headers=IMAGE).get_json()["hits"][0]
    assert hit["row"] == 5 and hit["score"] > 0.99


def test_images_are_read_as_the_toolbox_reads_files(tmp_path):
    rgb = paint(1)
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    for name, data in {
            "16 bit": encoded(wide), "grey": encoded(rgb.convert("L")),
            "1 bit": encoded(rgb.convert("1")), "alpha": encoded(rgb.convert("RGBA")),
            "palette": encoded(rgb.convert("P"), transparency=3),
            "CMYK": encoded(rgb.convert("CMYK"), "JPEG")}.items():
        (tmp_path / "image").write_bytes(data)
        expected = np.asarray(read_image(str(tmp_path / "image"), "RGB"))
        assert np.array_equal(np.asarray(decode(data)), expected), name


def test_a_thumbnail_is_the_pixels_alone(own_index):
    client, path = client_of(own_index), Path(own_index.paths[2])
    text = PngInfo()
    text.add_text("comment", "a secret")
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    large = paint(2).resize((300, 600))
    for options in ({"kind": "PNG", "pnginfo": text, "exif": exif},
                    {"kind": "JPEG", "comment": b"a secret", "exif": exif, "quality": 95}):
        path.write_bytes(encoded(large, **options))
        own_index.entries = tuple(entry._replace(size=-1, mtime=-1) for entry in own_index.entries)
        response = client.get("/crops/2")
        assert response.mimetype == "image/jpeg" and b"secret" not in response.data
        image = Image.open(io.BytesIO(response.data))
        assert image.format == "JPEG" and image.size == (192, 384) and not image.getexif()
        difference = np.asarray(image, float) - np.asarray(large.resize(image.size), float)
        assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("path", [
    *(f"/crops/{row}" for row in ("12", "-1", "1.0", "01", "", "%00", "9" * 5000, "\u0663",
                                  "../server.py", "..%2f..%2fserver.py", "%2fetc%2fpasswd",
                                  "0/../../server.py", "..\\server.py", "0%00.jpg")),
    "/server.py", "/static/server.py", "/%2e%2e/server.py", "/%2Fetc/passwd", "/serve.html.j2",
    "/serve.css/../server.py", "/crops.index/index.json"], ids=lambda path: ascii(path[:20]))
def test_nothing_but_rows_is_served(client, path):
    assert error_of(client.get(path), 404) in ("There is nothing at this address.",
                                               "There is no such crop in the index.")


def replacements(entry, path, tmp_path):
    def write_as_large_and_as_old():
        path.write_bytes(b"x" * entry.size)
        os.utime(path, ns=(entry.mtime, entry.mtime))

    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0:0")
    return {"gone": lambda: None, "link to a text": lambda: path.symlink_to(secret),
            "link to itself": lambda: path.symlink_to(path),
            "text": lambda: path.write_text("root:x:0:0"),
            "text of the same size and time": write_as_large_and_as_old,
            "another image": lambda: paint(99).save(path),
            "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}


def test_a_replaced_file_is_not_shown_nor_searched_with(own_index, tmp_path):
    client, path = client_of(own_index), Path(own_index.paths[1])
    for name, replace in replacements(own_index.entries[1], path, tmp_path).items():
        path.unlink(missing_ok=True)
        replace()
        for response in (client.get("/crops/1"), client.post("/search?row=1")):
            text = error_of(response, 404)
            assert ("image" if "same size" in name else "crop") in text, name
            assert str(tmp_path) not in text and "root" not in text, name
            assert name != "another image" or "caureid index" in text
    assert client.get("/crops/0").status_code == 200


def test_another_image_in_its_place_is_not_shown(own_index):
    paint(99).save(own_index.paths[1])
    assert "caureid index" in error_of(client_of(own_index).get("/crops/1"), 404)


def test_what_is_no_image_is_refused(client, tmp_path):
    png = encoded(paint(0))
    cases = [(b"hello", 415, "no JPEG, PNG, WEBP or BMP"), (b"", 400, "empty"),
             (png[:60], 415, "damaged"), (png[:-200], 415, "damaged"),
             (encoded(paint(0), "GIF"), 415, "no JPEG"), (b"%!PS-Adobe-3.0\n", 415, "no JPEG"),
             (bytes(LIMIT + 1), 413, "--max-upload-mib"),
             (encoded(Image.new("1", (5001, 5000))), 413, "25 million pixels"),
             (encoded(Image.new("1", (14000, 14000))), 413, "25 million pixels"),
             (encoded(Image.new("1", (1, 100_000))), 413, "16384 on one side"),
             (encoded(Image.new("1", (2000, 19))), 413, "100 times the one side"),
             (encoded(Image.new("RGB", (8, 8))), 422, "no embedding")]
    for data, code, text in cases:
        answer = error_of(client.post("/search", data=data, headers=IMAGE), code)
        assert text in answer and str(tmp_path) not in answer and ".py" not in answer


def test_damaged_images_never_break_it(client):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = np.frombuffer(encoded(paint(0), kind), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(4, len(data), size=6)] = rng.integers(256, size=6)
            response = client.post("/search", data=data.tobytes(), headers=IMAGE)
            assert response.status_code in (200, 413, 415, 422) and response.is_json


def test_wrong_numbers_are_refused(client):
    for query in ("top=0", "top=501", "top=x", "top=", "camera=3", "camera=door", "row=-1",
                  "row=0x1", "row=" + "9" * 5000):
        text = error_of(client.post(f"/search?{query}", data=encoded(paint(0)), headers=IMAGE), 400)
        assert text.startswith(query.split("=")[0]), query
    assert "no such crop" in error_of(client.post("/search?row=12"), 404)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x",
                                  "application/x-www-form-urlencoded"])
def test_what_a_form_elsewhere_can_send_is_refused(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    answer = error_of(client.post("/search", data=encoded(paint(0)), headers=headers), 415)
    assert "Content-Type" in answer


def test_methods(client):
    for response in (client.get("/search"), client.post("/"), client.put("/crops/0"),
                     client.delete("/crops/0")):
        assert error_of(response, 405)


@pytest.mark.parametrize("host, code", [
    ("localhost:8000", 200), ("LOCALHOST", 200), ("127.0.0.1:9", 200), ("[::1]:8000", 200),
    ("[0:0:0:0:0:0:0:1]", 200), ("evil.example", 403), ("localhost.evil.example", 403),
    ("localhost@evil.example", 403), ("localhost:8000:1", 403), ("", 403), ("127.0.0.2", 403),
    ("localhost, evil.example", 403), ("[::1", 403), ("localhost\u00e9", 403)])
def test_hosts(client, host, code):
    """A name that leads here (DNS rebinding) is not answered."""
    for path in ("/", "/crops/0"):
        response = client.get(path, headers={"Host": host.encode("utf-8").decode("latin-1")})
        assert response.status_code == code
        assert code == 200 or "--allow-host" in response.get_json()["error"]


@pytest.mark.parametrize("host, code", [
    ("reid.example", 200), ("[fe80::1]:80", 200), ("localhost", 403)])
def test_hosts_that_were_given(index, host, code):
    client = client_of(index, ["Reid.Example", "fe80::1"])
    assert client.get("/", headers={"Host": host}).status_code == code


@pytest.mark.parametrize("headers, code", [
    ({"Origin": "http://localhost"}, 200), ({"Origin": "https://localhost"}, 200),
    ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:81"}, 403), ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403)])
def test_another_page_may_link_here_and_neither_search_nor_show_crops(client, headers, code):
    headers = {"Host": "localhost", **headers}
    assert client.post("/search?row=0", headers=headers).status_code == code
    assert client.get("/", headers=headers).status_code == 200
    if "Sec-Fetch-Site" in headers:
        assert client.get("/crops/0", headers=headers).status_code == code


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "reid.example"])
@pytest.mark.parametrize("origin, code", [
    ("https://reid.example", 200), ("https://Reid.Example:8443", 200),
    ("https://evil.example", 403), ("https://reid.example.evil.example", 403), ("null", 403),
    ("https://evil.example@reid.example", 403), ("https://localhost", 403)])
def test_behind_a_proxy_whatever_host_it_sends(index, host, origin, code):
    client = client_of(index, ["127.0.0.1", "reid.example"], proxies=["Reid.example"])
    response = client.post("/search?row=0", headers={"Host": host, "Origin": origin})
    assert response.status_code == code


@pytest.mark.parametrize("path", ["/", "/serve.js", "/serve.css", "/icon.svg", "/crops/0", "/none"])
def test_headers(client, path):
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


def test_an_error_of_the_program_is_not_told(client, monkeypatch, caplog):
    monkeypatch.setattr(app.Finder, "find", lambda *_: 1 / 0)
    text = error_of(client.post("/search?row=0"), 500)
    assert "log" in text and "division" not in text and "division by zero" in caplog.text


def arguments(index, *options):
    return [shrunk.__file__, __file__, "--index", index.folder, "--port", "0", *options]


def ask(url, path="/", data=None, **headers):
    """(status, headers, body) of an answer; no proxy and no resolver is asked."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=60)
    connection.request("GET" if data is None else "POST", path, data, headers)
    response = connection.getresponse()
    return response.status, str(response.headers), response.read()


@pytest.mark.alone
def test_it_listens_on_this_machine_alone_and_ends_by_sigterm(index, tmp_path):
    with served(arguments(index), tmp_path) as (process, url, errors):
        listening = [item.laddr for item in psutil.Process(process.pid).net_connections()
                     if item.status == psutil.CONN_LISTEN]
        assert [address.ip for address in listening] == ["127.0.0.1"]
        assert url == f"http://127.0.0.1:{listening[0].port}"
        said_there = (tmp_path / "server.out").read_text()
        assert f"Crops are read from {index.folder.parent / 'crops'} (12).\n" in said_there
        # larger than what waitress would put into a file by itself; noise does not shrink
        rng = np.random.default_rng(0)
        large = encoded(Image.fromarray(rng.integers(256, size=(800, 800, 3), dtype=np.uint8)))
        status, _, body = ask(url, "/search", large, **IMAGE)
        assert status == 200 and b'"hits"' in body
        status, headers, body = ask(url, "/search", bytes(9 * 2 ** 20), **IMAGE)
        assert status == 413 and b"larger than 8 MiB" in body and "waitress" not in headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and errors.read_text() == ""


def limits(**values):
    return f"from caureid_plugin.web import server\nvars(server).update({values})\n"


def begin(url, *parts):
    """A connection on which a request has begun."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)
    connection.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\n" + b"".join(parts))
    return connection


@pytest.mark.alone
def test_slow_connections_keep_nobody_out(index, tmp_path):
    """With room for six there are twenty, in the head of a request or in its body."""
    with served(arguments(index), tmp_path, limits(CONNECTIONS=6)) as (_, url, errors):
        slow = [begin(url, *[b"Content-Length: 9000\r\n\r\nabc"] * (number % 2))
                for number in range(20)]
        assert ask(url)[0] == 200 and ask(url, "/crops/0")[0] == 200
        for connection in slow[:14]:  # the first came first
            assert connection.recv(1) == b""
        slow[-1].sendall(bytes(8997))
        assert slow[-1].recv(12) == b"HTTP/1.1 415"  # still listened to: the body has no type
        assert errors.read_text() == ""


@pytest.mark.alone
@pytest.mark.parametrize("part", [b"", b"Content-Length: 1000000\r\n\r\n"], ids=["head", "body"])
def test_a_request_as_a_whole_has_a_deadline(index, tmp_path, part):
    with served(arguments(index), tmp_path, limits(SECONDS=1)) as (_, url, _):
        slow = begin(url, part)
        slow.settimeout(0.1)
        for _ in range(300):  # bytes, of which each is a sign of life
            try:
                slow.sendall(b"a")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it is still listened to")
        assert ask(url)[0] == 200


@pytest.mark.alone
def test_who_reads_no_answer_holds_no_thread(index, tmp_path):
    """Four connections, as many as there are threads, ask for much and read nothing of it."""
    little = """
import socket
from waitress.adjustments import Adjustments
Adjustments.outbuf_high_watermark = 1
Adjustments.socket_options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
"""
    with served(arguments(index), tmp_path, limits(SECONDS=1) + little) as (_, url, errors):
        deaf = []
        for _ in range(4):
            deaf.append(socket.socket())
            deaf[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf[-1].connect(("127.0.0.1", int(url.rpartition(":")[2])))
            deaf[-1].sendall(100 * b"GET /serve.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(url)[0] == 200
        assert errors.read_text() == ""


def test_all_that_an_index_shows_is_said(tmp_path):
    index = Index.create(tmp_path / "x", Shrunk())
    index.add(np.eye(13, 24), [*(Entry(f"/home/{row % 6}", f"{row}.jpg") for row in range(10)),
                               Entry("/", "etc/x.png"), "/etc/a\n.png", "b"])
    text = server.sources(Index.open(index.folder))
    assert text.startswith("Crops are read from /home/0 (2), /home/1 (2), /home/2 (2), ")
    assert text.endswith(r", 2 other folders, 2 files by their names, the first /etc/a\n.png.")


@pytest.mark.alone
def test_ctrl_c_ends_it_and_an_open_host_is_warned_of(index, tmp_path):
    options = "--host", "0.0.0.0", "--allow-host", "reid.example"
    with served(arguments(index, *options), tmp_path) as (process, url, errors):
        assert url.startswith("http://localhost:")
        assert ask(url, Host="reid.example")[0] == 200 and ask(url, Host="evil.example")[0] == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "without a login" in errors.read_text() and "Traceback" not in errors.read_text()


def test_a_port_in_use(index, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"^caureid serve: port {port} of .* is in use: .*"
                                             r"--port"):
            call(command, [__file__, "--index", index.folder, "--port", port])
    assert capsys.readouterr() == ("", "")


def test_hosts_and_ports_that_cannot_be(monkeypatch):
    with pytest.raises(UserError, match="--host 192.0.2.1 is no address of this machine"):
        server.listen("192.0.2.1", 0)  # kept for documents
    monkeypatch.setattr(socket.socket, "bind", mock.Mock(side_effect=PermissionError(13, "Denied")))
    with pytest.raises(UserError, match="port 80 is not allowed.*--port"):
        server.listen("127.0.0.1", 80)
    monkeypatch.setattr(socket, "getaddrinfo", mock.Mock(side_effect=socket.gaierror(
        socket.EAI_NONAME, "Name or service not known")))  # no resolver is asked
    with pytest.raises(UserError, match="--host not-a-host is no address of .*not known"):
        server.listen("not-a-host", 0)


def test_a_wildcard_is_reached_by_the_addresses_of_the_machine():
    def parsed(*words):
        return SimpleNamespace(
            **command.make_context("serve", [".", "--index", ".", *words]).params)

    args = parsed("--host", "0.0.0.0", "--allow-host", "a.b")
    assert {"127.0.0.1", "localhost", "a.b"} <= set(server.allowed_hosts(args, "0.0.0.0"))
    assert set(server.allowed_hosts(parsed(), "127.0.0.1")) == {"localhost", "127.0.0.1", "[::1]"}


@pytest.mark.parametrize("options", [
    ["--allow-host", "reid.example:8443"], ["--allow-host", "https://reid.example"],
    ["--allow-host", ""], ["--port", "65536"], ["--host", ""], ["--max-upload-mib", "nan"],
    ["--top", "501"], ["--false-match-rate", "1"]])
def test_wrong_options(options, capsys):
    with pytest.raises(SystemExit) as ended:
        call(command, [".", "--index", ".", *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["flask", "waitress"])
def test_what_is_missing_is_said(name, monkeypatch, index):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "caureid_plugin.web.app")
    monkeypatch.setattr(server, "load_embedder", lambda folder: Shrunk())
    with pytest.raises(SystemExit, match=rf"{name}.*pip install 'caureid-plugin\[web\]'"):
        call(command, [__file__, "--index", index.folder, "--port", "0"])


def test_an_index_that_cannot_be_used_is_one_sentence(index, tmp_path, monkeypatch):
    other = Shrunk()
    other.fingerprint = "1" * 32
    monkeypatch.setattr(server, "load_embedder", lambda folder: other)
    with pytest.raises(SystemExit, match="caureid serve: .*fingerprint"):
        call(command, [__file__, "--index", index.folder, "--port", "0"])
    Index.create(tmp_path / "empty", other)
    with pytest.raises(SystemExit, match="holds no images.*caureid index"):
        call(command, [__file__, "--index", tmp_path / "empty", "--port", "0"])
    single = Index.create(tmp_path / "single", other, standardize_by_camera=True)
    single.add(np.eye(3, 24), [Entry("", name, name[0]) for name in ("a1", "a2", "b1")])
    with pytest.raises(SystemExit, match="a single image, the first is camera 'b'"):
        call(command, [__file__, "--index", tmp_path / "single", "--port", "0"])
