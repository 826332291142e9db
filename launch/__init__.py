"""The launcher: everything before and around a run.

It imports neither torch nor wandb; of `trainer` only `trainer.config`.
"""
