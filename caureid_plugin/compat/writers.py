"""What several rooms ask of the writers of a run's figures."""

from __future__ import annotations

from collections.abc import Sequence

import fastreid.utils.events as _events


def write_figures(writers: Sequence) -> None:
    """Lets writers of files write what they have not written yet."""
    for writer in writers:
        if not isinstance(writer, _events.CommonMetricPrinter):
            writer.write()
