"""
python tools/sample_data.py --out_dir data --seed 0

Write a small Chinese corpus for all stages, so that the pipeline can be tried with nothing downloaded. Every
sentence comes from the tables and templates below, which were written for this project; a seed fixes every
byte.

    pretrain.jsonl  pretrain_val.jsonl            {"text": "..."}
    sft.jsonl       sft_val.jsonl  sft_test.jsonl {"conversations": [{"role": "user", "content": "..."}, ...]}
    r1.jsonl        r1_val.jsonl   r1_test.jsonl  the same, as <think>...</think>\\n<answer>...</answer>
    r1_new.jsonl                                  more problems, for GRPO.py

The two test files hold the same word problems in the same order: answered at once in one, worked out in the
other.

What is held out. Every word problem of the conversations, in whichever file, has its own question and its own
(kind, numbers). Beyond that, no single operation that solves a validation or test problem of theirs (345+278,
278+345, an intermediate 623-150) is used in any training problem, nor worked out in the pretraining text: a
test question was never seen, nor its arithmetic. What else validation asks on its own is asked in no training
conversation, with or without 请问 before it; a conversation of several turns is new as a whole. The facts asked
for are those of the pretraining text, whose own validation file holds new texts, but some of their sums may
also stand in pretrain.jsonl.
"""
import argparse
import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# ---- Sizes ----

PRETRAIN_BYTES = 4_000_000   # of pretrain.jsonl
WORKED_SHARE = 0.75          # of those bytes: sums worked out digit by digit, a skill to have before SFT
WORKED_STORY_SHARE = 0.75     # of the worked sums: told as a story, from its question to its answer
SFT_ITEMS = 6_000
SFT_PROBLEM_SHARE = 0.35
SFT_SYSTEM_SHARE = 0.03
R1_ITEMS = 12_000
R1_CHAT_SHARE = 0.15         # so that the distilled model still answers what is not arithmetic
JOINED_SHARE = 0.15          # of the conversations: they go on with what another would have asked
JOINED_CHARACTERS = 240      # in such a conversation at most: it is to fit the quickstart's rows of 256
PROBE_COPIES = 20            # of each of FACT_CHECKS in sft.jsonl and r1.jsonl
VAL_ITEMS = 200
TEST_ITEMS = 200
NEW_ITEMS = 2_000  # problems that no other file has, for reward
MAX_SCALE = 1.5              # there are 7,200 different three-digit times one-digit problems

# Each of these questions stands verbatim in sft.jsonl and r1.jsonl at any scale.
FACT_CHECKS = [
    "你是谁？", "你叫什么名字？", "你好！", "中国的首都是哪里？", "法国的首都是哪里？", "太阳从哪边升起？", "一年有几个季节？",
    "熊猫喜欢吃什么？", "中秋节吃什么？", "大的反义词是什么？", "3米等于多少厘米？", "苹果用英语怎么说？",
]

# ---- Word problems ----

NAMES = ["小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小美", "小强", "小兰", "小东", "小雨",
         "小林", "小雪", "小龙", "小云", "小亮", "小月", "小杰", "小梅", "小天", "小文", "小乐", "小静"]
ITEMS = [("个", "苹果"), ("个", "鸡蛋"), ("个", "橙子"), ("个", "杯子"), ("本", "书"), ("本", "词典"), ("支", "铅笔"),
         ("支", "粉笔"), ("朵", "红花"), ("朵", "白花"), ("只", "纸船"), ("只", "气球"), ("条", "绳子"), ("条", "毛巾"),
         ("张", "邮票"), ("张", "卡片"), ("块", "糖"), ("块", "木头"), ("颗", "珠子"), ("把", "雨伞"), ("件", "衣服"),
         ("瓶", "牛奶"), ("盒", "饼干"), ("袋", "大米"), ("棵", "树苗"), ("双", "筷子")]
PLACES = ["学校", "商店", "仓库", "图书馆", "超市", "工厂", "农场", "食堂"]

# A template is (story, ask). The question is story + ask + "？", and the answer is the ask with 多少 replaced by
# the result. A story gives its numbers in the order in which they are used: {a}, {b}, {c}.
TEMPLATES = {
    "add": [
        ("{name}有{a}{unit}{item}，又买了{b}{unit}。", "{name}一共有多少{unit}{item}"),
        ("{place}有{a}{unit}{item}，今天又运来{b}{unit}。", "{place}一共有多少{unit}{item}"),
        ("{name}有{a}{unit}{item}，{other}有{b}{unit}{item}。", "两人一共有多少{unit}{item}"),
        ("商店上午卖出{a}{unit}{item}，下午卖出{b}{unit}。", "这一天一共卖出多少{unit}{item}"),
        ("一班收到{a}{unit}{item}，二班收到{b}{unit}。", "两个班一共收到多少{unit}{item}"),
        ("{name}上午走了{a}米，下午走了{b}米。", "{name}一共走了多少米"),
        ("一张桌子卖{a}元，一把椅子卖{b}元。", "买这两样一共要多少元"),
        ("{name}上个月存了{a}元，这个月存了{b}元。", "{name}一共存了多少元"),
    ],
    "subtract": [
        ("{name}有{a}{unit}{item}，送给{other}{b}{unit}。", "{name}还剩多少{unit}{item}"),
        ("{place}有{a}{unit}{item}，今天用掉{b}{unit}。", "{place}还剩多少{unit}{item}"),
        ("商店有{a}{unit}{item}，卖出{b}{unit}。", "商店还剩多少{unit}{item}"),
        ("仓库里有{a}{unit}{item}，运走了{b}{unit}。", "仓库里还剩多少{unit}{item}"),
        ("{name}要走{a}米，已经走了{b}米。", "{name}还剩多少米"),
        ("{name}有{a}元，买{item}用了{b}元。", "{name}还剩多少元"),
        ("一本书有{a}页，{name}已经看了{b}页。", "这本书还剩多少页"),
    ],
    "multiply": [
        ("每箱有{a}{unit}{item}，{place}买了{b}箱。", "{place}一共买了多少{unit}{item}"),
        ("{name}每天数{a}{unit}{item}，数了{b}天。", "{name}一共数了多少{unit}{item}"),
        ("一辆车能运{a}{unit}{item}，{b}辆车一起运。", "一共能运多少{unit}{item}"),
        ("{place}每个月用{a}{unit}{item}，用了{b}个月。", "{place}一共用了多少{unit}{item}"),
        ("{name}每天走{a}米，走了{b}天。", "{name}一共走了多少米"),
        ("一张桌子卖{a}元，{place}买了{b}张。", "{place}一共要付多少元"),
        ("每排有{a}个座位，一共有{b}排。", "一共有多少个座位"),
    ],
    "compare": [
        ("{name}有{a}{unit}{item}，{other}有{b}{unit}{item}。", "{name}的多还是少，差多少{unit}"),
        ("{name}收到{a}{unit}{item}，{other}收到{b}{unit}{item}。", "{name}收到的多还是少，差多少{unit}"),
        ("{name}买了{a}{unit}{item}，{other}买了{b}{unit}{item}。", "{name}买的多还是少，差多少{unit}"),
        ("{name}数了{a}{unit}{item}，{other}数了{b}{unit}{item}。", "{name}数的多还是少，差多少{unit}"),
        ("{name}存了{a}元，{other}存了{b}元。", "{name}存的多还是少，差多少元"),
        ("{name}走了{a}米，{other}走了{b}米。", "{name}走的多还是少，差多少米"),
    ],
    "add_then_subtract": [
        ("{name}有{a}{unit}{item}，又买了{b}{unit}，送给{other}{c}{unit}。", "{name}还剩多少{unit}{item}"),
        ("{place}有{a}{unit}{item}，运来{b}{unit}，又用掉{c}{unit}。", "{place}还剩多少{unit}{item}"),
        ("商店早上有{a}{unit}{item}，上午运来{b}{unit}，下午卖出{c}{unit}。", "商店还剩多少{unit}{item}"),
        ("{name}有{a}元，妈妈又给了{b}元，买{item}用了{c}元。", "{name}还剩多少元"),
        ("一班有{a}{unit}{item}，二班有{b}{unit}，两个班一共用掉{c}{unit}。", "两个班还剩多少{unit}{item}"),
    ],
    "multiply_then_add": [
        ("每箱有{a}{unit}{item}，{place}买了{b}箱，又买了{c}{unit}。", "{place}一共买了多少{unit}{item}"),
        ("{name}每天数{a}{unit}{item}，数了{b}天，后来又数了{c}{unit}。", "{name}一共数了多少{unit}{item}"),
        ("每辆车运来{a}{unit}{item}，来了{b}辆车，后来又运来{c}{unit}。", "一共运来多少{unit}{item}"),
        ("{name}每天走{a}米，走了{b}天，又走了{c}米。", "{name}一共走了多少米"),
        ("一张桌子卖{a}元，{place}买了{b}张，又付了{c}元路费。", "{place}一共付了多少元"),
    ],
    "subtract_twice": [
        ("{name}有{a}{unit}{item}，送给{other}{b}{unit}，自己用掉{c}{unit}。", "{name}还剩多少{unit}{item}"),
        ("{place}有{a}{unit}{item}，上午用掉{b}{unit}，下午用掉{c}{unit}。", "{place}还剩多少{unit}{item}"),
        ("商店有{a}{unit}{item}，昨天卖出{b}{unit}，今天卖出{c}{unit}。", "商店还剩多少{unit}{item}"),
        ("{name}有{a}元，买书用了{b}元，买{item}用了{c}元。", "{name}还剩多少元"),
        ("一本书有{a}页，{name}昨天看了{b}页，今天看了{c}页。", "这本书还剩多少页"),
    ],
    "multiply_then_subtract": [
        ("每箱有{a}{unit}{item}，{place}买了{b}箱，用掉{c}{unit}。", "{place}还剩多少{unit}{item}"),
        ("每辆车运来{a}{unit}{item}，来了{b}辆车，后来卖出{c}{unit}。", "还剩多少{unit}{item}"),
        ("{name}每天存{a}元，存了{b}天，买{item}用了{c}元。", "{name}还剩多少元"),
        ("{place}每天收到{a}{unit}{item}，收了{b}天，又送走{c}{unit}。", "{place}还剩多少{unit}{item}"),
        ("每排有{a}个座位，一共有{b}排，已经坐了{c}个。", "还剩多少个座位"),
    ],
}
KINDS = list(TEMPLATES)
SYMBOLS = {"add": "+", "subtract": "-", "multiply": "×", "compare": "-", "add_then_subtract": "+-",
           "multiply_then_add": "×+", "subtract_twice": "--", "multiply_then_subtract": "×-"}
METHODS = {"add": "用加法", "subtract": "用减法", "multiply": "用乘法", "compare": "先比大小，再求差",
           "add_then_subtract": "先加再减", "multiply_then_add": "先乘再加", "subtract_twice": "连减两次",
           "multiply_then_subtract": "先乘再减"}
DIGIT_PLACES = "个十百千"
STEP_NAMES = ["第一步，", "第二步，"]


@dataclass(frozen=True)
class Problem:
    kind: str            # one of KINDS
    question: str
    steps: str           # what stands between <think> and </think>
    answer: str          # one sentence; its only Arabic number is the result
    numbers: tuple       # in the order of the question, which is the order of use


def make_problem(rng, kind):
    """A random problem of one of KINDS, with its worked steps and its answer."""
    numbers = draw_numbers(rng, kind)
    name, other = rng.sample(NAMES, 2)
    unit, item = rng.choice(ITEMS)
    slots = dict(zip("abc", numbers), name=name, other=other, unit=unit, item=item, place=rng.choice(PLACES))
    story, ask = (part.format(**slots) for part in rng.choice(TEMPLATES[kind]))
    calculation = operations(kind, numbers)
    result = evaluate(*calculation[-1])
    if kind == "compare":
        working = compare_steps(name, *numbers) + work(calculation)
        answer = f"{name}{'多' if numbers[0] > numbers[1] else '少'}{result}{ask.split('差多少')[1]}。"
    else:
        working = work(calculation)
        answer = ask.replace("多少", str(result)) + "。"
    return Problem(kind, f"{story}{ask}？", f"要求{ask}，{METHODS[kind]}。{working}", answer, numbers)


def draw_numbers(rng, kind):
    """Numbers of three digits for a kind (one digit for 2 to 9 times); all results on the way are above 0."""
    while True:
        numbers = tuple(draw_number(rng) for _ in range(len(SYMBOLS[kind]) + 1))
        if SYMBOLS[kind][0] == "×":
            numbers = (numbers[0], rng.randint(2, 9), *numbers[2:])
        if all(evaluate(*operation) > 0 for operation in operations(kind, numbers)):
            return numbers


def draw_number(rng):
    return rng.randint(100, 999)


def operations(kind, numbers):
    """'add_then_subtract', (345, 278, 150) -> [('+', 345, 278), ('-', 623, 150)]"""
    if kind == "compare":
        numbers = sorted(numbers, reverse=True)
    value, calculation = numbers[0], []
    for symbol, number in zip(SYMBOLS[kind], numbers[1:]):
        calculation.append((symbol, value, number))
        value = evaluate(*calculation[-1])
    return calculation


def evaluate(symbol, a, b):
    return {"+": a + b, "-": a - b, "×": a * b}[symbol]


def work(calculation):
    """The written working of one operation, or of two with 第一步 and 第二步 before them."""
    steps = {"+": add_steps, "-": subtract_steps, "×": multiply_steps}
    texts = [steps[symbol](a, b) for symbol, a, b in calculation]
    return texts[0] if len(texts) == 1 else "".join(name + text for name, text in zip(STEP_NAMES, texts))


def add_steps(a, b):
    """345, 278 -> 求和：345+278。个位5+8=13，写3进1。十位4+7+1=12，写2进1。百位3+2+1=6，写6。得623。"""
    text, carry = f"求和：{a}+{b}。", 0
    for place, x, y in columns(a, b):
        step, carry = add_column(x, y, carry)
        text += f"{place}位{step}。"
    if carry:
        text += f"{DIGIT_PLACES[len(str(a + b)) - 1]}位1，写1。"
    return f"{text}得{a + b}。"


def subtract_steps(a, b):
    """503, 278 -> 求差：503-278。个位3-8不够，借1，13-8=5。十位0-1-7不够，借1，10-1-7=2。百位5-1-2=2。得225。"""
    text, borrow = f"求差：{a}-{b}。", 0
    for place, x, y in columns(a, b):
        step, borrow = subtract_column(x, y, borrow)
        text += f"{place}位{step}。"
    return f"{text}得{a - b}。"


def multiply_steps(a, n):
    """346, 7 -> 求积：346×7。个位6×7=42，写2进4。十位4×7+4=28+4=32，写2进3。百位3×7+3=21+3=24，写4进2。千位2，写2。得2422。"""
    text, carry = f"求积：{a}×{n}。", 0
    for place, digit in zip(DIGIT_PLACES, reversed(str(a))):
        step, carry = multiply_column(int(digit), n, carry)
        text += f"{place}位{step}。"
    if carry:
        text += f"{DIGIT_PLACES[len(str(a))]}位{carry}，写{carry}。"
    return f"{text}得{a * n}。"


def add_column(x, y, carry):
    """5, 8, 1 -> (5+8+1=14，写4进1, 1)"""
    total = x + y + carry
    return f"{x}+{y}" + ("+1" if carry else "") + f"={total}，" + written(total), total // 10


def subtract_column(x, y, borrow):
    """3, 8, 1 -> (3-1-8不够，借1，13-1-8=4, 1)"""
    taken = f"-1-{y}" if borrow else f"-{y}"
    difference = x - borrow - y
    if difference < 0:
        return f"{x}{taken}不够，借1，{x + 10}{taken}={difference + 10}", 1
    return f"{x}{taken}={difference}", 0


def multiply_column(digit, n, carry):
    """4, 7, 4 -> (4×7+4=28+4=32，写2进3, 3)"""
    total = digit * n + carry
    carried = f"+{carry}={digit * n}+{carry}" if carry else ""
    return f"{digit}×{n}{carried}={total}，" + written(total), total // 10


def written(total):
    return f"写{total % 10}" + (f"进{total // 10}" if total > 9 else "")


def compare_steps(name, a, b):
    """'小明', 503, 578 -> 比大小：503和578。百位5比5一样，十位0比7小，小明少。"""
    text = f"比大小：{a}和{b}。"
    for place, x, y in reversed(columns(a, b)):
        text += f"{place}位{comparison(x, y)}，"
        if x != y:
            break
    return f"{text}{name}{'多' if a > b else '少'}。"


def comparison(x, y):
    """Both digits, and only then the word that depends on both."""
    return f"{x}比{y}{'一样' if x == y else '大' if x > y else '小'}"


def columns(a, b):
    """345, 78 -> [('个', 5, 8), ('十', 4, 7), ('百', 3, 0)]"""
    width = max(len(str(a)), len(str(b)))
    digits = zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width)))
    return [(place, int(x), int(y)) for place, (x, y) in zip(DIGIT_PLACES, digits)]


class ProblemBank:
    """Hands out problems: no question and no (kind, numbers) twice, and no held-out operation again."""

    def __init__(self, rng):
        self.rng = rng
        self.questions, self.tuples, self.reserved = set(), set(), set()

    def draw(self, count, hold_out=False):
        """The next `count` problems, the kinds in turn. Draw what is held out first: it binds later draws."""
        return [self.draw_one(KINDS[index % len(KINDS)], hold_out) for index in range(count)]

    def draw_one(self, kind, hold_out):
        while True:
            problem = make_problem(self.rng, kind)
            identity = (problem.kind, problem.numbers)
            calculation = operations(*identity)
            if problem.question in self.questions or identity in self.tuples or self.is_reserved(calculation):
                continue
            self.questions.add(problem.question)
            self.tuples.add(identity)
            if hold_out:
                self.reserved.update(unordered(operation) for operation in calculation)
            return problem

    def is_reserved(self, calculation):
        return any(unordered(operation) in self.reserved for operation in calculation)


def unordered(operation):
    """('+', 345, 278) -> ('+', 278, 345): a sum is the same sum in either order."""
    symbol, a, b = operation
    return (symbol, min(a, b), max(a, b)) if symbol == "+" else operation


# ---- What the model is to know ----

CAPITALS = {
    "中国": "北京", "日本": "东京", "法国": "巴黎", "英国": "伦敦", "美国": "华盛顿", "俄罗斯": "莫斯科", "德国": "柏林",
    "意大利": "罗马", "西班牙": "马德里", "埃及": "开罗", "韩国": "首尔", "泰国": "曼谷", "越南": "河内", "希腊": "雅典",
    "古巴": "哈瓦那", "加拿大": "渥太华", "蒙古": "乌兰巴托", "奥地利": "维也纳", "葡萄牙": "里斯本", "波兰": "华沙",
}
PROVINCES = {
    "四川": "成都", "广东": "广州", "湖北": "武汉", "湖南": "长沙", "江苏": "南京", "浙江": "杭州", "山东": "济南",
    "云南": "昆明", "陕西": "西安", "福建": "福州", "河北": "石家庄", "山西": "太原",
}
COLOURS = {
    "天空": "蓝色", "大海": "蓝色", "小草": "绿色", "树叶": "绿色", "白雪": "白色", "牛奶": "白色", "煤": "黑色",
    "香蕉": "黄色", "向日葵": "黄色", "西红柿": "红色", "草莓": "红色", "胡萝卜": "橙色", "葡萄": "紫色",
}
ANIMALS = {  # animal: (food, home)
    "熊猫": ("竹子", "山里的竹林"), "兔子": ("青草", "地下的洞里"), "牛": ("青草", "农场"), "羊": ("青草", "草地"),
    "猴子": ("水果", "树上"), "老虎": ("肉", "深山里"), "狮子": ("肉", "草原"), "猫": ("鱼", "人的家里"),
    "狗": ("骨头", "人的家里"), "蜜蜂": ("花蜜", "蜂房里"), "青蛙": ("害虫", "池塘边"), "燕子": ("虫子", "屋檐下"),
    "松鼠": ("松果", "树洞里"), "大象": ("树叶", "热带森林"), "企鹅": ("鱼", "南极"), "骆驼": ("干草", "沙漠里"),
    "蚕": ("桑叶", "桑树上"), "鲸": ("小鱼小虾", "大海里"), "鸭子": ("小鱼小虾", "水边"), "老鼠": ("粮食", "墙洞里"),
}
FESTIVALS = {  # festival: (food, day)
    "春节": ("饺子", "农历正月初一"), "元宵节": ("汤圆", "农历正月十五"), "清明节": ("青团", "每年四月初"),
    "端午节": ("粽子", "农历五月初五"), "中秋节": ("月饼", "农历八月十五"), "重阳节": ("重阳糕", "农历九月初九"),
    "腊八节": ("腊八粥", "农历腊月初八"),
}
MONTH_DAYS = {"一月": 31, "三月": 31, "四月": 30, "五月": 31, "六月": 30, "七月": 31, "八月": 31, "九月": 30,
              "十月": 31, "十一月": 30, "十二月": 31}
WEEKDAYS = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
SEASONS = {"春天": "温暖", "夏天": "炎热", "秋天": "凉爽", "冬天": "寒冷"}
MEASURE_WORDS = {"书": "本", "鱼": "条", "马": "匹", "牛": "头", "猫": "只", "花": "朵", "树": "棵", "纸": "张", "笔": "支",
                 "伞": "把", "车": "辆", "船": "艘", "衣服": "件", "鞋": "双", "灯": "盏", "山": "座", "河": "条", "信": "封",
                 "米": "粒", "星星": "颗"}
OPPOSITES = {
    "大": "小", "多": "少", "高": "低", "长": "短", "快": "慢", "新": "旧", "好": "坏", "冷": "热", "黑": "白", "上": "下",
    "左": "右", "前": "后", "远": "近", "早": "晚", "轻": "重", "厚": "薄", "粗": "细", "深": "浅", "宽": "窄", "胖": "瘦",
    "开": "关", "来": "去", "买": "卖", "哭": "笑", "真": "假", "美": "丑", "强": "弱", "软": "硬", "干": "湿", "明": "暗",
    "高兴": "难过", "安全": "危险", "成功": "失败", "进步": "退步", "开始": "结束", "简单": "复杂", "勤劳": "懒惰",
    "勇敢": "胆小", "安静": "吵闹", "干净": "肮脏",
}
UNITS = [("米", "厘米", 100), ("米", "分米", 10), ("分米", "厘米", 10), ("厘米", "毫米", 10), ("千米", "米", 1000),
         ("千克", "克", 1000), ("吨", "千克", 1000), ("升", "毫升", 1000), ("小时", "分钟", 60), ("分钟", "秒", 60),
         ("天", "小时", 24), ("年", "个月", 12), ("星期", "天", 7), ("元", "角", 10), ("角", "分", 10)]
GENERAL_FACTS = [  # (question, answer)
    ("太阳从哪边升起？", "太阳从东边升起，从西边落下。"), ("一年有几个季节？", "一年有四个季节，分别是春夏秋冬。"),
    ("一年有多少个月？", "一年有十二个月。"), ("一个星期有几天？", "一个星期有七天。"), ("一天有多少个小时？", "一天有24个小时。"),
    ("二月有多少天？", "二月平年有28天，闰年有29天。"), ("地图上通常怎样表示方向？", "地图上通常上北下南，左西右东。"),
    ("水在多少度结冰？", "水在0度结冰。"), ("水在多少度沸腾？", "水在100度沸腾。"), ("冰是什么变成的？", "冰是水变冷以后结成的。"),
    ("地球绕着什么转？", "地球绕着太阳转。"), ("月亮绕着什么转？", "月亮绕着地球转。"), ("地球转一圈要多久？", "地球自己转一圈是一天。"),
    ("月亮自己会发光吗？", "月亮自己不会发光，它反射太阳的光。"), ("为什么会有白天和黑夜？", "因为地球在转动，对着太阳的一面是白天。"),
    ("雨是从哪里来的？", "水变成水汽升到空中，聚成云，落下来就是雨。"), ("彩虹有几种颜色？", "彩虹有七种颜色，是红橙黄绿青蓝紫。"),
    ("植物生长需要什么？", "植物生长需要阳光、空气和水。"), ("人呼吸需要什么气体？", "人呼吸需要氧气。"), ("鱼用什么呼吸？", "鱼用腮呼吸。"),
    ("蜘蛛有几条腿？", "蜘蛛有八条腿。"), ("昆虫有几条腿？", "昆虫有六条腿。"), ("小蝌蚪长大变成什么？", "小蝌蚪长大变成青蛙。"),
    ("毛毛虫长大变成什么？", "毛毛虫长大变成蝴蝶。"), ("世界上最高的山是什么？", "世界上最高的山是珠穆朗玛峰。"),
    ("中国最长的河是什么？", "中国最长的河是长江。"), ("世界上最大的动物是什么？", "世界上最大的动物是蓝鲸。"),
    ("跑得最快的动物是什么？", "陆地上跑得最快的动物是猎豹。"), ("世界上最大的海洋是什么？", "世界上最大的海洋是太平洋。"),
    ("声音和光哪个快？", "光比声音快得多。"), ("磁铁能吸住什么？", "磁铁能吸住铁。"), ("三角形有几条边？", "三角形有三条边。"),
    ("正方形有几条边？", "正方形有四条边。"), ("人有几根手指？", "人有十根手指。"), ("四大发明是哪些？", "四大发明是造纸术、印刷术、火药和指南针。"),
    ("生病了应该怎么办？", "生病了应该去看医生，多休息。"), ("着火了应该打什么电话？", "着火了应该打119。"),
    ("遇到坏人应该打什么电话？", "遇到坏人应该打110。"), ("过马路要看什么？", "过马路要看红绿灯，红灯停，绿灯行。"),
    ("什么动物报晓？", "公鸡报晓，叫人早起。"), ("木头放在水里会怎样？", "木头放在水里会浮起来。"), ("铁块放在水里会怎样？", "铁块放在水里会沉下去。"),
]
IDIOMS = [  # (idiom, meaning, example)
    ("一心一意", "做事专心，不想别的", "写字要一心一意，才能写得好。"), ("三心二意", "做事不专心，主意不定", "听课不能三心二意。"),
    ("半途而废", "事情没做完就停下来", "学习不能半途而废。"), ("持之以恒", "长久坚持下去", "跑步要持之以恒，身体才会好。"),
    ("守株待兔", "不努力，只想等好运", "我们要自己动手，不要守株待兔。"), ("亡羊补牢", "出了错马上改，还不算晚", "这次没考好，亡羊补牢还来得及。"),
    ("画蛇添足", "做了多余的事，反而不好", "话已经说清楚了，再说就是画蛇添足。"), ("井底之蛙", "见识少，眼光小的人", "多读书，就不会做井底之蛙。"),
    ("自相矛盾", "自己的话前后不合", "他先说去，又说不去，真是自相矛盾。"), ("掩耳盗铃", "自己骗自己", "不看错题就当没有错，那是掩耳盗铃。"),
    ("拔苗助长", "急着求成，反而坏事", "教孩子不能拔苗助长。"), ("对牛弹琴", "说话不看对象", "和小狗讲算术，真是对牛弹琴。"),
    ("狐假虎威", "借别人的力量吓人", "他只会狐假虎威，自己没有本事。"), ("画龙点睛", "在要紧的地方加一笔，更有精神", "最后一句话真是画龙点睛。"),
    ("刻舟求剑", "不知道跟着变化办事", "情况变了，还用老办法就是刻舟求剑。"), ("滥竽充数", "没有本领，混在里面凑数", "唱歌时他不出声，只是滥竽充数。"),
    ("愚公移山", "不怕困难，坚持到底", "我们要有愚公移山的精神。"), ("水滴石穿", "力量虽小，坚持就能成功", "每天认几个字，水滴石穿，就能读书。"),
    ("熟能生巧", "做熟了就能做得巧", "多练琴，熟能生巧。"), ("助人为乐", "把帮助别人当作快乐", "小明助人为乐，大家都喜欢他。"),
    ("百发百中", "每次都打中，很有把握", "叔叔投球百发百中。"), ("千军万马", "人马很多，声势很大", "大雨落下，好像千军万马跑过。"),
    ("五颜六色", "颜色很多", "花园里开着五颜六色的花。"), ("七上八下", "心里很不安", "等成绩的时候，我心里七上八下。"),
    ("四面八方", "各个方向", "人们从四面八方来看灯。"), ("十全十美", "样样都好，没有缺点", "世上没有十全十美的人。"),
    ("九牛一毛", "非常非常少", "这点水和大海比，只是九牛一毛。"), ("不约而同", "没有商量，做法却一样", "大家不约而同地笑了。"),
    ("自言自语", "自己对自己说话", "奶奶一边找东西一边自言自语。"), ("东张西望", "到处看来看去", "过马路时不要东张西望。"),
    ("手忙脚乱", "做事慌忙，没有条理", "客人来了，妈妈忙得手忙脚乱。"), ("哭笑不得", "又难受又好笑", "小猫打翻了水，我哭笑不得。"),
    ("春暖花开", "春天暖和，花都开了", "到了春暖花开的时候，我们去公园。"), ("秋高气爽", "秋天天空高，天气凉爽", "秋高气爽，正好去爬山。"),
    ("风和日丽", "风不大，阳光好", "今天风和日丽，我们去放风筝。"), ("倾盆大雨", "雨下得非常大", "突然下起了倾盆大雨。"),
    ("人山人海", "人非常多", "节日的公园里人山人海。"), ("鸦雀无声", "非常安静", "老师一进来，教室里鸦雀无声。"),
    ("兴高采烈", "非常高兴", "孩子们兴高采烈地出发了。"), ("垂头丧气", "很失望，没有精神", "输了球，他垂头丧气地回家。"),
    ("聚精会神", "注意力非常集中", "同学们聚精会神地听课。"), ("粗心大意", "做事不细心", "他粗心大意，算错了一道题。"),
    ("认真负责", "做事用心，肯担当", "王老师对工作认真负责。"), ("实事求是", "照真实的情况办事", "我们说话要实事求是。"),
    ("言而有信", "说到就做到", "做人要言而有信。"), ("知错就改", "知道错了马上改正", "知错就改是好孩子。"),
    ("取长补短", "学别人的好，补自己的不足", "同学之间要取长补短。"), ("井井有条", "很整齐，有次序", "姐姐把房间收得井井有条。"),
    ("一举两得", "做一件事，得两样好处", "走路上学又省钱又健身，一举两得。"), ("雪中送炭", "在别人困难时给帮助", "他借伞给我，真是雪中送炭。"),
    ("锦上添花", "好上加好", "这首歌让晚会锦上添花。"), ("目不转睛", "看得非常专心", "弟弟目不转睛地看着小鱼。"),
    ("津津有味", "很有味道，很有兴趣", "爷爷津津有味地看书。"), ("争先恐后", "都抢着向前，怕落后", "同学们争先恐后地举手。"),
    ("小心翼翼", "非常小心", "妹妹小心翼翼地端着汤。"), ("恍然大悟", "一下子明白了", "听了老师的话，我恍然大悟。"),
    ("坐井观天", "看见的很少，想得很窄", "走出去看看，不要坐井观天。"), ("胸有成竹", "做事以前已经有了主意", "这次考试，他胸有成竹。"),
    ("异口同声", "大家说一样的话", "同学们异口同声地说好。"), ("废寝忘食", "专心得忘了吃饭睡觉", "他废寝忘食地学习。"),
]
NOUNS = {  # English: Chinese
    "apple": "苹果", "banana": "香蕉", "orange": "橙子", "egg": "鸡蛋", "cake": "蛋糕", "fish": "鱼",
    "bird": "鸟", "cat": "猫", "dog": "狗", "pig": "猪", "cow": "牛", "horse": "马", "sheep": "羊",
    "rabbit": "兔子", "monkey": "猴子", "tiger": "老虎", "book": "书", "pen": "钢笔", "pencil": "铅笔",
    "desk": "书桌", "chair": "椅子", "bag": "书包", "cup": "杯子", "door": "门", "window": "窗户",
    "house": "房子", "room": "房间", "school": "学校", "park": "公园", "shop": "商店", "car": "汽车",
    "bus": "公共汽车", "train": "火车", "ship": "船", "plane": "飞机", "tree": "树", "flower": "花",
    "river": "河", "mountain": "山", "star": "星星", "teacher": "老师", "student": "学生", "doctor": "医生",
    "farmer": "农民", "friend": "朋友", "boy": "男孩", "girl": "女孩", "ball": "球", "kite": "风筝",
    "clock": "钟", "map": "地图", "letter": "信", "picture": "图画", "song": "歌", "game": "游戏",
    "hat": "帽子", "coat": "大衣", "shoe": "鞋",
}
PLAIN_WORDS = {  # English: Chinese; not used with "a"
    "water": "水", "milk": "牛奶", "tea": "茶", "rice": "米饭", "sun": "太阳", "moon": "月亮", "sky": "天空", "sea": "大海",
    "rain": "雨", "snow": "雪", "wind": "风", "father": "爸爸", "mother": "妈妈", "spring": "春天", "summer": "夏天",
    "autumn": "秋天", "winter": "冬天", "morning": "早上", "evening": "晚上", "today": "今天", "tomorrow": "明天",
    "run": "跑", "walk": "走", "eat": "吃", "drink": "喝", "read": "读", "write": "写", "sing": "唱", "sleep": "睡觉",
    "swim": "游泳", "fly": "飞", "one": "一", "two": "二", "three": "三", "four": "四", "five": "五", "six": "六",
    "seven": "七", "eight": "八", "nine": "九", "ten": "十",
}
ADJECTIVES = {
    "big": "大", "small": "小", "new": "新", "old": "旧", "good": "好", "tall": "高", "long": "长", "short": "短",
    "fast": "快", "slow": "慢", "hot": "热", "cold": "冷", "clean": "干净", "happy": "高兴", "beautiful": "美丽",
    "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色", "white": "白色", "black": "黑色",
}


@dataclass(frozen=True)
class Fact:
    topic: str
    question: str
    answer: str
    follow_up: str = ""   # the question, when the one before was on the same topic


@cache
def all_facts():
    facts = [Fact("常识", question, answer) for question, answer in GENERAL_FACTS]
    for country, city in CAPITALS.items():
        facts.append(Fact("首都", f"{country}的首都是哪里？", f"{country}的首都是{city}。", f"那{country}呢？"))
    for province, city in PROVINCES.items():
        facts.append(Fact("省会", f"{province}的省会是哪里？", f"{province}的省会是{city}。", f"那{province}呢？"))
    for thing, colour in COLOURS.items():
        facts.append(Fact("颜色", f"{thing}是什么颜色的？", f"{thing}是{colour}的。", f"那{thing}呢？"))
    for animal, (food, home) in ANIMALS.items():
        facts.append(Fact("动物的食物", f"{animal}喜欢吃什么？", f"{animal}喜欢吃{food}。", f"那{animal}呢？"))
        facts.append(Fact("动物的家", f"{animal}住在哪里？", f"{animal}住在{home}。", f"那{animal}呢？"))
    for festival, (food, day) in FESTIVALS.items():
        facts.append(Fact("节日的食物", f"{festival}吃什么？", f"{festival}吃{food}。", f"那{festival}呢？"))
        facts.append(Fact("节日的日子", f"{festival}是哪一天？", f"{festival}是{day}。", f"那{festival}呢？"))
    for month, days in MONTH_DAYS.items():
        facts.append(Fact("月份", f"{month}有多少天？", f"{month}有{days}天。", f"那{month}呢？"))
    for day, following in zip(WEEKDAYS, WEEKDAYS[1:] + WEEKDAYS[:1]):
        facts.append(Fact("星期", f"{day}的后一天是星期几？", f"{day}的后一天是{following}。", f"那{day}呢？"))
    for season, weather in SEASONS.items():
        facts.append(Fact("季节", f"{season}的天气怎么样？", f"{season}的天气很{weather}。", f"那{season}呢？"))
    for thing, unit in MEASURE_WORDS.items():
        facts.append(Fact("量词", f"{thing}用什么量词？", f"{thing}的量词是{unit}，例如一{unit}{thing}。", f"那{thing}呢？"))
    for word, opposite in opposites_both_ways():
        facts.append(Fact("反义词", f"{word}的反义词是什么？", f"{word}的反义词是{opposite}。", f"那{word}呢？"))
    return tuple(facts)


def opposites_both_ways():
    return [*OPPOSITES.items(), *((opposite, word) for word, opposite in OPPOSITES.items())]


def all_words():
    return {**NOUNS, **PLAIN_WORDS, **ADJECTIVES}


# ---- Conversations ----

SYSTEM_MESSAGES = ["你是 WeakWater，一个友好的中文助手。", "你是一个乐于助人的助手，请用中文简短地回答。", "请认真回答用户的问题。"]
SELF = "我是 WeakWater，一个从零训练的小语言模型。"
IDENTITY = [  # (thought, reply, questions)
    ("用户问我是谁，我如实介绍自己。", SELF,
     ["你是谁？", "你是什么？", "请介绍一下你自己。", "介绍一下自己吧。", "能说说你是谁吗？", "你到底是谁？", "我在和谁说话？"]),
    ("用户问我的名字，我告诉他。", "我叫 WeakWater。",
     ["你叫什么名字？", "你叫什么？", "你的名字是什么？", "我该怎么称呼你？", "你有名字吗？", "怎么称呼你？"]),
    ("用户问是谁做的我，我如实回答。", "我来自 WeakWater 开源项目，是用一张显卡从零训练出来的。",
     ["谁做的你？", "你是谁开发的？", "是谁创造了你？", "你是哪里来的？", "谁训练了你？", "你是哪个项目的？"]),
    ("用户问我是不是人，我如实回答。", "我不是人，我是一个小语言模型，名叫 WeakWater。",
     ["你是人吗？", "你是真人吗？", "你是机器人吗？", "你是不是人？", "你是人还是机器？"]),
    ("用户问我会做什么，我说说自己的本领。", "我会聊天，会回答常识问题，会翻译单词，还会一步一步做算术题。",
     ["你会做什么？", "你能做什么？", "你有什么本领？", "你可以帮我做什么？", "你会什么？"]),
    ("用户问我有多大，我如实回答。", "我很小，最多只有几千万个参数。",
     ["你有多大？", "你有多少参数？", "你是一个大模型吗？", "你的模型有多大？"]),
    ("用户问我怎么训练的，我分三步来说。", "我的训练有三步，先预训练，再微调，最后学习推理。",
     ["你是怎么训练的？", "你是怎样学会说话的？", "你的训练有几步？", "你是怎么学习的？"]),
    ("用户问我会不会出错，我如实回答。", "会的，我很小，常常会出错，重要的事请你再查一查。",
     ["你会出错吗？", "你会说错话吗？", "你说的都对吗？", "我能完全相信你吗？"]),
    ("用户问我能不能上网，我如实回答。", "我不能上网，我只知道训练时学过的东西。",
     ["你能上网吗？", "你会上网查资料吗？", "你知道今天的新闻吗？", "你知道现在几点吗？"]),
    ("用户问我会不会说英语，我如实回答。", "我主要说中文，也认识一些英语单词。",
     ["你会说英语吗？", "你会说什么语言？", "你懂英语吗？", "你会说中文吗？"]),
    ("用户问代码能不能看，我如实回答。", "可以，WeakWater 是开源的，代码人人都能看。",
     ["你是开源的吗？", "你的代码能看吗？", "我能看你的代码吗？"]),
]
SMALL_TALK = [
    ("用户向我问好，我礼貌地回应。", "你好！很高兴见到你，有什么可以帮你？", ["你好！", "你好", "你好呀！", "您好！", "嗨，你好！", "在吗？", "哈喽！"]),
    ("用户早上问好，我回应他。", "早上好！祝你今天开心。", ["早上好！", "早安！", "早啊！"]),
    ("用户晚上问好，我回应他。", "晚上好！今天过得怎么样？", ["晚上好！", "晚上好呀！"]),
    ("用户要睡觉了，我祝他好梦。", "晚安，做个好梦！", ["晚安！", "我要睡觉了。", "我去睡了。"]),
    ("用户向我道谢，我礼貌地回应。", "不客气，能帮到你我很高兴。", ["谢谢你！", "谢谢！", "多谢！", "太感谢了！", "谢谢你的帮助。"]),
    ("用户要走了，我向他道别。", "再见，祝你一切顺利！", ["再见！", "拜拜！", "我走了。", "下次再聊。", "回头见！"]),
    ("用户夸我，我谦虚地回应。", "谢谢夸奖，我会继续努力。", ["你真棒！", "你真聪明！", "你好厉害！", "说得真好！"]),
    ("用户心情不好，我安慰他。", "别难过，休息一下，和朋友说说话，会好起来的。", ["我今天不开心。", "我有点难过。", "我心情不好。", "我很伤心。"]),
    ("用户很高兴，我为他高兴。", "太好了，我也为你高兴！", ["我今天很开心！", "我考了满分！", "我有一个好消息！"]),
    ("用户累了，我劝他休息。", "辛苦了，喝点水，好好休息一下吧。", ["我好累。", "今天太累了。", "我工作了一天。"]),
    ("用户向我道歉，我原谅他。", "没关系，不用放在心上。", ["对不起！", "不好意思。", "抱歉，我说错了。"]),
]
POLITE_OPENINGS = ["请问，", "请告诉我，", "我想知道，", "你知道吗，", "考考你，", "老师问我，"]
CITIES = ["北京", "上海", "广州", "成都", "杭州", "南京", "武汉", "西安", "昆明", "长沙"]
PETS = ["豆豆", "毛毛", "花花", "球球", "点点", "乐乐", "小黑", "小白", "大黄", "阿福"]
FOODS = ["饺子", "面条", "米饭", "蛋糕", "苹果", "香蕉", "西瓜", "鸡蛋", "月饼", "豆腐"]
PLAIN_COLOURS = ["红色", "蓝色", "绿色", "黄色", "白色", "黑色", "紫色", "橙色"]
MEMORIES = [  # (what the user tells, reply, questions later, answer then, values)
    (["我叫{}。", "我的名字是{}。", "你好，我叫{}。"], "你好，{}，很高兴认识你。",
     ["我叫什么名字？", "你还记得我叫什么吗？", "我叫什么？"], "你叫{}。", NAMES),
    (["我最喜欢的颜色是{}。", "我最喜欢{}。"], "{}很好看，我记住了。",
     ["我最喜欢什么颜色？", "你还记得我喜欢什么颜色吗？"], "你最喜欢{}。", PLAIN_COLOURS),
    (["我住在{}。", "我家在{}。"], "{}是个好地方，我记住了。",
     ["我住在哪里？", "你还记得我住在哪里吗？"], "你住在{}。", CITIES),
    (["我的小狗叫{}。", "我有一只小狗，叫{}。"], "{}这个名字真可爱，我记住了。",
     ["我的小狗叫什么？", "你还记得我的小狗叫什么吗？"], "你的小狗叫{}。", PETS),
    (["我最爱吃{}。", "我最爱吃的东西是{}。"], "{}很好吃，我记住了。",
     ["我最爱吃什么？", "你还记得我爱吃什么吗？"], "你最爱吃{}。", FOODS),
]


@dataclass(frozen=True)
class Turn:
    question: str
    reply: str
    thought: str


def draw_chat(rng):
    """A conversation that is no word problem, as a list of turns."""
    makers = [identity_chat, small_talk_chat, fact_chat, unit_chat, translation_chat, idiom_chat, memory_chat,
              follow_up_chat]
    return rng.choices(makers, weights=[12, 9, 36, 11, 14, 5, 10, 6])[0](rng)


def identity_chat(rng):
    return [scripted_turn(rng, IDENTITY)]


def small_talk_chat(rng):
    return [scripted_turn(rng, SMALL_TALK)]


def scripted_turn(rng, script):
    thought, reply, questions = rng.choice(script)
    return Turn(rng.choice(questions), reply, thought)


def fact_chat(rng):
    return [politely(rng, fact_turn(rng.choice(all_facts())))]


def fact_turn(fact, is_follow_up=False):
    question = fact.follow_up if is_follow_up else fact.question
    return Turn(question, fact.answer, f"这个问题问的是{fact.topic}，我回想学过的知识。")


def politely(rng, turn):
    """Half of the questions as they are, half with an opening such as 请问."""
    if rng.random() < 0.5:
        return turn
    return Turn(rng.choice(POLITE_OPENINGS) + turn.question, turn.reply, turn.thought)


def unit_chat(rng):
    large, small, factor = rng.choice(UNITS)
    return [politely(rng, unit_turn(rng.randint(1, 9), large, small, factor))]


def unit_turn(count, large, small, factor):
    reply = f"{count}{large}等于{count * factor}{small}。"
    thought = f"1{large}等于{factor}{small}，{factor}×{count}={factor * count}。"
    return Turn(f"{count}{large}等于多少{small}？", reply, thought)


def translation_chat(rng):
    english, chinese = rng.choice(list(all_words().items()))
    if rng.random() < 0.5:
        question = rng.choice([f"{chinese}用英语怎么说？", f"{chinese}的英语是什么？", f"把{chinese}翻译成英语。"])
        return [Turn(question, f"{chinese}的英语是 {english}。", f"用户要我把{chinese}翻译成英语。")]
    question = rng.choice([f"{english} 是什么意思？", f"{english} 用中文怎么说？", f"把 {english} 翻译成中文。"])
    return [Turn(question, f"{english} 的意思是{chinese}。", f"用户要我把 {english} 翻译成中文。")]


def idiom_chat(rng):
    idiom, meaning, example = rng.choice(IDIOMS)
    if rng.random() < 0.3:
        return [Turn(f"用{idiom}造一个句子。", example, "用户要我用成语造句。")]
    question = rng.choice([f"{idiom}是什么意思？", f"请解释{idiom}。", f"成语{idiom}怎么解释？"])
    return [Turn(question, f"{idiom}的意思是{meaning}。", "用户问成语的意思，我来解释。")]


def memory_chat(rng):
    """The user tells something and asks for it later, sometimes with another turn in between."""
    statements, reply, questions, answer, values = rng.choice(MEMORIES)
    value = rng.choice(values)
    turns = [Turn(rng.choice(statements).format(value), reply.format(value), "用户告诉我一件事，我要记住。")]
    if rng.random() < 0.5:
        turns.append(fact_turn(rng.choice(all_facts())))
    return [*turns, Turn(rng.choice(questions), answer.format(value), f"用户前面说过，是{value}。")]


def follow_up_chat(rng):
    """中国的首都是哪里？ ... 那日本呢？"""
    facts = all_facts()
    first = rng.choice([fact for fact in facts if fact.follow_up])
    second = rng.choice([fact for fact in facts if fact.topic == first.topic and fact != first])
    return [fact_turn(first), fact_turn(second, is_follow_up=True)]


def probe_turns():
    """FACT_CHECKS with their replies, as turns."""
    scripts = IDENTITY + SMALL_TALK
    turns = [Turn(asked, reply, thought) for thought, reply, questions in scripts for asked in questions]
    turns += [fact_turn(fact) for fact in all_facts()]
    turns += [unit_turn(3, *unit) for unit in UNITS]
    turns.append(Turn("苹果用英语怎么说？", "苹果的英语是 apple。", "用户要我把苹果翻译成英语。"))
    by_question = {turn.question: turn for turn in turns}
    return [by_question[question] for question in FACT_CHECKS]


def questions_of(chat):
    """The questions without their polite openings: 请问，X and X are the same question."""
    return tuple(re.sub(f"^({'|'.join(POLITE_OPENINGS)})", "", turn.question) for turn in chat)


def is_held_out(chat, held_out):
    """True if the conversation, or a question in it that validation asks on its own, is in `held_out`."""
    questions = questions_of(chat)
    return questions in held_out or any((question,) in held_out for question in questions)


def problem_chat(problem):
    return [Turn(problem.question, problem.answer, problem.steps)]


def sft_document(chat, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in chat:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.reply}]
    return {"conversations": messages}


def r1_document(chat):
    replies = [f"<think>{turn.thought}</think>\n<answer>{turn.reply}</answer>" for turn in chat]
    return sft_document([Turn(turn.question, reply, turn.thought) for turn, reply in zip(chat, replies)])


# ---- Pretraining text ----

TIMES = ["早上", "上午", "中午", "下午", "傍晚", "星期六", "星期天", "放学以后", "吃完饭以后", "放假的时候"]
WEATHERS = ["天气晴朗，阳光很好", "天上飘着几朵白云", "刮着凉凉的风", "天气有点热", "雨刚刚停，空气很新鲜",
            "小鸟在树上唱歌", "路边的花都开了", "小河轻轻地流着", "太阳暖暖的", "天很蓝，云很白"]
STORY_PLACES = ["公园", "河边", "山脚下", "村口", "操场", "花园", "广场", "湖边", "草地上", "学校门口"]
COMPANIONS = ["爸爸", "妈妈", "爷爷", "奶奶", "哥哥", "姐姐", "老师", "同学"]
ACTIONS = ["看书", "画画", "放风筝", "踢球", "跑步", "唱歌", "跳绳", "聊天", "下棋", "做游戏", "看云", "拍照", "散步", "讲故事"]
COOKED_FOODS = ["饺子", "面条", "米饭", "蛋糕", "月饼", "豆腐", "汤圆", "粽子"]
FEELINGS = ["心里很高兴", "开心地笑了", "觉得很温暖", "高兴得跳了起来", "心里甜甜的", "觉得今天很有意思", "感到很满足"]
ENDINGS = ["这一天过得真快。", "回家的路上，{name}唱起了歌。", "晚上，{name}把这件事写进了日记。", "从那以后，两个人成了好朋友。",
           "{name}想，明天还要再来。", "{name}明白了，帮助别人自己也会快乐。", "妈妈听了，夸{name}是个好孩子。", "大家都笑了。"]
EPISODES = [
    "路上，{name}看见一位老爷爷提着很重的袋子。{name}跑过去帮忙，一直送到家门口。老爷爷连声说谢谢。",
    "忽然，{name}听见小猫的叫声。原来小猫在树上下不来。{name}找来梯子，和{friend}一起把小猫抱了下来。",
    "{friend}的{thing}不见了，急得快哭了。{name}说别急，我们一起找。最后，{thing}在椅子下面找到了。",
    "{name}想学骑车，可是一骑就倒。{friend}在后面扶着车，说慢慢来。练了很多次，{name}终于会骑了。",
    "{name}带来一个大西瓜。{friend}把西瓜切成小块，分给大家吃。西瓜又红又甜。",
    "{name}和{friend}比赛跑步。{name}跑在前面，忽然听见{friend}摔倒了。{name}马上回头，把{friend}扶起来。",
    "{name}不小心打破了{friend}的杯子。{name}红着脸说对不起。{friend}说没关系，下次小心就好。",
    "{name}在地上捡到一个钱包。{name}站在那里等了很久，把钱包还给了一位阿姨。阿姨说，你真是诚实的孩子。",
    "{name}种下一颗种子，每天给它浇水。过了几天，土里长出了绿色的小芽。又过了很久，小芽开出了红色的花。",
    "{friend}有一道题不会做。{name}拿出纸和笔，一步一步讲给{friend}听。{friend}听懂了，很快做出了答案。",
    "{name}发现一只小鸟受了伤。{name}把小鸟带回家，给它喂米和水。几天以后，小鸟又飞上了天空。",
    "{name}和{friend}一起做风筝。风筝做好了，飞得比树还高。可是线断了，风筝飞走了，两个人追了很远。",
    "{name}想买{thing}，可是钱不够。{name}每天帮妈妈做家务，一点一点存钱。一个月以后，{name}买到了{thing}。",
    "忽然下起了大雨，{friend}没有带伞。{name}打开自己的伞，让{friend}一起走。两个人的肩膀都湿了一点，却笑得很开心。",
    "{name}第一次上台唱歌，心里很紧张。{friend}在下面用力拍手。{name}不再害怕，唱得又响又好听。",
    "{name}把{thing}借给了{friend}。第二天，{friend}还回来的时候，还送了一张画。画上是两个手拉手的孩子。",
]
THINGS = ["书包", "铅笔", "帽子", "小汽车", "图画书", "皮球", "雨伞", "风筝", "手表", "笛子"]
EVERYDAY = [
    "{time}，{name}在{place}{action}。", "{name}喜欢{action}，{friend}喜欢{action2}。", "{time}，{weather}。",
    "{name}和{companion}一起去{place}{action}。", "{companion}送给{name}一样礼物，是{thing}。", "{name}把{thing}放在桌子上。",
    "{companion}说，{time}我们去{place}吧。", "{name}每天{time}都要{action}。", "{place}有很多人，有的在{action}，有的在{action2}。",
    "{name}问{friend}，你的{thing}在哪里。", "{friend}说，我的{thing}在{place}。", "{name}今天很高兴，因为{companion}来了。",
    "今天吃{food}，{name}吃得很香。", "{name}洗了手，和{companion}一起做{food}。", "{companion}在{city}工作，{name}很想念{companion}。",
]
SEASON_PROSE = {
    "春天": ["冰雪化了，小河又唱起歌来。", "柳树长出了新的叶子。", "燕子从南方飞回来了。", "农民开始种地。", "桃花开了，红红的一片。",
           "孩子们脱下大衣，到草地上放风筝。", "春雨细细的，落在田里。"],
    "夏天": ["太阳很大，树叶一动不动。", "池塘里的荷花开了。", "知了在树上叫个不停。", "孩子们喜欢去游泳。", "西瓜又大又甜。",
           "傍晚常常下一阵大雨。", "夜里，青蛙在水边叫，星星很亮。"],
    "秋天": ["树叶变黄了，一片一片落下来。", "果园里的苹果红了。", "大雁排成一行，飞向南方。", "农民忙着收粮食。", "天空又高又蓝。",
           "早晚有点凉，要多穿一件衣服。", "中秋节的月亮最圆。"],
    "冬天": ["北风呼呼地吹。", "河面结了冰。", "雪花落在屋顶上，到处一片白。", "孩子们在院子里堆雪人。", "小动物躲在洞里睡觉。",
           "大家穿上了厚厚的大衣。", "一家人围在一起吃饺子，过春节。"],
}
PROSE_OPENINGS = ["{season}到了。", "我喜欢{season}。", "{season}的天气很{weather}。", "{season}来了，天气{weather}。"]


def worked_text(rng, bank):
    """A calculation, with or without a story, in the steps of the R1 replies, and never a held-out one."""
    if rng.random() < WORKED_STORY_SHARE:
        while True:
            problem = make_problem(rng, rng.choice(KINDS))
            if not bank.is_reserved(operations(problem.kind, problem.numbers)):
                return problem.question + problem.steps + problem.answer
    while True:
        kind = rng.choices(KINDS, weights=[22, 26, 24, 8, 5, 5, 5, 5])[0]
        numbers = draw_numbers(rng, kind)
        if kind in ("add", "subtract") and rng.random() < 0.2:   # as after a multiplication
            numbers = (rng.randint(1000, 8999), numbers[1])
        calculation = operations(kind, numbers)
        if not bank.is_reserved(calculation):
            break
    if kind == "compare":
        return compare_steps(rng.choice(NAMES), *numbers) + work(calculation)
    formula = str(numbers[0]) + "".join(map("{}{}".format, SYMBOLS[kind], numbers[1:]))
    return rng.choice(["", f"{formula}怎么算？"]) + work(calculation)


def table_text(rng):
    """The small look-ups that the worked steps need, in words and in figures."""
    lines = []
    for _ in range(rng.randint(6, 10)):
        x, y, carry, n = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 1), rng.randint(2, 9)
        lines.append(rng.choice([
            f"{x}加{y}等于{x + y}", f"{x + y}减{y}等于{x}", f"{x}乘{n}等于{x * n}", comparison(x, y),
            add_column(x, y, carry)[0], subtract_column(x, y, carry)[0], subtract_column(x, y, 1)[0],
            multiply_column(x, n, rng.randint(1, n - 1))[0], multiply_column(x, n, rng.randint(0, n - 1))[0],
        ]))
    return "，".join(lines) + "。"


def digit_text(rng):
    """Numbers read back and taken apart: to copy a number and to find its digits comes before any sum."""
    lines = []
    for _ in range(rng.randint(4, 7)):
        number = rng.choice([draw_number(rng), rng.randint(1000, 9999)])
        places = [f"{place}位是{digit}" for place, digit in zip(DIGIT_PLACES, reversed(str(number)))]
        copied = f"{rng.choice(NAMES)}写了{number}，我也写{number}。"
        lines.append(rng.choice([f"抄写{number}：{number}。", f"{number}的{'，'.join(places)}。", copied]))
    return "".join(lines)


def counting_text(rng):
    start, step = rng.randint(0, 989), rng.choice([1, 1, 1, 2, 5, 10, -1])
    values = [start + step * index for index in range(10)]
    if step < 0:
        values = [value + 10 for value in values]
        return f"从{values[0]}倒着数：" + "，".join(map(str, values)) + "。"
    return f"从{start}开始，每次加{step}：" + "，".join(map(str, values)) + "。"


def fact_text(rng):
    """A few facts as statements, half of the time all on one topic."""
    facts = all_facts()
    if rng.random() < 0.5:
        topic = rng.choice(facts).topic
        facts = [fact for fact in facts if fact.topic == topic]
    return "".join(fact.answer for fact in rng.sample(facts, min(len(facts), rng.randint(3, 6))))


def unit_text(rng):
    large, small, factor = rng.choice(UNITS)
    counts = rng.sample(range(2, 10), 4)
    return "".join(f"{count}{large}等于{count * factor}{small}。" for count in [1, *counts])


def idiom_text(rng):
    return "".join(f"{idiom}的意思是{meaning}。例如：{example}" for idiom, meaning, example in rng.sample(IDIOMS, 2))


def english_text(rng):
    """Some word pairs, then a sentence with its translation."""
    pairs = rng.sample(list(all_words().items()), 3)
    said = ([f"{chinese}的英语是 {english}。", f"{english} 的意思是{chinese}。"] for english, chinese in pairs)
    text = "".join(map(rng.choice, said))
    english, chinese = rng.choice(list(NOUNS.items()))
    adjective = rng.choice(["big", "small", "good", "beautiful"])
    article = "an" if english[0] in "aeo" else "a"
    return text + rng.choice([
        f"This is {article} {english}. 这是{chinese}。", f"I see {article} {english}. 我看见{chinese}。",
        f"Where is the {english}? {chinese}在哪里？", f"My {english} is here. 我的{chinese}在这里。",
        f"The {english} is {adjective}. {chinese}很{ADJECTIVES[adjective]}。",
    ])


def story_text(rng):
    name, friend = rng.sample(NAMES, 2)
    slots = dict(name=name, friend=friend, thing=rng.choice(THINGS))
    opening = rng.choice([
        f"{rng.choice(TIMES)}，{rng.choice(WEATHERS)}。{name}和{friend}来到{rng.choice(STORY_PLACES)}。",
        f"{rng.choice(TIMES)}，{name}和{friend}去{rng.choice(STORY_PLACES)}{rng.choice(ACTIONS)}。"
        f"{rng.choice(WEATHERS)}。",
        f"{name}和{friend}是同学，常常一起{rng.choice(ACTIONS)}。有一天，{rng.choice(WEATHERS)}。",
    ])
    episodes = "".join(rng.sample(EPISODES, rng.choice([1, 1, 2])))
    feeling = f"{rng.choice([name, friend])}{rng.choice(FEELINGS)}。"
    return (opening + episodes + feeling + rng.choice(ENDINGS)).format(**slots)


def everyday_text(rng):
    name, friend = rng.sample(NAMES, 2)
    sentences = []
    for template in rng.sample(EVERYDAY, rng.randint(3, 5)):
        action, action2 = rng.sample(ACTIONS, 2)
        sentences.append(template.format(
            name=name, friend=friend, companion=rng.choice(COMPANIONS), time=rng.choice(TIMES), action=action,
            action2=action2, place=rng.choice(STORY_PLACES), weather=rng.choice(WEATHERS),
            thing=rng.choice(THINGS), food=rng.choice(COOKED_FOODS), city=rng.choice(CITIES)))
    return "".join(sentences)


def season_text(rng):
    season = rng.choice(list(SEASONS))
    opening = rng.choice(PROSE_OPENINGS).format(season=season, weather=SEASONS[season])
    name = rng.choice(NAMES)
    ending = f"{name}在{rng.choice(STORY_PLACES)}{rng.choice(ACTIONS)}，{rng.choice(FEELINGS)}。"
    return opening + "".join(rng.sample(SEASON_PROSE[season], rng.randint(3, 5))) + ending


def text_makers(bank):
    """[(maker, share of the bytes)]"""
    others = [(digit_text, 10), (table_text, 10), (counting_text, 2), (fact_text, 12), (unit_text, 3),
              (idiom_text, 5), (english_text, 6), (story_text, 16), (everyday_text, 6), (season_text, 4)]
    total = sum(share for _, share in others)
    return [(lambda rng: worked_text(rng, bank), WORKED_SHARE),
            *((maker, share / total * (1 - WORKED_SHARE)) for maker, share in others)]


# ---- Files ----


def write_sample_data(folder, seed=0, scale=1.0):
    """Write the nine files into `folder` and return {"pretrain": path, "pretrain_val": path, ...}.

    `scale` multiplies the training sets only. The same seed and scale give the same bytes.
    Raises ValueError if `scale` is not above 0 and at most MAX_SCALE.
    """
    if not 0 < scale <= MAX_SCALE:
        raise ValueError(f"scale ({scale}) must be above 0 and at most {MAX_SCALE}, or the problems run out")
    rng = random.Random(seed)
    bank = ProblemBank(rng)
    test = [problem_chat(problem) for problem in bank.draw(TEST_ITEMS, hold_out=True)]
    sft_val, r1_val = (held_out_chats(rng, bank, share) for share in (SFT_PROBLEM_SHARE, 1 - R1_CHAT_SHARE))
    held_out = {questions_of(chat) for chat in sft_val + r1_val}
    sft = training_chats(rng, bank, SFT_ITEMS, SFT_PROBLEM_SHARE, scale, held_out)
    r1 = training_chats(rng, bank, R1_ITEMS, 1 - R1_CHAT_SHARE, scale, held_out)
    pretrain_val = [draw_text(rng, bank) for _ in range(VAL_ITEMS)]
    pretrain = training_texts(rng, bank, scale, held_out=set(pretrain_val))
    new = [problem_chat(problem) for problem in bank.draw(round(NEW_ITEMS * scale))]
    documents = {
        "pretrain": [{"text": text} for text in pretrain],
        "pretrain_val": [{"text": text} for text in pretrain_val],
        "sft": [sft_document(chat, draw_system_message(rng)) for chat in sft],
        "sft_val": [sft_document(chat) for chat in sft_val],
        "sft_test": [sft_document(chat) for chat in test],
        "r1": [r1_document(chat) for chat in r1], "r1_new": [r1_document(chat) for chat in new],
        "r1_val": [r1_document(chat) for chat in r1_val], "r1_test": [r1_document(chat) for chat in test],
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    return {name: write_jsonl(Path(folder) / f"{name}.jsonl", rows) for name, rows in documents.items()}


def held_out_chats(rng, bank, problem_share):
    """VAL_ITEMS different conversations, none of them one of FACT_CHECKS, which belong to training."""
    problems = bank.draw(round(VAL_ITEMS * problem_share), hold_out=True)
    chats = [problem_chat(problem) for problem in problems]
    taken = {(question,) for question in FACT_CHECKS}
    while len(chats) < VAL_ITEMS:
        chat = draw_chat(rng)
        if questions_of(chat) not in taken:
            taken.add(questions_of(chat))
            chats.append(chat)
    rng.shuffle(chats)
    return chats


def training_chats(rng, bank, items, problem_share, scale, held_out):
    """Word problems, the probes and other conversations, shuffled; the probes at any scale."""
    count = round(items * scale)
    chats = [problem_chat(problem) for problem in bank.draw(round(count * problem_share))]
    chats += [[turn] for turn in probe_turns()] * max(1, round(PROBE_COPIES * scale))
    while len(chats) < count:
        chat = draw_chat(rng)
        if not is_held_out(chat, held_out):
            chats.append(chat)
    rng.shuffle(chats)
    return join_some(rng, chats)


def join_some(rng, chats):
    """The same turns in fewer conversations: people ask one thing after another."""
    joined = [chats[0]]
    for chat in chats[1:]:
        characters = sum(len(turn.question + turn.thought + turn.reply) for turn in joined[-1] + chat)
        if rng.random() < JOINED_SHARE and characters <= JOINED_CHARACTERS:
            joined[-1] = joined[-1] + chat
        else:
            joined.append(chat)
    return joined


def draw_text(rng, bank):
    makers, shares = zip(*text_makers(bank))
    return rng.choices(makers, weights=shares)[0](rng)


def training_texts(rng, bank, scale, held_out):
    """Texts of every maker until each has its share of the bytes, shuffled."""
    texts = []
    for maker, share in text_makers(bank):
        bytes_left = PRETRAIN_BYTES * scale * share
        while bytes_left > 0:
            text = maker(rng)
            if text not in held_out:
                texts.append(text)
                bytes_left -= len(json_line({"text": text}).encode())
    rng.shuffle(texts)
    return texts


def draw_system_message(rng):
    return rng.choice(SYSTEM_MESSAGES) if rng.random() < SFT_SYSTEM_SHARE else None


def write_jsonl(path, documents):
    path.write_text("".join(json_line(document) for document in documents), encoding="utf-8", newline="\n")
    return path


def json_line(document):
    return json.dumps(document, ensure_ascii=False) + "\n"


def main(argv=None):
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("--out_dir", default="data", help="folder to write into (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of training sets (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        paths = write_sample_data(args.out_dir, args.seed, args.scale)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for path in paths.values():
        items = path.read_bytes().count(b"\n")
        print(f"{path} | {items} items | {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
