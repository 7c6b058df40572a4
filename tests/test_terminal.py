"""The chat in a real terminal: tmux types, and its screen is read."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from infra.checkpoint import save_model
from infra.commands import COMMANDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux"),
]
ROOT = Path(__file__).resolve().parents[1]


class Screen:
    """A terminal of its own, in which one command runs."""

    def __init__(self, socket, command, columns=90, term="screen"):
        self.tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        shell = f"cd {ROOT} && LANG=C.UTF-8 OMP_NUM_THREADS=1 TERM={term} {command}; echo ended; sleep 60"
        self.run("-u", "new-session", "-d", "-x", columns, "-y", 50, shell)

    def run(self, *words):
        command = [*self.tmux, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout

    def type(self, text):
        self.run("send-keys", "-l", text)
        self.press("Enter")

    def press(self, key):
        self.run("send-keys", key)

    def wait_for(self, text, seconds=30, colours=False):
        """What is on the screen, as soon as `text` is there."""
        for _ in range(10 * seconds):
            shown = self.run("capture-pane", "-p", "-J", *(["-e"] if colours else []))
            if text in shown:
                return shown
            time.sleep(0.1)
        raise AssertionError(f"{text!r} is not on the screen:\n{shown}")

    def close(self):
        self.run("kill-server")


@pytest.fixture
def opened(tokenizer, tmp_path):
    """A function that opens the chat in a terminal."""
    screens = []
    model = tiny_model(max_position_embeddings=8192)
    with torch.no_grad():
        model.model.embed_tokens.weight[2] = 0  # the end is never among the likeliest
    save_model(model, tmp_path / "model", tokenizer, 8192)

    def open_chat(*flags, **how):
        command = (
            f"{sys.executable} eval_model.py --model_dir {tmp_path}/model --device cpu {' '.join(flags)}"
        )
        screens.append(Screen(tmp_path / f"tmux{len(screens)}", command, **how))
        screens[-1].wait_for("\n>")
        return screens[-1]

    yield open_chat
    for screen in screens:
        screen.close()


def test_question_is_answered_with_its_numbers_and_commands_are_obeyed(opened):
    screen = opened("--max_new_tokens 12")
    screen.type("你好，小明")
    assert "> 你好，小明" in screen.wait_for("tokens, ")
    assert "a second; " in screen.wait_for("of the context in use")
    screen.type("/system 你是猫。")
    screen.wait_for("a system message")
    screen.type("/stats")
    screen.wait_for("69,072 parameters")
    screen.type("/undo")
    screen.wait_for("forgotten: 你好，小明")
    screen.type("/quit")
    screen.wait_for("ended")


def test_every_command_is_obeyed(opened, tokenizer, tmp_path):
    save_model(tiny_model(seed=1, max_position_embeddings=8192), tmp_path / "SFT", tokenizer, 8192)
    screen = opened("--max_new_tokens 8 --temperature 1")
    screen.type("你好")
    screen.wait_for("of the context in use")
    chat = f"{tmp_path}/chat.jsonl"
    typed = {  # a command: what comes after it, and what then is on the screen
        "/help": ("", "how likely each token of the last reply was, and its rivals"),
        "/stats": ("", "2 messages, "),
        "/tokens": ("", "|</s>|⏎|<s>|"),
        "/probs": ("", "%  "),
        "/save": (chat, f"saved in {chat}"),
        "/set": ("top_k 7", "\ntop_k 7"),
        "/system": ("你是猫。", "a system message"),
        "/think": ("3", "thinks for at most 3 tokens"),
        "/fold": ("on", "thinking is folded to a line"),
        "/compare": ("你好", "┃ SFT"),
        "/model": ("1", f"model 1, in {tmp_path}/SFT"),
        "/retry": ("", "8 tokens, "),
        "/undo": ("", "forgotten: 你好"),
        "/load": (chat, "> 你好\n"),
        "/new": ("", "a new conversation"),
        "/quit": ("", "ended"),
    }
    assert set(typed) == set(COMMANDS)
    for command, (argument, expected) in typed.items():
        screen.press("C-l")  # an empty screen
        screen.type(f"{command} {argument}".strip())
        screen.wait_for(expected)


def test_reply_streams(opened):
    screen = opened("--max_new_tokens 8000 --temperature 1 --top_k 5")
    screen.type("你好")
    time.sleep(1)
    first = screen.run("capture-pane", "-p")
    time.sleep(0.5)
    second = screen.run("capture-pane", "-p")
    assert first != second and "of the context in use" not in second
    screen.press("C-c")
    screen.wait_for("[stopped]")


def test_thinking_is_closed_and_folded_on_the_screen(opened):
    screen = opened("--max_new_tokens 12")
    screen.type("/think off")
    screen.wait_for("answers at once")
    screen.type("你好")
    assert "<think>" not in screen.wait_for("of the context in use")
    screen.type("/fold on")
    screen.wait_for("folded to a line")
    screen.type("/retry")
    screen.wait_for("thought for 0.0 seconds")


def test_ctrl_c_stops_the_reply_alone(opened):
    screen = opened("--max_new_tokens 4000 --temperature 1 --top_k 5")
    screen.type("你好")
    time.sleep(1)
    screen.press("C-c")
    screen.wait_for("[stopped]")
    screen.wait_for("of the context in use")
    screen.press("C-c")
    screen.wait_for("(Ctrl-D ends the program)")
    screen.press("C-d")
    screen.wait_for("ended")


def test_typed_line_is_edited_recalled_and_completed(opened):
    screen = opened("--max_new_tokens 4")
    screen.run("send-keys", "-l", "/thinks of")
    screen.press("BSpace")
    screen.type("ff")
    screen.wait_for("/thinks: unknown")
    screen.press("Up")
    screen.wait_for("> /thinks off")
    screen.press("C-u")
    screen.run("send-keys", "-l", "/sta")
    screen.press("Tab")
    screen.wait_for("> /stats")
    screen.press("Enter")
    screen.wait_for("69,072 parameters")


def test_alt_enter_begins_a_line_within_a_question(opened, tmp_path):
    screen = opened("--max_new_tokens 4")
    screen.run("send-keys", "-l", "第一行")
    screen.press("M-Enter")
    screen.type("第二行")
    screen.wait_for("of the context in use")
    screen.type(f"/save {tmp_path}/chat.jsonl")
    screen.wait_for("saved in")
    assert "第一行\\n第二行" in (tmp_path / "chat.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [{"columns": 40}, {"term": "dumb"}])
def test_narrow_and_dumb_terminals_are_served(how, opened):
    screen = opened("--max_new_tokens 12", **how)
    screen.type("你好")
    shown = screen.wait_for("of the context in use" if "columns" in how else "\n>", colours=True)
    screen.type("/stats")
    screen.wait_for("69,072 parameters")
    assert "\x1b[2m" not in shown or "term" not in how
    screen.type("/quit")
    screen.wait_for("ended")
