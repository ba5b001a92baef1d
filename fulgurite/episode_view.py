"""Keeps the former module of `fulgurite.EpisodeView`, from which reward functions import it."""

from fulgurite.episodes.view import EpisodeView

__all__ = ["EpisodeView"]
