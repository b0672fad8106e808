"""Polygons, limbs, boxes and textures, the pieces that scenes and figures are drawn with."""

from __future__ import annotations

import cv2
import numpy as np

Colour = tuple[int, int, int]
# Drawing happens on a canvas this many times larger, which is then averaged down.
SUPERSAMPLING = 3
# Drawing primitives

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24, endpoint=False)),
                    np.sin(np.linspace(0, 2 * np.pi, 24, endpoint=False))], axis=1)


def shaded(colour, factor: float) -> Colour:
    return tuple(int(np.clip(c * factor, 0, 255)) for c in colour)


def fill_polygon(image: np.ndarray, points: np.ndarray, colour) -> None:
    """Fills an anti-aliased polygon given in pixels (x, y) of ``image``."""
    fixed = np.round(np.asarray(points) * 16.0).astype(np.int32)
    cv2.fillPoly(image, [fixed], colour, lineType=cv2.LINE_AA, shift=4)


def ellipse_points(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _CIRCLE * (rx, ry) + (x, y)


def upper_half_points(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    angles = np.linspace(np.pi, 2 * np.pi, 14)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def draw_limb(start, end, r0: float, r1: float) -> np.ndarray:
    """Outline of a rounded limb that tapers from radius ``r0`` to ``r1``."""
    discs = np.concatenate([_CIRCLE * r0 + start, _CIRCLE * r1 + end]).astype(np.float32)
    return cv2.convexHull(discs)[:, 0]


def point_between(start, end, share: float) -> np.ndarray:
    return np.asarray(start) + (np.asarray(end) - np.asarray(start)) * share


def box_points(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def rounded_box(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Outline of a rectangle with round corners."""
    corners = [(x0 + radius, y0 + radius), (x1 - radius, y0 + radius),
               (x1 - radius, y1 - radius), (x0 + radius, y1 - radius)]
    points = np.concatenate([_CIRCLE * radius + corner for corner in corners])
    return cv2.convexHull(points.astype(np.float32))[:, 0]


# Background scenes


def draw_texture(rng: np.random.Generator, height: int, width: int, grain: float,
             strength: float) -> np.ndarray:
    """Smooth noise around 1, shape (height, width, 1); ``grain`` is its scale in pixels."""
    noise = rng.standard_normal((int(height / grain) + 2, int(width / grain) + 2))
    noise = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return 1.0 + strength * noise[..., None]


def rect_points(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour) -> None:
    """Fills a rectangle given in shares of the image's width and height."""
    h, w = image.shape[:2]
    fill_polygon(image, box_points(x0 * w, y0 * h, x1 * w, y1 * h), colour)


def quad_points(image: np.ndarray, points, colour) -> None:
    h, w = image.shape[:2]
    fill_polygon(image, np.asarray(points) * (w, h), colour)
