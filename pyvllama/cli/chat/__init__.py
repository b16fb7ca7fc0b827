"""The interactive chat of `pyvllama run`."""
