"""People: build, hair, clothes, shoes and carried things, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Garment colours are few on purpose: several people share each of them.
PALETTE = {
    "black": (38, 38, 42),
    "white": (226, 226, 222),
    "grey": (132, 134, 138),
    "navy": (38, 52, 104),
    "blue": (52, 108, 196),
    "cyan": (112, 190, 214),
    "red": (196, 44, 48),
    "green": (48, 136, 74),
    "yellow": (226, 194, 62),
    "orange": (222, 122, 44),
    "pink": (224, 136, 166),
    "brown": (122, 82, 52),
}
UPPER_COLOURS = tuple(PALETTE)
LOWER_COLOURS = ("black", "navy", "grey", "blue", "white", "brown", "green", "red", "yellow")
LOWER_WEIGHTS = (0.19, 0.17, 0.13, 0.13, 0.10, 0.10, 0.06, 0.06, 0.06)
SHOE_COLOURS = ("black", "white", "brown", "red", "blue", "grey")
HAIR_COLOURS = {
    "black": (30, 26, 26),
    "brown": (84, 56, 38),
    "blond": (204, 172, 104),
    "grey": (168, 166, 164),
    "red": (142, 66, 36),
}
SKIN_TONES = ((240, 204, 178), (222, 178, 144), (188, 138, 102), (134, 92, 66), (98, 66, 48))
UPPER_PATTERNS = ("plain", "stripes", "block", "logo", "checks", "open")
UPPER_PATTERN_WEIGHTS = (0.34, 0.16, 0.16, 0.13, 0.09, 0.12)
UPPER_CUTS = ("shirt", "coat")
SLEEVES = ("long", "short", "none")
LOWER_KINDS = ("trousers", "shorts", "skirt", "long skirt")
# Greatest angle of the thigh, in radians, where a garment narrows the stride.
STRIDES = {"skirt": 0.36, "long skirt": 0.24}
HAIR_STYLES = ("short", "long", "bun", "bald")
HATS = ("none", "cap", "beanie")
BAGS = ("none", "backpack", "shoulder bag", "handbag", "umbrella")


@dataclass(frozen=True)
class Person:
    """What stays the same about one person, whoever looks.

    Colours are names of :data:`PALETTE` (:data:`HAIR_COLOURS` for the hair), the other strings are
    members of the tuples above. ``build`` scales the widths of the body (1 is average), ``head``
    the size of the head, ``tint`` shifts every garment colour a little (RGB, -1 to 1).

    People compare equal, and hash alike, when nothing but build, head and tint differs.
    """

    upper: str
    upper_accent: str
    upper_pattern: str
    upper_cut: str
    sleeve: str
    lower: str
    lower_kind: str
    lower_stripe: bool
    shoes: str
    skin: int
    hair: str
    hair_style: str
    hat: str
    hat_colour: str
    bag: str
    bag_colour: str
    bag_on_left: bool
    build: float = field(compare=False)
    head: float = field(compare=False)
    tint: tuple[float, float, float] = field(compare=False)


def choose_from(rng: np.random.Generator, options, weights=None):
    return options[int(rng.choice(len(options), p=weights))]


def make_person(rng: np.random.Generator) -> Person:
    """Draws a person.

    What nobody can see gets one fixed value (the colour of a hat that is not worn, ...), so that
    people who look the same compare equal.
    """
    upper = choose_from(rng, UPPER_COLOURS)
    accent = choose_from(rng, [c for c in UPPER_COLOURS if c != upper])
    pattern = choose_from(rng, UPPER_PATTERNS, UPPER_PATTERN_WEIGHTS)
    stripe = bool(rng.random() < 0.15)
    style = choose_from(rng, HAIR_STYLES, (0.48, 0.34, 0.10, 0.08))
    hair = choose_from(rng, tuple(HAIR_COLOURS), (0.36, 0.28, 0.16, 0.12, 0.08))
    hat, hat_colour = choose_from(rng, HATS, (0.74, 0.16, 0.10)), choose_from(rng, UPPER_COLOURS)
    bag = choose_from(rng, BAGS, (0.34, 0.27, 0.18, 0.15, 0.06))
    bag_colour, on_left = choose_from(rng, UPPER_COLOURS), bool(rng.random() < 0.5)
    return Person(
        upper=upper,
        upper_accent=upper if pattern == "plain" and not stripe else accent,
        upper_pattern=pattern,
        upper_cut=choose_from(rng, UPPER_CUTS, (0.82, 0.18)),
        sleeve=choose_from(rng, SLEEVES, (0.52, 0.38, 0.10)),
        lower=choose_from(rng, LOWER_COLOURS, LOWER_WEIGHTS),
        lower_kind=choose_from(rng, LOWER_KINDS, (0.55, 0.20, 0.15, 0.10)),
        lower_stripe=stripe,
        shoes=choose_from(rng, SHOE_COLOURS),
        skin=int(rng.integers(len(SKIN_TONES))),
        hair="black" if style == "bald" else hair,
        hair_style=style,
        hat=hat,
        hat_colour="black" if hat == "none" else hat_colour,
        bag=bag,
        bag_colour="black" if bag == "none" else bag_colour,
        bag_on_left=on_left and bag not in ("none", "backpack"),
        build=float(rng.uniform(0.84, 1.22)),
        head=float(rng.uniform(0.93, 1.08)),
        tint=tuple(float(t) for t in rng.uniform(-1.0, 1.0, 3)),
    )
