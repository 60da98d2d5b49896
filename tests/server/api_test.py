"""The API as the openai client sees it."""

import asyncio
import json

import openai
import pytest

PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def complete(client, model, prompt=PROMPT, **options):
    return client.completions.create(model=model, prompt=prompt, **{"temperature": 0, **options})


def test_models(client, server):
    listed = client.models.list().data[0]
    assert listed.id == "smollm2-135m"
    assert client.models.retrieve(listed.id).max_model_len == 8192
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert json.loads(server.get("/version"))["version"]
    assert "/v1/chat/completions" in json.loads(server.get("/openapi.json"))["paths"]


def test_completion(client, model):
    answer = complete(client, model, max_tokens=8)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer._request_id


def test_completion_of_many_prompts_and_ids(client, model, server):
    many = complete(client, model, [PROMPT, "One, two, three,"], max_tokens=4, n=2)
    texts = [choice.text for choice in many.choices]
    assert texts[0] == texts[1] and texts[2] == texts[3] and texts[0] != texts[2]
    ids = json.loads(server.post("/tokenize", json.dumps({"prompt": PROMPT}))[1])["tokens"]
    assert complete(client, model, ids, max_tokens=4).choices[0].text == texts[0]
    assert json.loads(server.post("/detokenize", json.dumps({"tokens": ids}))[1])["prompt"] == PROMPT


def test_tokenizer_info(server):
    info = json.loads(server.get("/tokenizer_info"))
    assert info["eos_token"] == "<|im_end|>"
    assert "im_start" in info["chat_template"]


def test_stream_adds_up(client, model):
    whole = complete(client, model, max_tokens=24).choices[0].text
    chunks = list(complete(client, model, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_completion_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    parts = [{"role": "user", "content": [{"type": "text", "text": CHAT[0]["content"]}]}]
    again = client.chat.completions.create(model=model, messages=parts, temperature=0, max_tokens=20)
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_chat_stream(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=20, stream=True,
                                                 stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "Paris" in "".join(delta.content or "" for delta in deltas)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 20


def test_chat_logprobs(client, model):
    answer = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=5, logprobs=True,
                                            top_logprobs=3)
    for entry in answer.choices[0].logprobs.content:
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3


def test_echo_with_logprobs(client, model):
    text = "The capital of France is Paris. The capital of Italy is Rome."
    answer = complete(client, model, text, max_tokens=1, logprobs=1, echo=True)
    logprobs = answer.choices[0].logprobs
    n = answer.usage.prompt_tokens + 1
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == n
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert "".join(logprobs.tokens[:-1]) == text
    assert answer.choices[0].text[logprobs.text_offset[3]:].startswith(logprobs.tokens[3])
    for token, logprob, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs))[1:]:
        assert top[token] == logprob <= max(top.values())


def test_stop_strings(client, model):
    whole = complete(client, model, max_tokens=40).choices[0].text
    stop = whole[12:16]
    cut = complete(client, model, max_tokens=40, stop=[stop, "not there"])
    assert cut.choices[0].text == whole[:whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in complete(client, model, max_tokens=40, stop=stop, stream=True))
    assert streamed == cut.choices[0].text
    kept = complete(client, model, max_tokens=40, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == whole[:whole.index(stop) + len(stop)]


def test_stop_tokens_min_tokens_and_ignore_eos(client, model):
    def chat(**body):
        answer = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=30, extra_body=body)
        return answer.choices[0].finish_reason, answer.usage.completion_tokens
    reason, n = chat()
    assert reason == "stop" and n < 30
    assert chat(ignore_eos=True) == ("length", 30)
    assert chat(min_tokens=25)[1] >= 25
    ids = complete(client, model, max_tokens=6, logprobs=0).choices[0].logprobs.tokens
    assert len(ids) == 6


def test_sampling_is_seeded(client, model):
    def sample(seed, n=1):
        answer = complete(client, model, max_tokens=12, temperature=1.2, seed=seed, n=n)
        return [choice.text for choice in answer.choices]
    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(3, 4))) > 1


def test_logit_bias_and_penalties(client, model, server):
    paris = json.loads(server.post("/tokenize", json.dumps({"prompt": " Paris"}))[1])["tokens"][0]
    assert "Paris" not in complete(client, model, max_tokens=1, logit_bias={paris: -100}).choices[0].text
    forced = complete(client, model, max_tokens=3, logit_bias={paris: 100}).choices[0].text
    assert forced == " Paris" * 3
    loop = complete(client, model, "a a a a a a a a", max_tokens=30).choices[0].text
    assert loop != complete(client, model, "a a a a a a a a", max_tokens=30, frequency_penalty=2).choices[0].text


@pytest.mark.parametrize("options, param", [
    ({"temperature": 3}, "temperature"), ({"top_p": 0}, "top_p"), ({"n": 0}, "n"), ({"logprobs": 21}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"), ({"stop": [""]}, "stop"), ({"max_tokens": 9000}, "prompt"),
    ({"extra_body": {"top_k": "x"}}, "top_k"), ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format"),
])
def test_bad_requests_name_the_field(client, model, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, model, **options)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_long_prompts_are_refused_with_the_limit(client, model):
    with pytest.raises(openai.BadRequestError, match="8192 tokens"):
        complete(client, model, "word " * 9000)
    with pytest.raises(openai.NotFoundError):
        complete(client, "gpt-4")


def test_async_clients_share_the_batch(server, model):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:
            async def one(i):
                stream = await client.completions.create(model=model, prompt=f"Number {i} is", max_tokens=16,
                                                         temperature=0, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])
            return await asyncio.gather(*[one(i) for i in range(24)])
    together = asyncio.run(all_of_them())
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    for i in (0, 11, 23):
        assert complete(client, model, f"Number {i} is", max_tokens=16).choices[0].text == together[i]
    server.expect_idle()


def test_prompts_that_begin_alike_share_the_cache(start):
    system = {"role": "system", "content": "You are a guide to a large museum. " * 40}
    def converse(server):
        """The answers to two questions and to a next turn of the second, and the tokens that were cached."""
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        def ask(*messages, **options):
            return client.chat.completions.create(model="smollm2-135m", messages=[system, *messages], max_tokens=20,
                                                  **{"temperature": 0, **options})
        first = ask({"role": "user", "content": "Where are the dinosaurs?"})
        question = {"role": "user", "content": "What is there for children? " * 30}
        second = ask(question, n=3, temperature=1, seed=5)
        said = {"role": "assistant", "content": second.choices[0].message.content}
        third = ask(question, said, {"role": "user", "content": "And tomorrow?"})
        answers = (first, second, third)
        cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
        return [choice.message.content for answer in answers for choice in answer.choices], cached, answers
    server = start()
    texts, cached, answers = converse(server)
    assert cached[0] == 0
    assert 320 < cached[1] < answers[0].usage.prompt_tokens  # the system prompt
    assert cached[1] + 150 < cached[2] < answers[1].usage.prompt_tokens  # and the question
    queries, hits = (server.metric(f"vllm:prefix_cache_{kind}_total") for kind in ("queries", "hits"))
    assert queries == sum(answer.usage.prompt_tokens * len(answer.choices) for answer in answers)
    assert hits == sum(cached) + 2 * answers[1].usage.prompt_tokens
    server.expect_idle()
    other = start("--no-enable-prefix-caching")
    assert converse(other)[:2] == (texts, [0, 0, 0])
    assert other.metric("vllm:prefix_cache_queries_total") == 0


def test_key_is_asked_for(start):
    server = start(env={"KIVI_API_KEY": "secret"})
    def client(key):
        return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client("wrong").models.list()
    assert client("secret").models.list().data
    assert json.loads(server.get("/health"))["status"] == "ok"


def test_the_client_retries_when_the_queue_is_full(start):
    server = start("--max-num-seqs", 1, "--max-queue", 0)
    busy = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    stream = complete(busy, "smollm2-135m", max_tokens=100, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    with pytest.raises(openai.InternalServerError) as error:
        complete(busy, "smollm2-135m", max_tokens=1)
    assert error.value.status_code == 503 and error.value.response.headers["retry-after"]
    patient = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=30)
    assert complete(patient, "smollm2-135m", max_tokens=1).choices
    server.expect_idle()
