"""Every snippet of the documentation runs: `python` blocks, `pycon` sessions, and `console` lines of our commands.

The `python` blocks of one page are one program. A console command must succeed; what is shown below it is compared
with what it prints, `...` standing for anything. A block after `<!-- not run: REASON -->` is left out.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"))
    if "```" in path.read_text(encoding="utf-8")
)
BLOCK = re.compile(
    r"(<!-- not run: [^>]+ -->\s*\n)?^```(python|pycon|console)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL
)
OURS = {"li", "lateinteraction"}
# Set-up and work on the project itself; CI runs these as they are.
RUN_ELSEWHERE = {"make", "git", "pip", "python", "python3", "sudo", "cd", "bash"}


def run_page(page: Path, folder: Path) -> int:
    """Run the snippets of a page in a folder of their own; how many there were."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text(encoding="utf-8")
    count = 0
    for match in BLOCK.finditer(text):
        left_out, language, code = match.groups()
        if left_out:
            continue
        line = text.count("\n", 0, match.start(3))
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        elif language == "pycon":
            run_session(code, namespace, page, line)
        else:
            run_console(code, folder)
        count += 1
    return count


def run_session(code: str, namespace: dict[str, object], page: Path, line: int) -> None:
    session = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(session, out=said.append, clear_globs=False)
    namespace.update(session.globs)
    assert runner.failures == 0, "".join(said)


def run_console(code: str, folder: Path) -> None:
    for entry in re.split(r"^\$ ", code.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        typed, _, expected = entry.partition("\n")
        words = shlex.split(typed, comments=True)
        program = Path(words[0]).name
        if program in RUN_ELSEWHERE:
            continue
        assert program in OURS, f"a console block may run {sorted(OURS | RUN_ELSEWHERE)}, not {program}"
        shell = typed.replace(words[0], shlex.quote(str(Path(sys.executable).with_name(program))), 1)
        environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
        done = subprocess.run(
            shell, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"$ {typed}\n{done.stdout}{done.stderr}"
        assert resembles(done.stdout, expected), f"$ {typed}\nprinted\n{done.stdout}\nand not\n{expected}"


def resembles(printed: str, expected: str) -> bool:
    """Whether a command printed what a page shows, up to white space and `...`; a page may show nothing."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
    return not expected.strip() or re.fullmatch(pattern, " ".join(printed.split()), re.DOTALL) is not None


def write(folder: Path, language: str, code: str, before: str = "") -> Path:
    page = folder / "page.md"
    page.write_text(f"# A page\n\n{before}```{language}\n{code}\n```\n")
    return page


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_snippet_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clone, as far as pages speak of it.
    shutil.copytree(ROOT / "docs", tmp_path / "docs", dirs_exist_ok=True)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import lateinteraction\nlateinteraction.no_such_name"),
        ("python", "x = 1\nassert x == 2"),
        ("pycon", ">>> 1 + 1\n3"),
        ("console", "$ lateinteraction no-such-command"),
        ("console", "$ rm -r something"),
        ("console", "$ li --version\nno such version"),
    ],
)
def test_a_broken_snippet_is_seen(tmp_path: Path, language: str, code: str) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        run_page(write(tmp_path, language, code), tmp_path)


def test_the_snippets_of_a_page_are_one_program(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\ntext\n```pycon\n>>> x + 1\n2\n>>> y = 3\n```\n```python\nassert y == 3\n```\n"
    )
    assert run_page(page, tmp_path) == 3


def test_a_failing_snippet_names_its_page_and_line(tmp_path: Path) -> None:
    page = write(tmp_path, "python", "\n\nraise ValueError('planted')")
    with pytest.raises(ValueError, match="planted") as caught:
        run_page(page, tmp_path)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(page), 6)


def test_a_snippet_is_left_out_for_a_stated_reason_only(tmp_path: Path) -> None:
    assert run_page(write(tmp_path, "python", "1 / 0", "<!-- not run: needs an accelerator -->\n"), tmp_path) == 0
    with pytest.raises(ZeroDivisionError):
        run_page(write(tmp_path, "python", "1 / 0", "<!-- not run -->\n"), tmp_path)


@pytest.mark.parametrize(
    ("printed", "expected", "alike"),
    [
        ("a  b\nc", "a b c", True),
        ("1.25 first.py:3", "... first.py:3", True),
        ("anything", "", True),
        ("a b", "a", False),
        ("a b", "b ...", False),
        ("(x)", "(x)", True),
    ],
)
def test_output_is_compared_up_to_white_space_and_dots(printed: str, expected: str, alike: bool) -> None:
    assert resembles(printed, expected) is alike
