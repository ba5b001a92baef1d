"""Keeps the former place of `fulgurite.EpisodeView`, which reward functions import."""

from fulgurite.episodes.view import EpisodeView

__all__ = ["EpisodeView"]
