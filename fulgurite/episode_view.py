"""The former place of `fulgurite.EpisodeView`, for reward functions that import it from here."""

from fulgurite.episodes.view import EpisodeView

__all__ = ["EpisodeView"]
