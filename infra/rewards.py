"""What sampled replies were like, and when a model that learns from them has fallen apart."""

from collections import defaultdict, deque
from pathlib import Path
from statistics import mean

import numpy as np

from infra.divergence import Diverged, advice
from infra.metrics import read_metrics
from infra.resume import STATE

FALLEN_APART, ENOUGH = 0.5, 128  # of the well-formed share at the beginning; replies to judge it by


def teaches(rewards: np.ndarray) -> np.ndarray:
    """Of rewards (questions, replies to each), which groups differ: (questions, 1), booleans.

    Not by their advantages: a mean of equal numbers can differ from them by rounding.
    """
    return np.ptp(rewards, axis=1, keepdims=True) > 0


class Rewards:
    """The rewards and the form of replies since the last `means`; the form of the last ones beside the first.

    A resumed run takes the first that its metrics.jsonl tells of.
    """

    def __init__(self, config):
        self.config, self.values, self.last = config, defaultdict(list), deque(maxlen=ENOUGH)
        folder = Path(config.out_dir)
        goes_on = config.resume and (folder / STATE).is_file()
        logged = read_metrics(folder / "metrics.jsonl") if goes_on else []
        name = "sampled_well_formed"
        self.well_formed_at_first = next((line[name] for line in logged if name in line), None)

    def add(self, rewards: np.ndarray, judged: list[dict], lengths: list[int], entropy: float | None) -> None:
        """rewards: (questions, replies to each); judged: the replies' verdicts; lengths: their tokens.

        Raises Diverged when of the last ENOUGH replies not half as many are well formed as were at first.
        """
        self.values["reward"] += rewards.ravel().tolist()
        self.values["teaching"] += teaches(rewards).ravel().tolist()
        self.values["sampled_right"] += (verdict["is_right"] for verdict in judged)
        self.values["sampled_well_formed"] += (verdict["is_well_formed"] for verdict in judged)
        self.values["reply_tokens"] += lengths
        if entropy is not None:
            self.values["entropy"].append(entropy)
        self.last.extend(verdict["is_well_formed"] for verdict in judged)
        if len(self.last) < ENOUGH:
            return
        well_formed = mean(self.last)
        if self.well_formed_at_first is None:
            self.well_formed_at_first = well_formed
        if well_formed < FALLEN_APART * self.well_formed_at_first:
            found = f"{well_formed:.0%} of the last {ENOUGH} sampled replies are well formed"
            at_first = f"{self.well_formed_at_first:.0%} were at first"
            raise Diverged(f"{found}, {at_first}. {advice(self.config)}")

    def means(self) -> dict[str, float]:
        """{name: mean} since the last call."""
        means = {name: mean(map(float, values)) for name, values in self.values.items()}
        self.values.clear()
        return means
