"""What the models of tools/full_run.py are worth: word problems, ordinary replies, continued texts."""

import json
import random
from pathlib import Path

import numpy as np

from Config import TrainConfig
from dataset import PackedRows, open_tokens, prompt_ids
from eval_model import EvalConfig, load
from generate import Sampling, generate, judged_replies
from infra.device import pick_device
from infra.distributed import Process
from infra.files import write_text
from infra.questions import read_conversations
from infra.scoring import final_answer, shares
from infra.tokenizer import BOS
from model import WeakWater
from tools.ladder import changed_problems, look_into, majority, prompts_of
from tools.worked_r1 import first_turn
from trainer import evaluate, prepare

BEGINNINGS = ("中国的首都是", "春天来了，", "The")
QUESTIONS = {  # with the number that is right, if there is one
    "你好，请介绍一下你自己。": "",
    "怎样才能睡得好？": "",
    "请用一句话解释什么是递归。": "",
    "学校买了24盒彩笔，每盒12支，一共有多少支彩笔？": "288",
    "小华有85元钱，买书用去37元，还剩多少元？": "48",
    "一辆汽车3小时行驶180千米，照这样计算，5小时行驶多少千米？": "300",
    "果园里有苹果树120棵，梨树的棵数是苹果树的2/3，梨树有多少棵？": "80",
    "What is 17 plus 26?": "43",
}
LONGEST = 1024  # rows of a stage
FIRST = 10  # right and wrong replies to word problems that are shown


def grade(stage, config) -> dict:
    """What a model that converses is worth: word problems, the loss of ordinary replies, sample replies.

    right: the numbers of the word problems that it gets right.
    """
    folder, data = config.out_dir / stage.name, config.out_dir / "data"
    model, tokenizer = load(EvalConfig(model_dir=str(folder), device=config.device))
    found = {"questions": 0}
    if conversations := list(read_conversations(data / "word_problems.jsonl")):
        judged, found = answer(model, tokenizer, conversations, config)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in judged]
        write_text(folder / "replies.jsonl", "".join(lines))
        found["first"] = first_replies(judged, conversations)
    found["ordinary_loss"] = loss_on(folder, tokenizer, data / "sft_val.jsonl", config)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    replies = generate(model, prompts, Sampling(max_new_tokens=config.max_new_tokens))
    return {**found, "replies": dict(zip(QUESTIONS, map(tokenizer.decode, replies)))}


def first_replies(judged: list[dict], conversations: list) -> dict[str, list]:
    """{"right", "wrong": the first replies, each as (number of the problem, expected answer, reply)}."""
    expected = (final_answer(first_turn(turns)[1]) for turns in conversations)
    numbered = [(number, *pair) for number, pair in enumerate(zip(expected, judged))]
    of = lambda right: [(n, answer, one["reply"]) for n, answer, one in numbered if one["is_right"] == right]
    return {"right": of(True)[:FIRST], "wrong": of(False)[:FIRST]}


def grade_changed(name: str, config) -> dict:
    """{change: what `answer` finds} for the held-out problems, changed."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / name), device=config.device))
    conversations = list(read_conversations(config.out_dir / "data/word_problems.jsonl"))
    changed = changed_problems(conversations, random.Random(config.seed))
    return {change: answer(model, tokenizer, those, config)[1] for change, those in changed.items() if those}


def grade_majority(name: str, config) -> dict:
    """What `majority` finds of the word problems."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / name), device=config.device))
    questions = prompts_of(tokenizer, list(read_conversations(config.out_dir / "data/word_problems.jsonl")))
    return majority(model, tokenizer, questions, config.max_new_tokens, config.seed)


def answer(model, tokenizer, conversations: list, config) -> tuple[list[dict], dict]:
    """The verdicts on greedy replies to the first questions, and what they come to."""
    questions = prompts_of(tokenizer, conversations)
    judged = judged_replies(model, tokenizer, questions, config.max_new_tokens, shows_progress=True)
    found = look_into(judged, questions, [len(tokenizer.encode(one["reply"])) for one in judged])
    right = [number for number, one in enumerate(judged) if one["is_right"]]
    return judged, {"questions": len(judged), **shares(judged), **found, "right": right}


def loss_on(folder: Path, tokenizer, path: Path, config) -> float:
    """Nats per token of the replies in a file, in rows of LONGEST whatever the model was trained on."""
    run = TrainConfig(batch_size=8, max_seq_len=LONGEST, dtype=config.dtype, compile=False)
    model, device = WeakWater.from_pretrained(folder, LONGEST), pick_device(config.device)
    cache = open_tokens(path, tokenizer, "conversations")
    rows = PackedRows(cache, np.arange(len(cache)), LONGEST)
    found = evaluate(prepare(model, rows, run, device), rows, run, Process(0, 1, device))
    return round(found["val_loss"], 4)


def continuations(config) -> dict:
    """Texts that the pretrained model continues. The likeliest tokens alone would go round in circles."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / "pretrain"), device=config.device))
    prompts = [[BOS, *tokenizer.encode(beginning)] for beginning in BEGINNINGS]
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=80, seed=config.seed)
    return {"texts": dict(zip(BEGINNINGS, map(tokenizer.decode, generate(model, prompts, sampling))))}
