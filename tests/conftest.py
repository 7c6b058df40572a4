"""What tests share: a small tokenizer, generated data, and models of unequal tiny sizes."""

import json

import pytest
import torch

from Config import LLMConfig
from dataset import ChatTokenizer
from model import WeakWater
from tools.sample_data import write_sample_data
from train_tokenizer import save_tokenizer, texts_of, train_tokenizer

VOCAB_SIZE = 400
torch.set_num_threads(1)  # for models this small, threads only wait for each other


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """{name: path} of generated JSONL files, about a hundredth of the quickstart's."""
    return write_sample_data(tmp_path_factory.mktemp("data"), seed=1, scale=0.01)


@pytest.fixture(scope="session")
def tokenizer(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = data["pretrain"].read_bytes().splitlines()
    save_tokenizer(train_tokenizer(texts_of(lines, "text"), VOCAB_SIZE), folder, context=128)
    return ChatTokenizer(folder)


def tiny_config(**changes):
    sizes = dict(hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2)
    return LLMConfig(**{**sizes, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 128, **changes})


def tiny_model(seed=0, **changes):
    """A model with weights large enough that a wrong mask or angle shows."""
    torch.manual_seed(seed)
    return WeakWater(tiny_config(initializer_range=0.15, **changes)).eval()


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8")
    return path


def conversation(*contents, system=None):
    """User and assistant in turn."""
    messages = [{"role": "user" if number % 2 == 0 else "assistant", "content": content} for number, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages
