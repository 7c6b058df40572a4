"""The house: which floor knows of which, and how long things may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STORY = [
    *("Config", "model", "dataset", "train_tokenizer", "optimizer", "trainer"),
    *("pretrain", "SFT", "distill", "GRPO", "generate", "eval_model", "quickstart"),
]
MOST_LINES = {"model.py": 220, "trainer.py": 220, "dataset.py": 270}
ALL_CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "infra/*.py", "tools/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "sample_data.py"  # mostly tables of words
)
ROOMS = [path for path in ALL_CODE if path.startswith("infra/")]


def lines_of(path):
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def imports_of(path):
    """The modules that a file imports, as dotted names, imports within functions included."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported_by(path):
    names = {Path(room).stem for room in ROOMS}
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("infra.")} & names


def test_the_top_level_is_the_story():
    assert {path for path in ALL_CODE if "/" not in path} == {f"{name}.py" for name in STORY}


def test_infra_imports_nothing_of_ours_but_config_and_infra():
    others = {*STORY, "tools", "tests"} - {"Config"}
    for path in ROOMS:
        assert not {name.split(".")[0] for name in imports_of(path)} & others, path


def test_no_two_rooms_import_each_other_in_a_circle():
    left = {Path(path).stem: rooms_imported_by(path) for path in ROOMS}
    while left:
        free = [room for room, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        left = {room: needs for room, needs in left.items() if room not in free}


def test_config_imports_no_room_that_imports_config():
    assert "Config" not in {
        name for room in rooms_imported_by("Config.py") for name in imports_of(f"infra/{room}.py")
    }


def test_the_story_is_read_in_an_hour():
    assert sum(lines_of(f"{name}.py") for name in STORY) <= 1620


@pytest.mark.parametrize("path", ALL_CODE)
def test_files_functions_and_classes_are_short(path):
    most = MOST_LINES.get(path, 200 if path in ROOMS else 400)
    assert lines_of(path) <= most
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= (60 if isinstance(node, ast.FunctionDef) else 150), f"{node.name}: {size} lines"


def test_the_project_does_not_grow():
    """Apart from reasoning; full_run.py grades it, in some 170 lines. 6,050 lines once the house had two
    floors; then attention within documents on a CPU (72), folders that other programs saved (50), scores of
    multiple choice and of texts (190), a second file of the benchmark (25), a lock on a run's folder (43),
    fine-tuning on a domain (176), replies that a batch cut short (20), GGUF of eight types, proved in
    llama.cpp and measured (265), a chat with commands (440), the report of a run, with runs compared (515),
    and the chat as a page, with X-ray, and its speed (645)."""
    reasoning = ["GRPO.py", "infra/rewards.py"]
    language = ("exact_numbers", "digits", "decimals", "fraction_steps", "arithmetic", "expressions")
    tools = (
        *language,
        "claims",
        "spellings",
        "operand_order",
        "worked_r1",
        "problems",
        "variants",
        "reversed_problems",
        "long_calculations",
        "more_problems",
        "other_numbers",
        "own_replies",
        "ladder",
    )
    reasoning += [f"tools/{name}.py" for name in tools]
    assert sum(lines_of(path) for path in ALL_CODE if path not in reasoning) <= 8575
