"""Accuracies in the documents are those of docs/figures.json, which tools/figures.py keeps."""

import json
import shutil
from statistics import mean, stdev

import pytest

import figures
from helpers.tool_output import table_rows

MADE = {"commit": "0123456789ab", "date": "2026-01-02", "device": "CPU",
        "processor": "A (family 1)", "cores": "2", "threads": "1", "python": "3.11",
        "torch": "2.11", "fastreid": "1.4.0", "caureid-plugin": "0.3.0"}
# mAP by row and seed; without seed 3 a difference to base is +2.0, +3.5
SCORES = {"base": {"1": 50.0, "2": 54.5, "3": 53.04}, "own": {"1": 52.0, "2": 58.0},
          "one": {"2": 54.46}}


def table(scores):
    rows = {}
    for row, seeds in scores.items():
        entry = {"title": f"about {row}", "same_as": "", "seeds": {
            seed: {"mAP": score, "Rank-1": 2 * score - 30, "start mAP": 24.0, "minutes": 6.0}
            for seed, score in seeds.items()}}
        rows[row] = entry | figures.statistics(entry["seeds"])
    return {"command": "caureid ablation --family synthetic", "keys": [], "made": MADE,
            "baseline": "base", "rows": rows}


KNOWN = {"subset": table(SCORES), "demo": table({"caureid": {"1": 51.0, "2": 50.5}})}


def found(text, known=KNOWN):
    return figures.problems(known, {"a.md": text})


def test_the_documents_say_what_was_measured():
    known, documents = figures.read()
    assert {"README.md", "docs/results.md", "docs/indicators.md"} <= documents.keys()
    assert figures.problems(known, documents) == []


def test_statistics():
    row = KNOWN["subset"]["rows"]["base"]
    assert row["mean"]["mAP"] == round(mean([50, 54.5, 53.04]), 4)
    assert row["sd"]["Rank-1"] == round(stdev([70, 79, 76.08]), 4) and row["sd"]["minutes"] == 0
    one = KNOWN["subset"]["rows"]["one"]
    assert one["mean"]["mAP"] == 54.46 and one["sd"] == {} and "ARI" not in one["mean"]


@pytest.mark.parametrize("text, reference, instead", [
    ("52.5", "subset/base/mAP", "52.6"),
    ("53", "subset/base/mAP", "52"),
    ("52.5 (2.3)", "subset/base/mAP", "52.5 (2.2)"),
    ("52.5\n(2.3)", "subset/base/mAP", "52.5\n(2.2)"),
    ("**52.5 (2.3)**", "subset/base/mAP", "**52.4 (2.3)**"),
    ("75.0", "subset/base/Rank-1", "75.1"),
    ("24", "subset/own/start mAP", "25"),
    ("78.92", "subset/one/Rank-1", "7.92"),
    ("+2.75 (1.06)", "subset/own - base/mAP", "+2.75 (1.05)"),
    ("2.75", "subset/own - base/mAP", "2.49"),  # the difference of the means
    ("-2.8", "subset/base - own/mAP", "2.8"),
    ("2.0", "subset/own - base/mAP/seed 1", "3.5"),
    ("58.0", "subset/own/mAP/seed 2", "55.0"),
    ("0.0", "subset/one - base/mAP", "-0.0"),  # -0.04
    ("1.0", "demo/caureid - subset/base/mAP/seed 1", "0.0"),
])
def test_a_quoted_figure_is_compared_as_it_is_rounded(text, reference, instead):
    assert found(f"It is {text}<!-- {reference} --> here.\n") == []
    problem, = found(f"\nIt is {instead}<!-- {reference} --> here.\n")
    assert problem.startswith(f"a.md:2: <!-- {reference} -->: ")
    quoted, expected = (" ".join(part.strip("*").split()) for part in (instead, text))
    assert problem.endswith(f"{quoted} is quoted, docs/figures.json has {expected}")


@pytest.mark.parametrize("text, message", [
    ("52.5<!-- subsets/base/mAP -->", "no subsets/base, it has subset/base, subset/own"),
    ("52.5<!-- subset/full/mAP -->", "no subset/full, it has subset/base"),
    ("2.5<!-- subset/own - full/mAP -->", "no subset/full"),
    ("2.5<!-- subset/own - demo/own/mAP -->", "no demo/own"),
    ("52.5<!-- subset/base/map -->", "has no map of that, known are mAP, Rank-1"),
    ("52.5<!-- subset/base/ARI -->", "has no ARI of that"),
    ("52.5<!-- subset/own/mAP/seed 3 -->", "has no mAP of that"),
    ("52.5<!-- subset/base -->", "must be TABLE/ROW/FIGURE"),
    ("52.5 <!-- subset/base/mAP -->", "must stand right behind a figure"),
    ("54.46 (0.00)<!-- subset/one/mAP -->", "docs/figures.json has 54.46 (none)"),
    ("<!-- figures: subsets table -->\n<!-- end -->", "one of docs/figures.json: subset, demo"),
    ("<!-- figures: subset tables -->\n<!-- end -->", "must be NAME table or NAME runs"),
    ("<!-- figures: subset -->\n<!-- end -->", "without NAME and KIND"),
    ("<!-- figures: subset table -->\n", "without <!-- end -->"),
    ("<!-- figures: demo runs -->\n\n" + figures.rendered(KNOWN, "subset", "runs"),
     "without <!-- end -->"),
])
def test_a_wrong_marker_is_named(text, message):
    problem, = found(f"\n\n{text}\n")
    assert problem.startswith("a.md:3: ") and message in problem


@pytest.mark.parametrize("text, lines", [
    ("Text 59.4 (0.9) more.\n", [1]),
    ("| a | -0.56 (3.69) | **81.70** (0.36) |\n", [1, 1]),
    ("Text\n\n\n58.6\n(1.9) Rank-1\n", [4]),
    ("Text\n52.5<!-- subset/base/mAP --> (1.1)\n", [2]),
    ("<!-- not of figures.json: the paper's -->\n\n| 59.4 (0.9) |\n", []),
    ("<!-- not of figures.json: the paper's -->\nThe paper:\n59.4 (0.9).\n\n59.4 (0.9)\n", [5]),
    ("The paper: 59.4 (0.9)<!-- not of figures.json: the paper's -->\n", []),
    ("<!-- not of figures.json: the paper's -->\n\n## Title\n\n59.4 (0.9)\n", [5]),
    ("<!-- not of figures.json: -->\n\n59.4 (0.9)\n", [3]),
    ("0.013 (0.034), 1.121 (1.084-1.160), 0.95 (-0.13), 3 (2.5), torch 2.14.1 (2.0)\n", []),
])
def test_a_pair_without_source_is_found(text, lines):
    problems = found(text)
    assert [int(problem.split(":")[1]) for problem in problems] == lines
    assert all("has neither <!-- TABLE/ROW/FIGURE -->" in problem for problem in problems)


def test_an_empty_file_asks_for_nothing_but_what_is_marked():
    assert found("59.4 (0.9)\n", {}) == []
    assert len(found("59.4<!-- subset/base/mAP -->\n", {})) == 1


def test_a_mean_changed_by_hand_is_found():
    known = json.loads(json.dumps(KNOWN))
    known["subset"]["rows"]["own"]["mean"]["mAP"] += 1
    problem, = found("", known)
    assert problem.startswith("docs/figures.json: mean or sd of subset/own do not follow from its ")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of three documents and docs/figures.json, for the tool to work on."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "figures.json").write_text(json.dumps(KNOWN))
    (tmp_path / "README.md").write_text("Up to 55.0 (4.2)<!-- subset/own/mAP --> mAP.\n")
    (tmp_path / "docs" / "results.md").write_text(
        "# Results\n\n<!-- figures: subset table -->\n<!-- end -->\n\nand\n\n"
        "<!-- figures: subset runs -->\nold\n<!-- end -->\n\nEnd.\n")
    (tmp_path / "docs" / "other.md").write_text("No figure.\n")
    return tmp_path


def test_render(project, capsys):
    results = project / "docs" / "results.md"
    assert len(figures.problems(*figures.read())) == 2  # both tables
    assert figures.main(["render"]) == 0
    assert capsys.readouterr().out == "docs/results.md is written anew\n"
    text = results.read_text()
    cells = table_rows(text)
    assert ["own", "about own", "2 of 2", "55.00 (4.24)", "+2.75 (1.06)", "80.00 (8.49)",
            "+5.50 (2.12)", "6.0"] in cells
    assert ["base", "3", "finished", "53.04", "76.08", "24.00", "6.0"] in cells
    assert ("Made 2026-01-02 by commit 0123456789ab on A (family 1); cores: 2; "
            "threads of a run: 1; Python 3.11, torch 2.11, FastReID 1.4.0, caureid-plugin 0.3.0."
            "\n\n    caureid ablation --family synthetic\n\n<!-- end -->\n\nand\n") in text
    assert text.startswith("# Results\n\n<!-- figures: subset table -->\n\n| row ")
    assert text.endswith("<!-- end -->\n\nEnd.\n") and "old" not in text
    assert figures.main(["render"]) == 0 and capsys.readouterr().out == ""

    # other figures: tables follow, sentences are named
    changed = {**KNOWN, "subset": table({**SCORES, "own": {"1": 52.0, "2": 59.0}})}
    (project / "docs" / "figures.json").write_text(json.dumps(changed))
    assert [problem.split(": ")[0] for problem in figures.problems(*figures.read())] == [
        "README.md:1", "docs/results.md:3", "docs/results.md:20"]
    assert figures.main(["render"]) == 1
    output = capsys.readouterr()
    assert output.err.endswith("55.0 (4.2) is quoted, docs/figures.json has 55.5 (4.9)\n")
    assert ["own", "2", "finished", "59.00", "88.00", "24.00", "6.0"] in table_rows(
        results.read_text())
    assert "55.0 (4.2)" in (project / "README.md").read_text()


def test_a_table_changed_by_hand_is_found(project):
    figures.main(["render"])
    results = project / "docs" / "results.md"
    results.write_text(results.read_text().replace("55.00 (4.24)", "56.00 (4.24)"))
    problem, = figures.problems(*figures.read())
    assert problem.startswith("docs/results.md:3: the table differs from docs/figures.json: run ")


def output_folder(folder, notes, states=("finished", "finished", "not finished")):
    """What caureid ablation leaves of three runs, the second of which serves another row too."""
    lines = [("plain", 1, "", 40.0), ("own", 1, "", 41.25), ("twin", 1, "own-seed1", 41.25)]
    folder.mkdir()
    (folder / "table.md").write_text(
        "# Ablation\n\n- Command: `caureid ablation --jobs 2`\n"
        "- Rows: configs/plain.yml, configs/own.yml\n- Keys: `A.B /data/w.pth C 'x y'`\n\n"
        "Last epoch. Differences are to plain, seed by seed.\n")
    rows = [f"{row},about {row},{seed},{state},{same},{score},50,,2.5\n"
            for (row, seed, same, score), state in zip(lines, states, strict=True)]
    (folder / "table.csv").write_text(
        "row,title,seed,state,same_as,mAP,Rank-1,ARI,minutes\n" + "".join(rows))
    for (row, seed, same, _), note in zip(lines, notes, strict=False):
        if not same:
            (folder / f"{row}-seed{seed}").mkdir()
            (folder / f"{row}-seed{seed}" / "finished.json").write_text(json.dumps(note))
    return folder


def note(**changed):
    machine = {key: value for key, value in MADE.items() if key != "date"}
    return {"figures": {}, "date": MADE["date"], "machine": {**machine, **changed}}


def test_collect(project, tmp_path, capsys):
    folder = output_folder(tmp_path / "out", [note(), note(torch="2.12") | {"date": "2026-01-05"}])
    assert figures.main(["collect", f"new.1={folder}"]) == 0
    assert "new.1: own-seed1 is left out (not finished)" in capsys.readouterr().out
    known, _ = figures.read()
    assert list(known) == ["subset", "demo", "new.1"] and known["demo"] == KNOWN["demo"]
    new = known["new.1"]
    assert new["command"] == ("caureid ablation --configs configs/plain.yml configs/own.yml "
                              "--output logs/new.1 --seeds 1 A.B w.pth C 'x y'")
    assert new["keys"] == ["A.B", "w.pth", "C", "x y"] and new["baseline"] == "plain"
    assert new["made"] == {**MADE, "torch": "2.11; 2.12", "date": "2026-01-02 to 2026-01-05"}
    row = {"mAP": 41.25, "Rank-1": 50.0, "minutes": 2.5}
    assert new["rows"]["own"] == {
        "title": "about own", "same_as": "", "seeds": {"1": row}, "mean": row, "sd": {}}
    assert list(new["rows"]) == ["plain", "own"]
    assert found("+1.25<!-- new.1/own - plain/mAP -->\n", known) == []

    # again: the table of that name is replaced
    shutil.rmtree(folder)
    output_folder(folder, [note(), note(device="a GPU")], ["finished"] * 3)
    assert figures.main(["collect", f"new.1={folder}"]) == 0
    known, _ = figures.read()
    assert known["new.1"]["rows"]["twin"]["same_as"] == "own"
    text = figures.rendered(known, "new.1", "table")
    assert "about twin (same runs as own)" in text and " on CPU; a GPU, A (family 1); " in text


def test_runs_that_did_not_note_commit_and_processor(project, tmp_path, capsys):
    old = {"figures": {}, "machine": {**{key: MADE[key] for key in ("threads", *figures.VERSIONS)},
                                      "device": "B EPYC, 8 cores"}}
    folder = output_folder(tmp_path / "out", [old, old])
    before = (project / "docs" / "figures.json").read_text()
    assert figures.main(["collect", f"old={folder}"]) == 1
    assert "finished.json does not note the commit of the code: give --commit." in (
        capsys.readouterr().err)
    assert (project / "docs" / "figures.json").read_text() == before
    for options, processor in (([], "B EPYC"), (["--processor", "B, model 3"], "B, model 3")):
        assert figures.main(["collect", f"old={folder}", "--commit", "0123abc", *options]) == 0
        made = figures.read()[0]["old"]["made"]
        assert made == {**MADE, "commit": "0123abc", "processor": processor, "cores": "8",
                        "date": made["date"]}
        assert made["date"].startswith("20")


@pytest.mark.parametrize("commits", [
    ["0123456789ab", "fedcba987654"], ["0123456789ab-dirty"] * 2,
    ["0123456789ab, fedcba987654"] * 2])
def test_a_table_is_of_one_commit(project, tmp_path, capsys, commits):
    folder = output_folder(tmp_path / "out", [note(commit=commit) for commit in commits])
    assert figures.main(["collect", f"mixed={folder}"]) == 1
    assert "is not one commit without changes" in capsys.readouterr().err
    assert "mixed" not in figures.read()[0]


@pytest.mark.parametrize("word, message", [
    ("logs", "'logs' must be NAME=FOLDER"), ("a/b=logs", "'a/b=logs' must be NAME=FOLDER"),
    ("a=logs/none", "a=logs/none: it has no table.md"), ("a={out}", "holds no finished run")])
def test_what_cannot_be_collected(project, tmp_path, capsys, word, message):
    output_folder(tmp_path / "out", [], ["failed: exit status 1"] * 3)
    assert figures.main(["collect", word.format(out=tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
