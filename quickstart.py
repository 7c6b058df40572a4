"""python quickstart.py

The whole pipeline on generated data, on a laptop: data, tokenizer, pretraining, SFT, distillation, scores.

--reward distills for half of the steps only, and then the model learns from its own replies to new problems
(GRPO.py), for about five minutes on two cores.

Everything goes to out/quickstart. A second run continues where the first one was stopped and redoes nothing
that is finished; --fresh starts from nothing.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import distill
import eval_model
import GRPO
import pretrain
import SFT
from Config import DEVICES_HELP, LLMConfig
from dataset import prompt_ids
from generate import score
from infra.cli import Flags, flag, parse_args, run_script
from infra.pipeline_report import heard, write_pipeline_report
from infra.questions import read_questions
from infra.report import Report, make_folder, print_table
from infra.resume import STATE
from infra.text_sample import sample_lines, texts_of
from tools.sample_data import probe_turns, write_sample_data
from train_tokenizer import save_tokenizer, train_tokenizer

VOCAB_SIZE = 1536
COMMON = "--preset tiny --batch_size 8 --max_seq_len 256 --epochs 100 --eval_every 300 --save_every 150"
BEGINNING = "小明有"
QUESTIONS = ["你是谁？", "小明有345个苹果，又买了278个。小明一共有多少个苹果？"]
COLUMNS = ("val_loss", "val_ppl", "reasoning_accuracy", "well_formed", "facts", "train_seconds")


@dataclass(frozen=True)
class Stage:
    script: object
    folder: str
    data: str
    steps: int
    flags: str
    start: str = ""  # the folder that it starts from

    @property
    def kind(self) -> str:
        return self.data.removesuffix("_new")


STAGES = {
    "pretrain": Stage(pretrain, "pretrain", "pretrain", 600, "--learning_rate 1e-2 --embedding_rate 1"),
    "sft": Stage(SFT, "SFT", "sft", 120, "--learning_rate 4e-3", "pretrain"),
    "distill": Stage(distill, "distill", "r1", 1700, "--learning_rate 6e-3", "SFT"),
}
REWARD = "--batch_size 16 --max_seq_len 1024 --max_new_tokens 200 --learning_rate 1e-4 --eval_every 25"
REWARDED = {
    **{name: STAGES[name] for name in ("pretrain", "sft")},
    "half": replace(STAGES["distill"], folder="half", steps=850),
    "grpo": Stage(GRPO, "GRPO", "r1_new", 75, REWARD, "half"),
}


@dataclass(frozen=True)
class QuickstartConfig(Flags):
    fresh: bool = flag(False, "delete out_dir first")
    out_dir: str = flag("out/quickstart", "where everything goes")
    reward: bool = flag(False, "half of the distillation, then GRPO")
    seed: int = flag(0, "random seed of data, weights and order", least=0, most=2**62)
    scale: float = flag(1.0, "fraction of the steps; four times that, of the data", above=0, most=1)
    device: str = flag("", DEVICES_HELP)


def make_tokenizer(folder: Path) -> dict:
    """From texts and conversations: a vocabulary this small has no room for what only one of them needs."""
    texts = list(texts_of(sample_lines(folder / "data/pretrain.jsonl"), "text"))
    texts += texts_of(sample_lines(folder / "data/sft.jsonl"), "conversations")
    tokenizer = train_tokenizer(texts, VOCAB_SIZE)
    save_tokenizer(tokenizer, folder / "tokenizer", LLMConfig().max_position_embeddings)
    return {"vocab_size": VOCAB_SIZE}


def run_stage(stage: Stage, folder: Path, config: QuickstartConfig) -> dict:
    """Train a stage and, if it can answer, score it: {val_loss, val_ppl, tokens, train_seconds, ...}."""
    data, steps = folder / "data", max(2, round(stage.steps * config.scale))
    flags = {"data_path": data / f"{stage.data}.jsonl", "val_path": data / f"{stage.kind}_val.jsonl"}
    flags |= {"seed": config.seed, "device": config.device, "max_steps": steps}
    flags |= {"out_dir": folder / stage.folder}
    flags |= {"init_from": folder / stage.start} if stage.start else {"tokenizer": folder / "tokenizer"}
    command = f"{COMMON} {stage.flags}".split() + [f"--{name}={value}" for name, value in flags.items()]
    command += ["--resume"] if (folder / stage.folder / STATE).is_file() else []
    try:
        last = stage.script.main(command)
    except SystemExit:  # Ctrl-C or SIGTERM
        print("here: run quickstart.py again, without --fresh, and it continues from the last save")
        raise
    result = {name: last[name] for name in ("val_loss", "val_ppl", "tokens")}
    result["train_seconds"] = round(last["seconds"], 1)
    return result | (score_stage(stage, folder, config) if stage.start else {})


def score_stage(stage: Stage, folder: Path, config: QuickstartConfig) -> dict:
    """{reasoning_accuracy, well_formed, facts}: of held-out word problems, and of facts that were taught."""
    chosen = eval_model.EvalConfig(model_dir=str(folder / stage.folder), device=config.device)
    model, tokenizer = eval_model.load(chosen)
    problems = read_questions(folder / "data" / f"{stage.kind}_test.jsonl", partial(prompt_ids, tokenizer))
    asked = [([{"role": "user", "content": turn.question}], turn.reply) for turn in probe_turns()]
    facts = [(prompt_ids(tokenizer, messages), reply) for messages, reply in asked]
    known = score(model, tokenizer, facts)["reasoning_accuracy"]
    return {**score(model, tokenizer, problems, shows_progress=True), "facts": known}


def print_conversations(stages: dict[str, Stage], folder: Path, config: QuickstartConfig) -> None:
    """The same questions to each stage; the pretrained model, which cannot converse, continues a text."""
    for mode, (name, stage) in enumerate(stages.items()):
        print(f"\n--- {name}")
        for question in QUESTIONS if stage.start else [BEGINNING]:
            print(f"> {question}")
            where = f"--model_dir={folder / stage.folder}"
            flags = [f"--model_mode={mode}", where, f"--device={config.device}"]
            eval_model.main(["--temperature=0", "--max_new_tokens=256", f"--prompt={question}", *flags])


def main(argv=None):
    config = parse_args(QuickstartConfig(), __doc__, argv)
    folder, data = Path(config.out_dir), Path(config.out_dir) / "data"
    make_folder(folder, config.fresh)
    report = Report(folder, {"seed": config.seed, "scale": config.scale}, anew="--fresh")
    size = min(1.0, config.scale * 4)
    report.do("data", "generated data", lambda: {"files": len(write_sample_data(data, config.seed, size))})
    report.do("tokenizer", "tokenizer", lambda: make_tokenizer(folder))
    stages = REWARDED if config.reward else STAGES
    for name, stage in stages.items():
        report.do(name, name, lambda: run_stage(stage, folder, config))
    trained = {name: report.parts[name] for name in stages}
    tokens, seconds = (sum(part[name] for part in trained.values()) for name in ("tokens", "train_seconds"))
    speed = report.parts["tokens_per_second"] = round(tokens / max(seconds, 0.1))
    report.write()
    told = heard(print_conversations, stages, folder, config)
    print_table(trained, COLUMNS)
    page = write_pipeline_report(folder, trained, COLUMNS, told, [it.folder for it in stages.values()])
    last, mode = folder / stage.folder, len(stages) - 1
    print(f"{report.parts['seconds']:.0f} seconds in all, {speed} useful tokens a second in training")
    print(f"chat with it: python eval_model.py --model_mode {mode} --model_dir {last} --temperature 0")
    print(f"all numbers: {report.path} | charts: {last / 'charts'} | all on one page: {page}")


if __name__ == "__main__":
    run_script(main)
