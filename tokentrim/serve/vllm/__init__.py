"""vLLM: an entry point of ``vllm.general_plugins`` that prunes pictures before the language model, when asked to.

``plugin.py`` is loaded by every process of vLLM, and does nothing until ``hf_overrides`` holds the key ``tokentrim``.
``asked.py`` says what may be asked for, ``bridge.py`` lets a strategy decide on a picture, ``tower.py`` reads the
vision tower; none of these three imports vLLM. The others are what vLLM is handed.
"""
