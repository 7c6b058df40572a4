"""Does a GGUF say in llama.cpp what the checkpoint says here: ids of texts, logits, greedy replies."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dataset import prompt_ids
from generate import Sampling, generate
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
LARGEST_DIFFERENCE = (
    0.2  # of logits: llama.cpp keeps keys and values in float16; a wrong weight makes several
)


def open_llama(path: Path, context: int):
    """llama.cpp's model of a GGUF, which keeps the logits of all positions."""
    try:
        import llama_cpp
    except ImportError:
        raise UserError("llama.cpp is not installed: pip install llama-cpp-python") from None
    threads = {name: torch.get_num_threads() for name in ("n_threads", "n_threads_batch")}
    how = {"n_ctx": context, "n_batch": context, "logits_all": True, "verbose": False}
    return llama_cpp.Llama(str(path), **how, **threads)


def logits_of(llama, ids: list[int]) -> torch.Tensor:
    """(T, V): llama.cpp's logits after each of T ids."""
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


def reply_of(llama, prompt: list[int], count: int) -> list[int]:
    """At most `count` ids of llama.cpp's greedy reply, without its end."""
    ids = list(islice(llama.generate(prompt, temp=0.0, top_k=1), count))
    end = llama.token_eos()
    return ids[: ids.index(end)] if end in ids else ids


def prove(folder: str | Path, path: Path, is_exact=True) -> str:
    """What llama.cpp says of the GGUF at `path`, an export of the checkpoint in `folder`, in a line.

    Raises UserError where texts have other ids or, if `is_exact`, where logits differ: the GGUF's weights are
    then the checkpoint's.
    """
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    context = min(tokenizer.max_length, model.config.max_position_embeddings)
    llama = open_llama(path, context)
    for text in HARD_TEXTS:
        found = llama.tokenize(text.encode(), add_bos=False, special=False)
        if found != tokenizer.encode(text):
            raise UserError(f"{path}: llama.cpp splits {text[:20]!r} otherwise: its replies would differ")
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}])[: context // 2] for text in ASKED]
    with torch.inference_mode():
        ours = [model(torch.tensor([ids]))[0] for ids in prompts]
    pairs = zip(prompts, ours)
    difference = max(float((logits_of(llama, ids) - logits).abs().max()) for ids, logits in pairs)
    if is_exact and not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path}: logits differ by {difference:.3g}, expected at most {LARGEST_DIFFERENCE}")
    replies = generate(model, prompts, Sampling(max_new_tokens=NEW_TOKENS))
    equal = sum(reply_of(llama, ids, NEW_TOKENS) == reply for ids, reply in zip(prompts, replies))
    found = f"logits at most {difference:.2g} apart, {equal} of {len(prompts)} greedy replies equal"
    return f"llama.cpp: the ids of {len(HARD_TEXTS)} hard texts equal, {found}"
