"""The benchmark of a step: that what it compares is the same work. No time is looked at."""


import torch

from benchmarks import step as tool
from helpers.tool_output import is_drawn, read_csv, refusal, table_rows


def new_bank():
    """150 images (the last run of clusters is not whole) of 7 clusters."""
    bank = tool.make_bank(150, 12, torch.Generator().manual_seed(0))
    bank.relabel(tool.make_labels(150, 7))
    return bank


def test_each_step_learns_and_updates_the_bank_alike():
    bank = new_bank()
    batch = tool.draw_batch(bank, 20, torch.Generator().manual_seed(5))
    assert torch.equal(batch["targets"], bank.labels[batch["indexes"]])
    assert torch.equal(batch["camids"], bank.camids[batch["indexes"]])
    features, gradients, banks = torch.randn(20, 12), {}, {}
    for name, step in tool.make_steps().items():
        copy, leaf = new_bank(), features.clone().requires_grad_()
        step(leaf, batch, copy)
        gradients[name], banks[name] = leaf.grad, copy.features
        changed = (copy.features != bank.features).any(dim=1).nonzero().flatten()
        assert changed.tolist() == sorted(batch["indexes"].tolist())
        torch.testing.assert_close(copy.features, banks[tool.BOTH], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        gradients[tool.INFONCE], gradients[tool.ALL_ROWS], rtol=0, atol=1e-5)
    assert (gradients[tool.BOTH] - gradients[tool.INFONCE]).abs().max() > 1e-3  # CACC is in it


def test_table_and_files(tmp_path, capsys):
    csv_path, picture_path = tmp_path / "step.csv", tmp_path / "step.png"
    tool.main(["--sizes", "240", "120", "--clusters", "10", "--dim", "8", "--batch", "16",
               "--repeats", "2", "--output", str(csv_path), "--plot", str(picture_path)])
    tables = table_rows(capsys.readouterr().out)
    expected = [["120", "10", "60"], ["240", "10", "60"], ["120", "7", "42"], ["240", "15", "90"]]
    assert [row[:3] for row in tables[2:4] + tables[6:]] == expected  # without headings and rules
    rows = read_csv(csv_path)
    assert [[row["N"], row["K"], row["centres"]] for row in rows[::3]] == expected
    assert [row["step"] for row in rows] == ["InfoNCE + CACC", "InfoNCE", "SpCL's way"] * 4
    times = [float(row["median_ms"]) for row in rows]
    for row, median in zip(rows, times, strict=True):
        assert 0 < float(row["q1_ms"]) <= median <= float(row["q3_ms"])
    line = tables[3]  # the larger size of the first rule: rows 3 to 5, after those of the smaller
    assert [cell.split()[0] for cell in line[3:9:2]] == [f"{time:.2f}" for time in times[3:6]]
    assert line[4:10:2] == [f"{times[3 + i] / times[i]:.2f}" for i in range(3)]
    assert line[9:] == [f"{times[5] / times[4]:.1f}", f"{times[5] / times[3]:.1f}"]
    assert is_drawn(picture_path)


def test_sizes_too_small_for_the_clusters(capsys):
    error = refusal(tool.main, ["--sizes", "50", "480", "--clusters", "10"], capsys)
    assert "--sizes 50 is too small for --clusters 10" in error
