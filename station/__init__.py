"""The daemon: frames in, verdicts out, and the people and machines around it."""
