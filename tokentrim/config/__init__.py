"""Configuration: from YAML to checked objects, with errors that name file, line and key."""
