"""One `get_config` per experiment; variants are named as `--config=file.py:variant`."""
