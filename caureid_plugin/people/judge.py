"""How good people are, where it is known who is on the crops: for measuring, nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate

from ..common.errors import UserError
from ..common.text import is_nothing, printable
from ..data.camera_source import plain_name
from ..data.listing import read_cells, read_rows, same_file_names
from .table import Crop, People

_Key = TypeVar("_Key")
TRIED = np.arange(0.0, 1.0, 0.01)  # similarities, for the plain way's best


class Figures(NamedTuple):
    """Shares from 0 to 1, NaN where there is nothing to count, and the number of people.

    ``idf1``: of Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera
    Tracking" (ECCV Workshops 2016, arXiv 1609.01775), with one trajectory through all cameras for
    each identity: people and identities are paired one to one such that the most crops are right;
    twice these, divided by the crops of identities and of people together. ``precision``: of the
    pairs of crops of one person, pairs of one identity; ``recall``: the reverse. ``assigned``: of
    the crops, the share that has a person.
    """

    idf1: float
    precision: float
    recall: float
    assigned: float
    people: int


def figures(persons: np.ndarray, identities: np.ndarray) -> Figures:
    """Compares people with identities.

    Args:
        persons: (N,) from 1, 0: nobody known.
        identities: (N,) of any kind.

    Example:
        >>> figures(np.array([1, 1, 2, 0]), np.array(["a", "a", "a", "b"]))[:2]
        (0.5714285714285714, 1.0)
    """
    known = persons > 0
    identity = np.unique(identities, return_inverse=True)[1]
    names, person = np.unique(persons[known], return_inverse=True)
    counts = sparse.csr_matrix((np.ones(known.sum()), (identity[known], person)),
                               (identity.max(initial=-1) + 1, len(names)))
    table = counts.toarray()
    right = table[linear_sum_assignment(table, maximize=True)].sum()

    def pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    together, found, real = (pairs(table), pairs(table.sum(0)),
                             pairs(np.bincount(identity).astype(float)))
    return Figures(2 * right / max(len(persons) + known.sum(), 1),
                   together / found if found else np.nan, together / real if real else np.nan,
                   known.mean() if len(known) else np.nan, len(names))


def plain_ways(people: People, identities: np.ndarray, rows: np.ndarray
               ) -> list[tuple[str, Figures]]:
    """The same of the plain way: the connected components of tracks whose mean features have a
    cosine of a threshold or more: the run's, and the one that is best."""
    of_image = people.tracks.of_image[rows]
    # whoever is linked below a distance in single linkage is one connected component
    tree = linkage(people.means.astype(np.float64), "single", "cosine") if len(
        people.means) > 1 else None

    def joined_from(value: float) -> Figures:
        parts = np.ones(1, int) if tree is None else fcluster(tree, 1 - value, "distance")
        return figures(parts[of_image], identities)

    best = max(TRIED.tolist(), key=lambda value: joined_from(value).idf1)
    return [(f"the plain way, from {people.threshold:.3f} on: the run's threshold",
             joined_from(people.threshold)),
            (f"the plain way, from {best:.2f} on: its best, by the identities", joined_from(best))]


class Truth(NamedTuple):
    """Who is on crops: what ``--truth`` says, and a function that looks it up for each crop."""

    given: str
    find: Callable[[Sequence[Crop]], list[str | None]]

    def of(self, crops: Sequence[Crop]) -> list[str | None]:
        """The identity on each crop, None where it is not known.

        Raises:
            UserError: no crop has one.
        """
        found = [identity or None for identity in self.find(crops)]
        if not any(found):
            raise UserError(f"--truth {printable(self.given)} gives none of the {len(crops)} crops "
                            "an identity: look at its paths or names, or at the expression.")
        return found


def read_truth(given: str) -> Truth:
    """Reads who is on crops.

    Args:
        given: a CSV file with the columns path, identity or camera, track, identity; else a regular
            expression with one group, which finds the identity in a crop's path.

    Raises:
        UserError: neither; or the file is damaged, or has two identities for one crop or track.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        return Truth(given, _by_pattern(given))
    where = f"--truth {printable(path)}"
    header, rows = read_cells(str(path), where)
    if "path" in header:
        table = read_rows(str(path.absolute()), ("path", "identity"), "--truth")
        names = same_file_names([row.cells[0] for row in table])
        of_path = _identities(where, [(row.line, name, row.cells[1])
                                      for name, row in zip(names, table, strict=True)])
        return Truth(given, lambda crops: [
            of_path.get(name) for name in same_file_names([crop.path for crop in crops])])
    if not {"camera", "track", "identity"} <= set(header):
        raise UserError(f"{where} needs the columns path and identity, or camera, track and "
                        f"identity; it has {printable(', '.join(header))}.")
    camera, track, identity = map(header.index, ("camera", "track", "identity"))
    of_track = _identities(where, [
        (line, (plain_name(cells[camera]), cells[track]), cells[identity])
        for line, cells in rows])
    return Truth(given, lambda crops: [of_track.get((crop.camera, crop.track)) for crop in crops])


def _identities(where: str, rows: Sequence[tuple[int, _Key, str]]) -> dict[_Key, str]:
    """The identity of each key, of rows (line, key, identity)."""
    found: dict[_Key, tuple[int, str]] = {}
    for line, key, identity in rows:
        if is_nothing(identity):
            raise UserError(f"{where} has no identity in line {line}: fill it in, or remove the "
                            "row.")
        first, known = found.setdefault(key, (line, identity))
        if known != identity:
            raise UserError(
                f"{where} has two identities for one crop or track: {printable(known)} in line "
                f"{first}, {printable(identity)} in line {line}. Remove one.")
    return {key: identity for key, (_, identity) in found.items()}


def _by_pattern(text: str) -> Callable[[Sequence[Crop]], list[str | None]]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--truth {printable(text)} is neither a file nor a regular expression: "
                        f"{error}.") from error
    if pattern.groups != 1:
        raise UserError(f"--truth {printable(text)} is no file, and as a regular expression has "
                        f"{pattern.groups} groups: put (...) around the identity.")
    return lambda crops: [match and match[1] for match in
                          (pattern.search(crop.path) for crop in crops)]


def say_truth(people: People, truth: Truth) -> str:
    """The figures of people and of the plain way, as a table.

    Raises:
        UserError: no crop has an identity.
    """
    found = truth.of(people.crops)
    rows = np.flatnonzero([identity is not None for identity in found])
    identities = np.array([found[row] for row in rows.tolist()])
    persons = people.persons[people.tracks.of_image[rows]]
    lines = [("people", figures(persons, identities)),
             *plain_ways(people, identities, rows)]
    table = tabulate(
        [[name, *("-" if np.isnan(value) else f"{100 * value:.1f}" for value in line[:4]),
          line.people] for name, line in lines],
        headers=("", "IDF1", "pair precision", "pair recall", "assigned", "people"),
        disable_numparse=True, colalign=("left", *["right"] * 5))
    without = len(people.crops) - len(rows)
    left_out = (f"\n{without} crops have no identity there, and count in no figure: the table says "
                "nothing about them." if without else "")
    return (f"\nBy --truth, {len(rows)} of {len(people.crops)} crops of {len(set(identities))} "
            f"identities, in %:\n{table}{left_out}")
