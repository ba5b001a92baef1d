"""Draws blocks with NiceGUI, and draws again only what has changed."""
