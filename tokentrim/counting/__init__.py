"""Counting: integers of shapes, budgets, schedules and plans. Nothing here needs torch or pydantic."""
