"""Lists the commands: `python -m experiments`."""

import ast
import sys
from pathlib import Path

from vdm_jax.run import cli


def commands() -> dict[str, str]:
    """Returns the modules that can be run, and what each says of itself in its first line."""
    folder, found = Path(__file__).parent, {}
    for path in [*sorted(folder.glob("[!_]*.py")), *sorted(folder.glob("benchmarks/[!_]*.py"))]:
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' in text:
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            found[name] = first.partition(": `python")[0]
    return found


def main() -> None:
    """Prints the commands."""
    print("Commands, each with --help:\n")
    for name, about in commands().items():
        print(f"  python -m {name:<36} {about}")
    sys.stdout.flush()


if __name__ == "__main__":
    cli.guard(main)
