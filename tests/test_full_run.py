"""The full run: the files it gathers, the steps it plans, the tables it writes, all of it at a tiny size."""

import json
import lzma
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import conversation, tiny_model, write_jsonl

from dataset import prompt_ids
from generate import Sampling, generate
from infra.divergence import Diverged
from infra.questions import read_conversations
from infra.tokenizer import ChatTokenizer
from tools.full_run import main, run_stage, typical
from tools.full_run_data import gather, hold_out, reason, word_problems
from tools.full_run_grades import answer
from tools.full_run_plan import (
    GRADING,
    STAGES,
    FullRunConfig,
    command_line,
    flags_of,
    plan,
    time_for,
)
from tools.full_run_results import compared, signs_test, tables, texts
from tools.worked_r1 import use_of

# ---- files ----


def test_the_last_lines_are_held_out(tmp_path):
    for count, held_out in ((25, 2), (8000, 700)):
        text = "\n".join(map(str, range(count)))  # its last line without an end
        (tmp_path / "all").write_text(text)
        hold_out(tmp_path / "all", tmp_path / "end", 700)
        assert (tmp_path / "all").read_text() + (tmp_path / "end").read_text() == text
        assert len((tmp_path / "end").read_text().split()) == held_out
    (tmp_path / "all").write_text("1\n" * 9)
    with pytest.raises(ValueError, match="all: found 9 lines, expected at least 10"):
        hold_out(tmp_path / "all", tmp_path / "end", 700)


@pytest.fixture
def shards(tmp_path):
    """(a folder with the files of a run, pretrain in two shards; the 3000 lines of each)."""
    lines = [f"{number}\n".encode() for number in range(3000)]
    (tmp_path / "pretrain-00.jsonl").write_bytes(b"".join(lines[:1000])[:-1])  # without its last newline
    (tmp_path / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"".join(lines[1000:])))
    for name in ("sft_512", "sft_1024", "sft_val", "r1_1024"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
    return tmp_path, lines


def test_shards_are_joined_and_what_is_missing_is_held_out(shards):
    folder, lines = shards
    gather(folder, folder / "all")
    found = {path.stem: path.read_bytes().splitlines(keepends=True) for path in (folder / "all").iterdir()}
    assert found == {
        "pretrain": lines[:2700],
        "pretrain_val": lines[2700:],
        "sft_512": lines,
        "sft_val": lines,
        "sft_1024": lines,
        "r1_1024": lines[:2800],
        "r1_val": lines[2800:],
    }


def test_files_that_are_missing_twice_there_or_cut_off_are_refused(shards):
    folder, _ = shards
    (folder / "pretrain.jsonl").write_bytes(b"1\n")
    with pytest.raises(ValueError, match="expected pretrain once"):
        gather(folder, folder / "all")
    (folder / "pretrain.jsonl").unlink()
    (folder / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"1\n" * 99)[:-20])
    with pytest.raises(ValueError, match="pretrain-01.jsonl.xz: not a whole xz file"):
        gather(folder, folder / "all")
    (folder / "sft_1024.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="found no sft_1024.jsonl"):
        gather(folder, folder / "all")


def test_files_are_not_copied_onto_themselves(shards):
    folder, _ = shards
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="would destroy them"):
        gather(folder, folder)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_held_out_problems_that_were_asked_to_the_letter_or_are_too_long_are_left_out(tokenizer, tmp_path):
    reply = "<think>想</think>\n<answer>{}</answer>".format
    kept = conversation("3加4等于几？", reply("3+4=7。答案：7"))
    others = [conversation("1加1等于几？", reply("2")), conversation("几" * 200, reply("7"))]
    problems = [{"conversations": turns} for turns in (*others, kept)]
    path = write_jsonl(tmp_path / "a.jsonl", problems)
    asked = conversation("你好", "你好", "1加1等于几？", "2")
    trained_on = write_jsonl(tmp_path / "b.jsonl", [{"conversations": asked}])
    tokenizer.save(tmp_path, 512)  # a prompt may have a quarter of it
    found = word_problems(path, tmp_path / "c.jsonl", ChatTokenizer(tmp_path), [trained_on])
    assert found == {"word_problems": 1, "constant_answer": "7", "constant_right": 1}
    assert json.loads((tmp_path / "c.jsonl").read_text(encoding="utf-8")) == {"conversations": kept}


def r1_problems(count):
    """R1 conversations whose rationale a program wrote, each with a wording of its own."""
    for number in range(count):
        wording = "".join("甲乙丙丁戊己庚辛壬癸"[int(digit)] for digit in f"{number:03}")
        a, b = number % 80 + 11, number % 7 + 2
        answer = f"列式计算：{a}×{b}={a * b}。\n答案：{a * b}"
        reply = f"<think>\n第一步，{a}×{b}={a * b}。\n</think>\n<answer>\n{answer}\n</answer>"
        yield conversation(f"{wording}有{a}箱，每箱{b}个，共几个？", reply)


def test_reasoning_files_are_worked_out_mixed_and_apart_from_what_is_held_out(tmp_path):
    problems, data = list(r1_problems(200)), tmp_path / "data"
    data.mkdir()
    why = [question for word in "天海草雪" if use_of(question := f"{word}为什么是这个颜色？") == "worked"]
    in_words = [
        conversation(question, "<think>\n看光。\n</think>\n<answer>\n光\n</answer>") for question in why
    ]
    write_jsonl(data / "r1_1024.jsonl", [{"conversations": turns} for turns in problems + in_words])
    write_jsonl(data / "r1_val.jsonl", [{"conversations": turns} for turns in problems[:3]])
    talk = [{"conversations": conversation(f"你好{number}", "你好！")} for number in range(2000)]
    write_jsonl(data / "sft_512.jsonl", talk)
    shares = {"equations": 0.5, "reversed": 0.5, "words": 0.5, "conversations": 0.25}
    found = reason(FullRunConfig(out_dir=tmp_path, variants=2, drills=30, long_calculations=5, **shares))

    def asked(name):
        return [turns[0]["content"] for turns in read_conversations(data / f"{name}.jsonl")]

    held_out = asked("problems")
    assert held_out and not set(held_out) & set(asked("plain"))
    rewarded = {turns[0]["content"] for turns in problems if use_of(turns[0]["content"]) == "reward"}
    assert rewarded and rewarded < set(asked("worked_reward"))  # and variants of them
    trained = len(problems) - len(held_out) - len(rewarded)
    assert found["worked"] == {
        "as they are": trained,
        "in words": len(why) // 2,
        "variants": trained,
        "equations": trained - round(trained / 2),
        "reversed": round(trained / 2),
        "long calculations": 3,
        "long equations": 2,
        "drills": 30,
    }
    assert found["calculations"] == {"spelled": trained}
    wordings = {
        re.sub(r"\d", "", question) for name in ("worked", "worked_reward") for question in asked(name)
    }
    assert not wordings & {re.sub(r"\d", "", question) for question in held_out}
    assert not set(asked("worked_reward")) & set(asked("worked"))
    for name in ("plain", "worked", "equations"):
        mixed, alone = asked(f"{name}_mixed"), asked(name)
        assert mixed[: len(alone)] == alone and set(mixed[len(alone) :]) <= {
            turns["conversations"][0]["content"] for turns in talk
        }
        share = 1 - (data / f"{name}.jsonl").stat().st_size / (data / f"{name}_mixed.jsonl").stat().st_size
        assert share == pytest.approx(1 / 5, abs=0.01)
    assert ":" in (data / "worked_val.jsonl").read_text(encoding="utf-8")


# ---- planning and training ----


def planning(folder, **changes):
    usual = FullRunConfig(
        out_dir=folder, preset="tiny", device="cpu", step_tokens=2048, most_tokens=1024, validations=4,
        pretrain_tokens=1e9, distill_tokens=50e3, seed=1,
    )  # fmt: skip
    return replace(usual, **changes)


def test_time_that_is_left_is_shared_by_what_is_left_to_do():
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
    assert time_for(STAGES[0], 0.0, 60) == pytest.approx(3600 * 0.17 / (1 + 6 * GRADING))
    assert time_for(STAGES[4], 600.0, 60) == pytest.approx(3000 * 0.04 / (0.15 + 2 * GRADING))
    assert time_for(STAGES[5], 9999.0, 60) == 0
    assert time_for(STAGES[3], 600.0, 60, "worked") == pytest.approx(3000 * 0.55 / (0.55 + GRADING))


def with_script(stage, main):
    return replace(stage, script=SimpleNamespace(main=main, RECIPE=stage.script.RECIPE))


def test_planned_steps_and_validations_fill_their_share_of_the_time(tmp_path, monkeypatch):
    def rehearsal(argv):
        assert argv[-2:] == ["--max_steps=50", "--dry_run"]
        sizes = {"batch_size": 1, "accumulation_steps": 4}  # two rows did not fit
        return {"step_seconds": 0.5, "timed_seconds": 32.5, "validation_seconds": 8.0, **sizes}

    first = with_script(STAGES[0], rehearsal)
    monkeypatch.setattr("tools.full_run_plan.STAGES", [first, *STAGES[1:]])
    found = plan(first, planning(tmp_path, minutes=20), {"seconds": 32.0})
    share = 1160 * 0.17 / (1 + 6 * GRADING)  # of what is left after the rehearsal, which validated once
    assert share - 0.5 < found["steps"] * 0.5 + 4 * 8.0 <= share + 1e-6
    flags = found["flags"]
    assert (flags["batch_size"], flags["accumulation_steps"], flags["max_steps"]) == (1, 4, found["steps"])
    assert plan(first, planning(tmp_path, minutes=20), {"seconds": 1200.0})["steps"] == 2
    of_tokens = planning(tmp_path, minutes=20, pretrain_tokens=3 * 2048)
    assert plan(first, of_tokens, {"seconds": 32.0})["steps"] == 3


def test_planning_measures_a_validation_and_leaves_nothing_behind(data, tokenizer, tmp_path):
    for name in ("tokenizer", "data"):
        (tmp_path / name).mkdir()
    tokenizer.save(tmp_path / "tokenizer", 512)
    for name in ("pretrain", "pretrain_val"):
        lines = data[name].read_bytes().splitlines(keepends=True)
        (tmp_path / f"data/{name}.jsonl").write_bytes(b"".join(lines[:60]))
    start = time.perf_counter()
    found = plan(STAGES[0], planning(tmp_path, minutes=20, step_tokens=512), {"seconds": 30.0})
    assert found["start_seconds"] + 40 * found["step_seconds"] < time.perf_counter() - start  # 49 were timed
    assert found["steps"] > 2 and found["validation_seconds"] > 0 and found["step_seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "data"}


def test_both_distillations_are_planned_alike_but_for_their_data(tmp_path):
    worked, plain = STAGES[3], STAGES[7]
    config = planning(tmp_path, step_tokens=8192, most_tokens=8192, compile=True)
    first = plan(worked, config, {})
    often = {"eval_every": 2, "save_every": 1, "log_every": 1}
    assert first["steps"] == 6
    assert first["flags"] == {"batch_size": 16, "accumulation_steps": 1, "max_steps": 6, **often}
    assert plan(plain, config, {"plan worked": {**first, "steps": 7}}) == {**first, "steps": 7}
    flags, others = flags_of(worked, config), flags_of(plain, config)
    assert flags["compile"] is True and "max_steps" not in flags
    files = {"data_path": tmp_path / "data/plain_mixed.jsonl", "val_path": tmp_path / "data/plain_val.jsonl"}
    assert others == flags | files | {"out_dir": tmp_path / "plain"}
    assert command_line({"compile": True, "resume": False, "seed": 0}) == ["--compile", "--seed=0"]


def test_a_step_of_grpo_has_its_own_number_of_questions(tmp_path):
    config = planning(tmp_path)  # two rows of 1024 in a step, one in a micro-batch
    flags = flags_of(STAGES[5], config)
    assert (flags["batch_size"], flags["accumulation_steps"], flags["max_seq_len"]) == (16, 1, 1024)
    assert flags["init_from"] == flags_of(STAGES[4], config)["init_from"] == tmp_path / "worked"
    assert flags["val_path"] == tmp_path / "data/worked_val.jsonl"


def test_no_stage_reads_its_start_from_the_folder_that_it_writes(tmp_path):
    flags = [flags_of(stage, planning(tmp_path)) for stage in STAGES]
    assert len({flag["out_dir"] for flag in flags}) == len(flags)
    assert all(flag.get("init_from") != flag["out_dir"] for flag in flags)


def test_a_stage_after_sft_that_fails_is_reported_and_left(tmp_path):
    def diverge(argv):
        raise Diverged(f"step 3 at {argv[-1]}")

    def do(name, title, work):
        if name not in parts:
            parts[name] = work()
        return parts[name]

    planned = {"steps": 9, "flags": {"max_steps": 9}}
    config, parts = planning(tmp_path), {"plan worked": planned, "plan pretrain": planned}
    run_stage(with_script(STAGES[3], diverge), config, parts, do)
    assert parts["worked"] == {"failed": "step 3 at --max_steps=9"}
    assert "grade worked" not in parts
    with pytest.raises(Diverged):  # all the other stages go on from it
        run_stage(with_script(STAGES[0], diverge), config, parts, do)


def test_typical_leaves_out_what_compiled_and_averages_the_end():
    first = {"loss": 9.0, "tokens_per_second": 1.0, "mfu": 0.01}
    lines = [{"loss": 5.0 + step, "tokens_per_second": 100.0 + step, "mfu": 0.3} for step in range(7)]
    lines = [first, *lines[:3], {"val_loss": 2.0}, *lines[3:]]
    found = typical([*lines, {"loss": None, "tokens_per_second": 7.0}])
    assert found == {"loss": 9.0, "tokens_per_second": 103.0, "mfu": 0.3}  # of 7 to 11
    assert typical(lines[:1]) == first


# ---- results ----


def test_signs_test_is_the_one_worked_out_by_hand():
    both_tails = 2 * (1 + 6) / 2**6  # of 6 coins, none or one
    assert signs_test(5, 1) == signs_test(1, 5) == both_tails
    assert signs_test(3, 3) == signs_test(0, 0) == 1


@pytest.fixture
def parts():
    """A report.json in which one of two distillations failed."""
    trained = {
        "step": 9, "tokens": 2_500_000, "train_seconds": 90, "tokens_per_second": 31234.5, "mfu": 0.25,
        "loss": 2.0, "val_loss": 2.5, "val_ppl": 12.18, "val_bpb": 0.9, "parameters": 12345,
    }  # fmt: skip
    replies = {"你好，请介绍一下你自己。": "长" * 999, "What is 17 plus 26?": "44"}
    graded = {
        "questions": 40, "right": [3, 4], "well_formed": 0.5, "ordinary_loss": 3.25, "replies": replies,
        "equation_right": 0.25, "calculations_right": 0.975, "reply_tokens": 61.4,
        "by_kind": {"1 steps": [2, 30], "fractions": [0, 10]},
    }  # fmt: skip
    changed = {"longer numbers": {**graded, "questions": 20, "right": [7]}}
    return {
        "settings": {"device": "a later card", "preset": "tiny", "torch": "2", "dtype": "bfloat16"},
        "commands": ["python a"],
        "seconds": 600.0,
        "tokens": {"word_problems": 40, "constant_answer": "7", "constant_right": 3},
        "pretrain": {**trained, "device": "a card"},
        "SFT_1024": trained,
        "plain": {"failed": "step 3"},
        "worked": {**trained, "device": "another"},
        "GRPO": trained,
        "grade SFT_1024": graded,
        "grade worked": graded,
        "majority": {"right": [3, 9, 11], "samples_right": 0.0625},
        "changed": {**changed, "seconds": 9.0},
        "grade GRPO": {**graded, "right": [4, 5, 6, 7, 8, 9]},
    }


def test_tables_tell_what_was_measured(parts):
    found = tables(parts, STAGES)
    assert "12,345 parameters; a card, then another, torch 2, bfloat16; 10 minutes in all" in found
    row = "| pretrain | 9 | 2.5M | 1.5 | 31,234 | 25.0% | 2.000 | 2.500 | 12.18 | 0.900 |"
    assert f"\n{row}\n" in found
    assert "\n| plain | failed |" in found
    rungs = [
        "| SFT_1024 | 2 of 40, 5.0% | 1.4% to 16.5% | - | 25.0% | 97.5% | 61 | 50.0% | 3.250 |",
        "| worked | 2 of 40, 5.0% | 1.4% to 16.5% | SFT_1024: +0 -0 (p = 1) | 25.0% | 97.5% | 61 | 50.0%"
        " | 3.250 |",
        "| worked, majority of 16 samples, 6.2% of them right | 3 of 40, 7.5% | 2.6% to 19.9%"
        " | worked: +2 -1 (p = 1)" + 4 * " | -" + " | 3.250 |",
        "| GRPO | 6 of 40, 15.0% | 7.1% to 29.1% | worked: +5 -1 (p = 0.22) | 25.0% | 97.5% | 61 | 50.0%"
        " | 3.250 |",
        "| always 7 | 3 of 40, 7.5% | - | - | - | - | - | - | - |",
    ]
    assert "\n" + "\n".join(rungs) + "\n" in found
    assert "\n| fractions | 0 of 10, 0.0% | 0 of 10, 0.0% | 0 of 10, 0.0% |\n" in found
    assert "\n| longer numbers | 1 of 20, 5.0% | 25.0% | 97.5% |\n" in found
    tables_found = [part for part in found.split("\n\n") if part.startswith("|")]
    assert len(tables_found) == 4
    for lines in tables_found:  # each table's rows are as wide as its head
        assert len({line.count("|") for line in lines.strip().splitlines()}) == 1


def test_tables_have_room_for_replies_that_calculate_nothing(parts):
    del parts["changed"]["longer numbers"]["calculations_right"]
    assert "\n| longer numbers | 1 of 20, 5.0% | 25.0% | - |\n" in tables(parts, STAGES)


def test_a_comparison_counts_the_questions_that_only_one_got_right():
    assert compared({"right": [1, 2, 3, 4, 5, 6]}, {"right": [6, 7]}, "other") == "other: +5 -1 (p = 0.22)"


def test_tables_can_be_written_before_anything_is_trained(parts):
    before = {name: parts[name] for name in ("settings", "commands", "seconds")}
    assert "a later card, torch 2" in tables(before, STAGES)
    assert texts(before, STAGES) == "\n"


def test_long_replies_are_cut_and_known_answers_judged(parts):
    found = texts(parts, STAGES)
    assert "长" * 300 + " ... (999 characters in all)\n" in found and "长" * 301 not in found
    assert "> What is 17 plus 26? (wrong, expected 43)\n" in found and "> 你好，请介绍一下你自己。\n" in found


# ---- all of it ----


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--validations 0", "--validations (0)"),
        ("--minutes -1", "--minutes (-1.0)"),
        ("--minutes inf", "--minutes (inf)"),
        ("--variants -1", "--variants (-1)"),
        ("--last none", "--last 'none' is unknown"),
    ],
)
def test_full_run_refuses_flags_that_make_no_sense(flags, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        main([*flags.split(), "--out_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_full_run_can_be_repeated_when_bad_lines_are_fixed(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    sources = {"pretrain": "pretrain", "sft_512": "sft", "sft_1024": "sft", "r1_1024": "r1"}
    for name, source in sources.items():
        shutil.copy(data[source], folder / f"{name}.jsonl")
    whole = (folder / "r1_1024.jsonl").read_bytes()
    (folder / "r1_1024.jsonl").write_bytes(whole[:-20])
    flags = (
        f"--data_dir {folder} --out_dir {tmp_path}/out --device cpu --vocab_size 500 --preset tiny".split()
    )
    flags += ["--pretrain_tokens", "2048", "--step_tokens", "1024", "--last", "pretrain"]
    with pytest.raises(ValueError, match=f"r1_val.jsonl:.*Fix it in {re.escape(str(folder))}"):
        main(flags)
    (folder / "r1_1024.jsonl").write_bytes(whole)
    conversations = (folder / "sft_1024.jsonl").read_bytes()
    shutil.copy(data["pretrain"], folder / "sft_1024.jsonl")
    with pytest.raises(ValueError, match="sft_1024.jsonl:1: .*conversations"):
        main(flags)
    (folder / "sft_1024.jsonl").write_bytes(conversations)
    main(flags)
    assert (tmp_path / "out/pretrain/model.safetensors").is_file()

    report = tmp_path / "out/report.json"
    parts = json.loads(report.read_text()) | {"worked": {"failed": "no disk"}}
    parts["settings"]["dtype"] = "bfloat16"  # of a card, where the data may have been prepared
    report.write_text(json.dumps(parts))
    main(flags)
    assert "worked" not in json.loads(report.read_text())  # to be tried again


def test_a_graded_reply_may_be_longer_than_half_of_the_context(tokenizer):
    model = tiny_model(max_position_embeddings=256)
    turns = conversation("3+4?", "<think>\n3+4\n</think>\n<answer>\n7\n</answer>")
    ids = generate(model, [prompt_ids(tokenizer, turns[:1])], Sampling(max_new_tokens=80))[0]
    assert len(ids) == 80 > tokenizer.max_length // 2
    judged, _ = answer(model, tokenizer, [turns], SimpleNamespace(max_new_tokens=80))
    assert judged[0]["reply"] == tokenizer.decode(ids)


@pytest.fixture
def full_data(data, tmp_path):
    """A folder with all files, pretrain in shards, and R1 with problems whose steps a program wrote."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = data["pretrain"].read_bytes().splitlines(keepends=True)
    (folder / "pretrain-00.jsonl").write_bytes(b"".join(lines[:50]))
    (folder / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"".join(lines[50:])))
    for name in ("pretrain_val", "sft_val", "r1_val"):
        shutil.copy(data[name], folder / f"{name}.jsonl")
    for name, source in {"sft_512": "sft", "sft_1024": "sft", "r1_1024": "r1"}.items():
        shutil.copy(data[source], folder / f"{name}.jsonl")
    with open(folder / "r1_1024.jsonl", "a", encoding="utf-8") as file:
        for turns in r1_problems(60):
            file.write(json.dumps({"conversations": turns}) + "\n")
    return folder


@pytest.mark.long
def test_full_run_goes_on_after_a_stage_and_reports_all_of_them(data, full_data, tmp_path, capsys):
    out = tmp_path / "out"
    shape = "--preset tiny --vocab_size 500 --step_tokens 2048 --most_tokens 1024 --max_new_tokens 8"
    budgets = "--variants 1 --drills 20 --pretrain_tokens 6144 --sft_tokens 4096 --grpo_tokens 32768"
    flags = f"--data_dir {full_data} --out_dir {out} --device cpu {shape} {budgets}".split()
    main([*flags, "--last", "pretrain"])
    before = json.loads((out / "report.json").read_text())
    assert (out / "data/pretrain.jsonl").read_bytes() == data["pretrain"].read_bytes()
    assert before["plan pretrain"]["steps"] == before["pretrain"]["step"] == 3 and "SFT_512" not in before
    planned = before["plan pretrain"]["flags"]
    assert planned["batch_size"] == planned["accumulation_steps"] == 2

    capsys.readouterr()
    main([*flags, "--distill_tokens", "4096"])
    after = json.loads((out / "report.json").read_text())
    assert capsys.readouterr().out.count("done before") == 7 and after["pretrain"] == before["pretrain"]
    trained = ["SFT_512", "SFT_1024", "worked", "GRPO", "equations", "plain"]
    assert {*trained, *(f"grade {name}" for name in trained)} <= set(after)
    assert after["own replies"]["kept"] == 0 and "failed" in after["rejection"]  # so little was learned
    grade, validated = after["grade SFT_1024"], after["SFT_1024"]["val_loss"]
    assert grade["ordinary_loss"] == pytest.approx(validated, abs=1e-3)
    assert grade["questions"] == after["tokens"]["word_problems"] > 1
    replies = (out / "worked/replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(replies) == grade["questions"] and "equation_right" in json.loads(replies[0])
    changes = {"two more steps", "other numbers", "longer numbers", "a distraction", "seconds"}
    assert set(after["changed"]) == changes and "right" in after["majority"]

    written = (out / "results/experiments.md").read_text(encoding="utf-8")
    for once in ("\n| pretrain | 3 |", "\n| worked | 2 |", "## SFT_1024 replies"):
        assert written.count(once) == 1
    kept = {path.relative_to(out / "results").as_posix() for path in (out / "results").rglob("*.*")}
    charts = {
        "charts_pretrain/loss_pretrain.png",
        "charts_SFT/lr_SFT_1024.png",
        "charts_GRPO/reward_GRPO.png",
    }
    assert {*charts, "metrics/worked.jsonl", "report.json"} <= kept
    assert "prompt_1" in (out / "worked/metrics.jsonl").read_text(encoding="utf-8")
    metrics = (out / "results/metrics/worked.jsonl").read_text(encoding="utf-8")
    assert "val_loss" in metrics and "prompt_1" not in metrics and "prompt_1" not in json.dumps(after)
