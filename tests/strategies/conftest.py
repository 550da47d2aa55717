"""Settings of hypothesis that hold for the strategies' tests."""

from hypothesis import settings

# No deadline: on a busy machine the time of one example says nothing.
settings.register_profile("strategies", deadline=None, max_examples=50)
settings.load_profile("strategies")
