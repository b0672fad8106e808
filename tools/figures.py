#!/usr/bin/env python3
"""Keeps the accuracies that README.md and docs quote in one file, docs/figures.json.

    tools/figures.py collect market_osnet=logs/ablation/market_osnet
    tools/figures.py render

"collect" takes the finished runs of output folders of caureid ablation into the file, each folder
as the table of that name. "render" writes the documents' tables anew and names what else differs.
A document has figures in these forms, by comments that a reader does not see:

    <!-- figures: market_osnet table -->     rows, and how they were made; "runs": every run
    <!-- end -->
    60.9 (1.1)<!-- market_osnet/cacc/mAP -->
    57.7<!-- demo/caureid/Rank-1/seed 1 -->
    +4.75<!-- market_osnet/cacc - baseline/mAP -->     or of another table: cacc - other/baseline

A quoted figure is compared as it is rounded there: mean and standard deviation (n - 1), or of
the difference of two rows, seed by seed. It is not rewritten, because the sentence around it may no
longer hold. A paragraph or table of other origin has <!-- not of figures.json: WHY --> in or above
it.
"""

import argparse
import csv
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePath

from caureid_plugin.ablation import table as report
from caureid_plugin.common.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
NAMES = (*report.FIGURES, "minutes")
DIGITS = 4  # kept of a figure
KINDS = ("table", "runs")
VERSIONS = {"python": "Python", "torch": "torch", "fastreid": "FastReID",
            "caureid-plugin": "caureid-plugin"}
MADE = ("commit", "date", "device", "processor", "cores", "threads", *VERSIONS)

NUMBER = r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:\s\(\d+(?:\.\d+)?\))?"
QUOTE = re.compile(rf"(?:(?P<text>{NUMBER})(?:\*\*)?)?<!--\s*(?P<reference>[\w.-]+/[^>]*?)\s*-->")
REFERENCE = re.compile(
    r"(?P<table>[^/]+)/(?P<row>[^/]+?)(?: - (?:(?P<other_table>[^/]+)/)?(?P<other>[^/]+))?"
    r"/(?P<name>(?!seed )[^/]+)(?:/seed (?P<seed>\d+))?")
BLOCK = re.compile(r"<!-- figures: (\S+) (\S+) -->\n(?:(?!<!-- figures:).)*?<!-- end -->",
                   re.DOTALL)
PAIR = re.compile(r"(?<![\w.])\d+\.\d{1,2}(?:\*\*)?\s\(\d+\.\d{1,2}\)")  # 59.4 (0.9)
EXCUSE = re.compile(r"<!-- not of figures\.json: \S[^>]{5,}-->")


# ------------------------------------------------------------------------------- collect ----


def read_folder(name: str, folder: Path, commit: str | None, processor: str | None) -> dict:
    """A table of the file: the finished runs in an output folder of caureid ablation.

    Args:
        name: of the table.
        folder: with table.md, table.csv and a folder for each run.
        commit, processor: of runs that did not note theirs.

    Raises:
        ValueError: no finished runs there, or not all of one commit.
    """
    if not (folder / "table.md").is_file():
        raise ValueError(f"{name}={folder}: it has no table.md, which an --output of "
                         "caureid ablation has.")
    page, rows, notes = (folder / "table.md").read_text(), {}, {}
    heads = dict(re.findall(r"^- (\w+): (.*)$", page, re.MULTILINE))
    with (folder / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        run = line["same_as"] or f"{line['row']}-seed{line['seed']}"
        if line["state"] != report.FINISHED:
            print(f"{name}: {run} is left out ({line['state']})")
            continue
        row = rows.setdefault(line["row"], {
            "title": line["title"], "same_as": line["same_as"].rpartition("-seed")[0], "seeds": {}})
        row["seeds"][line["seed"]] = {figure: round(float(line[figure]), DIGITS)
                                      for figure in NAMES if line.get(figure)}
        notes[run] = _read_notes(folder / run / "finished.json", commit, processor)
    if not rows:
        raise ValueError(f"{folder} holds no finished run: there is nothing to collect yet.")
    for row in rows.values():
        row.update(statistics(row["seeds"]))
    # a whole path is one machine's
    keys = [PurePath(word).name if PurePath(word).is_absolute() else word
            for word in shlex.split(heads["Keys"].strip("`")) if heads["Keys"] != "none"]
    family = re.match(r"family (\w+), ", heads["Rows"])
    source = ["--family", family[1], "--rows", *rows] if family else [
        "--configs", *heads["Rows"].split(", "), "--output", f"logs/{name}"]
    seeds = sorted({int(seed) for row in rows.values() for seed in row["seeds"]})
    words = ["caureid", "ablation", *source, "--seeds", *map(str, seeds), *keys]
    return {"command": shlex.join(words), "keys": keys, "made": _made(notes),
            "baseline": re.findall(r"Differences are to (.+?), seed by seed", page)[0],
            "rows": rows}


def _read_notes(path: Path, commit: str | None, processor: str | None) -> dict:
    """How a run was made (MADE), from its finished.json."""
    noted = json.loads(path.read_text())
    day = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    made = {"date": noted.get("date", day), **noted["machine"]}
    if "processor" not in made:  # noted by an earlier version: the device is "NAME, N cores"
        device, _, cores = made["device"].rpartition(", ")
        made.update(device="CPU", processor=processor or device, cores=cores.split()[0])
    if made.get("commit", "unknown") == "unknown":
        if not commit:
            raise ValueError(f"{path} does not note the commit of the code: give --commit.")
        made["commit"] = commit
    return made


def _made(notes: dict[str, dict]) -> dict[str, str]:
    """One value for each of MADE, those that differ joined; ``notes``: by run."""
    found = {key: sorted({note[key] for note in notes.values()}) for key in MADE}
    commit, dates = found["commit"], found["date"]
    if len(commit) > 1 or not re.fullmatch(r"[0-9a-f]{7,40}", commit[0]):
        raise ValueError(f"The runs were made by {commit}, which is not one commit without changes:"
                         " measure a table in a clone that stays as it is, or give each commit an "
                         "output folder and a table of its own.")
    return {**{key: "; ".join(texts) for key, texts in found.items()},
            "date": " to ".join(dict.fromkeys((dates[0], dates[-1])))}


def statistics(seeds: dict[str, dict]) -> dict[str, dict]:
    """"mean" and "sd" (n - 1) of every figure over the seeds; ``seeds``: figures by seed."""
    found = {name: report.mean_sd([seed[name] for seed in seeds.values() if name in seed])
             for name in NAMES}
    return {key: {name: round(pair[i], DIGITS) for name, pair in found.items()
                  if pair[i] is not None} for i, key in enumerate(("mean", "sd"))}


# ------------------------------------------------------------------------ render, compare ----


def rendered(figures: dict, name: str, kind: str) -> str:
    """The Markdown of a table, between the comments that ask for it; kind: one of KINDS."""
    if name not in figures or kind not in KINDS:
        raise ValueError(f"<!-- figures: {name} {kind} --> must be NAME table or NAME runs, NAME "
                         f"one of docs/figures.json: {', '.join(figures) or 'it is empty'}")
    table = figures[name]
    results = [{"row": row, "title": found["title"], "seed": int(seed), "state": report.FINISHED,
                "same_as": found["same_as"] and f"{found['same_as']}-seed{seed}",
                "minutes": None, **figures_of_seed}
               for row, found in table["rows"].items()
               for seed, figures_of_seed in found["seeds"].items()]
    if kind == "runs":
        text = report.runs_table(results)
    else:
        made, baseline = table["made"], table["baseline"]
        device = "" if made["device"] == "CPU" else f"{made['device']}, "
        versions = ", ".join(f"{word} {made[key]}" for key, word in VERSIONS.items())
        text = (f"{report.summary_table(report.summarise(results, baseline))}\n\n"
                f"{report.caption(baseline)}\nMade {made['date']} by commit {made['commit']} on "
                f"{device}{made['processor']}; cores: {made['cores']}; threads of a run: "
                f"{made['threads']}; {versions}.\n\n"
                f"    {table['command']}")
    return f"<!-- figures: {name} {kind} -->\n\n{text}\n\n<!-- end -->"


def values(figures: dict, reference: str) -> list[float]:
    """What a reference stands for, a value for each seed (that both rows of a difference have).

    Raises:
        ValueError: there is no such figure.
    """
    parts = REFERENCE.fullmatch(reference)
    if not parts:
        raise ValueError("it must be TABLE/ROW/FIGURE or TABLE/ROW - ROW/FIGURE, with or without "
                         "/seed N behind it")

    def find(table: str, row: str) -> dict[str, float]:
        rows = figures.get(table, {"rows": {}})["rows"]
        if row not in rows:
            raise ValueError(f"docs/figures.json has no {table}/{row}, it has " + (", ".join(
                f"{name}/{row}" for name in figures for row in figures[name]["rows"]) or "nothing"))
        return {seed: found[parts["name"]] for seed, found in rows[row]["seeds"].items()
                if parts["name"] in found and parts["seed"] in (None, seed)}

    there = find(parts["table"], parts["row"])
    if parts["other"]:
        others = find(parts["other_table"] or parts["table"], parts["other"])
        there = {seed: value - others[seed] for seed, value in there.items() if seed in others}
    if not there:
        raise ValueError(f"docs/figures.json has no {parts['name']} of that, known are "
                         f"{', '.join(NAMES)}, of the seeds that were run")
    return list(there.values())


def as_quoted(text: str, found: list[float]) -> str:
    """Mean (and standard deviation, if the quoted text has one) with the decimals of the text."""
    numbers = []
    for quoted, value in zip(text.split(), report.mean_sd(found), strict=False):
        decimals, sign = len(quoted.strip("()").partition(".")[2]), quoted[0].strip("-(0123456789")
        # + 0.0: no "-0.0"
        number = "none" if value is None else f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"
        numbers.append(f"({number})" if quoted.startswith("(") else number)
    return " ".join(numbers)


def problems(figures: dict, documents: dict[str, str]) -> list[str]:
    """What differs between the documents ({name: text}) and the figures, a line each."""
    found = [f"docs/figures.json: mean or sd of {name}/{row} do not follow from its seeds: collect "
             "it anew" for name, table in figures.items() for row, entry in table["rows"].items()
             if statistics(entry["seeds"]) != {"mean": entry["mean"], "sd": entry["sd"]}]
    for name, text in documents.items():
        # lines keep their numbers
        prose = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
        differ = [*_tables(figures, text, prose), *_quotes(figures, prose)]
        if figures:  # until there are any, none can be quoted
            differ += _without_source(prose)
        found += [f"{name}:{line}: {problem}" for line, problem in sorted(differ)]
    return found


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _tables(figures: dict, text: str, prose: str) -> Iterator[tuple[int, str]]:
    """(line, problem) of the tables of a document; ``prose``: the text without them."""
    for block in BLOCK.finditer(text):
        try:
            if block[0] != rendered(figures, block[1], block[2]):
                yield _line(text, block.start()), ("the table differs from docs/figures.json: run "
                                                   "tools/figures.py render")
        except ValueError as error:
            yield _line(text, block.start()), str(error)
    for start in re.finditer("<!-- figures:", prose):
        yield _line(prose, start.start()), "a table without NAME and KIND, or without <!-- end -->"


def _quotes(figures: dict, prose: str) -> Iterator[tuple[int, str]]:
    """(line, problem) of the marked figures."""
    for quote in QUOTE.finditer(prose):
        try:
            if not quote["text"]:
                raise ValueError("it must stand right behind a figure")
            quoted = " ".join(quote["text"].split())
            expected = as_quoted(quoted, values(figures, quote["reference"]))
            problem = quoted != expected and f"{quoted} is quoted, docs/figures.json has {expected}"
        except ValueError as error:
            problem = str(error)
        if problem:
            yield _line(prose, quote.start()), f"<!-- {quote['reference']} -->: {problem}"


def _without_source(prose: str) -> Iterator[tuple[int, str]]:
    """(line, problem) of pairs like 59.4 (0.9) that are neither marked nor excused."""
    # a number stays of a marked figure: in "60.9<!-- ... --> (1.1)" nobody looks at the second
    prose = QUOTE.sub(lambda quote: "\n" * quote[0].count("\n") + "0.0", prose)
    place, excused = 0, False
    for part in re.split(r"(\n[ \t]*\n)", prose):  # paragraphs, and what is between them
        if part.strip():
            if not (excused or EXCUSE.search(part)):
                for pair in PAIR.finditer(part):
                    yield _line(prose, place + pair.start()), (
                        f"{' '.join(pair[0].split())} has neither <!-- TABLE/ROW/FIGURE --> behind "
                        "it nor <!-- not of figures.json: WHY --> above it")
            excused = EXCUSE.fullmatch(part.strip()) is not None
        place += len(part)


# --------------------------------------------------------------------------------- command ----


def read() -> tuple[dict, dict[str, str]]:
    """docs/figures.json, and the text of every document by its path in the project."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return (json.loads((ROOT / "docs" / "figures.json").read_text()),
            {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths})


def collect(args: argparse.Namespace) -> list[str]:
    figures, _ = read()
    for text in args.tables:
        name, _, folder = text.partition("=")
        if not (folder and re.fullmatch(r"[\w.-]+", name)):
            raise ValueError(f"{text!r} must be NAME=FOLDER, NAME of letters, digits, _ . and -")
        figures[name] = read_folder(name, Path(folder), args.commit, args.processor)
    write_atomically(ROOT / "docs" / "figures.json", f"{json.dumps(figures, indent=1)}\n")
    print(f"docs/figures.json holds {', '.join(figures)}. Next: tools/figures.py render")
    return []


def render(_: argparse.Namespace) -> list[str]:
    figures, documents = read()

    def write_anew(block: re.Match) -> str:
        known = block[1] in figures and block[2] in KINDS
        return rendered(figures, block[1], block[2]) if known else block[0]

    for name, text in documents.items():
        documents[name] = BLOCK.sub(write_anew, text)
        if documents[name] != text:
            write_atomically(ROOT / name, documents[name])
            print(f"{name} is written anew")
    return problems(figures, documents)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="collect | render")
    command = commands.add_parser("collect", description="takes tables into docs/figures.json")
    command.add_argument("tables", nargs="+", metavar="NAME=FOLDER",
                         help="name of a table, output folder of caureid ablation")
    command.add_argument("--commit", help="of runs that did not note theirs")
    command.add_argument("--processor", help="of runs that did not note theirs")
    command.set_defaults(run=collect)
    commands.add_parser(
        "render", description="writes the documents' tables anew, names what else differs"
        ).set_defaults(run=render)
    args = parser.parse_args(argv)
    try:
        found = args.run(args)
    except ValueError as error:
        found = [str(error)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
