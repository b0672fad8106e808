"""Draws small pictures of walking people as several cameras would see them.

The pictures feed :class:`~caureid_plugin.data.synthetic_cameras.SyntheticCameras`, the dataset
that needs no download. Three things decide a picture:

* a :class:`Person`: build, hair, clothes, shoes and carried things, the same in every picture;
* a :class:`Camera`: its background scene and its style (colour cast, exposure, blur, view height,
  ...), the same for everybody it sees;
* a :class:`Shot`: what changes from picture to picture (pose, facing, how the box is cut, light,
  occlusion, sensor noise).

Figures are drawn in *body units*: the crown is at ``y = 0``, the soles are at ``y = 1``, ``x = 0``
is the body's axis, one unit is the person's height. A :class:`_Frame` maps them to pixels.

Only numpy, OpenCV and Pillow are used. The same arguments give the same pixels, as long as the
versions of these libraries stay the same.
"""

import functools
import itertools
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

# Drawing happens on a canvas this many times larger, which is then averaged down.
SUPERSAMPLING = 3

# Scenes keep this share of their contrast, as if hazy, so that they do not drown the people.
SCENE_CONTRAST = 0.6

# The scene is wider and higher than a box by these factors, so that boxes cut different parts.
SCENE_WIDTH, SCENE_HEIGHT = 2.2, 1.25

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
FACINGS = ("front", "back", "left", "right")
OCCLUSIONS = ("none", "pole", "bin", "person")


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


@dataclass(frozen=True)
class Camera:
    """What stays the same about one camera, whomever it sees.

    Attributes:
        scene: background, a key of :data:`SCENES`.
        scene_seed: seed of the scene's texture.
        gain: factor per RGB channel, the colour cast.
        mixing: share of each channel that leaks into the next one, 0 to about 0.2.
        exposure: factor on all channels.
        gamma: exponent on intensities in [0, 1]; above 1 darkens mid-tones.
        contrast: factor on the distance from mid-grey.
        saturation: 0 is grey, 1 leaves colours as they are.
        blur: standard deviation of the blur, in pixels of a picture 128 high.
        sharpen: strength of unsharp masking, which undoes a part of the blur.
        noise: standard deviation of the sensor noise, in intensities of [0, 1].
        view: 0 looks level, 1 looks down from high above: legs shorten, the head grows.
        lean: sideways shift of the head against the feet, in body units.
        vignette: darkening of the corners, 0 to 1.
        jpeg_quality: quality at which a dataset should store the pictures.
    """

    scene: str
    scene_seed: int
    gain: tuple[float, float, float]
    mixing: float
    exposure: float
    gamma: float
    contrast: float
    saturation: float
    blur: float
    sharpen: float
    noise: float
    view: float
    lean: float
    vignette: float
    jpeg_quality: int


@dataclass(frozen=True)
class Shot:
    """What changes from picture to picture of one person by one camera.

    ``phase`` is the walking phase in radians, ``arms`` the strength of the arms' swing, ``offset``
    the shift of the figure in the box (x, y, in box heights), ``scale`` the figure's height in box
    heights, ``scene_offset`` the place of the box in the scene (0 to 1 per axis), ``light`` a
    factor on all intensities, ``side_light`` the strength and side of the light on the body.
    """

    facing: str
    phase: float
    arms: float
    offset: tuple[float, float]
    scale: float
    scene_offset: tuple[float, float]
    light: float
    side_light: float
    occlusion: str
    occlusion_place: float
    noise_seed: int


def _choose(rng: np.random.Generator, options, weights=None):
    return options[int(rng.choice(len(options), p=weights))]


def make_person(rng: np.random.Generator) -> Person:
    """Draws a person.

    What nobody can see gets one fixed value (the colour of a hat that is not worn, ...), so that
    people who look the same compare equal.
    """
    upper = _choose(rng, UPPER_COLOURS)
    accent = _choose(rng, [c for c in UPPER_COLOURS if c != upper])
    pattern = _choose(rng, UPPER_PATTERNS, UPPER_PATTERN_WEIGHTS)
    stripe = bool(rng.random() < 0.15)
    style = _choose(rng, HAIR_STYLES, (0.48, 0.34, 0.10, 0.08))
    hair = _choose(rng, tuple(HAIR_COLOURS), (0.36, 0.28, 0.16, 0.12, 0.08))
    hat, hat_colour = _choose(rng, HATS, (0.74, 0.16, 0.10)), _choose(rng, UPPER_COLOURS)
    bag = _choose(rng, BAGS, (0.34, 0.27, 0.18, 0.15, 0.06))
    bag_colour, on_left = _choose(rng, UPPER_COLOURS), bool(rng.random() < 0.5)
    return Person(
        upper=upper,
        upper_accent=upper if pattern == "plain" and not stripe else accent,
        upper_pattern=pattern,
        upper_cut=_choose(rng, UPPER_CUTS, (0.82, 0.18)),
        sleeve=_choose(rng, SLEEVES, (0.52, 0.38, 0.10)),
        lower=_choose(rng, LOWER_COLOURS, LOWER_WEIGHTS),
        lower_kind=_choose(rng, LOWER_KINDS, (0.55, 0.20, 0.15, 0.10)),
        lower_stripe=stripe,
        shoes=_choose(rng, SHOE_COLOURS),
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


# Six cameras whose styles differ clearly; the casts stay small enough for a red coat to stay red.
PRESET_CAMERAS = (
    Camera("brick", 11, (1.08, 0.99, 0.90), 0.03, 1.00, 1.00, 1.02, 0.98,
           0.40, 0.0, 0.010, 0.30, 0.00, 0.10, 90),
    Camera("lawn", 12, (0.96, 1.06, 0.94), 0.05, 1.07, 0.94, 0.96, 1.03,
           0.62, 0.0, 0.012, 0.48, 0.01, 0.08, 86),
    Camera("fence", 13, (0.91, 0.99, 1.11), 0.04, 0.93, 1.06, 1.03, 0.90,
           0.50, 0.0, 0.018, 0.20, -0.01, 0.15, 83),
    Camera("glass", 14, (1.00, 1.01, 1.03), 0.07, 1.12, 0.92, 0.89, 0.84,
           0.78, 0.0, 0.010, 0.62, 0.00, 0.04, 88),
    Camera("street", 15, (1.02, 0.98, 1.00), 0.03, 0.83, 1.05, 1.08, 0.95,
           0.38, 0.4, 0.022, 0.40, -0.02, 0.20, 80),
    Camera("corridor", 16, (1.09, 1.02, 0.85), 0.06, 0.98, 1.03, 0.95, 0.92,
           0.58, 0.0, 0.016, 0.56, 0.02, 0.18, 84),
)


def make_camera(source: int | np.random.Generator) -> Camera:
    """Returns the camera of an index, or draws one.

    Args:
        source: an index from 0 (the first ``len(PRESET_CAMERAS)`` are hand-made, later ones are
            drawn from the index), or a random generator.

    Raises:
        ValueError: the index is negative.
    """
    if not isinstance(source, np.random.Generator):
        if source < 0:
            raise ValueError(f"source={source}: a camera's index must be 0 or more")
        if source < len(PRESET_CAMERAS):
            return PRESET_CAMERAS[source]
        source = np.random.default_rng([source])
    rng = source
    gain = rng.uniform(0.82, 1.20, 3)
    return Camera(
        scene=_choose(rng, tuple(SCENES)),
        scene_seed=int(rng.integers(1 << 30)),
        gain=tuple(float(g) for g in gain / gain.mean()),
        mixing=float(rng.uniform(0.0, 0.10)),
        exposure=float(rng.uniform(0.70, 1.22)),
        gamma=float(rng.uniform(0.85, 1.15)),
        contrast=float(rng.uniform(0.80, 1.15)),
        saturation=float(rng.uniform(0.70, 1.10)),
        blur=float(rng.uniform(0.3, 1.1)),
        sharpen=float(rng.choice((0.0, 0.0, 0.7))),
        noise=float(rng.uniform(0.010, 0.035)),
        view=float(rng.uniform(0.1, 0.8)),
        lean=float(rng.uniform(-0.03, 0.03)),
        vignette=float(rng.uniform(0.0, 0.3)),
        jpeg_quality=int(rng.integers(80, 91)),
    )


def make_shot(rng: np.random.Generator) -> Shot:
    """Draws what is particular to one picture."""
    occlusion = _choose(rng, OCCLUSIONS, (0.82, 0.06, 0.05, 0.07))
    scale = float(np.clip(rng.normal(0.92, 0.045), 0.80, 1.06))
    # One box in eight is cut too high and loses the feet.
    drop = 0.10 if rng.random() < 0.12 else 0.0
    return Shot(
        facing=_choose(rng, FACINGS, (0.32, 0.30, 0.19, 0.19)),
        phase=float(rng.uniform(0.0, 2.0 * np.pi)),
        arms=float(rng.uniform(0.3, 1.0)),
        offset=(float(rng.normal(0.0, 0.022)), float(rng.normal(0.0, 0.018)) + drop),
        scale=scale + drop,
        scene_offset=(float(rng.random()), float(rng.random())),
        light=float(rng.uniform(0.90, 1.10)),
        side_light=float(rng.uniform(-0.16, 0.16)),
        occlusion=occlusion,
        occlusion_place=float(rng.random()),
        noise_seed=int(rng.integers(1 << 62)),
    )


# ---------------------------------------------------------------------------------------------
# Drawing primitives
# ---------------------------------------------------------------------------------------------

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24, endpoint=False)),
                    np.sin(np.linspace(0, 2 * np.pi, 24, endpoint=False))], axis=1)


def _shade(colour, factor: float) -> Colour:
    return tuple(int(np.clip(c * factor, 0, 255)) for c in colour)


def _fill(image: np.ndarray, points: np.ndarray, colour) -> None:
    """Fills an anti-aliased polygon given in pixels (x, y) of ``image``."""
    fixed = np.round(np.asarray(points) * 16.0).astype(np.int32)
    cv2.fillPoly(image, [fixed], colour, lineType=cv2.LINE_AA, shift=4)


def _ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _CIRCLE * (rx, ry) + (x, y)


def _upper_half(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    angles = np.linspace(np.pi, 2 * np.pi, 14)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _limb(start, end, r0: float, r1: float) -> np.ndarray:
    """Outline of a rounded limb that tapers from radius ``r0`` to ``r1``."""
    discs = np.concatenate([_CIRCLE * r0 + start, _CIRCLE * r1 + end]).astype(np.float32)
    return cv2.convexHull(discs)[:, 0]


def _between(start, end, share: float) -> np.ndarray:
    return np.asarray(start) + (np.asarray(end) - np.asarray(start)) * share


class _Frame:
    """Maps body units to canvas pixels, as the camera's view height bends them."""

    def __init__(self, centre: float, top: float, height: float, view: float = 0.0,
                 lean: float = 0.0, mirror: bool = False):
        self.centre, self.top, self.height = centre, top, height
        self.view, self.lean = view, lean
        self.sign = -1.0 if mirror else 1.0

    def __call__(self, points) -> np.ndarray:
        """Maps points of shape (N, 2) in body units to pixels (x, y)."""
        points = np.asarray(points, dtype=np.float64)
        x, y = points[:, 0] * self.sign, points[:, 1]
        widening = 1.0 + 0.42 * self.view * (0.45 - y)
        x = x * widening + self.lean * (0.5 - y)
        y = y + 0.30 * self.view * y * (1.0 - y)
        return np.stack([self.centre + x * self.height, self.top + y * self.height], axis=1)


class _Layer:
    """A transparent layer: colours already multiplied by their coverage, and the coverage."""

    def __init__(self, height: int, width: int, frame: _Frame):
        self.image = np.zeros((height, width, 3), np.uint8)
        self.cover = np.zeros((height, width), np.uint8)
        self.frame = frame

    def shape(self, points, colour) -> None:
        """Fills a polygon given in body units."""
        pixels = self.frame(points)
        _fill(self.image, pixels, colour)
        _fill(self.cover, pixels, 255)

    def outlined(self, points, colour, edge: float = 0.72) -> None:
        """Fills a polygon with a thin darker edge that parts it from what lies behind."""
        pixels = self.frame(points)
        self.shape(points, colour)
        fixed = np.round(pixels * 16.0).astype(np.int32)
        cv2.polylines(self.image, [fixed], True, _shade(colour, edge), 1, cv2.LINE_AA, 4)

    def inside(self, region, shapes, colour) -> None:
        """Fills polygons, but only where they lie within the polygon ``region``."""
        window = np.zeros_like(self.cover)
        _fill(window, self.frame(region), 255)
        paint = np.zeros_like(self.cover)
        for points in shapes:
            _fill(paint, self.frame(points), 255)
        alpha = (cv2.min(window, paint).astype(np.float32) / 255.0)[..., None]
        blend = self.image * (1.0 - alpha) + np.asarray(colour, np.float32) * alpha
        self.image = np.round(blend).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# The figure
# ---------------------------------------------------------------------------------------------


class _Figure:
    """Draws one person in one pose on a layer.

    Side views are drawn facing right and mirrored by the frame; back views are front views
    mirrored, with the things of the front left out.
    """

    def __init__(self, person: Person, shot: Shot, layer: _Layer):
        self.person, self.shot, self.layer = person, shot, layer
        self.side = shot.facing in ("left", "right")
        self.front = shot.facing == "front"
        self.back = shot.facing == "back"
        self.skin = SKIN_TONES[person.skin]
        self.hair = HAIR_COLOURS[person.hair]
        b = person.build
        depth = 0.64 if self.side else 1.0
        self.shoulder = 0.112 * (0.5 + 0.5 * b) * depth
        self.waist = 0.088 * b * (0.80 if self.side else 1.0)
        self.hips = 0.094 * b * (0.80 if self.side else 1.0)
        self.hem = 0.67 if person.upper_cut == "coat" else 0.53

    def colour(self, name: str) -> Colour:
        """Palette colour of this person's garments: shifted a little, so shades differ."""
        return tuple(int(np.clip(c + 9.0 * t, 0, 255))
                     for c, t in zip(PALETTE[name], self.person.tint, strict=True))

    # Joints --------------------------------------------------------------------------------

    def leg_joints(self, left: bool):
        """Hip, knee and ankle of one leg, each (x, y) in body units."""
        phase = self.shot.phase + (np.pi if left else 0.0)
        if self.side:
            thigh = STRIDES.get(self.person.lower_kind, 0.46) * np.sin(phase)
            shin = thigh - (0.08 + 0.50 * max(0.0, np.cos(phase)))
            hip = np.array([0.0, 0.51])
            knee = hip + 0.225 * np.array([np.sin(thigh), np.cos(thigh)])
            ankle = knee + 0.220 * np.array([np.sin(shin), np.cos(shin)])
            return hip, knee, ankle
        sign = 1.0 if left else -1.0
        lift = max(0.0, np.sin(phase))
        x = 0.046 * self.person.build
        return (np.array([sign * x, 0.51]), np.array([sign * (x + 0.004), 0.735 - 0.012 * lift]),
                np.array([sign * (x + 0.002 - 0.012 * lift), 0.950 - 0.055 * lift]))

    def arm_joints(self, left: bool):
        """Shoulder, elbow and hand of one arm, each (x, y) in body units."""
        phase = self.shot.phase + (0.0 if left else np.pi)
        swing = np.sin(phase) * self.shot.arms
        raised = self.person.bag == "umbrella" and left == self.person.bag_on_left
        if self.side:
            upper, lower = 0.50 * swing - 0.05, 0.50 * swing + 0.22
            shoulder = np.array([-0.004, 0.212])
            elbow = shoulder + 0.150 * np.array([np.sin(upper), np.cos(upper)])
            hand = elbow + 0.140 * np.array([np.sin(lower), np.cos(lower)])
            if raised:
                elbow, hand = np.array([0.005, 0.360]), np.array([0.085, 0.285])
            return shoulder, elbow, hand
        sign = 1.0 if left else -1.0
        shoulder = np.array([sign * (self.shoulder - 0.012), 0.208])
        elbow = np.array([sign * (max(self.shoulder, self.waist) + 0.022), 0.352])
        hand = np.array([sign * (max(self.shoulder, self.hips) + 0.020 - 0.012 * swing),
                         0.492 - 0.045 * max(0.0, swing)])
        if raised:
            hand = np.array([sign * (self.shoulder - 0.015), 0.270])
        return shoulder, elbow, hand

    # Parts ---------------------------------------------------------------------------------

    def torso_outline(self) -> np.ndarray:
        lift = 0.004 * np.cos(2 * self.shot.phase)
        flare = 1.10 if self.person.upper_cut == "coat" else 1.0
        half = [(0.034, 0.160), (self.shoulder * 0.86, 0.184), (self.shoulder, 0.205),
                (self.waist * 1.02, 0.330), (self.waist, 0.420), (self.hips * flare, self.hem)]
        right = np.array(half) + (0.0, lift)
        return np.concatenate([right, right[::-1] * (-1.0, 1.0)])

    def draw_leg(self, left: bool, shade: float) -> None:
        person = self.person
        hip, knee, ankle = self.leg_joints(left)
        b = 0.5 + 0.5 * person.build
        cloth, skin = _shade(self.colour(person.lower), shade), _shade(self.skin, shade)
        self.draw_shoe(ankle, shade)
        if person.lower_kind == "trousers":
            self.layer.outlined(_limb(knee, ankle + (0, -0.008), 0.041 * b, 0.033 * b), cloth)
            self.layer.shape(_limb(hip, knee, 0.054 * b, 0.042 * b), cloth)
            self.draw_leg_stripe(left, shade, (hip, knee, ankle + (0, -0.01)))
            return
        self.layer.outlined(_limb(knee, ankle, 0.034 * b, 0.022 * b), skin)
        self.layer.shape(_limb(hip, knee, 0.046 * b, 0.034 * b), skin)
        if person.lower_kind == "shorts":
            end = _between(hip, knee, 0.86)
            self.layer.outlined(_limb(hip, end, 0.056 * b, 0.052 * b), cloth)
            self.draw_leg_stripe(left, shade, (hip, _between(knee, end, 0.6)))

    def draw_leg_stripe(self, left: bool, shade: float, joints) -> None:
        """A stripe down the outer side of the leg."""
        if not self.person.lower_stripe:
            return
        stripe = _shade(self.colour(self.person.upper_accent), shade)
        out = 0.0 if self.side else (0.030 if left else -0.030)
        points = [joint + (out * (1.0 - 0.1 * i), 0) for i, joint in enumerate(joints)]
        for start, end in itertools.pairwise(points):
            self.layer.shape(_limb(start, end, 0.009, 0.008), stripe)

    def draw_shoe(self, ankle, shade: float) -> None:
        colour = _shade(self.colour(self.person.shoes), shade)
        if self.side:
            heel, toe = ankle + (-0.014, 0.020), ankle + (0.052, 0.026)
            self.layer.outlined(_limb(heel, toe, 0.022, 0.015), colour)
        else:
            drop = 0.024 if self.back else 0.030
            self.layer.outlined(_limb(ankle, ankle + (0, drop), 0.024, 0.025), colour)

    def draw_skirt(self) -> None:
        person = self.person
        if person.lower_kind not in ("skirt", "long skirt"):
            return
        hem, flare = (0.70, 1.35) if person.lower_kind == "skirt" else (0.86, 1.60)
        sway = 0.012 * np.sin(self.shot.phase)
        w = self.hips
        outline = [(-w * 0.92, 0.46), (w * 0.92, 0.46), (w * flare + sway, hem),
                   (0.0, hem + 0.012), (-w * flare + sway, hem)]
        self.layer.outlined(np.array(outline), self.colour(person.lower))
        if person.lower_stripe:
            band = [(-w * 2, hem - 0.045), (w * 2, hem - 0.045), (w * 2, hem - 0.015),
                    (-w * 2, hem - 0.015)]
            self.layer.inside(np.array(outline), [np.array(band)],
                              self.colour(person.upper_accent))

    def draw_arm(self, left: bool, shade: float) -> None:
        person = self.person
        shoulder, elbow, hand = self.arm_joints(left)
        b = 0.5 + 0.5 * person.build
        sleeve = person.upper_accent if person.upper_pattern == "block" else person.upper
        cloth, skin = _shade(self.colour(sleeve), shade), _shade(self.skin, shade)
        self.layer.outlined(_limb(_between(elbow, hand, 0.9), _between(elbow, hand, 1.06),
                                  0.019, 0.017), skin)
        long = person.sleeve == "long"
        wrist = _between(elbow, hand, 0.82)
        self.layer.outlined(_limb(elbow, wrist, 0.027 * b, 0.021 * b), cloth if long else skin)
        self.layer.outlined(_limb(shoulder, elbow, 0.033 * b, 0.027 * b), cloth if long else skin)
        if long:
            self.layer.shape(_limb(elbow, wrist, 0.024 * b, 0.018 * b), cloth)
            if person.upper_pattern == "stripes":
                stripe = _shade(self.colour(person.upper_accent), shade)
                for start, end in ((shoulder, elbow), (elbow, wrist)):
                    self.layer.inside(_limb(start, end, 0.030 * b, 0.022 * b), self.stripes(),
                                      stripe)
        if person.sleeve == "short":
            cuff = _between(shoulder, elbow, 0.72)
            self.layer.outlined(_limb(shoulder, cuff, 0.036 * b, 0.036 * b), cloth)

    def draw_torso(self) -> None:
        outline = self.torso_outline()
        self.layer.outlined(outline, self.colour(self.person.upper))
        self.draw_pattern(outline)

    def stripes(self):
        return [_box(-0.4, y, 0.4, y + 0.033) for y in np.arange(0.215, self.hem, 0.070)]

    def draw_pattern(self, outline: np.ndarray) -> None:
        pattern, accent = self.person.upper_pattern, self.colour(self.person.upper_accent)
        wide = 0.30
        if pattern == "stripes":
            self.layer.inside(outline, self.stripes(), accent)
        elif pattern == "block":
            self.layer.inside(outline, [_box(-wide, 0.0, wide, 0.285)], accent)
        elif pattern == "checks":
            across = [_box(-wide, y, wide, y + 0.016) for y in np.arange(0.20, self.hem, 0.052)]
            down = [_box(x, 0.0, x + 0.016, 1.0) for x in np.arange(-0.182, 0.2, 0.052)]
            self.layer.inside(outline, across + down, accent)
        elif pattern == "logo" and self.front:
            self.layer.inside(outline, [_ellipse(0.0, 0.305, 0.052, 0.046)], accent)
        elif pattern == "open" and not self.back:
            middle = 0.045 if self.side else 0.0
            self.layer.inside(outline, [_box(middle - 0.034, 0.0, middle + 0.034, 1.0)], accent)

    def draw_head(self) -> None:
        head, layer = self.person.head, self.layer
        x = 0.014 if self.side else 0.0
        rx, ry = (0.050 if self.side else 0.046) * head, 0.064 * head
        centre = 0.092
        self.draw_hair_behind(x, centre, rx)
        neck = [(-0.026, 0.13), (0.026, 0.13), (0.029, 0.180), (-0.029, 0.180)]
        layer.shape(np.array(neck), _shade(self.skin, 0.84))
        if self.front:
            layer.shape(_ellipse(0.0, 0.176, 0.034, 0.019), _shade(self.skin, 0.90))
        layer.outlined(_ellipse(x, centre, rx, ry), self.skin, edge=0.80)
        self.draw_face(x, centre, rx)
        self.draw_hair(x, centre, rx, ry)
        self.draw_hat(x, centre, rx, ry)

    def draw_face(self, x: float, y: float, rx: float) -> None:
        dark = _shade(self.skin, 0.45)
        if self.front:
            for sign in (-1.0, 1.0):
                self.layer.shape(_ellipse(sign * 0.42 * rx, y + 0.002, 0.0075, 0.0055), dark)
            self.layer.shape(_ellipse(0.0, y + 0.034, 0.013, 0.0045), _shade(self.skin, 0.68))
        elif self.side:
            self.layer.shape(_ellipse(x + 0.62 * rx, y + 0.001, 0.007, 0.0055), dark)
            nose = [(x + rx * 0.93, y + 0.002), (x + rx * 1.2, y + 0.02), (x + rx * 0.9, y + 0.026)]
            self.layer.shape(np.array(nose), self.skin)

    def draw_hair_behind(self, x: float, y: float, rx: float) -> None:
        """Long hair that the head hides in part."""
        if self.person.hair_style != "long" or self.back:
            return
        middle = x - (0.030 if self.side else 0.0)
        wide = rx * (0.78 if self.side else 1.22)
        self.layer.outlined(_rounded(middle - wide, y - 0.05, middle + wide, 0.222, 0.030),
                            self.hair)

    def draw_hair(self, x: float, y: float, rx: float, ry: float) -> None:
        style, layer, hair = self.person.hair_style, self.layer, self.hair
        if style == "bald":
            return
        if self.back:
            layer.outlined(_ellipse(x, y - 0.006, rx * 1.08, ry * 0.98), hair)
            if style == "long":
                layer.outlined(_rounded(-rx * 1.1, y - 0.03, rx * 1.1, 0.245, 0.034), hair)
        elif self.side:
            layer.shape(_upper_half(x - 0.004, y - 0.012, rx * 1.10, ry * 0.92), hair)
            layer.shape(_ellipse(x - rx * 0.48, y - 0.006, rx * 0.64, ry * 0.80), hair)
        else:
            layer.shape(_upper_half(x, y - 0.020, rx * 1.08, ry * 0.78), hair)
            for sign in (-1.0, 1.0):
                layer.shape(_ellipse(x + sign * rx * 0.98, y - 0.012, 0.008, 0.022), hair)
        if style == "bun":
            layer.outlined(_ellipse(x - (0.042 if self.side else 0.0), 0.022, 0.026, 0.024), hair)

    def draw_hat(self, x: float, y: float, rx: float, ry: float) -> None:
        person, layer = self.person, self.layer
        if person.hat == "none":
            return
        colour = self.colour(person.hat_colour)
        if person.hat == "beanie":
            layer.outlined(_upper_half(x, y - 0.012, rx * 1.16, ry * 1.20), colour)
            band = _box(x - rx * 1.18, y - 0.028, x + rx * 1.18, y - 0.008)
            layer.shape(band, _shade(colour, 0.78))
            return
        layer.outlined(_upper_half(x, y - 0.020, rx * 1.14, ry * 0.92), colour)
        if self.side:
            brim = _box(x + rx * 0.5, y - 0.030, x + rx * 1.95, y - 0.016)
            layer.outlined(brim, _shade(colour, 0.80))
        elif self.front:
            layer.outlined(_ellipse(x, y - 0.020, rx * 1.12, 0.013), _shade(colour, 0.72))

    # Carried things ------------------------------------------------------------------------

    def draw_backpack(self) -> None:
        """The pack seen from behind or from the side; its straps seen from the front."""
        colour = self.colour(self.person.bag_colour)
        if self.back:
            pack = _rounded(-0.086, 0.195, 0.086, 0.430, 0.03)
            self.layer.outlined(pack, colour, edge=0.6)
            pocket = _rounded(-0.058, 0.325, 0.058, 0.410, 0.02)
            self.layer.outlined(pocket, _shade(colour, 0.82), edge=0.7)
        elif self.side:
            edge = -self.shoulder
            pack = _rounded(edge - 0.078, 0.195, edge + 0.018, 0.420, 0.028)
            self.layer.outlined(pack, colour, edge=0.6)
            strap = _limb((0.0, 0.182), (-0.035, 0.33), 0.012, 0.010)
            self.layer.outlined(strap, _shade(colour, 0.85))
        else:
            for sign in (-1.0, 1.0):
                x = sign * self.shoulder * 0.58
                strap = _limb((x, 0.184), (x * 1.1, 0.360), 0.013, 0.011)
                self.layer.outlined(strap, _shade(colour, 0.9))

    def draw_shoulder_bag(self) -> None:
        colour = self.colour(self.person.bag_colour)
        sign = 1.0 if self.person.bag_on_left else -1.0
        hip = (0.0, 0.47) if self.side else (sign * (self.hips + 0.012), 0.47)
        start = (0.01, 0.18) if self.side else (-sign * self.shoulder * 0.72, 0.185)
        self.layer.shape(_limb(start, hip, 0.009, 0.009), _shade(colour, 0.75))
        bag = _rounded(hip[0] - 0.056, 0.455, hip[0] + 0.056, 0.560, 0.02)
        self.layer.outlined(bag, colour, edge=0.6)

    def draw_handbag(self) -> None:
        colour = self.colour(self.person.bag_colour)
        _, _, hand = self.arm_joints(self.person.bag_on_left)
        x, y = hand
        self.layer.shape(_limb((x, y), (x, y + 0.06), 0.007, 0.007), _shade(colour, 0.75))
        bag = _rounded(x - 0.050, y + 0.05, x + 0.050, y + 0.155, 0.015)
        self.layer.outlined(bag, colour, edge=0.6)

    def draw_umbrella(self) -> None:
        """An open umbrella over the head; a picture with one shows a smaller figure."""
        colour = self.colour(self.person.bag_colour)
        _, _, (x, y) = self.arm_joints(self.person.bag_on_left)
        middle = x * 0.5
        self.layer.shape(_limb((x, -0.05), (x, y + 0.03), 0.006, 0.006), (70, 70, 74))
        self.layer.outlined(_upper_half(middle, 0.020, 0.235, 0.150), colour, edge=0.6)
        for place in (-0.42, 0.42):
            rib = _limb((middle, -0.13), (middle + place * 0.235, 0.017), 0.003, 0.003)
            self.layer.shape(rib, _shade(colour, 0.7))

    def draw_bag(self, near: bool) -> None:
        """Draws the carried thing if it belongs before (``near``) or behind the body."""
        person = self.person
        # Facing right shows the right side of the body, so a thing on the left is behind it.
        hidden = self.side and (person.bag_on_left == (self.shot.facing == "right"))
        if person.bag == "backpack" and near:
            self.draw_backpack()
        elif person.bag == "shoulder bag" and near != hidden:
            self.draw_shoulder_bag()
        elif person.bag == "handbag" and near != hidden:
            self.draw_handbag()
        elif person.bag == "umbrella" and near != self.back:
            self.draw_umbrella()

    def draw(self) -> None:
        self.draw_bag(near=False)
        near_left = self.shot.facing == "left"
        if self.side:
            self.draw_arm(not near_left, 0.72)
            self.draw_leg(not near_left, 0.74)
            self.draw_leg(near_left, 1.0)
        else:
            self.draw_leg(True, 0.96)
            self.draw_leg(False, 1.0)
        self.draw_skirt()
        self.draw_torso()
        if not self.side:
            self.draw_arm(True, 0.93)
            self.draw_arm(False, 0.97)
        self.draw_head()
        self.draw_bag(near=True)
        if self.side:
            self.draw_arm(near_left, 0.97)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Outline of a rectangle with round corners."""
    corners = [(x0 + radius, y0 + radius), (x1 - radius, y0 + radius),
               (x1 - radius, y1 - radius), (x0 + radius, y1 - radius)]
    points = np.concatenate([_CIRCLE * radius + corner for corner in corners])
    return cv2.convexHull(points.astype(np.float32))[:, 0]


def _draw_person(person: Person, camera: Camera, shot: Shot, height: int, width: int,
                 shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draws the lit figure.

    Returns:
        Colours multiplied by coverage, float32 (height, width, 3) in [0, 255], and coverage,
        float32 (height, width) in [0, 1].
    """
    body = shot.scale * height
    top = (0.5 + shot.offset[1]) * height - 0.5 * body
    if person.bag == "umbrella":
        body *= 0.84
        top += 0.15 * height
    centre = (0.5 * width) + (shot.offset[0] + shift) * height
    frame = _Frame(centre, top, body, camera.view, camera.lean,
                   mirror=shot.facing in ("left", "back"))
    layer = _Layer(height, width, frame)
    _Figure(person, shot, layer).draw()
    cover = layer.cover.astype(np.float32) / 255.0
    # Rounding: the blurred coverage falls off towards the outline, where a body turns away.
    roundness = cv2.GaussianBlur(cover, (0, 0), 0.018 * height)
    across = (np.arange(width, dtype=np.float32) - centre) / (0.15 * height)
    light = (0.70 + 0.36 * roundness) * (1.0 + shot.side_light * np.clip(across, -1, 1))
    return layer.image.astype(np.float32) * light[..., None], cover


# ---------------------------------------------------------------------------------------------
# Background scenes
# ---------------------------------------------------------------------------------------------


def _texture(rng: np.random.Generator, height: int, width: int, grain: float,
             strength: float) -> np.ndarray:
    """Smooth noise around 1, shape (height, width, 1); ``grain`` is its scale in pixels."""
    noise = rng.standard_normal((int(height / grain) + 2, int(width / grain) + 2))
    noise = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return 1.0 + strength * noise[..., None]


def _rect(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour) -> None:
    """Fills a rectangle given in shares of the image's width and height."""
    h, w = image.shape[:2]
    _fill(image, _box(x0 * w, y0 * h, x1 * w, y1 * h), colour)


def _quad(image: np.ndarray, points, colour) -> None:
    h, w = image.shape[:2]
    _fill(image, np.asarray(points) * (w, h), colour)


def _scene_brick(image: np.ndarray, rng: np.random.Generator) -> None:
    """A brick wall with a window over a pavement of slabs."""
    _rect(image, 0, 0, 1, 1, (150, 88, 66))
    rows = 17
    for row in range(rows):
        y = 0.66 * row / rows
        _rect(image, 0, y, 1, y + 0.005, (178, 158, 142))
        for x in np.arange(-0.05 + 0.04 * (row % 2), 1.0, 0.08):
            tone = _shade((156, 88, 64), rng.uniform(0.82, 1.14))
            _rect(image, x + 0.004, y + 0.006, x + 0.076, y + 0.66 / rows, tone)
    for x in (0.14, 0.66):
        _rect(image, x, 0.08, x + 0.17, 0.38, (214, 208, 196))
        _rect(image, x + 0.015, 0.095, x + 0.155, 0.365, (66, 84, 100))
        _rect(image, x + 0.08, 0.08, x + 0.09, 0.38, (214, 208, 196))
    _rect(image, 0, 0.66, 1, 0.69, (96, 88, 84))
    _rect(image, 0, 0.69, 1, 1, (172, 164, 152))
    for y in (0.76, 0.86):
        _rect(image, 0, y, 1, y + 0.006, (132, 124, 114))
    for x in np.arange(0.0, 1.4, 0.17):
        _quad(image, [(x, 0.69), (x + 0.008, 0.69), (x - 0.152, 1), (x - 0.16, 1)],
              (132, 124, 114))


def _scene_lawn(image: np.ndarray, rng: np.random.Generator) -> None:
    """A lawn with a hedge, tree trunks and a sandy path."""
    _rect(image, 0, 0, 1, 1, (168, 196, 214))
    for _ in range(150):
        x, y, r = rng.uniform(0, 1), rng.uniform(0.0, 0.36), rng.uniform(0.02, 0.07)
        tone = _shade((64, 104, 54), rng.uniform(0.7, 1.3))
        _quad(image, _ellipse(x, y, r, r * 0.8), tone)
    for x in (0.12, 0.47, 0.81):
        _quad(image, [(x, 0.0), (x + 0.05, 0.0), (x + 0.06, 0.52), (x - 0.012, 0.52)],
              (92, 72, 52))
    _rect(image, 0, 0.44, 1, 1, (104, 150, 70))
    for _ in range(420):
        x, y = rng.uniform(0, 1), rng.uniform(0.44, 1)
        tone = _shade((104, 150, 70), rng.uniform(0.78, 1.22))
        _quad(image, [(x, y), (x + 0.012, y + 0.004), (x + 0.004, y - 0.03)], tone)
    _quad(image, [(0.30, 0.46), (0.40, 0.46), (0.92, 1), (0.40, 1)], (196, 178, 138))


def _scene_fence(image: np.ndarray, rng: np.random.Generator) -> None:
    """A metal fence before a grey sky and a far block of flats, over asphalt."""
    _rect(image, 0, 0, 1, 1, (196, 204, 214))
    for x in (0.05, 0.38, 0.72):
        _rect(image, x, 0.06, x + 0.22, 0.58, (150, 152, 162))
        for row in range(5):
            for column in range(3):
                x0, y0 = x + 0.025 + 0.065 * column, 0.10 + 0.09 * row
                _rect(image, x0, y0, x0 + 0.04, y0 + 0.05, (98, 110, 130))
    _rect(image, 0, 0.56, 1, 1, (104, 106, 112))
    _rect(image, 0, 0.52, 1, 0.58, (92, 112, 78))
    for y in (0.20, 0.54):
        _rect(image, 0, y, 1, y + 0.018, (52, 60, 66))
    for x in np.arange(0.0, 1.0, 0.045):
        _rect(image, x, 0.16, x + 0.012, 0.60, (58, 66, 72))
    _quad(image, [(0.0, 0.86), (1.0, 0.78), (1.0, 0.81), (0.0, 0.89)], (206, 204, 196))


def _scene_glass(image: np.ndarray, rng: np.random.Generator) -> None:
    """A bright glass front with doors over a floor of light tiles."""
    _rect(image, 0, 0, 1, 1, (186, 200, 206))
    for x in np.arange(0.0, 1.0, 0.20):
        tone = _shade((150, 176, 188), rng.uniform(0.85, 1.15))
        _rect(image, x + 0.012, 0.03, x + 0.19, 0.60, tone)
        _quad(image, [(x + 0.05, 0.03), (x + 0.09, 0.03), (x + 0.05, 0.40), (x + 0.012, 0.40)],
              _shade(tone, 1.15))
    _rect(image, 0, 0.22, 1, 0.245, (224, 226, 226))
    _rect(image, 0.42, 0.08, 0.60, 0.62, (84, 92, 98))
    _rect(image, 0.435, 0.10, 0.505, 0.61, (168, 190, 196))
    _rect(image, 0.515, 0.10, 0.585, 0.61, (168, 190, 196))
    _rect(image, 0, 0.61, 1, 1, (206, 202, 194))
    for y in (0.67, 0.75, 0.86):
        _rect(image, 0, y, 1, y + 0.005, (168, 166, 160))
    for x in np.arange(-0.5, 1.5, 0.125):
        _quad(image, [(0.5 + (x - 0.5) * 0.7, 0.61), (0.506 + (x - 0.5) * 0.7, 0.61),
                      (0.508 + (x - 0.5) * 1.3, 1), (0.5 + (x - 0.5) * 1.3, 1)], (168, 166, 160))


def _scene_street(image: np.ndarray, rng: np.random.Generator) -> None:
    """A dark street: shop fronts, a parked car, a kerb and a zebra crossing."""
    _rect(image, 0, 0, 1, 1, (82, 80, 84))
    for x, tone in ((0.0, (104, 84, 76)), (0.27, (74, 88, 96)), (0.54, (110, 104, 88)),
                    (0.80, (78, 72, 92))):
        _rect(image, x, 0.0, x + 0.255, 0.56, tone)
        _rect(image, x + 0.03, 0.20, x + 0.225, 0.47, (188, 172, 118))
        _rect(image, x + 0.01, 0.12, x + 0.245, 0.19, _shade(tone, 1.5))
    _rect(image, 0, 0.54, 1, 0.66, (132, 128, 126))
    _rect(image, 0, 0.65, 1, 0.67, (164, 160, 156))
    _rect(image, 0, 0.67, 1, 1, (70, 70, 76))
    _quad(image, [(0.58, 0.60), (0.62, 0.50), (0.68, 0.43), (0.86, 0.43), (0.92, 0.51),
                  (0.98, 0.54), (0.98, 0.64), (0.58, 0.64)], (126, 40, 44))
    _quad(image, [(0.65, 0.50), (0.69, 0.45), (0.85, 0.45), (0.89, 0.50)], (44, 52, 62))
    for x in (0.66, 0.90):
        _quad(image, _ellipse(x, 0.64, 0.035, 0.035), (28, 28, 30))
    for x in np.arange(0.02, 0.55, 0.13):
        _quad(image, [(x + 0.04, 0.72), (x + 0.11, 0.72), (x + 0.07, 1), (x - 0.02, 1)],
              (184, 182, 176))


def _scene_corridor(image: np.ndarray, rng: np.random.Generator) -> None:
    """A warm indoor corridor: plaster, doors, a notice board, a shiny floor."""
    _rect(image, 0, 0, 1, 1, (208, 196, 164))
    _rect(image, 0, 0.36, 1, 0.62, (150, 168, 148))
    _rect(image, 0, 0.355, 1, 0.37, (112, 100, 80))
    for x in (0.08, 0.74):
        _rect(image, x, 0.05, x + 0.20, 0.64, (98, 66, 42))
        _rect(image, x + 0.012, 0.06, x + 0.188, 0.64, (142, 98, 60))
        _rect(image, x + 0.05, 0.12, x + 0.15, 0.28, (190, 196, 176))
        _quad(image, _ellipse(x + 0.165, 0.40, 0.01, 0.01), (220, 210, 170))
    _rect(image, 0.38, 0.08, 0.64, 0.30, (70, 96, 78))
    for _ in range(9):
        x, y = rng.uniform(0.39, 0.58), rng.uniform(0.09, 0.24)
        _rect(image, x, y, x + 0.04, y + 0.05, _shade((226, 220, 200), rng.uniform(0.8, 1.1)))
    _rect(image, 0, 0.62, 1, 1, (164, 124, 88))
    _rect(image, 0, 0.62, 1, 0.645, (92, 74, 58))
    for x in (0.18, 0.52, 0.84):
        _quad(image, [(x - 0.05, 0.66), (x + 0.05, 0.66), (x + 0.10, 1), (x - 0.10, 1)],
              (192, 156, 116))


SCENES = {
    "brick": _scene_brick,
    "lawn": _scene_lawn,
    "fence": _scene_fence,
    "glass": _scene_glass,
    "street": _scene_street,
    "corridor": _scene_corridor,
}


@functools.lru_cache(maxsize=16)
def _scene(name: str, seed: int, height: int, width: int) -> np.ndarray:
    """The whole scene a camera looks at, uint8 of shape (height, width, 3), read-only."""
    rng = np.random.default_rng([seed])
    image = np.zeros((height, width, 3), np.uint8)
    SCENES[name](image, rng)
    textured = image.astype(np.float32)
    textured *= _texture(rng, height, width, 3.0, 0.05)
    textured *= _texture(rng, height, width, height / 6.0, 0.06)
    textured = 124.0 + SCENE_CONTRAST * (textured - 124.0)
    result = np.clip(textured, 0, 255).astype(np.uint8)
    result.flags.writeable = False
    return result


def _background(camera: Camera, shot: Shot, height: int, width: int) -> np.ndarray:
    """The part of the scene that a box cuts out, float32 (height, width, 3) in [0, 255]."""
    whole = _scene(camera.scene, camera.scene_seed, int(height * SCENE_HEIGHT),
                   int(width * SCENE_WIDTH))
    x = int(shot.scene_offset[0] * (whole.shape[1] - width))
    y = int(shot.scene_offset[1] * (whole.shape[0] - height))
    return whole[y:y + height, x:x + width].astype(np.float32)


# ---------------------------------------------------------------------------------------------
# From the drawn world to the picture
# ---------------------------------------------------------------------------------------------


def _over(below: np.ndarray, layer: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return below * (1.0 - cover[..., None]) + layer


def _ground_shadow(canvas: np.ndarray, cover: np.ndarray, shot: Shot) -> np.ndarray:
    """Darkens the ground around the figure's feet."""
    height, width = cover.shape
    rows = np.flatnonzero(cover.max(axis=1) > 0.5)
    if rows.size == 0:
        return canvas
    shadow = np.zeros((height, width), np.float32)
    centre = (0.5 * width + shot.offset[0] * height, min(rows[-1] - 0.01 * height, height))
    _fill(shadow, _ellipse(centre[0], centre[1], 0.15 * height, 0.022 * height), 1.0)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.012 * height)
    return canvas * (1.0 - 0.45 * shadow[..., None])


def _occluder(camera: Camera, shot: Shot, height: int, width: int):
    """A layer and its coverage that hide a part of the person, or None."""
    place = shot.occlusion_place
    if shot.occlusion == "none":
        return None
    if shot.occlusion == "person":
        rng = np.random.default_rng([shot.noise_seed, 1])
        stranger, other = make_person(rng), make_shot(rng)
        shift = (0.19 + 0.08 * place) * (1.0 if place > 0.5 else -1.0)
        return _draw_person(stranger, camera, other, height, width, shift)
    layer = np.zeros((height, width, 3), np.uint8)
    cover = np.zeros((height, width), np.uint8)
    if shot.occlusion == "pole":
        x = width * (0.15 + 0.70 * place)
        outline, tone = _box(x - 0.05 * width, -1, x + 0.05 * width, height + 1), (112, 114, 116)
    else:
        x = width * (0.10 + 0.80 * place)
        outline = _rounded(x - 0.22 * width, 0.70 * height, x + 0.22 * width, 1.1 * height,
                           0.05 * width)
        tone = (74, 94, 84)
    _fill(layer, outline, tone)
    _fill(cover, outline, 255)
    return layer.astype(np.float32), cover.astype(np.float32) / 255.0


def _apply_style(image: np.ndarray, camera: Camera, shot: Shot) -> np.ndarray:
    """Passes a picture in [0, 1], float32 (H, W, 3), through the camera's optics and sensor."""
    height, width = image.shape[:2]
    sigma = camera.blur * height / 128.0
    if camera.blur > 0:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if camera.sharpen > 0 and camera.blur > 0:
        image = image + camera.sharpen * (image - cv2.GaussianBlur(image, (0, 0), 1.5 * sigma))
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image = grey[..., None] + camera.saturation * (image - grey[..., None])
    image = (1.0 - camera.mixing) * image + camera.mixing * np.roll(image, 1, axis=2)
    image = image * np.asarray(camera.gain, np.float32) * (camera.exposure * shot.light)
    image = np.clip(image, 0.0, 1.0) ** camera.gamma
    image = 0.5 + camera.contrast * (image - 0.5)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image = image * (1.0 - camera.vignette * 0.5 * (x * x + y * y))[..., None]
    noise = np.random.default_rng([shot.noise_seed]).standard_normal(image.shape, np.float32)
    return np.clip(image + camera.noise * noise, 0.0, 1.0)


def render_shot(person: Person | None, camera: Camera, shot: Shot,
                size: tuple[int, int] = (128, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Renders a given shot; ``person=None`` renders the same box without the person.

    Returns:
        The picture, uint8 RGB (H, W, 3), and the visible part of the person with everything worn
        and carried, bool (H, W).

    Raises:
        ValueError: a side of ``size`` is below 16 pixels.
    """
    if min(size) < 16:
        raise ValueError(f"size={tuple(size)}: both sides (H, W) must be at least 16 pixels")
    height, width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    canvas = _background(camera, shot, height, width)
    visible = np.zeros((height, width), np.float32)
    if person is not None:
        layer, visible = _draw_person(person, camera, shot, height, width)
        canvas = _over(_ground_shadow(canvas, visible, shot), layer, visible)
    hiding = _occluder(camera, shot, height, width)
    if hiding is not None:
        canvas = _over(canvas, *hiding)
        visible = visible * (1.0 - hiding[1])
    canvas = np.clip(canvas, 0.0, 255.0) / np.float32(255.0)
    small = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(visible, (size[1], size[0]), interpolation=cv2.INTER_AREA) >= 0.5
    picture = _apply_style(small, camera, shot)
    return np.round(picture * 255.0).astype(np.uint8), mask


def render(person: Person, camera: Camera, rng: np.random.Generator,
           size: tuple[int, int] = (128, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Renders one picture of ``person`` by ``camera``.

    Args:
        person: whom to draw.
        camera: who looks.
        rng: draws pose, facing, box, light, occlusion and noise.
        size: height and width in pixels.

    Returns:
        The picture, uint8 RGB (H, W, 3), and the visible part of the person with everything worn
        and carried, bool (H, W).

    Raises:
        ValueError: a side of ``size`` is below 16 pixels.
    """
    return render_shot(person, camera, make_shot(rng), size)


def contact_sheet(people: int = 8, cameras: int = 6, seed: int = 0,
                  size: tuple[int, int] = (128, 64), gap: int = 4) -> Image.Image:
    """A picture of pictures: one row per person, one column per camera.

    Raises:
        ValueError: ``people`` or ``cameras`` is below 1.
    """
    if people < 1 or cameras < 1:
        raise ValueError(f"people={people}, cameras={cameras}: both must be at least 1")
    height, width = size
    sheet = np.full((people * (height + gap) + gap, cameras * (width + gap) + gap, 3), 255,
                    np.uint8)
    for row in range(people):
        person = make_person(np.random.default_rng([seed, row + 1]))
        for column in range(cameras):
            rng = np.random.default_rng([seed, row + 1, column + 1, 0])
            picture, _ = render(person, make_camera(column), rng, size)
            y, x = gap + row * (height + gap), gap + column * (width + gap)
            sheet[y:y + height, x:x + width] = picture
    return Image.fromarray(sheet)
