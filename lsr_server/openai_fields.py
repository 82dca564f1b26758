"""Validate the fields of requests in OpenAI's format, and reject those without effect here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from lsr_onnx.rows import Sampling, Wanted
from lsr_onnx.runner import MAX_TEXTS

MAX_STOPS = 4  # stop sequences per request, as OpenAI has it
MAX_STOP_LENGTH = 100  # characters of each: the text is searched for them after every token
MAX_TEMPERATURE = 2.0
DEFAULT_TEMPERATURE = 1.0  # OpenAI's
DEFAULT_TOKENS = 16  # OpenAI's, of /v1/completions
MAX_SEED = 2**63
COMMON = ("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options")
COMPLETION = (*COMMON, "prompt")
CHAT = (*COMMON, "messages", "max_completion_tokens")
CLASSIFY = ("model", "input")
# Fields whose only allowed value asks for what is done without them; some clients always send them.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "min_p": 0,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "store": False,
    "tool_choice": "none",
    "tools": [],
}


class FieldError(HTTPException):
    """A field of a request is not allowed."""

    def __init__(
        self,
        field: str,
        reason: str,
        status: int = 400,
    ) -> None:
        super().__init__(status, f"{field}: {reason}")
        self.field = field


class Asked(NamedTuple):
    """A request for completions."""

    model: str
    prompts: list[Any]
    names: list[str]  # names of the prompts in error messages
    is_chat: bool
    wanted: Wanted
    is_seeded: bool
    is_streamed: bool
    has_usage: bool  # whether a stream ends with the token counts


def read_completion(content: Any, max_new_tokens: int) -> Asked:
    """Parse a request to /v1/completions, with a limit on the generated tokens."""
    fields = read_fields(content, COMPLETION)
    prompt = fields.get("prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    most = 1 if fields.get("stream") else MAX_TEXTS
    if not 0 < len(prompts) <= most or not all(isinstance(text, str) for text in prompts):
        raise FieldError("prompt", f"needed: a text, or a list of 1 to {MAX_TEXTS} of them, or of one for a stream")
    tokens = _read_tokens(fields, "max_tokens", min(DEFAULT_TOKENS, max_new_tokens), max_new_tokens)
    names = [f"prompt[{number}]" for number in range(len(prompts))]
    return _read_asked(fields, prompts, names, tokens)


def read_chat(content: Any, max_new_tokens: int) -> Asked:
    """Parse a request to /v1/chat/completions, with a limit on the generated tokens."""
    fields = read_fields(content, CHAT)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "needed: a list of messages with role and content")
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise FieldError("max_tokens", "has no effect next to max_completion_tokens")
    name = "max_tokens" if "max_tokens" in fields else "max_completion_tokens"
    tokens = _read_tokens(fields, name, max_new_tokens, max_new_tokens)
    conversation = [_read_message(message) for message in messages]
    return _read_asked(fields, [conversation], ["messages"], tokens)


def _read_message(message: Any) -> Any:
    """Return a message of OpenAI's API with one text, and without fields that are null.

    A client sends back the null fields of an answer, such as `refusal`, and may send a text in parts. `developer` is
    the newer name of the role `system`.
    """
    if not isinstance(message, dict):
        return message
    fields = {name: value for name, value in message.items() if value is not None}
    if fields.get("role") == "developer":
        fields["role"] = "system"
    if "content" in fields:
        fields["content"] = _join_parts(fields["content"])
    return fields


def _join_parts(content: Any) -> Any:
    """Return the text of a list of parts that are texts; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = list[str]()
    for part in content:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
            return content
        if not isinstance(part["text"], str):
            return content
        texts.append(part["text"])
    return "".join(texts)


def read_classify(content: Any) -> tuple[str, list[Any]]:
    """Return the model and the texts of a request to /classify."""
    fields = read_fields(content, CLASSIFY)
    given = fields.get("input")
    texts = given if isinstance(given, list) else [given]
    if not 0 < len(texts) <= MAX_TEXTS:
        raise FieldError("input", f"needed: a text, or a list of 1 to {MAX_TEXTS} of them")
    return _read_model(fields), texts


def read_fields(content: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a request that have an effect and are not null.

    Raises:
        FieldError: if another field would have no effect.
    """
    if not isinstance(content, dict):
        raise HTTPException(400, "needed: an object with model and what it is asked")
    fields = dict[str, Any]()
    for name, value in content.items():
        if value is None:
            continue
        if name in allowed:
            fields[name] = value
        elif allowed is not CLASSIFY and name in NEUTRAL:
            _check_neutral(name, value)
        else:
            raise FieldError(name[:100], f"has no effect here; allowed are {', '.join(sorted(allowed))}")
    return fields


def _check_neutral(name: str, value: Any) -> None:
    neutral = NEUTRAL[name]
    if isinstance(value, bool) != isinstance(neutral, bool) or value != neutral:
        raise FieldError(name, f"has no effect here; leave it out, or give {neutral}")


def _read_asked(
    fields: Mapping[str, Any],
    prompts: list[Any],
    names: list[str],
    tokens: int,
) -> Asked:
    is_streamed = _read_flag(fields, "stream")
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or not options.keys() <= {"include_usage"} or (options and not is_streamed):
        raise FieldError("stream_options", 'needed: {"include_usage": true or false}, with "stream": true')
    wanted = Wanted(tokens, stop_texts=_read_stop(fields), sampling=_read_sampling(fields))
    has_usage = _read_flag(options, "include_usage")
    return Asked(
        _read_model(fields),
        prompts,
        names,
        "messages" in fields,
        wanted,
        "seed" in fields,
        is_streamed,
        has_usage,
    )


def _read_model(fields: Mapping[str, Any]) -> str:
    name = fields.get("model")
    if not isinstance(name, str):
        raise FieldError("model", "needed: the name of an adapter")
    return name


def _read_flag(fields: Mapping[str, Any], name: str) -> bool:
    flag = fields.get(name, False)
    if not isinstance(flag, bool):
        raise FieldError(name, "needed: true or false")
    return flag


def _read_tokens(
    fields: Mapping[str, Any],
    name: str,
    default: int,
    most: int,
) -> int:
    count = fields.get(name, default)
    if type(count) is not int or not 1 <= count <= most:
        raise FieldError(name, f"needed: 1 to {most}")
    return count


def _read_sampling(fields: Mapping[str, Any]) -> Sampling | None:
    temperature = _read_number(fields, "temperature", DEFAULT_TEMPERATURE, MAX_TEMPERATURE)
    top_p = _read_number(fields, "top_p", 1.0, 1.0)
    seed = fields.get("seed", 0)
    if type(seed) is not int or not -MAX_SEED <= seed < MAX_SEED:
        raise FieldError("seed", "needed: a whole number of 64 bits")
    if temperature > 0:
        return Sampling(temperature, seed, top_p)
    if "seed" in fields:
        raise FieldError("seed", "has no effect at temperature 0")
    if top_p != 1:
        raise FieldError("top_p", "has no effect at temperature 0")
    return None


def _read_number(
    fields: Mapping[str, Any],
    name: str,
    default: float,
    most: float,
) -> float:
    number = fields.get(name, default)
    if type(number) not in (int, float) or not 0 <= number <= most:
        raise FieldError(name, f"needed: 0 to {most:g}")
    return float(number)


def _read_stop(fields: Mapping[str, Any]) -> list[str]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
        needed = f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters"
        raise FieldError("stop", f"needed: {needed}")
    return stops


def _is_stop(text: Any) -> bool:
    return isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH
