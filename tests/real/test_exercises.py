"""The exercises of docs/learn.md work to the letter, in a copy of the project.

With your first feature, delete this file and the exercises: your code then differs from what they start from.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hardening.settings import ROOT
from tests.support.server import VARIABLES
from tests.test_markdown import LEARN, boxes, left_out

PLACE = re.compile(r"# (\S+), (?:in (\w+), )?(new|at the end|below|instead of|add to the line)(?:: (.+))?")
EXERCISES = LEARN.partition("\n## Four exercises\n")[2].partition("\n## ")[0].split("\n### ")[1:]


def put(box: str, folder: Path) -> None:
    """A box of code goes where its first line says."""
    first, _, code = box.partition("\n")
    file, scope, how, line = PLACE.fullmatch(first).groups()  # type: ignore[union-attr]  # else the test ends here
    path = folder / file
    lines = [] if how == "new" else path.read_text(encoding="utf-8").splitlines(keepends=True)
    if how == "at the end":
        lines.append("\n\n")
    at = len(lines)
    if how == "add to the line":
        at = next(number for number, text in enumerate(lines) if text.startswith(line))
        names = [*lines[at].removeprefix(line).split(","), code]
        code = f"{line} {', '.join(sorted(name.strip() for name in names))}\n"
    elif line:
        begin = re.compile(rf"(def |class )?{scope or ''}\b")
        start = next(number for number, text in enumerate(lines) if not scope or begin.match(text))
        at = next(number for number, text in enumerate(lines) if number >= start and text.strip() == line)
    lines[at + (how == "below") : at + 1] = [code]
    path.write_text("".join(lines), encoding="utf-8")


def run(command: str, folder: Path) -> tuple[int, str]:
    program, *arguments = shlex.split(command.removeprefix(".venv/bin/"))
    module = [] if program == "python" else ["-m", program]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    call = [sys.executable, *module, *arguments]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def work_through(text: str, folder: Path) -> None:
    """A box of output below commands means: the last of them fails, and says this among other things."""
    steps = boxes(text)
    for (language, content), (next_language, output) in zip(steps, [*steps[1:], ("", "")], strict=True):
        if language == "python":
            put(content, folder)
        if language == "sh":
            *before, last = [run(command, folder) for command in content.splitlines()]
            assert [said for code, said in before if code] == []
            assert (last[0] != 0) == (next_language == "text"), last[1]
            if next_language == "text":
                assert [line for line in output.splitlines() if line not in last[1]] == []


@pytest.mark.slow
@pytest.mark.parametrize("order", ["1234", "432"])
def test_exercises_work_to_the_letter(tmp_path: Path, order: str) -> None:
    for tool in ("mypy", "ruff"):
        pytest.importorskip(tool, reason=f"needs {tool}: pip install --group dev")
    copy = shutil.copytree(ROOT, tmp_path / "clone", ignore=left_out)
    for number in order:
        work_through(EXERCISES[int(number) - 1], copy)
    for check in ("alembic upgrade head", "alembic check", "ruff check .", "ruff format --check .", "mypy ."):
        code, output = run(check, copy)
        assert code == 0, output
