"""Draws one walking person on a canvas, from the side, the front or the back."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from .cameras import Camera, Shot
from .people import HAIR_COLOURS, PALETTE, SKIN_TONES, STRIDES, Person
from .shapes import (
    Colour,
    box_points,
    draw_limb,
    ellipse_points,
    fill_polygon,
    point_between,
    rounded_box,
    shaded,
    upper_half_points,
)


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
        fill_polygon(self.image, pixels, colour)
        fill_polygon(self.cover, pixels, 255)

    def outlined(self, points, colour, edge: float = 0.72) -> None:
        """Fills a polygon with a thin darker edge that parts it from what lies behind."""
        pixels = self.frame(points)
        self.shape(points, colour)
        fixed = np.round(pixels * 16.0).astype(np.int32)
        cv2.polylines(self.image, [fixed], True, shaded(colour, edge), 1, cv2.LINE_AA, 4)

    def inside(self, region, shapes, colour) -> None:
        """Fills polygons, but only where they lie within the polygon ``region``."""
        window = np.zeros_like(self.cover)
        fill_polygon(window, self.frame(region), 255)
        paint = np.zeros_like(self.cover)
        for points in shapes:
            fill_polygon(paint, self.frame(points), 255)
        alpha = (cv2.min(window, paint).astype(np.float32) / 255.0)[..., None]
        blend = self.image * (1.0 - alpha) + np.asarray(colour, np.float32) * alpha
        self.image = np.round(blend).astype(np.uint8)


# The figure


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
        cloth, skin = shaded(self.colour(person.lower), shade), shaded(self.skin, shade)
        self.draw_shoe(ankle, shade)
        if person.lower_kind == "trousers":
            self.layer.outlined(draw_limb(knee, ankle + (0, -0.008), 0.041 * b, 0.033 * b), cloth)
            self.layer.shape(draw_limb(hip, knee, 0.054 * b, 0.042 * b), cloth)
            self.draw_leg_stripe(left, shade, (hip, knee, ankle + (0, -0.01)))
            return
        self.layer.outlined(draw_limb(knee, ankle, 0.034 * b, 0.022 * b), skin)
        self.layer.shape(draw_limb(hip, knee, 0.046 * b, 0.034 * b), skin)
        if person.lower_kind == "shorts":
            end = point_between(hip, knee, 0.86)
            self.layer.outlined(draw_limb(hip, end, 0.056 * b, 0.052 * b), cloth)
            self.draw_leg_stripe(left, shade, (hip, point_between(knee, end, 0.6)))

    def draw_leg_stripe(self, left: bool, shade: float, joints) -> None:
        """A stripe down the outer side of the leg."""
        if not self.person.lower_stripe:
            return
        stripe = shaded(self.colour(self.person.upper_accent), shade)
        out = 0.0 if self.side else (0.030 if left else -0.030)
        points = [joint + (out * (1.0 - 0.1 * i), 0) for i, joint in enumerate(joints)]
        for start, end in itertools.pairwise(points):
            self.layer.shape(draw_limb(start, end, 0.009, 0.008), stripe)

    def draw_shoe(self, ankle, shade: float) -> None:
        colour = shaded(self.colour(self.person.shoes), shade)
        if self.side:
            heel, toe = ankle + (-0.014, 0.020), ankle + (0.052, 0.026)
            self.layer.outlined(draw_limb(heel, toe, 0.022, 0.015), colour)
        else:
            drop = 0.024 if self.back else 0.030
            self.layer.outlined(draw_limb(ankle, ankle + (0, drop), 0.024, 0.025), colour)

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
        cloth, skin = shaded(self.colour(sleeve), shade), shaded(self.skin, shade)
        palm, fingers = point_between(elbow, hand, 0.9), point_between(elbow, hand, 1.06)
        self.layer.outlined(draw_limb(palm, fingers, 0.019, 0.017), skin)
        covering = cloth if person.sleeve == "long" else skin
        wrist = point_between(elbow, hand, 0.82)
        self.layer.outlined(draw_limb(elbow, wrist, 0.027 * b, 0.021 * b), covering)
        self.layer.outlined(draw_limb(shoulder, elbow, 0.033 * b, 0.027 * b), covering)
        if person.sleeve == "long":
            self.layer.shape(draw_limb(elbow, wrist, 0.024 * b, 0.018 * b), cloth)
            if person.upper_pattern == "stripes":
                stripe = shaded(self.colour(person.upper_accent), shade)
                for start, end in ((shoulder, elbow), (elbow, wrist)):
                    self.layer.inside(draw_limb(start, end, 0.030 * b, 0.022 * b), self.stripes(),
                                      stripe)
        if person.sleeve == "short":
            cuff = point_between(shoulder, elbow, 0.72)
            self.layer.outlined(draw_limb(shoulder, cuff, 0.036 * b, 0.036 * b), cloth)

    def draw_torso(self) -> None:
        outline = self.torso_outline()
        self.layer.outlined(outline, self.colour(self.person.upper))
        self.draw_pattern(outline)

    def stripes(self):
        return [box_points(-0.4, y, 0.4, y + 0.033) for y in np.arange(0.215, self.hem, 0.070)]

    def draw_pattern(self, outline: np.ndarray) -> None:
        pattern, accent = self.person.upper_pattern, self.colour(self.person.upper_accent)
        wide = 0.30
        if pattern == "stripes":
            self.layer.inside(outline, self.stripes(), accent)
        elif pattern == "block":
            self.layer.inside(outline, [box_points(-wide, 0.0, wide, 0.285)], accent)
        elif pattern == "checks":
            across = [box_points(-wide, y, wide, y + 0.016)
                      for y in np.arange(0.20, self.hem, 0.052)]
            down = [box_points(x, 0.0, x + 0.016, 1.0) for x in np.arange(-0.182, 0.2, 0.052)]
            self.layer.inside(outline, across + down, accent)
        elif pattern == "logo" and self.front:
            self.layer.inside(outline, [ellipse_points(0.0, 0.305, 0.052, 0.046)], accent)
        elif pattern == "open" and not self.back:
            middle = 0.045 if self.side else 0.0
            opening = box_points(middle - 0.034, 0.0, middle + 0.034, 1.0)
            self.layer.inside(outline, [opening], accent)

    def draw_head(self) -> None:
        head, layer = self.person.head, self.layer
        x = 0.014 if self.side else 0.0
        rx, ry = (0.050 if self.side else 0.046) * head, 0.064 * head
        centre = 0.092
        self.draw_hair_behind(x, centre, rx)
        neck = [(-0.026, 0.13), (0.026, 0.13), (0.029, 0.180), (-0.029, 0.180)]
        layer.shape(np.array(neck), shaded(self.skin, 0.84))
        if self.front:
            layer.shape(ellipse_points(0.0, 0.176, 0.034, 0.019), shaded(self.skin, 0.90))
        layer.outlined(ellipse_points(x, centre, rx, ry), self.skin, edge=0.80)
        self.draw_face(x, centre, rx)
        self.draw_hair(x, centre, rx, ry)
        self.draw_hat(x, centre, rx, ry)

    def draw_face(self, x: float, y: float, rx: float) -> None:
        dark = shaded(self.skin, 0.45)
        if self.front:
            for sign in (-1.0, 1.0):
                self.layer.shape(ellipse_points(sign * 0.42 * rx, y + 0.002, 0.0075, 0.0055), dark)
            self.layer.shape(ellipse_points(0.0, y + 0.034, 0.013, 0.0045), shaded(self.skin, 0.68))
        elif self.side:
            self.layer.shape(ellipse_points(x + 0.62 * rx, y + 0.001, 0.007, 0.0055), dark)
            nose = [(x + rx * 0.93, y + 0.002), (x + rx * 1.2, y + 0.02), (x + rx * 0.9, y + 0.026)]
            self.layer.shape(np.array(nose), self.skin)

    def draw_hair_behind(self, x: float, y: float, rx: float) -> None:
        """Long hair that the head hides in part."""
        if self.person.hair_style != "long" or self.back:
            return
        middle = x - (0.030 if self.side else 0.0)
        wide = rx * (0.78 if self.side else 1.22)
        self.layer.outlined(rounded_box(middle - wide, y - 0.05, middle + wide, 0.222, 0.030),
                            self.hair)

    def draw_hair(self, x: float, y: float, rx: float, ry: float) -> None:
        style, layer, hair = self.person.hair_style, self.layer, self.hair
        if style == "bald":
            return
        if self.back:
            layer.outlined(ellipse_points(x, y - 0.006, rx * 1.08, ry * 0.98), hair)
            if style == "long":
                layer.outlined(rounded_box(-rx * 1.1, y - 0.03, rx * 1.1, 0.245, 0.034), hair)
        elif self.side:
            layer.shape(upper_half_points(x - 0.004, y - 0.012, rx * 1.10, ry * 0.92), hair)
            layer.shape(ellipse_points(x - rx * 0.48, y - 0.006, rx * 0.64, ry * 0.80), hair)
        else:
            layer.shape(upper_half_points(x, y - 0.020, rx * 1.08, ry * 0.78), hair)
            for sign in (-1.0, 1.0):
                layer.shape(ellipse_points(x + sign * rx * 0.98, y - 0.012, 0.008, 0.022), hair)
        if style == "bun":
            behind = 0.042 if self.side else 0.0
            layer.outlined(ellipse_points(x - behind, 0.022, 0.026, 0.024), hair)

    def draw_hat(self, x: float, y: float, rx: float, ry: float) -> None:
        person, layer = self.person, self.layer
        if person.hat == "none":
            return
        colour = self.colour(person.hat_colour)
        if person.hat == "beanie":
            layer.outlined(upper_half_points(x, y - 0.012, rx * 1.16, ry * 1.20), colour)
            band = box_points(x - rx * 1.18, y - 0.028, x + rx * 1.18, y - 0.008)
            layer.shape(band, shaded(colour, 0.78))
            return
        layer.outlined(upper_half_points(x, y - 0.020, rx * 1.14, ry * 0.92), colour)
        if self.side:
            brim = box_points(x + rx * 0.5, y - 0.030, x + rx * 1.95, y - 0.016)
            layer.outlined(brim, shaded(colour, 0.80))
        elif self.front:
            layer.outlined(ellipse_points(x, y - 0.020, rx * 1.12, 0.013), shaded(colour, 0.72))

    # Carried things ------------------------------------------------------------------------

    def draw_backpack(self) -> None:
        """The pack seen from behind or from the side; its straps seen from the front."""
        colour = self.colour(self.person.bag_colour)
        if self.back:
            pack = rounded_box(-0.086, 0.195, 0.086, 0.430, 0.03)
            self.layer.outlined(pack, colour, edge=0.6)
            pocket = rounded_box(-0.058, 0.325, 0.058, 0.410, 0.02)
            self.layer.outlined(pocket, shaded(colour, 0.82), edge=0.7)
        elif self.side:
            edge = -self.shoulder
            pack = rounded_box(edge - 0.078, 0.195, edge + 0.018, 0.420, 0.028)
            self.layer.outlined(pack, colour, edge=0.6)
            strap = draw_limb((0.0, 0.182), (-0.035, 0.33), 0.012, 0.010)
            self.layer.outlined(strap, shaded(colour, 0.85))
        else:
            for sign in (-1.0, 1.0):
                x = sign * self.shoulder * 0.58
                strap = draw_limb((x, 0.184), (x * 1.1, 0.360), 0.013, 0.011)
                self.layer.outlined(strap, shaded(colour, 0.9))

    def draw_shoulder_bag(self) -> None:
        colour = self.colour(self.person.bag_colour)
        sign = 1.0 if self.person.bag_on_left else -1.0
        hip = (0.0, 0.47) if self.side else (sign * (self.hips + 0.012), 0.47)
        start = (0.01, 0.18) if self.side else (-sign * self.shoulder * 0.72, 0.185)
        self.layer.shape(draw_limb(start, hip, 0.009, 0.009), shaded(colour, 0.75))
        bag = rounded_box(hip[0] - 0.056, 0.455, hip[0] + 0.056, 0.560, 0.02)
        self.layer.outlined(bag, colour, edge=0.6)

    def draw_handbag(self) -> None:
        colour = self.colour(self.person.bag_colour)
        _, _, hand = self.arm_joints(self.person.bag_on_left)
        x, y = hand
        self.layer.shape(draw_limb((x, y), (x, y + 0.06), 0.007, 0.007), shaded(colour, 0.75))
        bag = rounded_box(x - 0.050, y + 0.05, x + 0.050, y + 0.155, 0.015)
        self.layer.outlined(bag, colour, edge=0.6)

    def draw_umbrella(self) -> None:
        """An open umbrella over the head; a picture with one shows a smaller figure."""
        colour = self.colour(self.person.bag_colour)
        _, _, (x, y) = self.arm_joints(self.person.bag_on_left)
        middle = x * 0.5
        self.layer.shape(draw_limb((x, -0.05), (x, y + 0.03), 0.006, 0.006), (70, 70, 74))
        self.layer.outlined(upper_half_points(middle, 0.020, 0.235, 0.150), colour, edge=0.6)
        for place in (-0.42, 0.42):
            rib = draw_limb((middle, -0.13), (middle + place * 0.235, 0.017), 0.003, 0.003)
            self.layer.shape(rib, shaded(colour, 0.7))

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


def draw_person(person: Person, camera: Camera, shot: Shot, height: int, width: int,
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
