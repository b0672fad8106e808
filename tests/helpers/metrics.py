"""What a run has written to metrics.json."""

import json

TIMES = {"time", "data_time", "eta_seconds", "cluster_seconds"}


def read_rows(folder):
    """Rows of metrics.json without the figures that are times."""
    read = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read]
