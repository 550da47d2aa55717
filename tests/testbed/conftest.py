from hypothesis import settings

# Without a deadline: the first example of a test also pays for imports, on a machine that does other work.
settings.register_profile("tokentrim-testbed", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tokentrim-testbed")
