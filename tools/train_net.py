#!/usr/bin/env python3
"""Trains or evaluates from a config file, with the arguments of FastReID's own tools/train_net.py.

    tools/train_net.py --config-file configs/Market/caureid.yml --num-gpus 4
    tools/train_net.py --config-file configs/Market/caureid.yml --eval-only MODEL.WEIGHTS model.pth

The command ``caureid train`` does the same.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

from caureid_plugin.common.errors import in_one_line
from caureid_plugin.engine import training

if __name__ == "__main__":
    with in_one_line("train_net.py"):
        training.run(training.argument_parser().parse_args())
