"""Runs: the ground that comparisons, calibrations, trainings and harnesses share: cells, questions, answers, files."""
