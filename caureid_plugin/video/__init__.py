"""Crops of people, vehicles or animals, cut out of videos by what a tracker has written."""

from __future__ import annotations

from .choice import CropChoice
from .crops import Video, cut_crops

__all__ = ["CropChoice", "Video", "cut_crops"]
