"""The examples of docs/python_api.md run, on a run folder and crops as they name them."""

import re
import shutil
from pathlib import Path

import numpy as np

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python_api.md").read_text()


def test_the_examples(small_run, tiny_market, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    (home / "logs" / "own").mkdir(parents=True)
    shutil.move(small_run(), home / "logs" / "own" / "caureid")
    images = sorted((tiny_market / "Market-1501-v15.09.15" / "bounding_box_test").glob("*.jpg"))
    for path in images:
        folder = home / "crops" / {"1": "entrance", "2": "yard"}[
            re.search(r"_c(\d)", path.name)[1]]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shutil.copy(images[5], home / "query.jpg")
    monkeypatch.chdir(home)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 7
    # "a result in ten lines"
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python_api.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    found = re.escape(str(home / "crops")) + rf"/(entrance|yard)/{re.escape(images[5].name)}"
    assert re.fullmatch(rf"1 (1\.000|0\.999) {found}", lines[0])
    assert "absent.index does not exist: give the folder" in lines[-1]
    assert len(names["index"]) == len(images) - 5
    np.testing.assert_array_equal(names["bgr"], names["one"])
    features, one = names["features"].astype(np.float64), names["one"][0].astype(np.float64)
    cosines = [sum(x * y for x, y in zip(row, one, strict=True)) for row in features]
    np.testing.assert_allclose(names["similarity"], cosines, atol=1e-6)
    assert names["found"].similarity == max(-1, min(1, names["found"].similarity))
    others = [(cosine, path) for cosine, path in zip(cosines, names["paths"], strict=True)
              if path.parent.name != "entrance"]
    expected = [str(path) for _, path in sorted(others, key=lambda item: -item[0])[:5]]
    scores = dict(zip(map(str, names["paths"]), cosines, strict=True))
    for hit, path in zip(names["hits"], expected, strict=True):
        assert hit.camera == "yard" and abs(scores[hit.path] - scores[path]) < 1e-3
