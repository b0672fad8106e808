"""Background scenes, one for each kind of camera position."""

from __future__ import annotations

import functools

import numpy as np

from .shapes import draw_texture, ellipse_points, quad_points, rect_points, shaded

# Scenes keep this share of their contrast, as if hazy, so that they do not drown the people.
SCENE_CONTRAST = 0.6
# The scene is wider and higher than a box by these factors, so that boxes cut different parts.
SCENE_WIDTH, SCENE_HEIGHT = 2.2, 1.25


def _scene_brick(image: np.ndarray, rng: np.random.Generator) -> None:
    """A brick wall with a window over a pavement of slabs."""
    rect_points(image, 0, 0, 1, 1, (150, 88, 66))
    rows = 17
    for row in range(rows):
        y = 0.66 * row / rows
        rect_points(image, 0, y, 1, y + 0.005, (178, 158, 142))
        for x in np.arange(-0.05 + 0.04 * (row % 2), 1.0, 0.08):
            tone = shaded((156, 88, 64), rng.uniform(0.82, 1.14))
            rect_points(image, x + 0.004, y + 0.006, x + 0.076, y + 0.66 / rows, tone)
    for x in (0.14, 0.66):
        rect_points(image, x, 0.08, x + 0.17, 0.38, (214, 208, 196))
        rect_points(image, x + 0.015, 0.095, x + 0.155, 0.365, (66, 84, 100))
        rect_points(image, x + 0.08, 0.08, x + 0.09, 0.38, (214, 208, 196))
    rect_points(image, 0, 0.66, 1, 0.69, (96, 88, 84))
    rect_points(image, 0, 0.69, 1, 1, (172, 164, 152))
    for y in (0.76, 0.86):
        rect_points(image, 0, y, 1, y + 0.006, (132, 124, 114))
    for x in np.arange(0.0, 1.4, 0.17):
        quad_points(image, [(x, 0.69), (x + 0.008, 0.69), (x - 0.152, 1), (x - 0.16, 1)],
              (132, 124, 114))


def _scene_lawn(image: np.ndarray, rng: np.random.Generator) -> None:
    """A lawn with a hedge, tree trunks and a sandy path."""
    rect_points(image, 0, 0, 1, 1, (168, 196, 214))
    for _ in range(150):
        x, y, r = rng.uniform(0, 1), rng.uniform(0.0, 0.36), rng.uniform(0.02, 0.07)
        tone = shaded((64, 104, 54), rng.uniform(0.7, 1.3))
        quad_points(image, ellipse_points(x, y, r, r * 0.8), tone)
    for x in (0.12, 0.47, 0.81):
        quad_points(image, [(x, 0.0), (x + 0.05, 0.0), (x + 0.06, 0.52), (x - 0.012, 0.52)],
              (92, 72, 52))
    rect_points(image, 0, 0.44, 1, 1, (104, 150, 70))
    for _ in range(420):
        x, y = rng.uniform(0, 1), rng.uniform(0.44, 1)
        tone = shaded((104, 150, 70), rng.uniform(0.78, 1.22))
        quad_points(image, [(x, y), (x + 0.012, y + 0.004), (x + 0.004, y - 0.03)], tone)
    quad_points(image, [(0.30, 0.46), (0.40, 0.46), (0.92, 1), (0.40, 1)], (196, 178, 138))


def _scene_fence(image: np.ndarray, rng: np.random.Generator) -> None:
    """A metal fence before a grey sky and a far block of flats, over asphalt."""
    rect_points(image, 0, 0, 1, 1, (196, 204, 214))
    for x in (0.05, 0.38, 0.72):
        rect_points(image, x, 0.06, x + 0.22, 0.58, (150, 152, 162))
        for row in range(5):
            for column in range(3):
                x0, y0 = x + 0.025 + 0.065 * column, 0.10 + 0.09 * row
                rect_points(image, x0, y0, x0 + 0.04, y0 + 0.05, (98, 110, 130))
    rect_points(image, 0, 0.56, 1, 1, (104, 106, 112))
    rect_points(image, 0, 0.52, 1, 0.58, (92, 112, 78))
    for y in (0.20, 0.54):
        rect_points(image, 0, y, 1, y + 0.018, (52, 60, 66))
    for x in np.arange(0.0, 1.0, 0.045):
        rect_points(image, x, 0.16, x + 0.012, 0.60, (58, 66, 72))
    quad_points(image, [(0.0, 0.86), (1.0, 0.78), (1.0, 0.81), (0.0, 0.89)], (206, 204, 196))


def _scene_glass(image: np.ndarray, rng: np.random.Generator) -> None:
    """A bright glass front with doors over a floor of light tiles."""
    rect_points(image, 0, 0, 1, 1, (186, 200, 206))
    for x in np.arange(0.0, 1.0, 0.20):
        tone = shaded((150, 176, 188), rng.uniform(0.85, 1.15))
        rect_points(image, x + 0.012, 0.03, x + 0.19, 0.60, tone)
        light = [(x + 0.05, 0.03), (x + 0.09, 0.03), (x + 0.05, 0.40), (x + 0.012, 0.40)]
        quad_points(image, light, shaded(tone, 1.15))
    rect_points(image, 0, 0.22, 1, 0.245, (224, 226, 226))
    rect_points(image, 0.42, 0.08, 0.60, 0.62, (84, 92, 98))
    rect_points(image, 0.435, 0.10, 0.505, 0.61, (168, 190, 196))
    rect_points(image, 0.515, 0.10, 0.585, 0.61, (168, 190, 196))
    rect_points(image, 0, 0.61, 1, 1, (206, 202, 194))
    for y in (0.67, 0.75, 0.86):
        rect_points(image, 0, y, 1, y + 0.005, (168, 166, 160))
    for x in np.arange(-0.5, 1.5, 0.125):
        quad_points(image, [(0.5 + (x - 0.5) * 0.7, 0.61), (0.506 + (x - 0.5) * 0.7, 0.61),
                      (0.508 + (x - 0.5) * 1.3, 1), (0.5 + (x - 0.5) * 1.3, 1)], (168, 166, 160))


def _scene_street(image: np.ndarray, rng: np.random.Generator) -> None:
    """A dark street: shop fronts, a parked car, a kerb and a zebra crossing."""
    rect_points(image, 0, 0, 1, 1, (82, 80, 84))
    for x, tone in ((0.0, (104, 84, 76)), (0.27, (74, 88, 96)), (0.54, (110, 104, 88)),
                    (0.80, (78, 72, 92))):
        rect_points(image, x, 0.0, x + 0.255, 0.56, tone)
        rect_points(image, x + 0.03, 0.20, x + 0.225, 0.47, (188, 172, 118))
        rect_points(image, x + 0.01, 0.12, x + 0.245, 0.19, shaded(tone, 1.5))
    rect_points(image, 0, 0.54, 1, 0.66, (132, 128, 126))
    rect_points(image, 0, 0.65, 1, 0.67, (164, 160, 156))
    rect_points(image, 0, 0.67, 1, 1, (70, 70, 76))
    quad_points(image, [(0.58, 0.60), (0.62, 0.50), (0.68, 0.43), (0.86, 0.43), (0.92, 0.51),
                  (0.98, 0.54), (0.98, 0.64), (0.58, 0.64)], (126, 40, 44))
    quad_points(image, [(0.65, 0.50), (0.69, 0.45), (0.85, 0.45), (0.89, 0.50)], (44, 52, 62))
    for x in (0.66, 0.90):
        quad_points(image, ellipse_points(x, 0.64, 0.035, 0.035), (28, 28, 30))
    for x in np.arange(0.02, 0.55, 0.13):
        quad_points(image, [(x + 0.04, 0.72), (x + 0.11, 0.72), (x + 0.07, 1), (x - 0.02, 1)],
              (184, 182, 176))


def _scene_corridor(image: np.ndarray, rng: np.random.Generator) -> None:
    """A warm indoor corridor: plaster, doors, a notice board, a shiny floor."""
    rect_points(image, 0, 0, 1, 1, (208, 196, 164))
    rect_points(image, 0, 0.36, 1, 0.62, (150, 168, 148))
    rect_points(image, 0, 0.355, 1, 0.37, (112, 100, 80))
    for x in (0.08, 0.74):
        rect_points(image, x, 0.05, x + 0.20, 0.64, (98, 66, 42))
        rect_points(image, x + 0.012, 0.06, x + 0.188, 0.64, (142, 98, 60))
        rect_points(image, x + 0.05, 0.12, x + 0.15, 0.28, (190, 196, 176))
        quad_points(image, ellipse_points(x + 0.165, 0.40, 0.01, 0.01), (220, 210, 170))
    rect_points(image, 0.38, 0.08, 0.64, 0.30, (70, 96, 78))
    for _ in range(9):
        x, y = rng.uniform(0.39, 0.58), rng.uniform(0.09, 0.24)
        rect_points(image, x, y, x + 0.04, y + 0.05, shaded((226, 220, 200), rng.uniform(0.8, 1.1)))
    rect_points(image, 0, 0.62, 1, 1, (164, 124, 88))
    rect_points(image, 0, 0.62, 1, 0.645, (92, 74, 58))
    for x in (0.18, 0.52, 0.84):
        quad_points(image, [(x - 0.05, 0.66), (x + 0.05, 0.66), (x + 0.10, 1), (x - 0.10, 1)],
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
def draw_scene(name: str, seed: int, height: int, width: int) -> np.ndarray:
    """The whole scene a camera looks at, uint8 of shape (height, width, 3), read-only."""
    rng = np.random.default_rng([seed])
    image = np.zeros((height, width, 3), np.uint8)
    SCENES[name](image, rng)
    textured = image.astype(np.float32)
    textured *= draw_texture(rng, height, width, 3.0, 0.05)
    textured *= draw_texture(rng, height, width, height / 6.0, 0.06)
    textured = 124.0 + SCENE_CONTRAST * (textured - 124.0)
    result = np.clip(textured, 0, 255).astype(np.uint8)
    result.flags.writeable = False
    return result
