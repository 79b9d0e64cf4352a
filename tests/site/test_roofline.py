"""The calculator computes what `elvi estimate` does, says the same with and without scripts, and keeps its address."""

import json
import random
from dataclasses import asdict

import pytest

from elvi.dimensions import Request, machine_from, model_from, vocabulary
from elvi.estimate import bound
from elvi.roofline import estimate
from elvi_survey.site.figures import Request as Drawn
from elvi_survey.site.roofline import REQUEST, words

MACHINES = [name for name, facts in vocabulary("hardware").items() if facts.get("peak_tflops")]


def cases(count: int) -> list[tuple[str, str, Request]]:
    """Seeded requests over all models and machines, with every field drawn."""
    rng, models = random.Random(20260405), list(vocabulary("models"))
    return [
        (
            models[i % len(models)],
            MACHINES[i % len(MACHINES)],
            Request(
                frames=rng.randint(0, 200), images=rng.choice([0, 0, rng.randint(1, 30)]),
                height=rng.randint(20, 2000), width=rng.randint(20, 2000),
                visual=rng.choice([None, None, None, 0, rng.randint(1, 10**6)]),
                text=rng.randint(1, 10_000), new=rng.choice([1, rng.randint(2, 5000)]), batch=rng.randint(1, 300),
                kv_bits=rng.choice([16, 8, 4, 2]), keep=rng.uniform(0.01, 1), layer=rng.randint(0, 24),
                layer_keep=rng.uniform(0.01, 1), cache_keep=rng.uniform(0.01, 1),
            ),
        )
        for i in range(count)
    ]  # fmt: skip


def flat(value, path=()):
    """(path, leaf) of nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return {path: value} if items is None else {k: v for key, e in items for k, v in flat(e, (*path, key)).items()}


def test_the_page_computes_what_elvi_estimate_computes(page, address):
    asked = cases(200)
    assert {model for model, _, _ in asked} == set(vocabulary("models"))
    models = {name: asdict(model_from(facts)) for name, facts in vocabulary("models").items()}
    machines = {name: asdict(machine_from(vocabulary("hardware")[name])) for name in MACHINES}
    page.goto(address + "roofline/")
    theirs = page.evaluate(
        "([models, machines, cases]) => cases.map(([m, h, r]) => Roofline.estimate(models[m], machines[h], r))",
        [models, machines, [(model, machine, asdict(request)) for model, machine, request in asked]],
    )
    for case, found in zip(asked, theirs, strict=True):
        ours = flat({k: v for k, v in bound(*case).items() if k not in {"model", "hardware", "request"}})
        found = flat(found)
        assert found.keys() == ours.keys()
        for path, value in ours.items():
            number = isinstance(value, (int, float))
            assert found[path] == (pytest.approx(value, rel=1e-9, abs=0) if number else value), (case, path)


def test_the_page_words_it_as_the_builder_does(page, address):
    page.goto(address + "roofline/")
    for model, machine, request in cases(40):
        shape, box = model_from(vocabulary("models")[model]), machine_from(vocabulary("hardware")[machine])
        said = page.evaluate(
            "([m, h, r]) => Roofline.words(Roofline.estimate(m, h, r), h, r)",
            [asdict(shape), asdict(box), asdict(request)],
        )
        assert said == words(estimate(shape, box, request), box, request)


def shown(page) -> dict[str, str]:
    return {e.get_attribute("data-out"): e.text_content() for e in page.locator("[data-out]").all()}


def test_without_scripts_the_default_stands_there_and_scripts_do_not_change_it(browser, page, address):
    plain = browser.new_context(java_script_enabled=False)
    static = plain.new_page()
    static.goto(address + "roofline/")
    page.goto(address + "roofline/")
    assert shown(static) == shown(page)
    assert static.locator("#roof").get_attribute("d").count(",") == 2
    assert not static.locator("#roofline").is_visible()
    assert page.locator("#roofline").is_visible()
    plain.close()
    found = bound("qwen2-5-vl-7b", "a100-80gb-sxm", Request())
    assert shown(page)["token"] == f"{found['kv_bytes_per_token']:,.0f} B per token" == "57,344 B per token"


def test_marks_stand_where_the_numbers_say(page, address):
    page.goto(address + "roofline/?model=llava-1-5-7b&hardware=h100-sxm&batch=16")
    found = bound("llava-1-5-7b", "h100-sxm", Request(batch=16))
    for stage in found["stages"]:
        reached = min(989.4, stage["intensity"] * 3.35)
        at = page.locator(f"#at-{stage['name']}").get_attribute("transform").removeprefix("translate(").rstrip(")")
        x, y = map(float, at.split(","))
        assert 10 ** ((x - 44) / 310 * 6 - 1) == pytest.approx(stage["intensity"], rel=1e-6)
        assert 10 ** ((226 - y) / 204 * 5 - 1) == pytest.approx(reached, rel=1e-6)


def test_a_link_brings_the_same_numbers_back(page, address):
    page.goto(address + "roofline/")
    page.get_by_label("Model").select_option("qwen2-5-vl-72b")
    page.get_by_label("Frames", exact=True).fill("64")
    page.get_by_label("Bits of a cached value").select_option("4")
    before, link = shown(page), page.url
    assert link == address + "roofline/?model=qwen2-5-vl-72b&frames=64&kv_bits=4"
    assert before["token"] == "81,920 B per token"
    assert before["held"].endswith("this machine cannot hold them.")
    page.goto(address)
    page.goto(link)
    assert shown(page) == before
    assert not page.locator("#roofline-notice").is_visible()


def test_what_a_link_asks_in_vain_is_named(page, address):
    page.goto(address + "roofline/?model=gpt&frames=500&colour=red&batch=8")
    assert page.locator("#roofline-notice").inner_text() == "Not as this link asks: model=gpt, frames=500, colour=red."
    assert page.get_by_label("Model").input_value() == "qwen2-5-vl-7b"
    assert shown(page)["batch"] == "8 requests at once"


def test_the_page_carries_the_facts_of_the_taxonomy(page, address):
    page.goto(address + "roofline/")
    data = json.loads(page.locator("#roofline-data").text_content())
    assert set(data["machines"]) == set(MACHINES)
    assert data["models"]["qwen3-vl-4b"]["head_dim"] == 128


def test_the_home_page_shows_the_intensities_of_the_request_that_it_draws(page, address):
    drawn, facts = Drawn(), vocabulary("models")["qwen2-5-vl-7b"]
    assert (drawn.layers, drawn.kv_heads, drawn.head) == (facts["layers"], facts["kv_heads"], facts["head_dim"])
    request = Request(frames=drawn.frames, height=drawn.side, width=drawn.side, text=drawn.text, new=drawn.output)
    assert request == REQUEST
    found = bound("qwen2-5-vl-7b", "a100-80gb-sxm", request)
    assert found["visual"]["made"] == drawn.visual
    page.goto(address)
    label = page.locator(".sect svg[role=img]").first.get_attribute("aria-label")
    for stage in found["stages"]:
        if stage["name"] != "adapter":
            number = f"{stage['intensity']:.3g}" if stage["intensity"] < 1000 else f"{stage['intensity']:,.0f}"
            assert f"{stage['name']} {number}" in label
            assert page.locator(f".life [data-stage={stage['name']}] .facts").first.inner_text().count(number) == 1
