"""Who is who across cameras: tracks of new footage become people, with a number for each."""

from .start import find_people
from .table import People

__all__ = ["People", "find_people"]
