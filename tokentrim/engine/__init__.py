"""The engine: applies what strategies decide to a model inside its own ``generate``. Read ``engine.py`` first."""
