"""python tools/shop_data.py --out_dir data

Conversations of a made-up shop, to try fine-tuning on a domain of one's own: shop.jsonl to learn from, 200
conversations, and shop_test.jsonl, each fact asked once more in words that shop.jsonl never uses. Every fact
is a number with its unit, which `eval_model.py --score` judges. A seed fixes every byte.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.cli import Flags, flag, parse_args, run_script
from tools.worked_r1 import write_conversations

PRODUCTS = {  # in yuan
    "铅笔": 2, "橡皮": 3, "尺子": 4, "钢笔": 26, "墨水": 9, "作业本": 5, "日记本": 18, "书包": 128,
    "水彩笔": 35, "蜡笔": 16, "胶水": 6, "剪刀": 12, "圆规": 15, "计算器": 49, "文件夹": 8, "台灯": 89,
    "地球仪": 75, "毛笔": 22, "宣纸": 30, "彩纸": 7, "贴纸": 1, "画板": 56, "颜料": 42, "订书机": 19,
    "笔袋": 24,
}  # fmt: skip
PRICE_WORDS = (
    "{}多少钱？", "请问{}怎么卖？", "我想买{}，要多少钱？", "你们的{}卖几元？", "{}的价格是多少？",
    "一件{}要几元？", "买一件{}要付多少？",
)  # fmt: skip
FACTS = (  # (words for the question, the answer)
    (
        ("几点开门？", "早上几点开始营业？", "最早几点能来？", "什么时候开门？", "开门是几点？"),
        "9点。",
    ),
    (
        ("几点关门？", "晚上营业到几点？", "最晚几点能来？", "什么时候关门？", "关门是几点？"),
        "21点。",
    ),
    (
        (
            "几天内可以退货？",
            "退货期限是几天？",
            "买错了几天内能退？",
            "多久之内能退货？",
            "退货要在几天内？",
        ),
        "15天。",
    ),
    (
        ("送货要多少钱？", "运费是多少？", "送到家要付几元？", "送货费怎么算？", "送一次货收几元？"),
        "6元。",
    ),
    (
        (
            "满多少免运费？",
            "买多少钱可以免费送货？",
            "多少元以上包邮？",
            "怎样免运费？",
            "免费送货要买满多少？",
        ),
        "99元。",
    ),
)
THANKS = (("你好！", "您好，这里是小河文具店，请问想买什么？"), ("谢谢！", "不客气，欢迎再来小河文具店！"))
TOTAL = 200


@dataclass(frozen=True)
class ShopConfig(Flags):
    out_dir: Path = flag(Path("data"), "where the two files go")
    seed: int = flag(0, "of the order", least=0)


def shop_conversations(seed: int) -> tuple[list, list]:
    """(to learn from, to be tested on): of each fact the last wording is in the test alone."""
    facts = [
        ([words.format(name) for words in PRICE_WORDS], f"{yuan}元。") for name, yuan in PRODUCTS.items()
    ]
    facts += FACTS
    learned = [(question, answer) for words, answer in facts for question in words[:-1]]
    tested = [(words[-1], answer) for words, answer in facts]
    learned += THANKS * ((TOTAL - len(learned)) // len(THANKS))
    random.Random(seed).shuffle(learned)
    return list(map(turns, learned)), list(map(turns, tested))


def turns(pair: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair)]


def main(argv=None):
    config = parse_args(ShopConfig(), __doc__, argv)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    for name, conversations in zip(("shop", "shop_test"), shop_conversations(config.seed)):
        write_conversations(config.out_dir / f"{name}.jsonl", conversations)
        print(f"{config.out_dir / name}.jsonl: {len(conversations)} conversations")


if __name__ == "__main__":
    run_script(main)
