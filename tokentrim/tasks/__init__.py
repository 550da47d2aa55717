"""Tasks from files: a table of questions about pictures, and the metrics that score their answers."""
