"""The files of a run, which launcher and trainer share; standard library only but for the study."""
