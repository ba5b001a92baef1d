"""Rewards an answer whose last number is the right one."""

from __future__ import annotations

import re

from fulgurite import EpisodeView


def score(episode: EpisodeView) -> float:
    """1.0 if the last number of the answer is the reference, else 0.0."""
    numbers = re.findall(r"\d+", episode.final_text())
    return float(bool(numbers) and numbers[-1] == episode.task["reference"])
