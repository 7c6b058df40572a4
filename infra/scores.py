"""What a file says of a model: right answers to questions, the likeliest choices, or the loss of texts."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from infra.choices import has_choices, score_choices
from infra.cli import UserError
from infra.files import write_json
from infra.jsonl import detect_field
from infra.likelihood import text_loss
from infra.questions import prompt_of, read_all, read_questions
from infra.scoring import shares

IN_NATS = ("loss", "perplexity", "bits_per_byte")  # the other fractions are shares


def score_file(model, tokenizer, config, prompt_ids: Callable, judged_replies: Callable) -> tuple[dict, list]:
    """({name: number}, what became of each line) of a file of conversations, choices or texts.

    config: an EvalConfig; prompt_ids: dataset's; judged_replies: generate's.
    """
    to_prompt = partial(prompt_ids, tokenizer)
    path, is_base = config.score, config.model_mode == 0  # a base model continues the text of a question
    if config.score_out:
        if Path(config.score_out).is_dir():
            raise UserError(f"--score_out {config.score_out} is a folder, expected the name of a file")
        Path(config.score_out).parent.mkdir(parents=True, exist_ok=True)

    def ask(text: str) -> list[int]:
        return prompt_of(text, tokenizer, prompt_ids, is_base)

    if has_choices(path):
        return score_choices(model, tokenizer, path, ask, space=" " if is_base else "")
    if detect_field(path) == "text":
        return text_loss(model, tokenizer, list(read_all(path, "text")), shows_progress=True)
    questions, context = read_questions(path, to_prompt), model.config.max_position_embeddings
    for number, (prompt, _) in enumerate(questions, 1):
        if len(prompt) >= context:
            found = f"question {number} has {len(prompt)} tokens, expected at most {context - 1}"
            raise UserError(f"{path}: {found}: the model's context is {context}")
    judged = judged_replies(model, tokenizer, questions, config.max_new_tokens, shows_progress=True)
    asked = [{"expected": expected, **one} for one, (_, expected) in zip(judged, questions)]
    return {"questions": len(judged), **shares(judged)}, asked


def report(found: dict, items: list, config) -> None:
    """Print lines such as `questions 3`, `by_letter 25.0%`, `by_letter_95 22.7% to 27.4%`, `loss 3.2141`;
    write all that was found, item by item, to the JSON file --score_out, if it is given."""
    for name, value in found.items():
        if isinstance(value, int):
            print(name, value)
        elif isinstance(value, list):
            print(name, "{:.1%} to {:.1%}".format(*value))
        else:
            print(name, f"{value:.4f}" if name in IN_NATS else f"{value:.1%}")
    if config.score_out:
        write_json(Path(config.score_out), {"file": config.score, **found, "items": items})
