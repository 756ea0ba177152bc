"""Training: a model, its step and loop, checkpoints."""

import os

# chex imports absl's test cases, which look for a folder for temporary files unless they are told
# one: where nothing can be written there is none, and a command would end with a traceback.
os.environ.setdefault("TEST_TMPDIR", os.curdir)
