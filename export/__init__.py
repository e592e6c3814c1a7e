"""Build side: the reference model in PyTorch and its conversion into artefacts."""
