"""Lists the commands: `python -m experiments`."""

import ast
import os
from pathlib import Path


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
    lines = [f"  python -m {name:<36} {about}" for name, about in commands().items()]
    try:  # without `cli.guard`, which would load JAX
        print("Commands, each with --help:\n", *lines, sep="\n", flush=True)
    except OSError:  # whoever read the output has gone
        os._exit(1)


if __name__ == "__main__":
    main()
