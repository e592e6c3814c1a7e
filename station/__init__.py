"""The daemon: frames in, verdicts out, and the people and machines around it."""

__version__ = "0.1.0"
