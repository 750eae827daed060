"""Models whose code comes with them."""

import json
import sys

import pytest
import torch
from results import weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pruning import Settings, load_model, prune, prune_folder
from pruning.planning.plan import plan
from pruning.report.save import save_pruned

from tiny import VOCABULARY, tiny_tokenizer

OPTIONS = {"ratio": 0.4, "multiple_of": 4, "sample_size": 128}
CONFIG = """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, hidden_size=16, ffn_dim=48, num_hidden_layers=3, vocab_size=8, **entries):
        self.hidden_size, self.ffn_dim, self.num_hidden_layers = hidden_size, ffn_dim, num_hidden_layers
        self.vocab_size = vocab_size
        super().__init__(**entries)
"""
MODEL = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_own import OwnConfig

class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.hidden_size)

    def forward(self, hidden_states):
        mixed = hidden_states + 0.1 * hidden_states.cumsum(1)
        return mixed + self.down(torch.relu(self.up(self.norm(mixed))))

class Own(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "model"

    def _init_weights(self, module):
        pass

class OwnModel(Own):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)

class OwnLM(Own, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids)[0]))
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with the code and random weights."""
    # transformers copies the code to a package in its cache, which it imports once.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "configuration_own.py").write_text(CONFIG)
    (folder / "modeling_own.py").write_text(MODEL)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnLM"}
    entries = {
        "model_type": "own",
        "architectures": ["OwnLM"],
        "auto_map": auto_map,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(entries))
    tiny_tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed.weight": (VOCABULARY, 16), "lm_head.weight": (VOCABULARY, 16)}
    for layer in range(3):
        inside = {"norm.weight": (16,), "norm.bias": (16,), "up.weight": (48, 16), "up.bias": (48,)}
        inside |= {"down.weight": (16, 48), "down.bias": (16,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inside.items()}
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def in_memory(source, out, windows, **options):
    model, tokenizer = load_model(str(source), device="cpu", trust_remote_code=True)
    report = prune(model, tokenizer, calibration=windows, **OPTIONS, **options)
    save_pruned(model, tokenizer, report, out, source=source)
    return model


def test_from_disk_it_gives_the_result_in_memory(tmp_path, source, windows):
    in_memory(source, tmp_path / "memory", windows)
    settings, out = Settings(**OPTIONS), tmp_path / "disk"
    prune_folder(source, out, calibration=windows, settings=settings, device="cpu", trust_remote_code=True)
    first, second = weights(out), weights(tmp_path / "memory")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    one, other = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)(windows).logits
        for folder in (out, tmp_path / "memory")
    )
    assert torch.equal(one, other)


def test_layers_of_different_widths_can_be_loaded(tmp_path, source, windows):
    model = in_memory(source, tmp_path / "out", windows, budget="mi", repair="lstsq")
    assert len({layer.up.out_features for layer in model.model.layers}) > 1
    loaded, _ = load_model(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(str(tmp_path / "out"), device="cpu")


def test_it_can_be_planned_for(source):
    found = plan(source, settings=Settings(ratio=0.5, multiple_of=4), trust_remote_code=True, device="cpu")
    assert found.shapes.parameters[0] == sum(tensor.numel() for tensor in weights(source).values())
