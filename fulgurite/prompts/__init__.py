"""Versions of prompts: which one is in force, and how a request is served with it."""
