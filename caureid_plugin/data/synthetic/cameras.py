"""Cameras (scene and style, the same for everybody) and shots (what changes by picture)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...common.errors import UserError
from .people import choose_from
from .scenes import SCENES

FACINGS = ("front", "back", "left", "right")
OCCLUSIONS = ("none", "pole", "bin", "person")


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
            raise UserError(f"source={source}: a camera's index must be 0 or more")
        if source < len(PRESET_CAMERAS):
            return PRESET_CAMERAS[source]
        source = np.random.default_rng([source])
    rng = source
    gain = rng.uniform(0.82, 1.20, 3)
    return Camera(
        scene=choose_from(rng, tuple(SCENES)),
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
    occlusion = choose_from(rng, OCCLUSIONS, (0.82, 0.06, 0.05, 0.07))
    scale = float(np.clip(rng.normal(0.92, 0.045), 0.80, 1.06))
    # One box in eight is cut too high and loses the feet.
    drop = 0.10 if rng.random() < 0.12 else 0.0
    return Shot(
        facing=choose_from(rng, FACINGS, (0.32, 0.30, 0.19, 0.19)),
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
