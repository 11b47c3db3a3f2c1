"""DeepRec as the verifiers environment `deeprec-game`: `vf-eval deeprec-game --env.taskset.dataset ml-100k`."""

from agents.doors.verifiers import DirectHarness, GameEnv, GameTaskset

__all__ = ["DirectHarness", "GameEnv", "GameTaskset"]
