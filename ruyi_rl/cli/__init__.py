"""The command: composing the configuration, the overview, sweeps and the launcher. Nothing here imports torch."""
