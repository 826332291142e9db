"""What the launcher asks of a run's own code, each by `python -m trainer.tools.NAME
config.json`.
"""
