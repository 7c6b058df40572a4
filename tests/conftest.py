"""What tests share: a small tokenizer, generated data, and models of unequal tiny sizes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from Config import LLMConfig, TrainConfig
from dataset import PackedRows, open_tokens
from infra.text_sample import texts_of
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from tools.sample_data import write_sample_data
from train_tokenizer import save_tokenizer, train_tokenizer
from trainer import train

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


@pytest.fixture(scope="session")
def sums(tokenizer, tmp_path_factory):
    """The token cache of 70 short conversations, two in three of them with reasoning."""
    documents = []
    for number in range(70):
        a, b = 3 * number + 1, 7 * number % 50
        reply = f"<think>{a}+{b}</think>{a + b}" if number % 3 else f"{a + b}" * (number % 4 + 1)
        documents.append({"conversations": conversation(f"{a}+{b}?", reply, system="算")})
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "sums.jsonl", documents)
    return open_tokens(path, tokenizer, "conversations")


@pytest.fixture(scope="session")
def rows(sums):
    """Rows to learn from, with several conversations in each."""
    rows = PackedRows(sums, np.arange(60), 128, tag_weight=3.0)
    assert (
        len(rows) == 29
    )  # for the steps of `small_run`; how many documents make so many is the tokenizer's matter
    assert rows.truncated == 0 and len(rows.starts) > 2 * len(rows)
    return rows


@pytest.fixture(scope="session")
def validation(sums):
    """Rows to validate on, none of which are in `rows`."""
    return PackedRows(sums, np.arange(60, 70), 128)


@pytest.fixture
def config(tmp_path):
    return small_run(tmp_path / "run")


def small_run(out_dir, **changes):
    """Ten steps over `rows`: two epochs of four steps of 6 rows and one of the 5 that are left."""
    data = {"stage": "test", "out_dir": str(out_dir), "max_seq_len": 128, "tag_weight": 3.0, "seed": 5}
    steps = {"batch_size": 3, "accumulation_steps": 2, "epochs": 2, "learning_rate": 3e-3}
    often = {"log_every": 1, "eval_every": 3, "save_every": 100}
    plain = {"device": "cpu", "dtype": "fp32", "compile": False}
    return TrainConfig(**{**data, **steps, **often, **plain, **changes})


def tiny_config(**changes):
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    return LLMConfig(**{**sizes, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 128, **changes})


def tiny_model(seed=0, **changes):
    """A model with weights large enough that a wrong mask or angle shows."""
    torch.manual_seed(seed)
    return WeakWater(tiny_config(initializer_range=0.15, **changes)).eval()


def write_jsonl(path, documents):
    path.write_text(
        "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8"
    )
    return path


def conversation(*contents, system=None):
    """User and assistant in turn."""
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": content}
        for number, content in enumerate(contents)
    ]
    return [{"role": "system", "content": system}, *messages] if system else messages


class ChangedRows(PackedRows):
    """`rows`, each after `change(number, row)`: broken ones, for example."""

    def __init__(self, rows, change):
        self.__dict__.update(vars(rows))
        self.change = change

    def __getitem__(self, number):
        return self.change(number, super().__getitem__(number))


def trained(rows, config, **changes):
    """The weights of a tiny model after the run of `config` with some flags changed."""
    model = tiny_model()
    train(model, rows, replace(config, **changes))
    return weights_of(model)


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
