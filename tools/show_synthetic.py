#!/usr/bin/env python3
"""Writes a contact sheet of SyntheticCameras: one row per person, one column per camera.

    tools/show_synthetic.py --output people.png --people 8
"""

import argparse

from caureid_plugin.data.rendering import PRESET_CAMERAS, contact_sheet
from caureid_plugin.data.synthetic_cameras import SEED


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="synthetic_cameras.png",
                        help="picture file to write (default: %(default)s)")
    parser.add_argument("--people", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--cameras", type=int, default=len(PRESET_CAMERAS),
                        help="columns (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED,
                        help="seed of the people; the default shows the dataset's own")
    return parser.parse_args()


def main():
    args = parse_args()
    sheet = contact_sheet(people=args.people, cameras=args.cameras, seed=args.seed)
    sheet.save(args.output)
    print(f"{args.output}: {args.people} people, {args.cameras} cameras")


if __name__ == "__main__":
    main()
