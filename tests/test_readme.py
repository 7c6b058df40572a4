"""Both READMEs say the same, and what they say of the files is true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = ["README.md", "README_en.md"]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(name):
    """The commands of the code blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text_of(name), re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_both_readmes_give_the_same_commands_and_numbers():
    assert commands_of(READMES[0]) == commands_of(READMES[1]) and len(commands_of(READMES[0])) >= 9
    tables = [
        re.findall(
            r"\d+(?:[.,]\d+)*%?",
            "\n".join(line for line in text_of(name).splitlines() if line.startswith("|")),
        )
        for name in READMES
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "name, pattern", [*((name, "*.py") for name in READMES), ("docs/architecture.md", "tools/*.py")]
)
def test_file_map_names_every_source_file_with_about_its_length(name, pattern):
    listed = {file: int(lines) for file, lines in re.findall(r"\| `([\w/]+\.py)` \| (\d+) \|", text_of(name))}
    assert set(listed) == {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    for file, lines in listed.items():
        assert abs(len(text_of(file).splitlines()) - lines) <= max(5, 0.1 * lines), file


def test_map_of_infra_names_every_room_once():
    lines = text_of("docs/architecture.md").splitlines()
    rows = [line.split("|")[1] for line in lines if re.match(r"\| `\w+` `", line)]
    rooms = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(rooms) == sorted(
        path.stem for path in (ROOT / "infra").glob("*.py") if path.stem != "__init__"
    )


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_pictures_and_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, (
                target
            )
