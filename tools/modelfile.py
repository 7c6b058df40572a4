"""What Ollama needs beside a GGUF: a Modelfile, whose template writes the prompt as dataset.render does.

But for two things: Ollama keeps the blanks around a message, and joins neighbours of one role into one.
"""

from pathlib import Path

from dataset import DEFAULT_SYSTEM
from infra.checkpoint import SAMPLED, promised_context
from infra.config_json import read_config
from infra.files import write_text
from infra.tokenizer import ChatTokenizer

# Go's text/template. Ollama puts SYSTEM before a conversation that has no system message. A conversation that
# ends with an assistant's message asks to go on with that.
TEMPLATE = """\
{{- range $i, $message := .Messages }}{{ $is_last := eq (len (slice $.Messages $i)) 1 }}<s>{{ .Role }}
{{ .Content }}{{ if not (and $is_last (eq .Role "assistant")) }}</s>
{{ end }}{{ if and $is_last (ne .Role "assistant") }}<s>assistant
{{ end }}{{ end }}"""
MODELFILE = '''\
FROM ./{gguf}
SYSTEM """{system}"""
TEMPLATE """{template}"""
PARAMETER stop </s>
PARAMETER num_ctx {context}
PARAMETER num_predict {room}
PARAMETER temperature {temperature}
PARAMETER top_p {top_p}
PARAMETER top_k 0
PARAMETER repeat_penalty 1.0
'''  # top_k 0 is all tokens, of which Ollama otherwise takes 40; earlier releases penalized repetitions


def write_modelfile(folder: str | Path, gguf: Path) -> Path:
    """Write NAME.Modelfile beside NAME.gguf, the export of the checkpoint in `folder`; returns its path."""
    context = promised_context(read_config(folder), ChatTokenizer(folder))
    room = min(SAMPLED["max_new_tokens"], context // 2)
    sampling = {name: SAMPLED[name] for name in ("temperature", "top_p")}
    named = {"gguf": gguf.name, "system": DEFAULT_SYSTEM, "template": TEMPLATE}
    path = gguf.with_suffix(".Modelfile")
    write_text(path, MODELFILE.format(**named, **sampling, context=context, room=room))
    return path
