"""What the terminal shows of a run, against log.txt and the figures of metrics.json."""

import logging
import re
import sys
from unittest import mock

import numpy as np
import pytest
from caureid_plugin.engine import EpochLines, shortened_log, terminal

from helpers.metrics import read_rows


@pytest.fixture
def toolbox_log(monkeypatch):
    """The toolbox's logger without handlers, and what gives it those of a run."""
    log = logging.getLogger("fastreid")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.DEBUG)

    def begin(path):
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.addHandler(logging.FileHandler(path))
        log.info("350 lines")
        log.warning("a warning in the set-up")

    return begin


def test_the_terminal_has_what_it_is_for_and_the_file_everything(
        cfg, toolbox_log, tmp_path, capsys):
    path = tmp_path / "log.txt"
    with shortened_log(cfg, results=False):
        toolbox_log(path)
    logging.getLogger("fastreid.caureid").info("decided")
    logging.getLogger("fastreid.caureid").info("figures", extra={"file_only": True})
    logging.getLogger("fastreid.evaluation.testing").info("a table")
    logging.getLogger("fastreid.engine.hooks").warning("beware")
    on_screen = [re.sub(r"\x1b\[[0-9;]*m", "", line)[9:]
            for line in capsys.readouterr().out.splitlines()]
    assert on_screen == ["WARNING a warning in the set-up", "decided", "WARNING beware"]
    assert path.read_text().split("\n") == [
        "350 lines", "a warning in the set-up", "decided", "figures", "a table", "beware", ""]


def test_an_evaluation_shows_its_table(cfg, toolbox_log, tmp_path, capsys):
    with shortened_log(cfg, results=True):
        toolbox_log(tmp_path / "log.txt")
    logging.getLogger("fastreid.evaluation.testing").info("a table")
    assert "a table" in capsys.readouterr().out


def test_what_goes_wrong_in_the_setup_leaves_no_terminal_behind(cfg, toolbox_log, tmp_path, capsys):
    def fail():
        with shortened_log(cfg, results=False):
            toolbox_log(tmp_path / "log.txt")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    logging.getLogger("fastreid.caureid").info("afterwards")
    assert "afterwards" in capsys.readouterr().out


def test_without_an_output_folder_the_terminal_has_everything(cfg, toolbox_log, tmp_path, capsys):
    cfg.OUTPUT_DIR = ""
    with shortened_log(cfg, results=False):
        toolbox_log(tmp_path / "log.txt")
    assert "350 lines" in capsys.readouterr().out


def test_an_epoch_is_one_aligned_line_with_its_figures(train_as_script, messages, tmp_path):
    train_as_script("SOLVER.MAX_EPOCH", 10, "SOLVER.ITERS_PER_EPOCH", 2, "TEST.EVAL_PERIOD", 2)
    lines = [text for text in messages if text.startswith("epoch ") and "loss" in text]
    rows = read_rows(tmp_path / "run")
    assert len(lines) == 10 and len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 90  # and ten for the time before it
    found = [re.fullmatch(r"epoch +(\d+)/10  loss +(\S+) +(\d+) clusters +(\d+) % outliers +"
                          r"(?:mAP +(\S+) +)?left (\d:\d\d:\d\d)", line).groups() for line in lines]
    assert [int(number) for number, *_ in found] == list(range(1, 11))
    assert [int(clusters) for _, _, clusters, *_ in found] == [
        row["labels/clusters"] for row in rows if "labels/clusters" in row]
    assert [int(share) for _, _, _, share, *_ in found] == [
        round(100 * row["labels/outlier_share"]) for row in rows if "labels/clusters" in row]
    evaluated = {row["iteration"] // 2 + 1: row["mAP"] for row in rows if "mAP" in row}
    for number, loss, _, _, precision, _ in found[:-1]:  # the last is evaluated after its line
        assert float(loss) > 0
        assert (precision is None) == (int(number) not in evaluated)
        assert precision is None or float(precision) == round(evaluated[int(number)], 1)
    assert found[-1][-1] == "0:00:00"
    assert sum("epochs 1 to 10 of 2 steps, 16 images each, seed" in text for text in messages) == 1


@pytest.mark.parametrize("epoch, last, loss, clusters, days, shown_loss, left", [
    (1, 50, 3.14159, 900, 1.5, "  3.142", "36:00:00"),
    (1000, 2000, 1234567.0, 250_000, 120, "1.2e+06", "2880:00:00"),
    (99, 100, float("nan"), 0, 0, "    nan", "0:00:00")])
def test_a_line_of_large_numbers_is_no_longer(
        cfg, monkeypatch, epoch, last, loss, clusters, days, shown_loss, left):
    def figure(value):
        return mock.Mock(values=lambda: [(value, 10 ** 9)], avg=lambda steps: value)

    figures = {"total_loss": figure(loss), "mAP": figure(55.1),
               "labels/clusters": figure(clusters), "labels/outlier_share": figure(0.05)}
    storage = mock.Mock(histories=lambda: figures, history=figures.get)
    lines = EpochLines(cfg)
    lines.trainer = mock.Mock(epoch=epoch - 1, max_epoch=last, iters_per_epoch=10, storage=storage)
    lines._start, lines._first = 0.0, 0
    taken = days * 86400 * epoch / (last - epoch)
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: taken)
    line = lines._line()
    assert len(line) <= 90 and f"  loss {shown_loss}  " in line and line.endswith(f"left {left}")


def test_the_loss_of_a_line_is_the_mean_over_its_epoch(train_as_script, messages):
    seen = []

    def watch(trainer):
        original = trainer._trainer._write_metrics

        def write(losses, *args, **options):
            seen.append(sum(float(value) for value in losses.values()))
            return original(losses, *args, **options)

        trainer._trainer._write_metrics = write

    train_as_script("SOLVER.MAX_EPOCH", 2, "SOLVER.ITERS_PER_EPOCH", 3, watch=watch)
    lines = [text for text in messages if text.startswith("epoch ") and "loss" in text]
    told = [float(re.search(r"loss +(\S+)", line)[1]) for line in lines]
    assert told == pytest.approx([np.mean(seen[:3]), np.mean(seen[3:])], abs=6e-4)
