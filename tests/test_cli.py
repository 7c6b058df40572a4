"""Flags from dataclasses, and how a script ends: exit codes, messages, tracebacks, text safe to print."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

import distill
import eval_model
import pretrain
import SFT
from Config import TrainConfig
from infra.cli import Flags, UserError, flag, make_parser, parse_args, visible

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe(Flags):
    fixed: str = "not a flag"
    rate: float = flag(0.5, "a rate", above=0, most=2)
    count_of_rows: int = flag(3, "a number", least=1)
    name: str = flag("", "a name")
    compile: bool = flag(None, "on or off (default: it depends)")
    resume: bool = flag(False, "go on")
    shape: str = flag("small", "a shape", choices=["small", "large"])


def parsed(*argv, recipe=None):
    return parse_args(recipe or Recipe(), "A script.\n\n    python it.py", list(argv))


# ---- flags ----


def test_flags_change_their_fields_and_leave_the_others():
    assert parsed("--rate", "1e-1", "--name=a b", "--shape", "large") == Recipe(
        rate=0.1, name="a b", shape="large"
    )


def test_defaults_are_those_of_the_recipe_and_not_of_the_class():
    assert parsed("--name", "x", recipe=Recipe(rate=2.0, fixed="mine")) == Recipe("mine", 2.0, name="x")


def test_fields_made_without_flag_are_no_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--fixed", "x")
    assert caught.value.code == 2 and "unrecognized arguments: --fixed x" in capsys.readouterr().err


@pytest.mark.parametrize("argv, expected", [([], None), (["--compile"], True), (["--no-compile"], False)])
def test_switches_are_on_off_or_as_the_recipe_says(argv, expected):
    assert parsed(*argv).compile is expected


def test_switch_takes_no_value():
    with pytest.raises(SystemExit):
        parsed("--resume", "False")


@pytest.mark.parametrize("argv", [["--count_of_rows", "x"], ["--shape", "huge"], ["--rate"]])
def test_value_of_another_type_or_choice_ends_with_code_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(*argv)
    assert caught.value.code == 2 and argv[0] in capsys.readouterr().err


def help_of(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_description_and_each_default_once(capsys):
    shown = help_of(capsys)
    assert "A script. python it.py" in shown
    assert "a rate (default: 0.5)" in shown and "go on (default: false)" in shown
    assert "on or off (default: it depends)" in shown and "a name" in shown and "(default: )" not in shown


def test_description_keeps_its_lines(capsys):
    assert make_parser("one\n\n    two").format_help().count("one\n\n    two") == 1


# ---- bounds ----


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rate": 0}, r"--rate \(0\) must be greater than 0"),
        ({"rate": 2.5}, r"--rate \(2.5\) must be at most 2"),
        ({"rate": float("nan")}, r"--rate \(nan\) must be greater than 0"),
        ({"rate": float("inf")}, r"--rate \(inf\) must be greater than 0"),
        ({"count_of_rows": 0}, r"--count_of_rows \(0\) must be at least 1"),
    ],
)
def test_value_outside_its_bounds_is_refused_by_its_flag(values, message):
    with pytest.raises(UserError, match=message):
        Recipe(**values)


@pytest.mark.parametrize("values", [{"rate": 2}, {"rate": 1e-300}, {"count_of_rows": 1}])
def test_value_at_its_bound_is_accepted(values):
    assert vars(replace(Recipe(), **values)).items() >= values.items()


@pytest.mark.parametrize(
    "name, values",
    [
        ("batch_size", [0, -1]),
        ("accumulation_steps", [0]),
        ("max_seq_len", [7]),
        ("epochs", [0]),
        ("max_steps", [-1]),
        ("learning_rate", [0.0, -1.0, float("nan"), float("inf")]),
        ("embedding_rate", [0.0]),
        ("warmup_steps", [-2]),
        ("min_lr_ratio", [-0.1, 1.1]),
        ("weight_decay", [-0.1, float("inf")]),
        ("grad_clip", [0.0]),
        ("num_workers", [-1]),
        ("seed", [-1, 2**63]),
        ("log_every", [0]),
        ("eval_every", [0]),
        ("save_every", [0]),
    ],
)
def test_training_flag_that_makes_no_run_is_refused(name, values):
    for value in values:
        with pytest.raises(UserError, match=f"--{name}"):
            TrainConfig(**{name: value})


def test_weight_of_the_tags_must_be_positive():
    with pytest.raises(UserError, match="--tag_weight"):
        distill.DistillConfig(tag_weight=0.0)


# ---- the recipes ----

SCRIPTS = [pretrain, SFT, distill, eval_model]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_scripts_help_begins_with_the_command_that_runs_it(script):
    assert script.__doc__.startswith(f"python {script.__name__}.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_documented_command_is_the_recipe(script):
    """Its flags say what happens without them, so that neither can drift from the other."""
    argv = script.__doc__.splitlines()[0].split()[2:]
    assert parse_args(script.RECIPE, "", argv) == script.RECIPE


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_flag_has_a_help_text_of_its_own(script):
    helps = [f.metadata["help"] for f in fields(script.RECIPE) if "help" in f.metadata]
    assert all(helps) and len(set(helps)) == len(helps)


# ---- text safe to print ----


def test_control_characters_become_signs_and_all_else_stays():
    assert visible("好\n\ta\x1b[2J\x07\x7f\x00\r\x9b") == "好\n\ta␛[2J␇␡␀␍\ufffd"


def test_no_control_character_but_newline_and_tab_is_left():
    shown = visible("".join(map(chr, range(0x110000))))
    assert {c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0} == {"\n", "\t"}


# ---- the end of a script ----


def ended(tmp_path, *lines, stdin=b""):
    """(exit code, stdout, stderr) of a script whose `main` consists of these lines."""
    script = tmp_path / "script.py"
    body = "".join(f"    {line}\n" for line in lines)
    imports = "import sys\nimport numpy as np\nfrom infra.cli import UserError, run_script\n"
    script.write_text(f"{imports}\ndef main():\n{body}\nrun_script(main)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, str(script)], env=environment, input=stdin, capture_output=True)
    return result.returncode, result.stdout.decode("utf-8"), result.stderr.decode("utf-8")


def test_script_that_succeeds_ends_with_0_and_prints_chinese_on_any_console(tmp_path):
    assert ended(tmp_path, "print('你好')") == (0, "你好\n", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_script_needs_neither_stdin_nor_stdout(tmp_path):
    ended(tmp_path, "print('你好')")
    command = f"'{sys.executable}' '{tmp_path}/script.py' <&- >&-"
    result = subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=-1)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("count", [1, 100_000])  # the error comes at the end, or while printing
def test_reader_that_has_gone_is_no_error(count, tmp_path):
    script = tmp_path / "script.py"
    body = f"from infra.cli import run_script\nrun_script(lambda: print('line\\n' * {count}))\n"
    script.write_text("import sys\nsys.stdin.read()\n" + body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("error", ["UserError", "OSError", "FileNotFoundError"])
def test_mistake_of_a_user_is_one_line_and_code_2(error, tmp_path):
    assert ended(tmp_path, f"raise {error}('a.jsonl: 找不到')") == (2, "", "a.jsonl: 找不到\n")


@pytest.mark.parametrize(
    "line, error",
    [
        ("raise ValueError('a bug')", "ValueError: a bug"),
        ("np.zeros(2) + np.zeros(3)", "ValueError: operands could not be broadcast"),
        ("int('x')", "ValueError: invalid literal"),
        ("raise RuntimeError('a bug')", "RuntimeError: a bug"),
        ("{}['x']", "KeyError: 'x'"),
    ],
)
def test_bug_keeps_its_traceback(line, error, tmp_path):
    code, _, err = ended(tmp_path, line)
    assert code == 1 and err.startswith("Traceback") and error in err and line in err


def test_escape_sequences_of_an_error_message_reach_no_terminal(tmp_path):
    assert ended(tmp_path, r"raise UserError('found \x1b[2J\x9b')") == (2, "", "found ␛[2J\ufffd\n")


def test_full_memory_of_a_card_is_told_with_advice(tmp_path):
    code, out, err = ended(tmp_path, "import torch", "raise torch.OutOfMemoryError('CUDA out of memory.')")
    assert (code, out) == (2, "")
    assert err.startswith("CUDA out of memory. Or train with a smaller --batch_size")


def test_ctrl_c_ends_a_script_in_silence_with_its_usual_code(tmp_path):
    assert ended(tmp_path, "raise KeyboardInterrupt") == (130, "", "")


def test_exit_code_of_a_script_is_kept(tmp_path):
    assert ended(tmp_path, "sys.exit(143)")[0] == 143


def test_broken_bytes_of_a_pipe_become_signs(tmp_path):
    assert ended(tmp_path, "print(input())", stdin=b"a\xffb\n") == (0, "a\ufffdb\n", "")
