#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Hold every #include under lib/, tools/ and plugins/ against the rule that each layer's README.md states.

Usage: check-layers.py [SOURCE-ROOT]; prints one line per violation, exit status 1 if there is any.

A layer is a folder under lib/.  Its README.md says after "May include:" either a list in which each layer stands as
`name/`, or "every layer", or "every layer but `name/`".  ISA-L may be used where the rule names it.  lib/api.c stands
above all layers; tools/ and plugins/ stand on the public header alone.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


def read_rule(readme, layers):
    """The layers that a README.md allows, and whether ISA-L."""
    match = re.search(r"May include:(.*?)(?:\n\s*\n|\Z)", readme.read_text(encoding="utf-8"), re.DOTALL)
    if not match:
        raise ValueError('has no sentence "May include: ..."')
    rule = " ".join(match.group(1).split())
    named = set(re.findall(r"`(\w+)/`", rule))
    unknown = named - layers
    if unknown:
        raise ValueError(f"allows {', '.join(sorted(unknown))}, which is no layer")
    if "every layer but" in rule:
        named = layers - named
    elif "every layer" in rule:
        named = set(layers)
    return named, "ISA-L" in rule


def find_cycle(allowed):
    """Layers that may include each other in a ring, or None: such rules order nothing."""
    rest = {layer: below - {layer} for layer, below in allowed.items()}
    while rest:
        lowest = [layer for layer, below in rest.items() if not below & rest.keys()]
        if not lowest:
            return sorted(rest)
        for layer in lowest:
            del rest[layer]
    return None


def check_file(path, shown, layers, allowed, may_use_isal):
    for match in INCLUDE.finditer(path.read_text(encoding="utf-8")):
        kind, name = match.groups()
        line = path.read_text(encoding="utf-8").count("\n", 0, match.start(2)) + 1
        where = f"{shown}:{line}"
        folder = name.split("/", 1)[0]
        if name == "vhdx.h":
            continue
        if kind == "<":
            if name.startswith("isa-l") and not may_use_isal:
                yield f"{where}: <{name}>: ISA-L is for the layers whose README.md names it"
            elif folder in layers:
                yield f'{where}: <{name}>: the project\'s own headers go in quotes'
        elif folder in layers and "/" in name:
            if folder not in allowed:
                yield f'{where}: "{name}": may not include {folder}/'
        elif shown.parts[0] == "lib":
            yield f'{where}: "{name}": write it as "layer/file.h"'


def check_tree(root):
    lib = root / "lib"
    layers = {path.name for path in lib.iterdir() if path.is_dir()}
    if not layers:
        yield "lib: no layers found"
    rules = {}
    for layer in sorted(layers):
        readme = lib / layer / "README.md"
        try:
            rules[layer] = read_rule(readme, layers)
        except (OSError, ValueError) as error:
            yield f"lib/{layer}/README.md: {error}"
            rules[layer] = (set(layers), True)
    cycle = find_cycle({layer: allowed for layer, (allowed, _) in rules.items()})
    if cycle:
        yield f"lib/*/README.md: {', '.join(cycle)} may include each other in a ring"

    for path in sorted([*lib.rglob("*.[ch]"), *(root / "tools").rglob("*.[ch]"), *(root / "plugins").rglob("*.[ch]")]):
        shown = path.relative_to(root)
        if shown.parts[0] in ("tools", "plugins"):
            allowed, may_use_isal = set(), False
        elif len(shown.parts) == 2:  # lib/api.c and what stands beside it
            allowed, may_use_isal = layers, False
        else:
            allowed, may_use_isal = rules[shown.parts[1]]
        yield from check_file(path, shown, layers, allowed, may_use_isal)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1])
    violations = list(check_tree(root))
    for violation in violations:
        print(violation)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
