"""Decoding methods over HTTP: the registry, every combination, presets, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess

PRESETS = {
    "fast": {"decoding": {"jacobi": {"window": 6, "adaptive": False}}},
    "strict": {"decoding": {"cfg": {"scale": 2.0, "negative_prompt": "no"}}, "kv_cache": "full"},
}
BODY: dict[str, Any] = {
    "model": MODEL,
    "prompt": "abcabcabcabc",
    "max_tokens": 24,
    "seed": 3,
    "temperature": 0.8,
    "ignore_eos": True,
    "allowed_token_ids": [65, 66, 67],
}
CONTROLLERS = ("best_of", "beam", "tot")
POLICIES = ("full", "h2o", "keynorm", "tova", "window")
LONG = "".join(chr(40 + 37 * i * i % 83) for i in range(180))
SPARSE = {"method": "qk", "min_tokens": 128, "recent": 64, "keep": 0.05, "sink": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "cfg": {"scale": 2.0, "negative_prompt": "no"},
    "sparse_prefill": SPARSE,
    "best_of": {"n": 2},
    "beam": {"width": 2},
    "tot": {"generate": "sample", "generate_samples": 2, "breadth": 2, "depth": 2},
}
NEGATIVE = {"cfg": {"scale": 2.0, "negative_prompt": "no"}}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(http: httpx.Client, **fields: Any) -> str:
    return ask(http, **fields)["choices"][0]["text"]


def test_methods_are_listed_with_their_schemas(http: httpx.Client) -> None:
    answer = http.get("/v1/decoding").json()
    methods = {method["name"]: method for method in answer["decoding"]}
    assert {name: method["slot"] for name, method in methods.items()} == {
        "sparse_prefill": "prefill",
        "plain": "target",
        "cfg": "target",
        "jacobi": "drafter",
        "ngram": "drafter",
        "lookahead": "drafter",
        "best_of": "controller",
        "beam": "controller",
        "tot": "controller",
    }
    assert set(answer["slots"]) == {"prefill", "target", "drafter", "controller"}
    schema = methods["jacobi"]["parameters"]
    assert schema["properties"]["window"]["maximum"] == 256
    assert schema["additionalProperties"] is False
    assert all(method["summary"] for method in methods.values())


def test_every_listed_combination_runs_and_drafting_changes_no_text(http: httpx.Client) -> None:
    combinations = http.get("/v1/decoding").json()["combinations"]
    assert len(combinations) >= 12
    # What a policy evicts depends on the target, and on no drafter.
    plain = {p: text(http, kv_cache=p) for p in POLICIES}
    guided = {p: text(http, kv_cache=p, decoding=NEGATIVE) for p in plain}
    assert guided["full"] != plain["full"] == plain["window"]
    assert all(plain[p] != plain["full"] for p in ("h2o", "keynorm", "tova"))
    texts: dict[tuple[str, ...], set[str]] = {}
    for combination in combinations:
        if "sparse_prefill" in combination["decoding"]:
            continue
        spec: dict[str, Any] = {name: SETTINGS.get(name, {}) for name in combination["decoding"]}
        (policy,) = combination["kv_cache"]
        controller = next((name for name in CONTROLLERS if name in spec), "")
        target = "cfg" if "cfg" in spec else ""
        found = text(http, decoding=spec, kv_cache=policy)
        texts.setdefault((controller, target, policy), set()).add(found)
        if not controller:
            assert found == (guided if target else plain)[policy], combination
    # Neither a drafter nor an explicit `plain` changes the text.
    assert {key for key, found in texts.items() if len(found) != 1} == set()
    wanted = {(c, t, p) for c in ("", *CONTROLLERS) for t in ("", "cfg") for p in plain}
    assert wanted - set(texts) == {
        ("beam", t, p) for t in ("", "cfg") for p in POLICIES if p != "full"
    }


def test_every_listed_combination_with_sparse_prefill_runs(http: httpx.Client) -> None:
    """With prompts that are long enough for it; the others have been asked above."""
    combinations = [
        combination
        for combination in http.get("/v1/decoding").json()["combinations"]
        if "sparse_prefill" in combination["decoding"]
    ]
    wide: dict[str, Any] = {"prompt": LONG, "allowed_token_ids": list(range(32, 127))}
    exact = {p: text(http, **wide, kv_cache=p) for p in ("full", "keynorm", "window")}
    texts: dict[tuple[str, ...], set[str]] = {}
    for combination in combinations:
        spec: dict[str, Any] = {name: SETTINGS.get(name, {}) for name in combination["decoding"]}
        (policy,) = combination["kv_cache"]
        found = text(http, **wide, decoding=spec, kv_cache=policy)
        controller = next((name for name in CONTROLLERS if name in spec), "")
        key = (controller, "cfg" if "cfg" in spec else "", policy)
        texts.setdefault(key, set()).add(found)
    assert {key for key, found in texts.items() if len(found) != 1} == set()
    assert {policy for *_, policy in texts} == set(exact)
    wanted = {(c, t, p) for c in ("", *CONTROLLERS) for t in ("", "cfg") for p in exact}
    assert wanted - set(texts) == {
        ("beam", t, p) for t in ("", "cfg") for p in exact if p != "full"
    }
    assert all(texts["", "", policy] != {exact[policy]} for policy in exact)


def test_usage_and_metrics_tell_of_sparse_prompts(http: httpx.Client) -> None:
    spec = {"sparse_prefill": {**SPARSE, "keep": 0.06}}
    answer = ask(http, prompt=LONG, decoding={**spec, "ngram": {}})
    own = answer["usage"]["penstock"]["sparse_prefill"]
    assert own["rows"] == 180 - 128
    assert 64 / 180 < own["density"] < 0.6
    assert "sparse_prefill" not in ask(http, decoding=spec)["usage"]["penstock"]
    families = text_string_to_metric_families(http.get("/metrics").text)
    labels = {s.labels.get("decoding") for family in families for s in family.samples}
    assert {"ngram+sparse_prefill", "sparse_prefill"} <= labels


def test_usage_and_metrics_tell_what_drafting_did(http: httpx.Client) -> None:
    def count(name: str) -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"penstock_{name}_total" and sample.labels["decoding"] == "cfg+jacobi"
        )

    before = {
        name: count(name)
        for name in ("draft_tokens", "accepted_tokens", "guidance_tokens", "guidance_requests")
    }
    answer = ask(http, decoding={**NEGATIVE, "jacobi": {"window": 6, "adaptive": False}})
    own = answer["usage"]["penstock"]
    assert own["accepted"] + own["steps"] == answer["usage"]["completion_tokens"] == 24
    assert own["drafted"] > own["accepted"] > 0
    assert own["mean_acceptance_length"] == round(24 / own["steps"], 3) > 1
    assert own["guidance_tokens"] == 2 + 24
    assert answer["usage"]["prompt_tokens"] == 12
    found = {name: count(name) - value for name, value in before.items()}
    assert found == {
        "draft_tokens": own["drafted"],
        "accepted_tokens": own["accepted"],
        "guidance_tokens": 26,
        "guidance_requests": 1,
    }


def test_usage_and_metrics_tell_what_was_evicted_and_held(http: httpx.Client) -> None:
    def evicted() -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "penstock_evicted_tokens_total"
        )

    before = evicted()
    kv_cache = {"h2o": {"heavy": 5, "recent": 6, "interval": 3}}
    answer = ask(http, kv_cache=kv_cache, n=2, decoding=NEGATIVE)
    own = answer["usage"]["penstock"]
    # Two choices in two contexts: prompts of 12 and 2 tokens and 23 read tokens of the answer.
    assert own["held_slots"] == 2 * 2 * (5 + 6 + 3)
    assert own["evicted_tokens"] == 2 * (12 + 23 - 14 + 2 + 23 - 14)
    assert evicted() - before == own["evicted_tokens"]
    assert "held_slots" not in ask(http, kv_cache={"window": {"recent": 64}})["usage"]["penstock"]


def test_streams_carry_several_tokens_an_event(client: openai.OpenAI) -> None:
    fields = {
        key: value for key, value in BODY.items() if key not in ("ignore_eos", "allowed_token_ids")
    }
    extra = {"ignore_eos": True, "allowed_token_ids": [65, 66, 67], "return_token_ids": True}
    stream = client.completions.create(
        **fields,
        stream=True,
        extra_body={**extra, "decoding": {"jacobi": {"window": 8, "adaptive": False}}},
    )
    sizes = [len(chunk.choices[0].model_dump().get("token_ids") or ()) for chunk in stream]
    assert sum(sizes) == 24
    assert max(sizes) > 1


def test_the_sdk_reaches_every_method_through_extra_body(client: openai.OpenAI) -> None:
    def answer(decoding: object) -> str:
        chat = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=12,
            temperature=0,
            extra_body={"decoding": decoding},
        )
        return chat.choices[0].message.content or ""

    plain = answer(None)
    for decoding in ("jacobi", ["ngram"], {"lookahead": {"window": 2}}):
        assert answer(decoding) == plain
    messages = [{"role": "user", "content": "something else"}]
    guided = answer({"cfg": {"scale": 4.0, "negative_messages": messages}})
    assert guided == answer({"cfg": {"scale": 4.0, "negative_messages": messages}, "jacobi": {}})
    assert guided != plain


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"decoding": "beam9"}, "decoding.beam9", "there is no method 'beam9'"),
    ({"decoding": {"jacobi": {"windows": 4}}}, "decoding.jacobi.windows", "is not known here"),
    ({"decoding": {"jacobi": {}, "ngram": {}}}, "decoding.ngram", "both fill the drafter slot"),
    ({"decoding": ["cfg", "plain"]}, "decoding.plain", "both fill the target slot"),
    (
        {"decoding": {"jacobi": {"window": 257}}},
        "decoding.jacobi.window",
        "is 257; it must be at most 256",
    ),
    (
        {"decoding": {"jacobi": {"window": 2.5}}},
        "decoding.jacobi.window",
        "is 2.5; it must be an integer",
    ),
    ({"decoding": {"jacobi": {"init": "zero"}}}, "decoding.jacobi.init", "is 'zero'; it must be"),
    (
        {"decoding": {"cfg": {"scale": 1e9}}},
        "decoding.cfg.scale",
        "is 1000000000.0; it must be at most 100",
    ),
    ({"decoding": {"cfg": {"scale": -1}}}, "decoding.cfg", "scale is -1, below 0"),
    (
        {"decoding": {"cfg": {"negative_prompt": 5}}},
        "decoding.cfg.negative_prompt",
        "is 5; it must be a string",
    ),
    (
        {"decoding": {"cfg": {"negative_prompt": "x" * 4000}}},
        "decoding.cfg.negative_prompt",
        "has 4000 characters, which cannot fit",
    ),
    (
        {"decoding": {"cfg": {"negative_prompt": "x" * 500}}},
        "decoding.cfg.negative_prompt",
        "you requested 524 tokens (500 in that prompt, 24 in the completion)",
    ),
    ({"decoding": NEGATIVE, "prompt": ["a", "b"]}, "decoding.cfg", "prompt has 2 prompts"),
    ({"decoding": NEGATIVE, "n": 33}, "n", "n is 33, each in 2 contexts, but"),
    ({"decoding": {"ngram": {"min_ngram": 5, "max_ngram": 4}}}, "decoding.ngram", "5, above max"),
    (
        {"decoding": {"lookahead": {"ngram": 1}}},
        "decoding.lookahead.ngram",
        "is 1; it must be at least 2",
    ),
    ({"decoding": 7}, "decoding", "decoding"),
    (
        {"decoding": {"sparse_prefill": {"min_tokens": 100}}},
        "decoding.sparse_prefill.min_tokens",
        "is 100; it must be at least 128",
    ),
    (
        {"decoding": {"sparse_prefill": {"keep": 0.6}}},
        "decoding.sparse_prefill.keep",
        "is 0.6; it must be",
    ),
    ({"decoding": {"sparse_prefill": {"buckets": 8}}}, "decoding.sparse_prefill", "buckets is 8"),
    (
        {"decoding": "sparse_prefill", "kv_cache": "h2o"},
        "decoding.sparse_prefill",
        "cannot be combined with kv_cache.h2o",
    ),
    (
        {"kv_cache": {"h2o": {"heavy": 1.5}}},
        "kv_cache.h2o.heavy",
        "is 1.5; it must be an integer from 0",
    ),
    (
        {"decoding": "sparse_prefill", "kv_cache": "tova"},
        "decoding.sparse_prefill",
        "cannot be combined with kv_cache.tova",
    ),
    ({"kv_cache": {"keynorm": {"low": -1}}}, "kv_cache.keynorm.low", "is -1; it must be"),
    ({"kv_cache": {"keynorm": {"recent": 0}}}, "kv_cache.keynorm.recent", "is 0; the newest"),
    ({"kv_cache": {"keynorm": {"interval": 0}}}, "kv_cache.keynorm.interval", "is 0"),
    ({"kv_cache": {"keynorm": {"heavy": 4}}}, "kv_cache.keynorm.heavy", "is not known here"),
    ({"kv_cache": {"tova": {"keep": 0}}}, "kv_cache.tova.keep", "is 0; the newest"),
    ({"kv_cache": {"tova": {"keep": 1.5}}}, "kv_cache.tova.keep", "is 1.5; it must be"),
    ({"kv_cache": {"tova": {"keep": "all"}}}, "kv_cache.tova.keep", "it must be"),
    ({"kv_cache": {"h2o": {"recent": 0}}}, "kv_cache.h2o.recent", "recent is 0; the newest"),
    ({"kv_cache": {"h2o": {"heavy": 2}}}, "kv_cache.h2o", "fewer than the 4 of sink"),
    ({"kv_cache": {"window": {"recent": True}}}, "kv_cache.window.recent", "is true; it must be"),
    ({"kv_cache": ["h2o", "window"]}, "kv_cache.window", "both fill the policy slot"),
    (
        {"kv_cache": {"h2o": {"interval": 1024, "score": "mean"}}, "n": 64},
        "kv_cache.h2o",
        "tokens of KV cache, but this server has",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSALS, ids=lambda v: str(v)[:40])
def test_refusals_name_the_field_the_value_and_the_limit(
    fields: dict[str, Any], param: str, message: str, http: httpx.Client
) -> None:
    answer = http.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.fixture(scope="module")
def preset_server(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    arguments = [str(tiny_llama), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--kv-cache-memory", "8000000", "--presets", json.dumps(PRESETS)]
    log = tmp_path_factory.mktemp("presets") / "server.log"
    with ServeProcess(arguments, log) as running:
        yield running


def test_presets_are_models(preset_server: ServeProcess) -> None:
    with preset_server.client() as http:
        listed = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
        assert set(listed) == {MODEL, f"{MODEL}:fast", f"{MODEL}:strict"}
        assert listed[f"{MODEL}:fast"]["parent"] == MODEL
        assert listed[f"{MODEL}:fast"]["decoding"] == PRESETS["fast"]["decoding"]
        one = http.get(f"/v1/models/{MODEL}:strict").json()
        assert one["kv_cache"] == "full"
        assert http.get("/v1/decoding").json()["presets"] == PRESETS

        plain, guided = text(http), text(http, decoding=NEGATIVE)
        fast = ask(http, model=f"{MODEL}:fast")
        assert fast["model"] == f"{MODEL}:fast"
        assert fast["choices"][0]["text"] == plain
        assert fast["usage"]["penstock"]["drafted"] > 0
        assert text(http, model=f"{MODEL}:strict") == guided
        # What a request says itself counts.
        assert text(http, model=f"{MODEL}:strict", decoding="plain") == plain

        answer = http.post("/v1/completions", json={**BODY, "model": f"{MODEL}:slow"})
        assert answer.status_code == 404
        assert f"{MODEL}:fast" in answer.json()["error"]["message"]
        body = {"model": f"{MODEL}:fast", "prompt": "Hi"}
        assert http.post("/tokenize", json=body).json()["count"] == 2


def test_a_preset_that_cannot_work_ends_the_start(tiny_llama: Path, tmp_path: Path) -> None:
    presets = {"wrong": {"decoding": {"jacobi": {"window": 1000}}}}
    arguments = [str(tiny_llama), "--presets", json.dumps(presets)]
    with ServeProcess(arguments, tmp_path / "log", wait_ready=False) as process:
        assert process.wait() == 2
        assert "the preset 'wrong' cannot be used: decoding.jacobi.window" in process.log
