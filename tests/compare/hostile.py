"""A summary and a gallery whose every free text tries to be markup: labels, tasks, questions, answers, causes."""

import copy

HOSTILE = '</script><img src=x onerror="window.pwned=1"><b>\'`{{7*7}}'
NAMES = ("fastv", "where")
FREE = ("question", "answer", "prediction", "command", "tokens", "notes", "skipped")


def hostile(data, gallery):
    """Copies with hostile text in place of what users, tasks and plugins write."""
    return _changed(copy.deepcopy(data)), _changed(copy.deepcopy(gallery))


def _changed(value, key=""):
    if isinstance(value, dict):
        return {_text(name): _changed(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, key) for item in value]
    if isinstance(value, str) and key in FREE:
        return f"{value} {HOSTILE}"
    return _text(value)


def _text(value):
    return f"{value} {HOSTILE}" if value in NAMES else value
