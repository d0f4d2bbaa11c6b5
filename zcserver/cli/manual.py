"""``docs/cli.md``, from the commands themselves:

python -m zcserver.cli.manual > docs/cli.md
"""

import inspect
import textwrap
from typing import Any, Final

import typer.main

from .app import app
from .exits import ExitCode
from .settings import SETTINGS

_BEGINNING: Final = """\
# The `zcserver` command

<!-- Written by `python -m zcserver.cli.manual > docs/cli.md`. -->

`zcserver COMMAND --help` says the same in the terminal. Completion of commands and options:
`zcserver --install-completion` (bash, zsh, fish), then open a new terminal.

**URLs** are `zc://host/path` (port 7420), `zc://host:7000/path`, `zc://[::1]/path`, or for a server on a Unix
socket `zc+unix://%2Frun%2Fzc.sock/path`. Any byte of a path may be written `%XX`; a percent sign is `%25`.
`zcserver ls` prints names in that form.

**Sizes** are bytes, or `64K`, `10M`, `1.5G`, `2T` (powers of 1024). **Patterns** (`GLOB`): `*`, `?` and
`[abc]` stay within one name, `**` crosses folders; a pattern without a slash is for names in any folder, one
with a slash for the whole path below the top.

**Output**: results for scripts go to stdout (`--json`; the data itself with `-o -`), everything else to
stderr: bars if that is a terminal, else one line at the end. An error is one line and an
[exit code](#exit-codes).

**`--json`** of `get`, `put` and `sync` prints one document, whatever becomes of them, unless the command
line is wrong (code 2), or a signal comes before it was read. Its `failures` have the `path` on the server
(empty: a signal ended the command), the `error` in words, and its exit `code`; the command ends with that of
the first. `ls` and `stat` print an object a line for what there is; what went wrong is on stderr only.

**Partial downloads** are called `.NAME.zcpart`, with a record `.NAME.zcfrom` of the file they are a part of.
They may be removed at any time; both go when the download is complete.
"""


def manual() -> str:
    """The whole text."""
    group: Any = typer.main.get_command(app)
    parts = [_BEGINNING]
    for name, command in group.commands.items():
        parts.append(_of_command(name, command))
        if name == "serve":
            parts.append(_settings())
    parts.append(_exit_codes())
    return "\n".join(parts)


def _of_command(name: str, command: Any) -> str:
    prose, _, examples = inspect.cleandoc(command.help).partition("\b\nExamples:\n")
    operands = [parameter for parameter in command.params if not _is_option(parameter)]
    usage = " ".join(["zcserver", name, "[OPTIONS]", *map(_operand, operands)])
    lines = [f"## zcserver {name}", "", f"    {usage}", "", prose.strip(), ""]
    lines += [f"- `{parameter.metavar}`: {parameter.help}" for parameter in operands]
    lines += [_option(parameter) for parameter in command.params if _is_option(parameter)]
    lines += ["", *textwrap.indent(textwrap.dedent(examples), "    ").rstrip().splitlines(), ""]
    return "\n".join(lines)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _operand(parameter: Any) -> str:
    several = "..." if parameter.nargs == -1 else ""
    return f"{parameter.metavar}{several}" if parameter.required else f"[{parameter.metavar}{several}]"


def _option(parameter: Any) -> str:
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    names = ", ".join(f"`{name}{value}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    told = f" Default: {default}." if parameter.show_default and default not in (None, "", False) else ""
    return f"- {names}: {parameter.help}{told}"


def _settings() -> str:
    lines = [
        "Every option is also an environment variable and a key of the TOML file that `--config` or",
        "`ZCSERVER_CONFIG` names; the command line goes before the environment, that before the file. There,",
        "`roots`, `bind` and `lanes` may be several with commas between; the file may have a list instead,",
        "where a comma belongs to a name, and for `roots` a table of names.",
        "",
        "| key | variable | default | |",
        "|---|---|---|---|",
    ]
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.key}` | `{setting.variable}` | {default} | {setting.help} |")
    return "\n".join([*lines, ""])


def _exit_codes() -> str:
    lines = ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {int(code)} | {code.meaning} |" for code in ExitCode]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(manual(), end="")
