# SPDX-License-Identifier: MIT
"""Manual pages: what --help and vhdx.h say and what the pages say must be the same, both ways."""
import os
import re
import subprocess

import pytest

from conftest import find_tool, run_program

SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
OPTION = re.compile(r"(?<![\w-])-(?:-[a-z][a-z-]*|[A-Za-z])(?![\w-])")


def help_of(vhdx, *command):
    return vhdx(*command, "--help", rc=0).out


@pytest.fixture(scope="module")
def commands(vhdx):
    listed = re.search(r"^Commands:\n((?:  .*\n)+)", help_of(vhdx), re.MULTILINE).group(1)
    return [line.split()[0] for line in listed.splitlines()]


@pytest.fixture(scope="module")
def pages(source_root):
    left_out = [] if os.environ.get("VHDX_FUSE", "1") == "1" else ["vhdx-mount.1", "vhdx-umount.1"]
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((source_root / "man").glob("*.[1-9]"))
            if path.name not in left_out}


def plain(text):
    """A page's text without its macros' fonts."""
    return text.replace("\\-", "-").replace("\\fI", "").replace("\\fR", "").replace("\\fB", "")


def section(page, name):
    return plain(re.search(rf"^\.SH {name}\n(.*?)(?=^\.SH |\Z)", page, re.MULTILINE | re.DOTALL).group(1))


def page_options(page):
    """The options that have a paragraph of their own in OPTIONS: what stands in the line behind .TP."""
    tags = re.findall(r"^\.TP\n(.*)$", section(page, "OPTIONS"), re.MULTILINE)
    return {option for tag in tags for option in OPTION.findall(tag)}


def help_options(text):
    lines = re.findall(r"^ +(-.*?)(?:  .*)?$", text.split("Options:\n", 1)[1], re.MULTILINE)
    return {option for line in lines for option in OPTION.findall(line)}


def test_there_is_a_page_for_each_command_and_no_other(commands, pages):
    assert set(pages) == {"vhdx.1", "libvhdx.3"} | {f"vhdx-{command}.1" for command in commands}


def test_options_of_each_command_are_those_of_its_page(vhdx, commands, pages):
    for command in commands:
        options = help_options(help_of(vhdx, command))
        assert "--help" in options and "-h" in options
        assert page_options(pages[f"vhdx-{command}.1"]) == options, command
    assert page_options(pages["vhdx.1"]) == help_options(help_of(vhdx))


def test_arguments_of_options_are_those_of_the_page(vhdx, commands, pages):
    """--name=ARGUMENT, or --name=a|b|c."""
    for command in commands:
        from_help = set(re.findall(r"^ +(?:-., )?(--[a-z-]+)=(\S+)", help_of(vhdx, command), re.MULTILINE))
        from_page = set()
        for tag in re.findall(r"^\.TP\n(.*)$", section(pages[f"vhdx-{command}.1"], "OPTIONS"), re.MULTILINE):
            for name, argument in re.findall(r"(--[a-z-]+)=\s*(\{[^}]*\}|\S+)", tag):
                from_page.add((name, re.sub(r"[{} ]", "", argument)))
        assert from_page == from_help, command


def test_options_named_anywhere_on_a_page_exist(vhdx, commands, pages):
    known = {command: help_options(help_of(vhdx, command)) for command in commands}
    known[None] = set().union(*known.values()) | help_options(help_of(vhdx))
    for name, page in pages.items():
        command = re.fullmatch(r"vhdx-(\w+)\.1", name)
        options = known[command.group(1) if command else None]
        text = re.sub(r"^\.EX\n.*?^\.EE$", "", plain(page), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"pkg-config --cflags --libs", "", text)
        named = {option for option in OPTION.findall(text) if option.startswith("--")}
        assert named - options == set(), name


def test_synopsis_shows_the_usage(vhdx, commands, pages):
    for command in commands:
        usage = re.match(r"usage: (.*)", help_of(vhdx, command)).group(1)
        words = re.sub(r"^\.[A-Z]+ ", "", section(pages[f"vhdx-{command}.1"], "SYNOPSIS"), flags=re.MULTILINE)
        assert " ".join(words.split()).replace("[ ", "[").replace(" ]", "]") == usage


def test_sections_and_their_order(pages):
    for name, page in pages.items():
        found = re.findall(r"^\.SH (.*)$", page, re.MULTILINE)
        if name.endswith(".1"):
            assert found == SECTIONS, name
        else:
            assert found == ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "RETURN VALUE", "ERRORS", "SEE ALSO"]


def test_the_summary_lists_every_command_alike(vhdx, commands, pages):
    text = help_of(vhdx)
    described = dict(re.findall(r"^\.BR vhdx\\-(\w+) \(1\)\n([A-Z].*)\.$", pages["vhdx.1"], re.MULTILINE))
    assert set(described) == set(commands)
    for command in commands:
        summary = re.search(rf"^  {command} +(.*)$", text, re.MULTILINE).group(1)
        assert described[command].lower() == summary.lower()


def test_every_page_is_named_by_another(pages):
    for name in pages:
        page, number = name.rsplit(".", 1)
        reference = f".BR {page.replace('-', chr(92) + '-')} ({number})"
        assert any(reference in text for other, text in pages.items() if other != name), name


def test_version_and_name_of_every_page(pages, vhdx):
    version = vhdx("--version", rc=0).out.split()[1]
    for name, page in pages.items():
        title, number = name.rsplit(".", 1)
        assert re.search(rf'^\.TH {re.escape(title.upper().replace("-", chr(92) + "-"))} {number} \d{{4}}-\d\d-\d\d '
                         rf'"vhdx {re.escape(version)}"', page, re.MULTILINE), name


def prototypes(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"((?:const )?(?:\w+ )+\*?)\b(vhdx_\w+)\(([^;{}]*?)\);", " ".join(text.split()))
    return {name: re.sub(r"\s+", "", f"{kind} {name}({arguments})") for kind, name, arguments in found}


def test_libvhdx_page_has_the_prototypes_of_the_header(source_root, pages):
    header = (source_root / "include" / "vhdx.h").read_text(encoding="utf-8")
    lines = re.findall(r"^VHDX_API (.*?;)", header, re.MULTILINE | re.DOTALL)
    synopsis = re.sub(r"^\.(?:BI|B) (.*)$", lambda match: re.sub(r'"([^"]*)"|\s+', r"\1", match.group(1)),
                      section(pages["libvhdx.3"], "SYNOPSIS"), flags=re.MULTILINE).replace(".PP\n", "")
    wanted, found = prototypes("\n".join(lines)), prototypes(synopsis)
    assert len(wanted) > 20 and found == wanted


def test_the_example_of_libvhdx_compiles(source_root, pages, tmp_path):
    compiler = find_tool("cc") or pytest.skip("cc is not installed")
    code = re.search(r"^\.EX\n(.*?)^\.EE$", plain(pages["libvhdx.3"]), re.MULTILINE | re.DOTALL).group(1)
    (tmp_path / "example.c").write_text(code.replace("\\en", "\\n"))
    run_program([compiler, "-std=c17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{source_root}/include",
                 tmp_path / "example.c"], rc=0)


def test_mandoc_finds_nothing_to_complain_about(source_root, tool):
    mandoc = tool("mandoc")
    pages = sorted((source_root / "man").glob("*.[1-9]"))
    assert pages
    assert run_program([mandoc, "-Tlint", "-W", "warning", *pages], rc=0).out == ""


def test_statuses_of_signals_are_told(commands, pages, source_root):
    """Those of the commands that end in good order when a signal comes."""
    for command in commands:
        sources = [source_root / "tools" / f"cmd-{command}.c", *(source_root / "tools").glob(f"{command}-*.c")]
        catches = any(re.search(r"\bsignals_(catch|exit)\(", path.read_text(encoding="utf-8")) for path in sources)
        told = re.search(r'^\.BR 129 ", " 130 ", " 143$', section(pages[f"vhdx-{command}.1"], "EXIT STATUS"), re.MULTILINE)
        assert catches == bool(told), command


def test_the_first_page_leads_to_all_others(commands, pages):
    for name in ("DESCRIPTION", "SEE ALSO"):
        assert set(re.findall(r"^\.BR vhdx-(\w+) ?\(1\)", section(pages["vhdx.1"], name), re.MULTILINE)) >= set(commands), name


@pytest.mark.parametrize("command", ["create", "snapshot"])
def test_what_only_could_not_be_told_is_done(vhdx_path, pages, tmp_path, command):
    """As the pages say of status 1."""
    image = tmp_path / "disk.vhdx"
    if command == "snapshot":
        assert run_program([vhdx_path, "create", "-q", image, "1M"]).rc == 0
    with open("/dev/full", "wb") as full:
        done = subprocess.run([vhdx_path, command, image, "1M"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "standard output: No space left on device" in done.stderr
    assert image.exists() and (command == "create" or (tmp_path / "disk.1M.vhdx").exists())
    assert "standard output" in section(pages[f"vhdx-{command}.1"], "EXIT STATUS")
