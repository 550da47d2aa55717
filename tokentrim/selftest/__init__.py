"""Self-test: a proof on a small random copy that pruning is right on a model's architecture."""

from tokentrim.selftest.running import Result, SelfTest, model_class_of, proven, self_test, trusted

__all__ = ["Result", "SelfTest", "model_class_of", "proven", "self_test", "trusted"]
