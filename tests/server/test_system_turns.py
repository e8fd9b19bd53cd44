"""Several system and developer turns reach templates that know one, or none.

The kind: an order of turns that clients send and a template refuses, or drops. It can occur with
systems behind the first turn, with templates that know no such role, and with users' turns that
come to follow each other.
"""

from typing import Any

import pytest

from tests.server.templated import prompt_of, templated

ANY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
DROPS = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
NONE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{% if loop.last and s %}{{ s }}|{% endif %}{{ m.content }}{% endfor %}"
)
PARTS = FIRST.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")

A: dict[str, Any] = {"role": "system", "content": "A"}
B: dict[str, Any] = {"role": "developer", "content": "B"}
Q: dict[str, Any] = {"role": "user", "content": "q"}
R: dict[str, Any] = {"role": "assistant", "content": "r"}
S: dict[str, Any] = {"role": "user", "content": "s"}


@pytest.mark.parametrize(
    ("template", "messages", "prompt"),
    [
        pytest.param(ANY, [A, B, Q], "<system>A<system>B<user>q", id="any"),
        pytest.param(ANY, [Q, R, A, S], "<user>q<assistant>r<system>A<user>s", id="any-later"),
        pytest.param(FIRST, [A, B, Q], "<system>A\n\nB<user>q", id="first"),
        pytest.param(FIRST, [A, Q], "<system>A<user>q", id="first-one"),
        pytest.param(FIRST, [Q, R, B, S], "<system>B<user>q<assistant>r<user>s", id="first-later"),
        pytest.param(DROPS, [A, B, Q], "<system>A\n\nB<user>q", id="drops"),
        pytest.param(DROPS, [Q, A, S, B], "<system>A\n\nB<user>q<user>s", id="drops-later"),
        pytest.param(NONE, [A, B, Q], "<user>A\n\nB\n\nq", id="none"),
        pytest.param(NONE, [Q, R, A, S], "<user>A\n\nq<assistant>r<user>s", id="none-later"),
        pytest.param(NONE, [A], "<user>A", id="none-alone"),
        pytest.param(NONE, [Q, B, S], "<user>B\n\nq\n\ns", id="none-between"),
        pytest.param(ALTERNATING, [A, Q, B, S], "<user>A\n\nB|q\n\ns", id="alternating"),
        pytest.param(PARTS, [A, B, Q], "<system>A\n\nB<user>q", id="parts"),
    ],
)  # fmt: skip
def test_every_text_arrives_in_order(
    template: str, messages: list[dict[str, Any]], prompt: str
) -> None:
    with templated(template) as server, server.client() as client:
        assert prompt_of(client, messages) == prompt
        body = {"model": "scripted", "messages": messages}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_what_a_template_refuses_beside_that_is_still_a_400_in_its_words() -> None:
    with templated(NONE) as server, server.client() as client:
        body = {"model": "scripted", "messages": [R, Q]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert "Conversation roles must alternate" in error["message"]
        assert (error["param"], error["code"]) == ("messages", "chat_template_error")
