"""Where the kernels run, and how long the builtin text is.

Without a GPU, Triton's interpreter takes the kernels, if it is told before its first import.
"""

import os
import pydoc_data.topics

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax takes three quarters of a GPU's memory


@pytest.fixture(scope="session", autouse=True)
def all_topics():
    """Leave every fourth topic in the builtin text, 60,000 characters for calibration and as many for evaluation;
    gives all topics.

    The tokenizers of the tests take bytes as tokens, of which the whole text has four times as many as others have.
    """
    topics = pydoc_data.topics.topics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydoc_data.topics, "topics", {name: topics[name] for name in sorted(topics)[::4]})
        yield topics
