"""Running a model only up to one of its modules."""

from functools import partial

import pytest
import torch

from pruning.model.ffn import find_ffns
from pruning.model.first_call import first_call


def test_the_forward_pass_ends_before_the_module_and_its_arguments_are_returned(llama, windows):
    first, second = (ffn.output.owners[0] for ffn in find_ffns(llama)[:2])
    executed, expected = [], []
    first.register_forward_hook(lambda *_args: executed.append("first"))
    handle = second.register_forward_hook(lambda _m, args, _output: expected.append(args[0]))
    run = partial(llama, input_ids=windows)
    with torch.no_grad():
        run()
        call = first_call(second, run)
    assert torch.equal(call.args[0], expected[0])
    assert call.keywords == {}
    assert len(expected) == 1  # not executed the second time
    assert len(executed) == 2
    handle.remove()
    assert not second._forward_pre_hooks


def test_a_forward_pass_without_the_module_is_an_error(llama):
    with pytest.raises(RuntimeError, match="expected a forward pass that calls Linear"):
        first_call(find_ffns(llama)[0].output.owners[0], lambda: None)
