"""The page in a real browser: headless Chromium, driven by playwright."""

import http.server
import json
import re
import shutil
import threading
import time
from functools import partial

import pytest
import torch
from conftest import conversation, tiny_model, write_jsonl
from test_web import Server
from transformers import AutoModelForCausalLM

from dataset import prompt_ids
from infra.checkpoint import save_model
from infra.cli import UserError

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium or Chrome"),
]
REPLY = "<think>三加五是八</think>\n<answer>得8</answer>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Answers:
    """A stream of one text, a token each `seconds`; remembers what was asked."""

    def __init__(self, tokenizer, text=REPLY, seconds=0.0):
        self.ids = [id for part in re.split("(<[^>]*>)", text) for id in ids_of(tokenizer, part)]
        self.seconds, self.asked, self.error = seconds, [], ""

    def __call__(self, model, prompts, sampling, shared):
        self.asked.append((prompts[0], sampling, model))
        if self.error:
            raise UserError(self.error)
        for id in [*self.ids, 2]:
            time.sleep(self.seconds)
            yield [id]


def ids_of(tokenizer, part):
    tags = {"<think>": 3, "</think>": 4, "<answer>": 5, "</answer>": 6}
    return [tags[part]] if part in tags else tokenizer.encode(part)


def talker(seed=0):
    return tiny_model(seed, max_position_embeddings=512)


@pytest.fixture
def opened(browser, tokenizer):
    """A function that opens the page of a new server: (page, server). Errors of its script fail the test."""
    servers, contexts, errors = [], [], []

    def open_page(answers, others=(), **how):
        tokenizer.about["model_max_length"], before = 512, tokenizer.about["model_max_length"]
        servers.append(Server(talker(), tokenizer, answer=answers, others=others, max_new_tokens=100))
        contexts.append(browser.new_context(locale="zh-CN", **how))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda it: errors.append(it.text) if "violates" in it.text else None)
        page.goto(servers[-1].url)
        page.wait_for_selector("#stage option", state="attached")
        servers[-1].context_before = before
        return page, servers[-1]

    yield open_page
    for context in contexts:
        context.close()
    for server in servers:
        tokenizer.about["model_max_length"] = server.context_before
        server.close()
    assert not errors


def ask(page, question):
    page.fill("#question", question)
    page.keyboard.press("Enter")


def wait_for_end(page, replies=1):
    playwright.expect(page.locator(".open-xray")).to_have_count(replies)


def test_conversation_streams_with_its_thinking_folded_and_remembers(opened, tokenizer):
    answers = Answers(tokenizer, seconds=0.2)
    page, _ = opened(answers)
    ask(page, "三加五？")
    playwright.expect(page.locator("summary")).to_contain_text("正在思考")
    answers.seconds = 0
    wait_for_end(page)
    assert page.locator(".answer .text").inner_text() == "得8"
    assert page.locator("summary").inner_text() == f"思考 {len(tokenizer.encode('三加五是八'))} 个 token"
    assert not page.locator("details p").is_visible()
    page.locator("summary").click()
    assert page.locator("details p").inner_text() == "三加五是八"
    assert re.fullmatch(
        rf"{len(answers.ids)} 个 token · \d+ 个/秒 · 上下文已用 \d+%", page.locator(".stats").inner_text()
    )
    ask(page, "再来")
    wait_for_end(page, 2)
    expected = conversation("三加五？", REPLY, "再来")
    assert answers.asked[1][0] == prompt_ids(tokenizer, expected)


def test_reply_is_stopped_asked_again_and_its_question_edited(opened, tokenizer):
    answers = Answers(tokenizer, "一二三四五六七八九十" * 5, seconds=0.1)
    page, _ = opened(answers)
    ask(page, "数")
    playwright.expect(page.locator(".answer .text")).to_have_text(re.compile("..."))
    page.keyboard.press("Escape")
    wait_for_end(page)
    assert "已停止" in page.locator(".stats").inner_text()
    assert 2 < len(page.locator(".answer .text").inner_text()) < 20
    answers.seconds = 0
    page.click(".again")
    wait_for_end(page)
    seeds = [sampling.seed for _, sampling, _ in answers.asked]
    assert seeds == [0, 1] and page.locator(".question").count() == 1
    page.click(".edit")
    assert page.input_value("#question") == "数" and page.locator(".question").count() == 0


def test_keys_of_an_input_method_are_its_own(opened, tokenizer):
    answers = Answers(tokenizer, "一二三四五" * 9, seconds=0.1)
    page, _ = opened(answers)
    press = """([key, more]) => document.getElementById("question").dispatchEvent(
        new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }))"""
    page.fill("#question", "数")
    page.evaluate(press, ["Enter", {"isComposing": True}])
    page.evaluate(press, ["Enter", {"keyCode": 229}])
    assert page.input_value("#question") == "数" and not answers.asked
    page.evaluate(press, ["Enter", {}])
    playwright.expect(page.locator(".answer .text")).to_have_text(re.compile("."))
    page.evaluate(press, ["Escape", {"isComposing": True}])
    page.wait_for_timeout(500)
    assert page.locator("#stop").is_enabled()
    page.evaluate(press, ["Escape", {}])
    wait_for_end(page)


def test_what_the_model_refuses_is_told_and_nothing_is_lost(opened, tokenizer):
    answers = Answers(tokenizer)
    page, _ = opened(answers)
    ask(page, "三加五？")
    wait_for_end(page)
    answers.error = "--seed is unlucky"
    page.click(".again")
    playwright.expect(page.locator("#error")).to_have_text("seed is unlucky")
    assert page.locator(".answer .text").inner_text() == "得8"
    ask(page, "新的问题")
    playwright.expect(page.locator("#question")).to_have_value("新的问题")
    assert page.locator(".question").all_inner_texts() == ["三加五？"]
    answers.error = ""
    page.keyboard.press("Enter")
    wait_for_end(page, 2)
    assert page.locator("#error").inner_text() == ""


def test_reload_keeps_the_question_the_settings_and_the_language(opened, tokenizer):
    answers = Answers(tokenizer, "一二三四五" * 9, seconds=0.1)
    page, _ = opened(answers)
    page.click("#tune")
    page.fill("#system", "你是猫。")
    page.click("#language")
    ask(page, "数")
    playwright.expect(page.locator(".answer .text")).to_have_text(re.compile("..."))
    page.reload()
    playwright.expect(page.locator(".question")).to_have_text("数")
    assert "stopped" in page.locator(".stats").inner_text() and page.locator("#send").inner_text() == "Send"
    assert page.input_value("#system") == "你是猫。"


def test_settings_reach_the_sampling_and_the_thinking(opened, tokenizer):
    answers = Answers(tokenizer)
    page, _ = opened(answers)
    page.click("#tune")
    page.fill("#temperature", "0.5")
    page.fill("#top_k", "7")
    page.fill("#thinking", "1")
    page.fill("#system", "你是猫。")
    ask(page, "三加五？")
    wait_for_end(page)
    prompt, sampling, _ = answers.asked[0]
    assert (sampling.temperature, sampling.top_k) == (0.5, 7)
    assert prompt == prompt_ids(tokenizer, conversation("三加五？", system="你是猫。"))
    assert len(answers.asked) == 2  # after one token of thinking it was told to answer
    page.fill("#top_p", "9")
    ask(page, "三加五？")
    playwright.expect(page.locator("#error")).to_contain_text("must be at most 1")


def test_two_stages_answer_side_by_side(opened, tokenizer):
    answers, other = Answers(tokenizer), talker(seed=1)
    page, _ = opened(answers, others={1: other})
    page.select_option("#beside", "1")
    ask(page, "三加五？")
    wait_for_end(page, 2)
    assert page.locator(".name").all_inner_texts() == ["蒸馏", "监督微调"]
    assert [model is other for _, _, model in answers.asked].count(True) == 1
    left, right = (box.bounding_box() for box in page.locator(".answer").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert len({sampling.seed for _, sampling, _ in answers.asked}) == 1


def test_xray_shows_what_transformers_computes(opened, tokenizer, tmp_path):
    answers = Answers(tokenizer)
    page, _ = opened(answers)
    ask(page, "三加五？")
    wait_for_end(page)
    page.click(".open-xray")
    page.wait_for_selector(".chips.reply .chip")
    save_model(talker(), tmp_path, tokenizer, 512)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompt = prompt_ids(tokenizer, conversation("三加五？"))
    with torch.no_grad():
        out = theirs(torch.tensor([prompt + answers.ids]), output_attentions=True, output_hidden_states=True)
    probabilities = out.logits[0].softmax(-1)
    chips = page.locator(".chips.reply .chip")
    found = [float(chip.get_attribute("data-probability")) for chip in chips.all()]
    own = [float(probabilities[len(prompt) - 1 + n, id]) for n, id in enumerate(answers.ids)]
    assert found == pytest.approx(own, abs=1e-5)
    # the third chip, by the keyboard
    chips.first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("table.lens")
    place = len(prompt) + 1  # where the third token was chosen
    shown = [
        float(cell.get_attribute("data-value")) for cell in page.locator("table.lens td[data-value]").all()
    ]
    likeliest = probabilities[place].argsort(descending=True).tolist()
    candidates = [answers.ids[2], *[id for id in likeliest if id != answers.ids[2]][:5]]
    with torch.no_grad():
        states = [theirs.model.norm(state[0, place]) for state in out.hidden_states[:-1]]
        layers = theirs.lm_head(torch.stack([*states, out.hidden_states[-1][0, place]])).softmax(-1)
    assert shown == pytest.approx(layers[:, candidates].flatten().tolist(), abs=1e-5)
    heads = page.locator("table.heads button")
    assert heads.count() == 18
    heads.nth(6 + 4).click()  # the second layer's fifth
    spans = page.locator(".context .chip").all()
    weights = [float(span.get_attribute("data-weight")) for span in spans]
    assert weights == pytest.approx(out.attentions[1][0, 4, place, : place + 1].tolist(), abs=1e-5)
    shapes = page.locator(".shape code").all_inner_texts()
    assert any(f"(1, 6, {place + 1}, 8)" in line and "model.py:" in line for line in shapes)


def test_half_characters_are_shown_as_bytes_and_markup_as_text(opened, tokenizer):
    half = [id for id in range(7, 300) if tokenizer.bytes_of(id) == b"\xe4"]
    answers = Answers(tokenizer, "<b>粗</b>")
    answers.ids = [*tokenizer.encode("<b>粗</b>"), *half]
    page, _ = opened(answers)
    ask(page, "<i>斜</i>")
    wait_for_end(page)
    assert page.locator(".question").inner_text() == "<i>斜</i>"
    assert page.locator(".answer .text").inner_text() == "<b>粗</b>\ufffd"
    page.click(".open-xray")
    page.wait_for_selector(".chips.reply .chip")
    assert page.locator(".chips.reply .chip").last.inner_text() == "<e4>"


def test_page_asks_no_other_host_and_is_told_when_the_server_is_gone(opened, tokenizer):
    page, server = opened(Answers(tokenizer))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector("#stage option", state="attached")
    ask(page, "你好")
    wait_for_end(page)
    page.click(".open-xray")
    page.wait_for_selector(".chips.reply .chip")
    assert asked and all(url.startswith((server.url, "data:")) for url in asked)
    server.close()
    ask(page, "还在吗？")
    playwright.expect(page.locator("#error")).to_contain_text("服务器没有回应")


def test_page_of_another_origin_cannot_use_the_server(opened, tokenizer, tmp_path):
    answers = Answers(tokenizer)
    page, server = opened(answers)
    (tmp_path / "index.html").write_text("<!doctype html><title>stranger</title>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=stranger.serve_forever).start()
    try:
        visit = page.context.browser.new_page()
        visit.goto(f"http://127.0.0.1:{stranger.server_port}/index.html")
        body = json.dumps({"mode": 2, "messages": conversation("你好")})
        attack = f"""async () => {{
            const tried = {{}}, body = {json.dumps(body)};
            for (const mode of ["cors", "no-cors"]) for (const path of ["/about", "/reply"]) {{
                const how = path === "/reply" ? {{ method: "POST", body, mode }} : {{ mode }};
                try {{
                    tried[mode + path] = await (await fetch("{server.url}" + path, how)).text();
                }} catch (error) {{ tried[mode + path] = error.name; }}
            }}
            return tried;
        }}"""
        tried = visit.evaluate(attack)
        assert tried == {
            "cors/about": "TypeError",
            "cors/reply": "TypeError",
            "no-cors/about": "",
            "no-cors/reply": "",
        }
        assert answers.asked == []  # nothing was computed
        frame = f"() => {{ document.body.innerHTML = '<iframe src=\"{server.url}\"></iframe>'; }}"
        visit.evaluate(frame)
        visit.wait_for_timeout(1000)
        assert "WeakWater" not in visit.frames[-1].content()
        visit.close()
    finally:
        stranger.shutdown()
        stranger.server_close()


def test_two_tabs_do_not_meet(opened, tokenizer):
    answers = Answers(tokenizer, seconds=0.02)
    page, server = opened(answers)
    second = page.context.new_page()
    second.goto(server.url)
    second.wait_for_selector("#stage option", state="attached")
    ask(page, "第一页")
    ask(second, "第二页")
    for tab in (page, second):
        wait_for_end(tab)
        assert tab.locator(".answer .text").inner_text() == "得8"
    assert page.locator(".question").all_inner_texts() == ["第一页"]
    assert second.locator(".question").all_inner_texts() == ["第二页"]
    page.reload()  # a tab keeps its conversation
    page.wait_for_selector(".question")
    assert page.locator(".question").all_inner_texts() == ["第一页"]


def test_conversation_is_saved_for_others_and_opened(opened, tokenizer, tmp_path):
    answers = Answers(tokenizer)
    page, _ = opened(answers)
    ask(page, "三加五？")
    wait_for_end(page)
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "chat.jsonl")
    saved = json.loads((tmp_path / "chat.jsonl").read_text(encoding="utf-8"))
    assert saved == {"conversations": conversation("三加五？", REPLY)}
    page.click("#fresh")
    assert page.locator(".question").count() == 0 and page.locator("#save").is_disabled()
    page.click("#tune")
    page.fill("#system", "你是猫。")
    page.set_input_files("#file", tmp_path / "chat.jsonl")
    page.wait_for_selector(".question")
    assert page.locator(".answer .text").inner_text() == "得8"
    assert page.locator("details p").text_content() == "三加五是八"
    assert page.input_value("#system") == ""
    # as the terminal chat saves what was stopped, and what had no thought
    cut_short = [conversation("数", "<think>一二"), conversation("数", "得8</think>")]
    for line, (said, thought) in zip(cut_short, [("", "一二"), ("得8", "")]):
        write_jsonl(tmp_path / "cut.jsonl", [{"conversations": line}])
        page.set_input_files("#file", tmp_path / "cut.jsonl")
        playwright.expect(page.locator("details p")).to_have_text(thought)
        playwright.expect(page.locator(".answer .text")).to_have_text(said)
    (tmp_path / "bad.jsonl").write_text("{}")
    page.set_input_files("#file", tmp_path / "bad.jsonl")
    playwright.expect(page.locator("#error")).to_contain_text("bad.jsonl")


def test_phone_is_wide_enough(opened, tokenizer):
    page, _ = opened(Answers(tokenizer), viewport={"width": 360, "height": 640}, is_mobile=True)
    ask(page, "三加五？" * 12)
    wait_for_end(page)
    page.click(".open-xray")
    page.wait_for_selector(".chips.reply .chip")
    page.locator(".chips.reply .chip").first.click()
    page.wait_for_selector("table.lens")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.getElementById('talk').scrollWidth") <= 360
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640


def test_page_speaks_english_and_names_every_control(opened, tokenizer):
    page, _ = opened(Answers(tokenizer))
    page.click("#language")
    assert (
        page.locator("#send").inner_text() == "Send"
        and page.evaluate("document.documentElement.lang") == "en"
    )
    ask(page, "三加五？")
    wait_for_end(page)
    page.click(".open-xray")
    page.wait_for_selector(".chips.reply .chip")
    page.locator(".chips.reply .chip").first.click()
    page.wait_for_selector("table.lens")
    page.click("#tune")
    page.wait_for_selector("#temperature")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, select, input, textarea")]
        .filter((it) => !it.hidden && !it.getAttribute("aria-label") && !it.textContent.trim())
        .filter((it) => !it.labels?.[0]?.textContent.trim()).map((it) => it.outerHTML)""")
    assert nameless == []
    assert page.evaluate("Object.values(WORDS).every((it) => it.length === 2 && it[0] && it[1])")
