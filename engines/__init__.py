"""Run side: artefacts in, answers out. Imports nothing of ours and never torch."""
