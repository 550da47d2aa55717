"""Evaluation harnesses: tokentrim as a model of lmms-eval, and lmms-eval's tasks in a comparison.

``manifest`` is what lmms-eval's entry point names, ``lmms`` the model class, ``tasks`` the family ``lmms:NAME``. Only
``lmms`` and, once a name is asked for, ``tasks`` import lmms-eval; the other files do not need it.
"""
