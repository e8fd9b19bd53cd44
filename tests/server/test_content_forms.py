"""Every text of a chat arrives in its prompt, in whatever form client and template like it.

The kind: a form that one side writes and the other does not read, which gives an empty turn and
status 200. It can occur for every role by itself, with several templates, and in /tokenize.
"""

import pytest

from tests.server.templated import prompt_of, templated

STRINGS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }};{% endif %}{% endfor %}"
    "{% endfor %}"
)
BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
MIXED = (  # parts from users, strings from everybody else
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}"
    "{% for p in m.content %}{{ p.text }};{% endfor %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
REQUIRED = PARTS.replace("{{ p.text }}", "{{ p['text'] | trim }}")


@pytest.mark.parametrize(
    ("template", "of_strings", "of_parts"),
    [
        pytest.param(STRINGS, "<system>S<user>U", "<system>S<user>U\nV", id="strings"),
        pytest.param(PARTS, "<system>S;<user>U;", "<system>S;<user>U;V;", id="parts"),
        pytest.param(BOTH, "<system>S<user>U", "<system>S<user>UV", id="both"),
        pytest.param(MIXED, "<system>S<user>U;", "<system>S<user>U;V;", id="by-role"),
        pytest.param(REQUIRED, "<system>S;<user>U;", "<system>S;<user>U;V;", id="filtered"),
        pytest.param(
            {"default": PARTS, "tool_use": STRINGS},
            "<system>S;<user>U;",
            "<system>S;<user>U;V;",
            id="several-templates",
        ),
    ],
)
def test_strings_and_parts_arrive(
    template: str | dict[str, str], of_strings: str, of_parts: str
) -> None:
    parts = [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]
    with templated(template) as server, server.client() as client:
        system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
        assert prompt_of(client, [system, user]) == of_strings
        several = [{**system, "content": [{"type": "text", "text": "S"}]}]
        several.append({"role": "user", "content": parts})  # type: ignore[dict-item]
        assert prompt_of(client, several) == of_parts
        answer = client.post(
            "/v1/chat/completions",
            json={"model": "scripted", "messages": several, "return_token_ids": True},
        ).json()
        ids = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
        assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == of_parts


def test_an_assistant_without_content_is_an_empty_turn() -> None:
    messages = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "V"},
    ]
    with templated(PARTS) as server, server.client() as client:
        assert prompt_of(client, messages) == "<user>U;<assistant><user>V;"


def test_refusals_sent_back_are_what_the_assistant_said() -> None:
    part = {"type": "refusal", "refusal": "No."}
    text = {"type": "text", "text": "Well."}
    with templated(STRINGS) as server, server.client() as client:

        def said(**fields: object) -> str:
            user = {"role": "user", "content": "U"}
            return prompt_of(client, [user, {"role": "assistant", **fields}, user])

        assert said(content=None, refusal="No.") == "<user>U<assistant>No.<user>U"
        assert said(content="", refusal="No.") == "<user>U<assistant>No.<user>U"
        assert said(content="Well.", refusal="No.") == "<user>U<assistant>Well.\nNo.<user>U"
        assert said(content="Well.", refusal=None) == "<user>U<assistant>Well.<user>U"
        assert said(content=[part]) == "<user>U<assistant>No.<user>U"
        assert said(content=[text, part]) == "<user>U<assistant>Well.\nNo.<user>U"
        assert said(content=[text], refusal="No.") == "<user>U<assistant>Well.\nNo.<user>U"
        for wrong in (
            {"role": "user", "content": [part]},
            {"role": "assistant", "content": [{"type": "refusal"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": 1}]},
            {"role": "assistant", "content": None, "refusal": 1},
        ):
            body = {"messages": [wrong], "max_tokens": 1}
            assert client.post("/v1/chat/completions", json=body).status_code == 400, wrong
