"""python GRPO.py --data_path data/worked/reward.jsonl

Stage 4, reward: out/distill answers questions whose results are known, each several times, and learns from
which of its own replies were right (GRPO: Shao et al. 2024, arXiv:2402.03300, without its KL term).

A reply's advantage is its reward minus the mean reward of its *group*, the replies to the same question. In
the one training loop it is the loss weight of the reply's tokens: above 0 the reply becomes likelier, below 0
less likely. A group whose rewards are all the same teaches nothing and is left out. Advantages are not
divided by the group's deviation, nor losses by a reply's length: both favour some questions and lengths over
others (Liu et al. 2025, arXiv:2503.20783). The loop divides a step's loss by the sum of its |weights|. Each
reply is used for one update, so the ratio of new to old probabilities, which others clip, is 1 to rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from Config import TrainConfig
from dataset import Batch, PackedRows, collate_rows, load_rows, make_row
from generate import Sampling, example_replies, generate, score
from infra.checkpoint import find_checkpoint
from infra.checks import check_run
from infra.cli import UserError, flag, parse_args, run_script
from infra.packing import pack
from infra.questions import first_questions, judge
from infra.rewards import Rewards, teaches
from infra.scoring import final_answer
from infra.tokenizer import ChatTokenizer
from model import WeakWater, document_mask
from trainer import train

RIGHT, WELL_FORMED = 1.0, 0.1  # reward of a well-formed reply: of a right one, and of any other
PROBED = 128  # held-out questions


@dataclass(frozen=True)
class GRPOConfig(TrainConfig):
    group_size: int = flag(8, "replies to each question", least=2)
    max_new_tokens: int = flag(256, "tokens in a reply, at most", least=1)


RECIPE = GRPOConfig(
    stage="GRPO", data_path="data/worked/reward.jsonl", out_dir="out/GRPO", init_from="out/distill",
    max_steps=300, batch_size=16, max_seq_len=1024, optimizer="adamw", learning_rate=5e-5, weight_decay=0.0,
    eval_every=20, save_every=100,
)  # fmt: skip


def reward_of(verdict: dict) -> float:
    """Of {"is_right", "is_well_formed"}."""
    if not verdict["is_well_formed"]:
        return 0.0
    return RIGHT if verdict["is_right"] else WELL_FORMED


class SampledRows(torch.utils.data.Dataset):
    """Rows of the model's own replies. For the loop, row number i is question i. Asked for B of them at once,
    it samples their groups and packs those that teach into at most B rows; what does not fit is left out.
    """

    def __init__(self, model: WeakWater, rows: PackedRows, config: GRPOConfig, reward=reward_of):
        self.model, self.config, self.reward = model, config, reward
        self.cache, self.row_length = rows.cache, rows.row_length
        self.lengths, self.truncated, self.padding_share = rows.lengths, rows.truncated, rows.padding_share
        self.fingerprint = rows.fingerprint
        longest = min(rows.row_length, model.config.max_position_embeddings) - config.max_new_tokens
        self.questions = [
            (prompt, expected)
            for prompt, expected in first_questions(rows, len(rows.documents))
            if len(prompt) <= longest and any(map(str.isdigit, final_answer(expected)))
        ]
        if not self.questions:
            fitting = f"of at most {longest} tokens (--max_seq_len less --max_new_tokens)"
            raise UserError(f"{config.data_path}: expected questions {fitting} whose answer is a number")
        self.rewards = Rewards(config)  # and more of what was sampled, for the log

    def __len__(self):
        return len(self.questions)

    def __getitems__(self, numbers: list[int]) -> list[Batch]:
        """The rows of a micro-batch, sampled from the model as it is: the DataLoader asks for all at once."""
        config, size = self.config, self.config.group_size
        asked = [self.questions[number] for number in numbers for _ in range(size)]
        seed = int(np.random.default_rng([config.seed, *numbers]).integers(2**62))
        sampling = Sampling(temperature=1.0, max_new_tokens=config.max_new_tokens, seed=seed)
        replies = generate(self.model, [prompt for prompt, _ in asked], sampling, batch_size=len(asked))
        judged = judge(map(self.cache.tokenizer.decode, replies), asked)
        rewards = np.array([self.reward(verdict) for verdict in judged]).reshape(-1, size)
        advantages = (rewards - rewards.mean(axis=1, keepdims=True)).ravel()
        segments = [
            segment(prompt, reply, advantage, config.max_new_tokens, self.model.config.eos_token_id)
            for (prompt, _), reply, advantage in zip(asked, replies, advantages)
        ]
        groups = [segments[i * size : (i + 1) * size] for i in np.flatnonzero(teaches(rewards))]
        rows = pack_groups(groups, self.row_length, len(numbers))
        self.rewards.add(rewards, judged, list(map(len, replies)), self.entropy(rows) if rows else None)
        return rows or [make_row([], self.row_length)]

    @torch.no_grad()
    def entropy(self, rows: list[Batch]) -> float:
        """The mean of -log p over the tokens of groups that teach, which estimates their entropy in nats."""
        batch = collate_rows(rows, len(rows), self.row_length).to(self.model.lm_head.weight.device)
        counts = (batch.loss_weights != 0).float()
        nats = self.model(batch.input_ids, document_mask(batch.document_ids), batch.labels, counts)
        return float(nats / counts.sum())


def segment(prompt, reply, advantage, most, end) -> tuple[np.ndarray, np.ndarray]:
    """(ids (N), loss weights (N)) of a prompt and its reply, which ends unless it was cut off."""
    reply = reply + [end] * (len(reply) < most)
    return np.array(prompt + reply), np.array([0.0] * len(prompt) + [advantage] * len(reply), np.float32)


def pack_groups(groups: list[list[tuple]], row_length: int, most: int) -> list[Batch]:
    """As many of the first groups of segments as `most` rows hold, each whole: its advantages add up to 0."""
    rows = pack_segments([one for group in groups for one in group], row_length)
    return rows if len(rows) <= most else pack_groups(groups[:-1], row_length, most)


def pack_segments(segments: list[tuple], row_length: int) -> list[Batch]:
    """Segments of at most row_length + 1 ids in rows, by best fit."""
    if not segments:
        return []
    order, first = pack(np.array([len(ids) - 1 for ids, _ in segments]), row_length, seed=0)
    chosen = (order[begin:end] for begin, end in zip(first, first[1:]))
    return [make_row([segments[number] for number in numbers], row_length) for numbers in chosen]


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    start = find_checkpoint([config.init_from], "run distill.py first, or pass --init_from")
    if config.num_workers:
        raise UserError(f"--num_workers ({config.num_workers}) must be 0: the model itself makes the rows")
    model = WeakWater.from_pretrained(start, config.max_seq_len)
    tokenizer = ChatTokenizer(config.tokenizer or start)
    check_run(config, model, tokenizer)
    reference, validation = load_rows(config, tokenizer, "conversations")
    rows, probed = SampledRows(model, reference, config), first_questions(validation, PROBED)

    def probe(model):
        shares = score(model, tokenizer, probed, config.max_new_tokens)
        return {**rows.rewards.means(), **shares, **example_replies(model, validation, config.max_new_tokens)}

    return train(model, rows, config, validation, probe)


if __name__ == "__main__":
    run_script(main)
