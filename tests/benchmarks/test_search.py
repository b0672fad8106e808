"""The benchmark of searching, and how each of the scripts starts."""

import os

import numpy as np
import pytest

from benchmarks import search as benchmark_search
from helpers import warm
from helpers.tool_output import table_rows

SCRIPTS = [path.name for path in (warm.REPOSITORY / "tools" / "benchmarks").glob("*.py")
           if path.read_text().startswith("#!")]


def test_the_benchmark_of_searching(capsys, monkeypatch):
    agreed = []
    real = benchmark_search.exact
    monkeypatch.setattr(benchmark_search, "exact", lambda features, query: agreed.append(
        (features, query, real(features, query))) or agreed[-1][2])
    benchmark_search.main(["--images", "500", "--queries", "3", "--dims", "16", "32"])
    heading, _, *lines = table_rows(capsys.readouterr().out)
    assert [line[0] for line in lines] == ["16", "32"]
    for line in lines:
        row = dict(zip(heading, line, strict=True))
        for way in ("all", "but one camera", "one camera", "numpy"):
            median, most = map(float, row[way].split(" / "))
            assert 0 <= median <= most
        assert float(row["numpy / index"]) > 0
        assert float(row["top 10 as exact"].removesuffix(" %")) > 95
    for features, query, best in agreed:  # the plain way is the plain way
        assert best.tolist() == np.argsort(-(features @ query))[:10].tolist()

    monkeypatch.setattr(benchmark_search.Index, "search", lambda *args, **options: [[]])
    benchmark_search.main(["--images", "500", "--queries", "2", "--dims", "16"])
    assert table_rows(capsys.readouterr().out)[-1][-1] == "0.00 %"  # a wrong index


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_benchmark_starts_from_any_folder(name, tmp_path):
    """Each finds the modules beside it."""
    script = warm.REPOSITORY / "tools" / "benchmarks" / name
    done = warm.run([script, "--help"], tmp_path)
    assert done.returncode == 0 and f"usage: {name} " in done.stdout, done.stderr
    assert os.access(script, os.X_OK)
