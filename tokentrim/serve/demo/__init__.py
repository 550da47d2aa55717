"""A page to play with: a picture, a question, and the pruned answer beside the unpruned one."""

from tokentrim.serve.demo.asking import Asking as Asking
from tokentrim.serve.demo.page import (
    open_page as open_page,
    require_free as require_free,
    require_gradio as require_gradio,
)
