"""Draws small pictures of walking people as several cameras would see them.

The pictures feed :class:`~caureid_plugin.data.synthetic.dataset.SyntheticCameras`, the dataset
that needs no download. Three things decide a picture:

* a :class:`Person`: build, hair, clothes, shoes and carried things, the same in every picture;
* a :class:`Camera`: its background scene and its style (colour cast, exposure, blur, view height,
  ...), the same for everybody it sees;
* a :class:`Shot`: what changes from picture to picture (pose, facing, how the box is cut, light,
  occlusion, sensor noise).

Figures are drawn in *body units*: the crown is at ``y = 0``, the soles are at ``y = 1``, ``x = 0``
is the body's axis, one unit is the person's height. A frame maps them to pixels.

Only numpy, OpenCV and Pillow are used. The same arguments give the same pixels, as long as the
versions of these libraries stay the same.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ...common.errors import UserError
from .cameras import Camera, Shot, make_camera, make_shot
from .figure import draw_person
from .people import Person, make_person
from .scenes import SCENE_HEIGHT, SCENE_WIDTH, draw_scene
from .shapes import SUPERSAMPLING, box_points, ellipse_points, fill_polygon, rounded_box


def _background(camera: Camera, shot: Shot, height: int, width: int) -> np.ndarray:
    """The part of the scene that a box cuts out, float32 (height, width, 3) in [0, 255]."""
    whole = draw_scene(camera.scene, camera.scene_seed, int(height * SCENE_HEIGHT),
                   int(width * SCENE_WIDTH))
    x = int(shot.scene_offset[0] * (whole.shape[1] - width))
    y = int(shot.scene_offset[1] * (whole.shape[0] - height))
    return whole[y:y + height, x:x + width].astype(np.float32)


# From the drawn world to the picture


def over(below: np.ndarray, layer: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Lays a layer (H, W, 3), times its coverage (H, W) of 0 to 1 already, over a picture."""
    return below * (1.0 - cover[..., None]) + layer


def ground_shadow(canvas: np.ndarray, cover: np.ndarray, shot: Shot) -> np.ndarray:
    """Darkens the ground (H, W, 3) around the feet of the figure that covers (H, W)."""
    height, width = cover.shape
    rows = np.flatnonzero(cover.max(axis=1) > 0.5)
    if rows.size == 0:
        return canvas
    shadow = np.zeros((height, width), np.float32)
    centre = (0.5 * width + shot.offset[0] * height, min(rows[-1] - 0.01 * height, height))
    fill_polygon(shadow, ellipse_points(centre[0], centre[1], 0.15 * height, 0.022 * height), 1.0)
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
        return draw_person(stranger, camera, other, height, width, shift)
    layer = np.zeros((height, width, 3), np.uint8)
    cover = np.zeros((height, width), np.uint8)
    if shot.occlusion == "pole":
        x = width * (0.15 + 0.70 * place)
        outline = box_points(x - 0.05 * width, -1, x + 0.05 * width, height + 1)
        tone = (112, 114, 116)
    else:
        x = width * (0.10 + 0.80 * place)
        outline = rounded_box(x - 0.22 * width, 0.70 * height, x + 0.22 * width, 1.1 * height,
                           0.05 * width)
        tone = (74, 94, 84)
    fill_polygon(layer, outline, tone)
    fill_polygon(cover, outline, 255)
    return layer.astype(np.float32), cover.astype(np.float32) / 255.0


def apply_style(image: np.ndarray, camera: Camera, shot: Shot) -> np.ndarray:
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
        raise UserError(f"size={tuple(size)}: both sides (H, W) must be at least 16 pixels")
    height, width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    canvas = _background(camera, shot, height, width)
    visible = np.zeros((height, width), np.float32)
    if person is not None:
        layer, visible = draw_person(person, camera, shot, height, width)
        canvas = over(ground_shadow(canvas, visible, shot), layer, visible)
    hiding = _occluder(camera, shot, height, width)
    if hiding is not None:
        canvas = over(canvas, *hiding)
        visible = visible * (1.0 - hiding[1])
    canvas = np.clip(canvas, 0.0, 255.0) / np.float32(255.0)
    small = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(visible, (size[1], size[0]), interpolation=cv2.INTER_AREA) >= 0.5
    picture = apply_style(small, camera, shot)
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
        raise UserError(f"people={people}, cameras={cameras}: both must be at least 1")
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
