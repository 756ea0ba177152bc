"""Commands, `python -m experiments.NAME`, and the parts of the studies that they import."""

import os
import sys

# A stream that the shell has closed (>&-) would be None, and its number that of the next file
# opened, into which others would then write their messages.
for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115

if sys.argv[0] == "-m" and "experiments" not in sys.orig_argv:  # a command; their list needs none
    try:
        from vdm_jax import extras

        extras.need("all")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
