"""What sampled replies were like, and when a model that learns from them has fallen apart."""

from collections import defaultdict
from statistics import mean

import numpy as np

from infra.divergence import Diverged, advice

FALLEN_APART, ENOUGH = 0.5, 128  # of the well-formed share at the beginning; replies to judge it by


def teaches(rewards: np.ndarray) -> np.ndarray:
    """Of rewards (questions, replies to each), which groups differ: (questions, 1), booleans.

    Not by their advantages: a mean of equal numbers can differ from them by rounding.
    """
    return np.ptp(rewards, axis=1, keepdims=True) > 0


class Rewards:
    """The rewards and the form of replies since the last `means`, compared with those at first."""

    def __init__(self, config):
        self.config, self.values, self.well_formed_at_first = config, defaultdict(list), None

    def add(self, rewards: np.ndarray, judged: list[dict], lengths: list[int], entropy: float | None) -> None:
        """rewards: (questions, replies to each); judged: the replies' verdicts; lengths: their tokens.

        Raises Diverged when not half as many replies are well formed as were at first, of ENOUGH of them.
        """
        self.values["reward"] += rewards.ravel().tolist()
        self.values["teaching"] += teaches(rewards).ravel().tolist()
        self.values["sampled_right"] += (verdict["is_right"] for verdict in judged)
        self.values["sampled_well_formed"] += (verdict["is_well_formed"] for verdict in judged)
        self.values["reply_tokens"] += lengths
        if entropy is not None:
            self.values["entropy"].append(entropy)
        if len(self.values["sampled_well_formed"]) < ENOUGH:
            return
        well_formed = mean(self.values["sampled_well_formed"])
        if self.well_formed_at_first is None:
            self.well_formed_at_first = well_formed
        if well_formed < FALLEN_APART * self.well_formed_at_first:
            found = f"{well_formed:.0%} of the sampled replies are well formed"
            at_first = f"{self.well_formed_at_first:.0%} were at first"
            raise Diverged(f"{found}, {at_first}. {advice(self.config)}")

    def means(self) -> dict[str, float]:
        """{name: mean} since the last call."""
        means = {name: mean(map(float, values)) for name, values in self.values.items()}
        self.values.clear()
        return means
