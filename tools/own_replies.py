"""python tools/own_replies.py --model_dir out/distill --data_path data/worked/reward.jsonl --out own.jsonl

Rejection sampling: let a model answer questions several times, and keep the replies that are right and well
formed, each once (Yuan et al. 2023, arXiv:2308.01825). With ordinary conversations mixed in, learn from them:

    python distill.py --data_path own.jsonl --init_from out/distill --out_dir out/rejection --max_seq_len 512
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Config import DEVICES_HELP
from dataset import prompt_ids
from eval_model import EvalConfig, load
from generate import Sampling, generate
from infra.cli import Flags, flag, parse_args, run_script
from infra.questions import judge, read_conversations
from tools.worked_r1 import first_turn, write_conversations


@dataclass(frozen=True)
class OwnRepliesConfig(Flags):
    model_dir: str = flag("out/distill", "the checkpoint's folder")
    data_path: str = flag(
        "data/worked/reward.jsonl", "R1 conversations, JSONL, whose first questions are asked"
    )
    out: str = flag("own.jsonl", "the file to write")
    questions: int = flag(0, "the first of them, at most (0: all)", least=0)
    replies: int = flag(4, "to each question", least=1)
    temperature: float = flag(1.0, "of the sampling", above=0)
    max_new_tokens: int = flag(256, "tokens in a reply, at most", least=1)
    seed: int = flag(0, "of the sampling", least=0, most=2**62)
    device: str = flag("", DEVICES_HELP)


def own_replies(model, tokenizer, conversations: list, count: int, sampling: Sampling) -> tuple[list, dict]:
    """A conversation for each right and well-formed reply, and how many of the replies were what.

    Questions that leave no room for a reply are not asked.
    """
    asked = [first_turn(messages) for messages in conversations]
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question, _ in asked]
    context = model.config.max_position_embeddings
    room = context - min(sampling.max_new_tokens, context // 2)
    chosen = [number for number, prompt in enumerate(prompts) if len(prompt) <= room for _ in range(count)]
    replies = generate(model, [prompts[number] for number in chosen], sampling, shows_progress=True)
    return kept([asked[number] for number in chosen], list(map(tokenizer.decode, replies)))


def kept(asked: list[tuple[str, str]], replies: list[str]) -> tuple[list, dict]:
    """Of replies to (question, expected reply), the right and well-formed ones, each once, and counts."""
    judged = judge(replies, [([], expected) for _, expected in asked])
    good = {
        (question, verdict["reply"]): None  # a dict keeps the order
        for (question, _), verdict in zip(asked, judged)
        if verdict["is_right"] and verdict["is_well_formed"]
    }
    found = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        for question, reply in good
    ]
    counts = {"questions": len({question for question, _ in asked}), "sampled": len(judged)}
    counts |= {"right": sum(verdict["is_right"] for verdict in judged), "kept": len(found)}
    return found, {**counts, "solved": len({question for question, _ in good})}


def main(argv=None):
    config = parse_args(OwnRepliesConfig(), __doc__, argv)
    model, tokenizer = load(EvalConfig(model_dir=config.model_dir, device=config.device))
    conversations = list(read_conversations(Path(config.data_path)))
    sampling = Sampling(config.temperature, max_new_tokens=config.max_new_tokens, seed=config.seed)
    chosen = conversations[: config.questions or None]
    found, counts = own_replies(model, tokenizer, chosen, config.replies, sampling)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    write_conversations(Path(config.out), found)
    print(f"{config.out} | " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


if __name__ == "__main__":
    run_script(main)
