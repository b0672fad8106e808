#!/usr/bin/env python3
"""Takes the tensors out of a file of weights without running what else it asks for.

    tools/extract_weights.py checkpoint.pth weights.pth

For files that are refused because they hold more than tensors and plain values: NumPy scalars, an
argparse.Namespace, a whole network of torch.save(model, ...). Classes and functions that the file
names are neither imported nor called. OUTPUT holds tensors alone, by their names; it goes into
MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS.

Exit status: 0; 1 if the file cannot be read or holds no tensors.
"""

import argparse
import sys
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
import torch
from caureid_plugin.files import write_atomically
from caureid_plugin.safe_load import DamagedFile, salvage
from caureid_plugin.weights import unwrap


def extract(source: Path, output: Path) -> str:
    """Writes the tensors of ``source`` to ``output``; gives a sentence about them.

    Raises:
        ValueError: ``output`` is there, or there are no tensors.
        OSError: a file cannot be read or written.
    """
    if output.exists():
        raise ValueError(f"OUTPUT {output} is there already: name another file.")
    try:
        tensors = unwrap(salvage(source), str(source))
    except DamagedFile:
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {error}.") from error
    write_atomically(output, lambda file: torch.save(tensors, file))
    numbers = sum(tensor.numel() for tensor in tensors.values())
    first = next(iter(tensors))
    return (f"{output}: {len(tensors)} tensors, {numbers} numbers; the first is {first} "
            f"{tuple(tensors[first].shape)}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    args = parser.parse_args(argv)
    try:
        print(extract(args.file, args.output))
    except (ValueError, OSError) as error:
        print(f"extract_weights.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
