"""Does a GGUF say in llama.cpp what the checkpoint says here: ids of texts, logits, greedy replies."""

import math
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import torch

from dataset import prompt_ids
from generate import Sampling, generate
from infra.checkpoint import promised_context
from infra.cli import UserError
from infra.tokenizer import ChatTokenizer
from model import WeakWater

HARD_TEXTS = (
    "小明有345个苹果，又买了278个，一共有多少个？",
    "１２３ ٣٤٥ ३४५ Ⅳ ½ 3.14e-10",
    "I'M sure you'LL don't, it's ſ'ſ o'clock",
    "  two  spaces   three\t\ttabs \r\n\r\n lines\n\n\n",
    "trailing   ",
    "\u00a0\u3000 \u200b\ufeff",
    "e\u0301 ㅎㅏㄴ 한 ﬁ Ⅻ",
    "👩\u200d👩\u200d👧🇨🇳👍🏽 𠮷𩸽",
    "שלום مرحبا สวัสดี नमस्ते",
    "def f(x):\n    return x**2  # 平方\n",
    "<|im_start|>user [INST] ### \\n",
    "a_b-c/d\\e@f.g:80?h=1&i=%20#j",
    "！？。，、；：“”‘’（）《》……——",
    "====------++++****",
    "x" * 40 + "7" * 40 + "的" * 40,
)
ASKED = ("小明有345个苹果，又买了278个，一共有多少个？", "你好", "Who are you?", "用一句话介绍一下长城。")
NEW_TOKENS = 64
LARGEST_DIFFERENCE = 0.2  # of logits; llama.cpp keeps keys and values in float16, which makes some 0.01


def open_llama(path: Path, context: int):
    """llama.cpp's model of a GGUF, which keeps the logits of all positions."""
    try:
        import llama_cpp
    except ImportError:
        raise UserError("llama.cpp is not installed: pip install llama-cpp-python") from None
    threads = {name: torch.get_num_threads() for name in ("n_threads", "n_threads_batch")}
    how = {"n_ctx": context, "n_batch": context, "logits_all": True, "verbose": False}
    try:
        return llama_cpp.Llama(str(path), **how, **threads)
    except ValueError as error:
        raise UserError(f"{path}: llama.cpp {llama_cpp.__version__} does not load it ({error})") from None


def logits_of(llama, ids: list[int]) -> torch.Tensor:
    """(T, V): llama.cpp's logits after each of T ids."""
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


def reply_of(llama, prompt: list[int], context: int) -> list[int]:
    """llama.cpp's greedy reply without its end: NEW_TOKENS, or as many as the context has room for."""
    count, end = min(NEW_TOKENS, context - len(prompt)), llama.token_eos()
    return list(takewhile(lambda id: id != end, islice(llama.generate(prompt, temp=0.0, top_k=1), count)))


def replies_of(model, prompts: list[list[int]], context: int) -> list[list[int]]:
    """The checkpoint's own replies, as long as those."""
    replies = generate(model, prompts, Sampling(max_new_tokens=NEW_TOKENS))
    return [reply[: context - len(prompt)] for prompt, reply in zip(prompts, replies)]


def check_ids(llama, tokenizer: ChatTokenizer, path: Path) -> None:
    for text in HARD_TEXTS:
        if llama.tokenize(text.encode(), add_bos=False, special=False) != tokenizer.encode(text):
            raise UserError(f"{path}: llama.cpp splits {text[:20]!r} otherwise, so its replies would differ")


@torch.inference_mode()
def largest_difference(llama, model, prompts: list[list[int]]) -> float:
    """Of the logits after each id of the prompts."""
    differences = [(logits_of(llama, ids) - model(torch.tensor([ids]))[0]).abs().max() for ids in prompts]
    return torch.stack(differences).max().item()  # which keeps a NaN


def prove(folder: str | Path, path: Path, keeps_weights=True) -> str:
    """What llama.cpp says of the GGUF at `path`, an export of the checkpoint in `folder`, in a line.

    Raises UserError where texts have other ids, and where logits differ though the GGUF `keeps_weights`, or
    are no numbers.
    """
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    context = promised_context(model.config, tokenizer)
    llama = open_llama(path, context)
    check_ids(llama, tokenizer, path)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}])[: context // 2] for text in ASKED]
    difference = largest_difference(llama, model, prompts)
    if not difference <= (LARGEST_DIFFERENCE if keeps_weights else math.inf):
        expected = f"expected at most {LARGEST_DIFFERENCE}: do not use it"
        raise UserError(f"{path}: logits differ from the checkpoint's by {difference:.3g}, {expected}")
    replies = replies_of(model, prompts, context)
    equal = sum(reply_of(llama, ids, context) == reply for ids, reply in zip(prompts, replies))
    found = f"logits at most {difference:.2g} apart, {equal} of {len(prompts)} greedy replies equal"
    return f"llama.cpp: the ids of {len(HARD_TEXTS)} hard texts equal, {found}"
