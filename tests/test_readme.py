"""What README.md shows is run: each `python` block as a script, each `sh` block as far as it goes.

What a python block prints stands in a `text` block right after it, or in comments `# -> LINE` of its own.
A comment directly before a block says more about it:

    <!-- no-run: REASON -->    a python block that is only compiled
    <!-- needs: ray -->        a python block that is run where Ray is installed, which may say what it likes
    <!-- logs: TEXT -->        a python block that logs one line, in which this stands; others log nothing
    <!-- command: test -->     the one command that runs the tests
    <!-- command: crawl -->    the one command that crawls
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT, RunPython

README = ROOT / "README.md"
BLOCK = re.compile(
    r"(?:<!--[ ]*(?P<comment>(?:(?!-->).)*?)[ ]*-->[ ]*\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^[ ]*```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NEEDS_RAY = "needs: ray"
PATH_LIKE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|md|toml|ini|txt)|\.ci/run")


@dataclass(frozen=True)
class Block:
    language: str
    comment: str
    text: str
    line: int

    def commands(self) -> list[list[str]]:
        """The commands of a shell block, each as its words."""
        joined = self.text.replace("\\\n", " ")
        lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
        parts = (part for line in lines for part in re.split(r"&&|\|\||;|\|", line))
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def find_blocks(text: str) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(text):
        body = "".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(Block(match["language"], match["comment"] or "", body, line))
    return blocks


BLOCKS = find_blocks(README.read_text()) if README.exists() else []
needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


def printed_by(block: Block) -> list[str]:
    """The lines that a python block says it prints."""
    following = BLOCKS[BLOCKS.index(block) + 1 :]
    if following and following[0].language == "text":
        return following[0].text.splitlines()
    return re.findall(r"# -> (.*)", block.text)


def of(*languages: str) -> pytest.MarkDecorator:
    blocks = [
        pytest.param(block, marks=pytest.mark.ray if block.comment == NEEDS_RAY else ())
        for block in BLOCKS
        if block.language in languages
    ]
    return pytest.mark.parametrize("block", blocks, ids=lambda block: f"line{block.line}")


def marked(comment: str) -> Block:
    """The only block that has this comment."""
    (block,) = (block for block in BLOCKS if block.comment == comment)
    return block


@needs_readme
@of("python")
def test_python_block_runs(
    block: Block, run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "readme_block.py"
    # The error of a block names the line of the README.
    script.write_text("\n" * (block.line - 1) + block.text)
    compile(script.read_text(), str(README), "exec")
    if block.comment.startswith("no-run:"):
        assert block.comment.removeprefix("no-run:").strip(), "a block that is not run says why"
        return
    if block.comment == NEEDS_RAY:
        pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: the extra `ray`")
        monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone
        monkeypatch.setenv("RAY_ADDRESS", "local")  # no cluster that is here already
    done = run_python(script)
    if block.comment.startswith("logs:"):
        (line,) = done.stderr.splitlines()
        assert block.comment.removeprefix("logs:").strip() in line
    elif block.comment != NEEDS_RAY:
        assert done.stderr == ""
    assert done.stdout.splitlines() == printed_by(block)


@needs_readme
def test_the_first_screen_shows_what_it_prints() -> None:
    block, shown = BLOCKS[:2]
    assert (block.language, shown.language) == ("python", "text")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 24
    assert shown.line < 50


@needs_readme
def test_it_is_not_longer_than_a_reader_bears() -> None:
    assert len(README.read_text().splitlines()) <= 255


@needs_readme
@of("sh", "bash", "shell", "console")
def test_files_named_by_commands_exist(block: Block) -> None:
    for words in block.commands():
        for word in words:
            if PATH_LIKE.fullmatch(word) and not word.startswith(".venv"):
                assert (ROOT / word).is_file(), f"README.md line {block.line} names {word}"


@needs_readme
def test_the_test_command_is_marked_once() -> None:
    block = marked("command: test")
    assert block.language == "sh"
    assert Path(block.commands()[-1][0]).name == "pytest"


@needs_readme
def test_the_crawl_command_runs(run_python: RunPython, tmp_path: Path) -> None:
    block = marked("command: crawl")
    assert block.language == "sh"
    python, script, *arguments = block.commands()[-1]
    assert Path(python).name.startswith("python")
    done = run_python(ROOT / script, *arguments, "--max-pages", "30", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "pages" in done.stdout.lower()


def test_blocks_are_found() -> None:
    blocks = find_blocks(
        "text\n\n<!-- no-run: needs a network -->\n```python\nprint(1)\n```\n"
        "- item\n\n  ```sh\n  a && \\\n  b/c.py # not this\n  ```\n"
        "<!-- unrelated -->\n\nmore\n\n```mermaid\nx\n```\n"
    )
    assert [(b.language, b.comment, b.line) for b in blocks] == [
        ("python", "no-run: needs a network", 5),
        ("sh", "", 10),
        ("mermaid", "", 18),
    ]
    assert blocks[0].text == "print(1)\n"
    assert blocks[1].commands() == [["a"], ["b/c.py"]]
