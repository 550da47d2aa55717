"""The recipe that trained the shipped models, and their logs; no part of the installed package."""
