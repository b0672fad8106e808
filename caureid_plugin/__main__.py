"""``python -m caureid_plugin`` is the command ``caureid``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="caureid")
