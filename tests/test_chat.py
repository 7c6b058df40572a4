"""The chat: which turns a reply sees, what reaches the terminal, and which folder the model is of."""

import io
import os
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import conversation, tiny_model, write_jsonl

import eval_model
from dataset import prompt_ids
from eval_model import EvalConfig, load_stage
from infra.chat import converse
from infra.checkpoint import save_model
from infra.cli import UserError
from infra.commands import COMMANDS
from infra.conversation import Chat
from infra.history import fit
from infra.inside import token_probabilities
from infra.questions import read_conversations
from infra.terminal import DIM, PLAIN, as_text, print_stream, typed_lines
from infra.thinking import CIRCLE, IN_CIRCLES, limit_thinking
from infra.tokenizer import ChatTokenizer

END = 2
NOBODYS = "~nobody-of-this-name/a.jsonl"
ESCAPES = "\x1b[2J\x9b31m\x07\x7f"  # they would clear the screen, colour it, ring the bell


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A checkpoint that was trained on rows of 512 tokens."""
    folder = tmp_path_factory.mktemp("model")
    save_model(talker(), folder, tokenizer, 512)
    return folder


@pytest.fixture(scope="module")
def wide(folder):
    """The checkpoint's tokenizer, which tells that length."""
    return ChatTokenizer(folder)


def talker():
    return tiny_model(max_position_embeddings=512)


class Answers:
    """A stream that gives the same texts to whatever is asked, and remembers what was asked."""

    def __init__(self, tokenizer, *replies):
        self.tokenizer, self.replies = tokenizer, replies
        self.prompts, self.seeds = [], []

    def __call__(self, model, prompts, sampling, shared):
        reply = self.replies[len(self.prompts) % len(self.replies)]
        self.prompts.append(prompts[0])
        self.seeds.append(sampling.seed)
        yield from ([id] for id in self.tokenizer.encode(reply))
        yield [END]


def chat_with(answers, tokenizer, **flags):
    return Chat(talker(), tokenizer, EvalConfig(**flags), answers, prompt_ids, load_stage)


@pytest.fixture
def ask(wide):
    """A function that chats with replies given beforehand and returns the prompts that asked for them."""

    def asked(questions, *replies, **flags):
        answers = Answers(wide, *(replies or ["好"]))
        converse(chat_with(answers, wide, **flags), questions)
        return answers.prompts

    return asked


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ---- which turns a reply sees ----


def test_history_that_fits_is_kept_whole(tokenizer):
    messages, to_prompt = conversation("第一问", "第一答", "第二问"), partial(prompt_ids, tokenizer)
    whole = to_prompt(messages)
    assert fit(messages, len(whole), to_prompt) == (whole, messages)


def test_history_loses_its_oldest_turns_first_and_keeps_the_system_message(tokenizer):
    messages = conversation("第一问", "第一答", "第二问", "第二答", "第三问", system="你是老师。")
    to_prompt = partial(prompt_ids, tokenizer)
    ids, kept = fit(messages, len(to_prompt(messages)) - 1, to_prompt)
    assert kept == [messages[0], *messages[3:]] and ids == to_prompt(kept)
    shortest = [messages[0], messages[-1]]
    assert fit(messages, len(to_prompt(shortest)), to_prompt)[1] == shortest


def test_history_never_begins_with_a_reply(tokenizer):
    messages, to_prompt = conversation("一", "二", "三", "四", "五"), partial(prompt_ids, tokenizer)
    for room in range(len(to_prompt(messages[-1:])), len(to_prompt(messages))):
        assert fit(messages, room, to_prompt)[1][0]["role"] == "user"


def test_long_history_is_tokenized_a_few_times_only(tokenizer):
    messages, asked = conversation(*["好"] * 2001), []

    def to_prompt(kept):
        asked.append(len(kept))
        return [0] * len(kept)

    assert fit(messages, 9, to_prompt) == ([0] * 9, messages[-9:]) and len(asked) < 15


def test_message_that_is_too_long_alone_is_refused_with_its_length(tokenizer):
    to_prompt = partial(prompt_ids, tokenizer)
    messages = conversation("第一问", "第一答", "第二问")
    shortest = len(to_prompt(messages[-1:]))
    found = f"found a message of {shortest} tokens, expected at most {shortest - 1}"
    with pytest.raises(UserError, match=found):
        fit(messages, shortest - 1, to_prompt)


def test_each_reply_sees_the_turns_before_it(ask, tokenizer):
    seen = ask(["你好", "再见"], "好")
    assert seen[0] == prompt_ids(tokenizer, conversation("你好"))
    assert seen[1] == prompt_ids(tokenizer, conversation("你好", "好", "再见"))


def test_new_begins_a_new_conversation(ask, tokenizer, capsys):
    assert ask(["你好", "/new", "早"])[1] == prompt_ids(tokenizer, conversation("早"))
    assert capsys.readouterr().err == "a new conversation\n"


def test_unknown_command_is_told_and_forgets_nothing(ask, tokenizer, capsys):
    seen = ask(["你好", "/helm", "再见"], "好")
    assert seen[1] == prompt_ids(tokenizer, conversation("你好", "好", "再见"))
    assert capsys.readouterr().err.startswith("/helm: unknown, expected one of /help /new ")


def test_prompt_that_looks_like_a_command_is_asked(ask, tokenizer):
    assert ask(["/new"], prompt="/new") == [prompt_ids(tokenizer, conversation("/new"))]


def test_turn_without_a_reply_is_forgotten(ask, tokenizer, capsys):
    seen = ask(["一", "二", "三"], "好", " ")
    assert seen[2] == prompt_ids(tokenizer, conversation("一", "好", "三"))
    assert capsys.readouterr().out.splitlines() == ["好", " (an empty reply)", "好"]


def test_model_does_not_see_what_is_longer_than_the_rows_it_was_trained_on(tokenizer, tmp_path, capsys):
    """The model itself could hold 512 tokens. What it no longer sees is saved all the same."""
    alone = [prompt_ids(tokenizer, conversation(question)) for question in "甲乙丙"]
    tokenizer.save(tmp_path, 2 * max(map(len, alone)))  # half of it is for the reply
    answers = Answers(tokenizer, "好")
    converse(chat_with(answers, ChatTokenizer(tmp_path)), ["甲", "乙", "丙", f"/save {tmp_path}/chat.jsonl"])
    assert answers.prompts == alone and "left out, for lack of room: 4" in capsys.readouterr().err
    assert next(read_conversations(tmp_path / "chat.jsonl")) == conversation(*"甲好乙好丙好")


def test_message_that_is_too_long_is_told_and_the_chat_goes_on(ask, tokenizer, capsys):
    seen = ask(["一", "长" * 300, "二"], "好")
    assert seen[1] == prompt_ids(tokenizer, conversation("一", "好", "二")) and len(seen) == 2
    assert "found a message of " in capsys.readouterr().err


def test_prompt_that_is_too_long_ends_the_program(ask):
    with pytest.raises(UserError, match="found a message of"):
        ask(["长" * 300], prompt="长" * 300)


def test_pretrained_mode_continues_each_text_alone(ask, tokenizer):
    seen = ask(["小明有", "小红有"], "3", model_mode=0)
    assert seen == [[1, *tokenizer.encode("小明有")], [1, *tokenizer.encode("小红有")]]


def test_each_question_is_sampled_with_a_seed_of_its_own(wide):
    answers = Answers(wide, "好")
    converse(chat_with(answers, wide, seed=7), ["一", "二"])
    assert answers.seeds == [7, 8]


# ---- commands ----


def test_help_tells_of_every_command(ask, capsys):
    ask(["/help"])
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == list(COMMANDS)


def test_retry_asks_the_last_question_again_with_another_seed(wide):
    answers = Answers(wide, "一", "二", "三")
    converse(chat_with(answers, wide, seed=7), ["甲", "乙", "/retry", "丙"])
    again = prompt_ids(wide, conversation("甲", "一", "乙"))
    assert answers.prompts[1:3] == [again, again] and answers.seeds == [7, 8, 9, 10]
    assert answers.prompts[3] == prompt_ids(wide, conversation("甲", "一", "乙", "三", "丙"))


def test_undo_forgets_a_turn_and_then_there_is_none(ask, tokenizer, capsys):
    assert ask(["甲", "乙", "/undo", "丙"])[2] == prompt_ids(tokenizer, conversation("甲", "好", "丙"))
    assert len(ask(["/undo", "/retry"])) == 0
    assert capsys.readouterr().err.endswith("nothing was asked yet\nnothing was asked yet\n")


def test_system_message_is_changed_kept_and_taken_back(ask, tokenizer):
    seen = ask(["/system 你是猫。", "甲", "/new", "乙", "/system", "丙"])
    cat = {"role": "system", "content": "你是猫。"}
    assert seen[0] == prompt_ids(tokenizer, [cat, *conversation("甲")])
    assert seen[1] == prompt_ids(tokenizer, [cat, *conversation("乙")])
    assert seen[2] == prompt_ids(tokenizer, conversation("乙", "好", "丙"))


@pytest.mark.parametrize(
    "line, told",
    [
        ("/set min_p 0.1", "min_p 0.1"),
        ("/set temperature -1", "/set: --temperature (-1.0) must be at least 0"),
        ("/set top_k much", "/set: top_k: found 'much', expected a number"),
        ("/set prompt 1", "/set: expected one of temperature, "),
        ("/think maybe", "/think: expected on, off or a number of tokens, found 'maybe'"),
        ("/fold", "/fold: expected on or off, found ''"),
        ("/model 7", "/model: expected 0, 1, 2 or 3, found '7'"),
        ("/load nothing.jsonl", "nothing.jsonl not found"),
        ("/load", "/load: expected the name of a file"),
        ("/load .", ".: expected a JSONL file, found a folder"),
        ("/save a.jsonl", "/save: expected a conversation and the name of a file"),
        ("/stats", "distilled, 69,072 parameters, temperature 0.0, "),
    ],
)
def test_command_says_what_it_did_or_what_is_wrong(line, told, ask, capsys):
    assert len(ask([line, "甲"])) == 1
    assert capsys.readouterr().err.startswith(told)


def test_sampling_is_that_of_the_last_set(wide):
    sampled = []

    def answer(model, prompts, sampling, shared):
        sampled.append(sampling)
        yield [END]

    converse(chat_with(answer, wide), ["甲", "/set temperature 0.5", "/set top_k 3", "乙"])
    assert [(one.temperature, one.top_k) for one in sampled] == [(0.0, 0), (0.5, 3)]


def test_saved_conversation_is_loaded_and_is_training_data(ask, wide, tmp_path):
    path = tmp_path / "chat.jsonl"
    seen = ask(["甲", f"/save {path}", "/new", f"/load {path}", "乙"], "<think>想</think>")
    asked = conversation("甲", "<think>想</think>", "乙")
    assert seen[1] == prompt_ids(wide, asked)
    assert list(read_conversations(path)) == [asked[:2]]


def test_conversation_that_cannot_be_saved_is_told_and_goes_on(ask, tmp_path, capsys):
    assert len(ask(["甲", f"/save {tmp_path}/none/chat.jsonl", "乙"])) == 2
    assert "chat.jsonl could not be written (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("path, told", [(".", "is a folder"), ("/", "is a folder"), (NOBODYS, NOBODYS)])
def test_a_mistyped_path_does_not_end_the_chat(path, told, ask, capsys):
    assert len(ask(["甲", f"/save {path}", f"/load {path}", "乙"])) == 2
    assert capsys.readouterr().err.count(told) == (2 if told == NOBODYS else 1)


def test_quit_ends_the_chat(ask):
    assert len(ask(["甲", "/quit", "乙"])) == 1


def test_other_stage_is_the_one_beside_the_folder(tokenizer, tmp_path, wide, capsys):
    for stage, heads in (("SFT", 3), ("distill", 6)):
        save_model(
            tiny_model(num_attention_heads=heads, num_key_value_heads=heads), tmp_path / stage, tokenizer, 128
        )
    chat = chat_with(Answers(wide, "好"), wide, model_dir=str(tmp_path / "distill"), device="cpu")
    converse(chat, ["/model 1", "/model 0"])
    assert (chat.config.model_mode, chat.model.config.num_attention_heads) == (1, 3)
    told = capsys.readouterr().err
    assert f"model 1, in {tmp_path / 'SFT'}" in told and "run pretrain.py first" in told


@pytest.fixture
def stages(tokenizer, tmp_path):
    """A folder with two stages in it."""
    for stage in ("pretrain", "distill"):
        save_model(tiny_model(), tmp_path / stage, tokenizer, 128)
    return tmp_path


def test_stages_are_asked_the_same_under_one_seed(stages, wide, capsys):
    answers = Answers(wide, "甲答", "<think>想</think>\n<answer>乙答")
    chat = chat_with(answers, wide, model_dir=f"{stages}/distill", device="cpu", seed=7)
    converse(chat, ["前面的话", "/compare 你好", "/compare"])
    out, err = capsys.readouterr()
    assert out.endswith("--- pretrained ---\n<think>想</think>\n<answer>乙答\n--- distilled ---\n甲答\n")
    assert answers.prompts[1:] == [[1, *wide.encode("你好")], prompt_ids(wide, conversation("你好"))]
    assert answers.seeds[1:] == [7, 7] and len(chat.messages) == 2
    assert err.endswith("/compare: expected a question\n")


def test_stages_stand_side_by_side_on_a_terminal(stages, wide, monkeypatch):
    answers = Answers(wide, "甲答", "<think>想想</think>\n<answer>乙答</answer>" + "长" * 30)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    converse(chat_with(answers, wide, model_dir=f"{stages}/distill", device="cpu"), ["/compare 你好"])
    shown = re.sub("\x1b[^m]*m", "", terminal.getvalue())
    assert re.search("pretrained +. distilled", shown)
    assert re.search("甲答 +. 想想", shown) and "乙答" in shown and "think" not in shown
    assert shown.count("长") == 30 and max(map(len, shown.splitlines())) <= 60


def test_stage_that_cannot_be_read_is_left_out_and_told(stages, wide, capsys):
    (stages / "pretrain/model.safetensors").write_bytes(b"broken")
    converse(
        chat_with(Answers(wide, "好"), wide, model_dir=f"{stages}/distill", device="cpu"), ["/compare 你好"]
    )
    out, err = capsys.readouterr()
    assert out == "--- distilled ---\n好\n"
    assert "pretrained is left out: " in err and "not a whole safetensors file" in err


def test_reply_in_circles_is_stopped_beside_the_others(stages, wide, capsys):
    answers = Answers(wide, "长" * 60, "短")
    converse(chat_with(answers, wide, model_dir=f"{stages}/distill", device="cpu"), ["/compare 你好"])
    circle = "长" * (CIRCLE // len(wide.encode("长")))
    expected = f"--- pretrained ---\n{circle}{IN_CIRCLES}\n--- distilled ---\n短\n"
    assert capsys.readouterr().out == expected


# ---- from inside ----


def test_probabilities_are_those_of_hugging_face(wide, tmp_path):
    from transformers import AutoModelForCausalLM

    model, prompt, reply = talker(), [1, 9, 8], [7, 20, 4, 30]
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).float()
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt + reply])).logits[0].softmax(-1)
    for place, (own, rivals) in enumerate(token_probabilities(model, prompt, reply)):
        row = expected[len(prompt) - 1 + place]
        assert own == pytest.approx(row[reply[place]].item(), rel=1e-4)
        others = [id for id in row.argsort(descending=True).tolist() if id != reply[place]][:5]
        assert [id for id, _ in rivals] == others
        assert [value for _, value in rivals] == pytest.approx(row[others].tolist(), rel=1e-4)


def test_tokens_and_probabilities_of_the_last_reply_are_shown(ask, capsys):
    ask(["/tokens", "甲", "/tokens", "/probs"], "7\n")
    out, err = capsys.readouterr()
    assert err == "nothing was answered yet\n"
    tokens, *probabilities = out.splitlines()[2:]
    assert tokens.startswith("<s>|s|y|s|") and tokens.endswith("|t|⏎|7|⏎")
    for line, token in zip(probabilities, "7⏎", strict=True):
        assert re.match(rf" *\d+\.\d%  {token}    (.+? \d+\.\d%(  |$)){{5}}$", line)
    assert not raw_controls(out)


# ---- thinking ----

THINK, CLOSED, ANSWER = 3, 4, 5


@pytest.mark.parametrize(
    "most, context, begun, again",
    [
        (0, 99, [THINK, CLOSED, "\n", ANSWER], True),
        (2, 99, [THINK, "想", "想", CLOSED, "\n", ANSWER], True),
        (2, 8, [THINK, "想", "想", CLOSED, "\n", ANSWER], False),  # which fills the context
        (2, 7, [THINK, "想", "想", CLOSED, "\n"], False),
        (9, 99, [THINK, "想", "想", "想", CLOSED, "好"], False),
    ],
)
def test_thinking_is_closed_after_so_many_tokens_and_the_answer_goes_on(most, context, begun, again, wide):
    def spelled(parts):
        return [id for part in parts for id in ([part] if isinstance(part, int) else wide.encode(part)[:1])]

    prompts, thought = [], [THINK, "想", "想", "想", CLOSED, "好"]

    def answer(model, asked, sampling, shared):
        prompts.append((asked[0], sampling.max_new_tokens))
        yield from ([id] for id in spelled(thought if len(prompts) == 1 and most else ["好"]))

    limited = limit_thinking(answer, wide, most)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))
    found = [step[0] for step in limited(model, [[7, 8]], EvalConfig(max_new_tokens=20), {})]
    assert found == spelled(begun) + (spelled(["好"]) if again else [])
    if again:
        assert prompts[-1] == ([7, 8, *spelled(begun)], 20 - len(begun))


def test_reply_in_circles_is_stopped_and_says_so(wide, capsys):
    circling = Answers(wide, "一二三" * 200)
    converse(chat_with(circling, wide), ["甲"])
    assert capsys.readouterr().out.endswith(" [stopped: it repeats itself]\n")
    straight = Answers(wide, "".join(map(chr, range(0x4E00, 0x4E40))))
    converse(chat_with(straight, wide), ["甲"])
    assert "stopped" not in capsys.readouterr().out


# ---- what is typed ----


def test_a_pipe_brings_its_lines_without_blank_ones_and_without_a_greeting(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n\n  再见 \n/new"))
    assert list(typed_lines("welcome")) == ["你好", "再见", "/new"]
    assert capsys.readouterr().out == ""


def test_a_person_is_greeted_and_prompted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal("你好\n"))
    assert list(typed_lines("welcome")) == ["你好"]
    assert capsys.readouterr().out == "welcome\n> > "


def test_ctrl_c_while_typing_ends_neither_the_program_nor_the_lines(monkeypatch, capsys):
    class Interrupted(Terminal):
        lines = iter([KeyboardInterrupt(), "你好\n", ""])

        def readline(self, *size):
            if isinstance(line := next(self.lines), BaseException):
                raise line
            return line

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert list(typed_lines("welcome")) == ["你好"]
    assert "(Ctrl-D ends the program)" in capsys.readouterr().out


def test_bytes_that_are_no_text_become_signs(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\udcffb\n"))
    assert list(typed_lines("")) == ["a\ufffdb"]


# ---- what is shown ----


def test_ctrl_c_stops_the_reply_and_not_the_program(wide, capsys):
    prompts = []

    def interrupted(model, prompt, sampling, shared):
        prompts.append(prompt[0])
        yield wide.encode("a")
        raise KeyboardInterrupt

    converse(chat_with(interrupted, wide), ["一", "二"])
    assert capsys.readouterr().out == "a [stopped]\na [stopped]\n"
    assert prompts[1] == prompt_ids(wide, conversation("一", "a", "二"))  # what was said counts


def test_text_is_streamed_in_whole_characters(tokenizer):
    ids = tokenizer.encode("龘😀你好") + [3] + tokenizer.encode("é")
    pieces = list(as_text(tokenizer, ids))
    assert "".join(pieces) == "龘😀你好<think>é"
    assert all("\ufffd" not in piece for piece in pieces) and len(pieces) > 3


def test_broken_characters_become_one_sign_and_lose_nothing_after(tokenizer):
    half = tokenizer.encode("龘")[:-1]
    assert "".join(as_text(tokenizer, half + tokenizer.encode("a"))) == "\ufffda"
    assert "".join(as_text(tokenizer, half)) == "\ufffd"


REPLY = ["<think>", "3+4", "=7", "</think>", "\n", "<answer>", "\n七", "个", "</answer>"]


@pytest.mark.parametrize(
    "is_folded, shown",
    [
        (False, f"{DIM}3+4=7{PLAIN}\n七个{PLAIN}\n"),
        (True, f"{DIM}thinking ...\rthought for 0.0 seconds{PLAIN}\n七个{PLAIN}\n"),
    ],
)
def test_thinking_is_dim_or_folded_and_without_tags_on_a_terminal_alone(
    is_folded, shown, monkeypatch, capsys
):
    assert print_stream(REPLY, is_folded) == "".join(REPLY)
    assert capsys.readouterr().out == "".join(REPLY) + "\n"
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert print_stream(REPLY, is_folded) == "".join(REPLY)
    assert terminal.getvalue() == shown


def test_thinking_that_is_stopped_leaves_no_dim_terminal(monkeypatch):
    def stopped():
        yield "<think>"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_stream(stopped())
    assert terminal.getvalue().endswith(f"{PLAIN}\n")


def raw_controls(text):
    return {character for character in text if ord(character) < 32 or 127 <= ord(character) < 160} - set(
        "\n\t"
    )


def test_escape_sequences_of_a_models_reply_reach_no_terminal(ask, capsys):
    ask(["你好"], f"好{ESCAPES}\n是")
    out = capsys.readouterr().out
    assert not raw_controls(out) and out.startswith("好␛[2J") and out.endswith("\n是\n")


def test_escape_sequences_of_a_typed_command_reach_no_terminal(ask, capsys):
    ask([f"/{ESCAPES}", f"/load {ESCAPES}", f"/save {ESCAPES}", f"/set {ESCAPES}"])
    err = capsys.readouterr().err
    assert not raw_controls(err) and "/␛[2J" in err and err.count("␛[2J") >= 3


def test_escape_sequences_are_kept_in_the_history(ask, tokenizer):
    """They are hidden from the terminal, not from the model."""
    seen = ask(["一", "二"], "好\x1b。")
    assert seen[1] == prompt_ids(tokenizer, conversation("一", "好\x1b。", "二"))


# ---- the program ----


def eval_main(*flags):
    eval_model.main([*map(str, flags), "--device", "cpu", "--max_new_tokens", "12"])


def test_piped_lines_are_answered_line_by_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n\n/new\n早\n"))
    eval_main("--model_dir", folder, "--temperature", 0)
    piped = capsys.readouterr().out
    for question in ("你好", "早"):
        eval_main("--model_dir", folder, "--temperature", 0, "--prompt", question)
    assert piped == capsys.readouterr().out and piped.strip()


def test_prompt_gives_one_answer_and_the_same_seed_the_same(folder, capsys):
    def answer(seed):
        eval_main("--model_dir", folder, "--prompt", "你好", "--seed", seed)
        return capsys.readouterr().out

    assert answer(3) == answer(3) != answer(4)


def test_prompt_of_broken_text_is_answered(folder, capsys):
    eval_main("--model_dir", folder, "--prompt", "a\udcff")
    assert capsys.readouterr().out.strip()


def test_file_of_questions_is_scored(folder, tmp_path, capsys):
    documents = [{"conversations": conversation("3+4", "7")}, {"conversations": conversation("1+1", "2")}]
    eval_main("--model_dir", folder, "--score", write_jsonl(tmp_path / "a.jsonl", documents))
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "questions 2",
        "reasoning_accuracy 0.0%",
        "well_formed 0.0%",
    ]


def test_mode_1_takes_the_newest_finished_folder_and_says_which(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = talker()
    for seconds, (name, is_finished) in enumerate([("SFT", True), ("SFT_1024", False)]):
        save_model(model, tmp_path / "out" / name, tokenizer, 512, is_finished)
        os.utime(tmp_path / "out" / name / "model.safetensors", (seconds, seconds))
    eval_main("--model_mode", 1, "--prompt", "你好")
    assert capsys.readouterr().err == f"the model in {os.path.join('out', 'SFT')}\n"
    save_model(model, tmp_path / "out/SFT_1024", tokenizer, 512)
    eval_main("--model_mode", 1, "--prompt", "你好")
    assert capsys.readouterr().err == f"the model in {os.path.join('out', 'SFT_1024')}\n"


@pytest.mark.parametrize(
    "mode, folder, script", [(0, "pretrain", "pretrain"), (1, "SFT", "SFT"), (2, "distill", "distill")]
)
def test_missing_model_names_the_script_that_makes_it(mode, folder, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"out/{folder} not found: run {script}.py first"):
        eval_main("--model_mode", mode, "--prompt", "你好")


def test_folder_that_holds_no_model_asks_for_one_that_does(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a checkpoint, such as out/SFT"):
        eval_main("--model_dir", tmp_path, "--prompt", "你好")
