"""Who gets an answer, and that it is the model's."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from megatron_model.config.fields import ModelConfig, RunConfig, SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.sampler import generate_stream
from megatron_model.model.factory import build_model
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.serving import completions as completions_module
from megatron_model.serving import server as server_module
from megatron_model.serving.completions import Completions
from megatron_model.serving.server import Server
from megatron_model.util.errors import RequestError

TOKEN = "s3cret"
TEXT = "\n abcdefgh"


def a_model() -> LoadedModel:
    config = RunConfig(
        model=ModelConfig(
            architecture="modern", block_size=32, embed_dim=16, heads=2, layers=1, ff_dim=32
        )
    )
    torch.manual_seed(1)
    model = build_model(config.model, len(TEXT)).eval().requires_grad_(False)
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    tokenizer = CharTokenizer.from_vocabulary(TEXT)
    return LoadedModel(model, tokenizer, config, 5, 1.0, torch.device("cpu"))


@pytest.fixture
def served() -> Iterator[Server]:
    with Server(Completions(a_model(), "first"), "127.0.0.1", 0, TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: Server,
    body: Any = None,
    *,
    path: str = "/v1/completions",
    method: str = "POST",
    token: str = TOKEN,
    **headers: str,
) -> tuple[int, Any]:
    """Return the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, data if method == "POST" else None, {**given, **headers})
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    kind = answer.headers.get("Content-Type", "")
    return answer.status, json.loads(found) if kind == "application/json" else found.decode()


def until_true(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    last = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < last, "it never happened"
        threading.Event().wait(0.002)


def expected(prompt: str, **changes: Any) -> str:
    model = a_model()
    sampling = SamplingConfig(**{"temperature": 1.0, "top_p": 1.0, **changes})
    return "".join(generate_stream(model.model, model.tokenizer, prompt, sampling))


def test_a_text_is_that_of_the_sampler(served: Server) -> None:
    status, found = ask(served, {"prompt": "abc", "max_tokens": 100, "seed": 3})
    assert status == 200
    assert found["object"] == "text_completion"
    (one,) = found["choices"]
    assert one["text"] == expected("abc", max_new_tokens=100, seed=3)
    assert (one["finish_reason"], one["index"], one["logprobs"]) == ("length", 0, None)
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 100, "total_tokens": 103}


def test_several_prompts_and_texts_with_their_prompts(served: Server) -> None:
    body = {"prompt": ["a", "bc"], "n": 2, "seed": 7, "max_tokens": 40, "echo": True}
    _, found = ask(served, body)
    texts = [each["text"] for each in found["choices"]]
    assert texts == [
        prompt + expected(prompt, seed=seed, max_new_tokens=40)
        for prompt in ("a", "bc")
        for seed in (7, 8)
    ]
    assert found["usage"]["completion_tokens"] == 160


def test_a_stream_is_the_same_text_in_parts(served: Server) -> None:
    body = {"prompt": "abc", "max_tokens": 100, "seed": 3, "logprobs": 2}
    _, whole = ask(served, body)
    status, found = ask(served, {**body, "stream": True})
    assert status == 200
    *lines, done = found.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert len(parts) > 2
    assert "".join(part["text"] for part in parts) == whole["choices"][0]["text"]
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    for key in ("tokens", "token_logprobs", "text_offset"):
        joined = [value for part in parts for value in part["logprobs"][key]]
        assert joined == whole["choices"][0]["logprobs"][key]
    logs = whole["choices"][0]["logprobs"]
    assert logs["text_offset"] == list(range(100))
    assert all(len(top) == 2 for top in logs["top_logprobs"])
    assert max(logs["token_logprobs"]) < 0


def test_a_stop_is_no_part_of_the_text_and_never_leaks(served: Server) -> None:
    text = expected("abc", max_new_tokens=200, seed=3)
    stop = text[37:40]
    place = text.index(stop)
    body = {"prompt": "abc", "max_tokens": 200, "seed": 3, "stop": ["zzz", stop]}
    _, found = ask(served, {**body, "logprobs": 0})
    one = found["choices"][0]
    assert (one["text"], one["finish_reason"]) == (text[:place], "stop")
    assert "".join(one["logprobs"]["tokens"]) == text[:place]
    _, stream = ask(served, {**body, "stream": True})
    lines = stream.split("\n\n")[:-2]
    parts = [json.loads(line[6:])["choices"][0]["text"] for line in lines]
    assert "".join(parts) == text[:place]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        ({"prompt": "aé"}, 400, "é"),
        ({"prompt": 5}, 400, "$.prompt"),
        ({"prompt": "a", "max_tokens": 0}, 400, "$.max_tokens"),
        ({"prompt": "a", "temperature": -1}, 400, "$.temperature"),
        ({"prompt": ["a"] * 64, "n": 2}, 400, "More than 64 texts"),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "$.presence_penalty"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, 400, "echo with logprobs"),
        pytest.param(b" " * (1 << 20) + b"{}", 413, "longer than 1,048,576 bytes", id="long"),
        pytest.param(b"[" * 100_000, 400, "", id="nested"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    served: Server, body: Any, status: int, words: str
) -> None:
    for stream in (False, True):
        asked = {**body, "stream": stream} if isinstance(body, dict) else body
        found_status, found = ask(served, asked)
        assert found_status == status
        assert words in found["error"]["message"]
        assert "\n" not in found["error"]["message"]


def test_who_does_not_know_the_token_gets_nothing(served: Server) -> None:
    for token in ("", "wrong", TOKEN + "x", "é"):
        for path, method in (("/v1/completions", "POST"), ("/v1/models", "GET")):
            given = token.encode().decode("latin-1")
            status, found = ask(served, {"prompt": "a"}, path=path, method=method, token=given)
            assert status == 401, found
    assert ask(served, path="/health", method="GET", token="")[0] == 200
    assert TOKEN not in ask(served, path="/", method="GET", token="")[1]
    assert served.url == f"http://127.0.0.1:{served.port}/#token={TOKEN}"


def test_pages_of_others_and_other_names_of_this_machine_are_refused(served: Server) -> None:
    own = f"127.0.0.1:{served.port}"
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Host": own, "Origin": "http://evil.example"}, 403),
        ({"Host": own, "Origin": "null"}, 403),
        ({"Host": own, "Origin": f"http://{own}"}, 200),
        ({"Host": "localhost:9000"}, 200),  # as ssh -L brings it
        ({"Host": "[::1]:9000"}, 200),
        ({"Host": "127.0.0.9"}, 200),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
    ):
        assert ask(served, {"prompt": "a"}, **headers)[0] == status, headers


def test_without_a_token_only_this_machine_is_served() -> None:
    with pytest.raises(RequestError, match="a token is needed"):
        Server(Completions(a_model(), "first"), "0.0.0.0", 0, "")
    with (
        Server(Completions(a_model(), "first"), "127.0.0.1", 0, "") as server,
        pytest.raises(RequestError, match="port .*: .*in use; take another with --port"),
    ):
        Server(Completions(a_model(), "first"), "127.0.0.1", server.port, "")


def test_the_page_and_the_model_are_named(served: Server) -> None:
    status, page = ask(served, path="/", method="GET")
    assert status == 200
    assert "<title>megatron</title>" in page
    assert "http" not in page.replace("http-equiv", ""), "it loads nothing from elsewhere"
    assert "innerHTML" not in page
    _, models = ask(served, path="/v1/models", method="GET")
    assert [each["id"] for each in models["data"]] == ["first"]
    assert ask(served, path="/etc/passwd", method="GET")[0] == 404
    assert ask(served, {}, path="/v1/chat/completions")[0] == 404


class Gated:
    """Lets a model write a turn at a time, and tells how many it wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.written = threading.Semaphore(0), 0
        stream = completions_module.generate_stream

        def gated(*arguments: Any) -> Iterator[str]:
            for character in stream(*arguments):
                if self.written % completions_module.TURN == 0:
                    assert self.gate.acquire(timeout=20)
                self.written += 1
                yield character

        monkeypatch.setattr(completions_module, "generate_stream", gated)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_stops_its_text(
    served: Server, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = Gated(monkeypatch)
    body = json.dumps({"prompt": "a", "max_tokens": 100_000, "stream": stream}).encode()
    client = socket.create_connection(("127.0.0.1", served.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    gated.gate.release()
    until_true(lambda: gated.written == completions_module.TURN)
    client.close()
    for _ in range(5):
        gated.gate.release()
    until_true(lambda: served._room._value == server_module.MOST_CONNECTIONS)
    assert gated.written < 7 * completions_module.TURN


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = completions_module.Turns(), []

    def work(name: int) -> None:
        with turns.taken(first=False):
            order.append(name)

    threads = []
    with turns.taken(first=True):
        for name in range(5):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            until_true(lambda name=name: len(turns._waiting) == name + 2)  # type: ignore[misc]
        assert not order
    for thread in threads:
        thread.join()
    assert order == list(range(5))


def test_who_comes_when_too_many_wait_is_told_to_come_again(
    served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions_module, "MOST_WAITING", -1)
    status, found = ask(served, {"prompt": "a"})
    assert status == 429
    assert "ask again later" in found["error"]["message"]


@pytest.mark.slow
def test_openais_own_client_is_understood(served: Server) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=TOKEN)
    assert [model.id for model in client.models.list().data] == ["first"]
    asked = {"model": "first", "prompt": "abc", "max_tokens": 90, "seed": 3}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.choices[0].text == expected("abc", max_new_tokens=90, seed=3)
    assert len(whole.choices[0].logprobs.token_logprobs) == whole.usage.completion_tokens == 90
    parts = client.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="é"):
        client.completions.create(model="first", prompt="é")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong").models.list()
