"""The one client to a language model that reads prompts: any OpenAI-compatible endpoint, answers cached on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from sae.errors import ConfigError, UnavailableError
from sae.foundation.section import Count, Section, without_password
from sae.interpret.judging.answer_cache import AnswerCache

FAILED_ANSWERS_IN_A_ROW = 20
ALTERNATIVES = 5
YES, NO = ("true", "1"), ("false", "0")


class JudgeConfig(Section):
    """The judge's address, and how to ask it."""

    base_url: Annotated[str, AfterValidator(without_password)] = Field(
        description="Address of an OpenAI-compatible server, for example http://127.0.0.1:8080/v1"
    )
    model: str = Field(description="Model name, as the server lists it.")
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="Environment variable that holds the key; local servers need none."
    )
    concurrency: Count = Field(default=8, ge=1, le=256, description="Requests under way at once.")
    timeout_s: float = Field(default=60.0, gt=0, description="Seconds until an answer counts as lost.")
    retries: Count = Field(default=5, ge=0, le=100, description="Further attempts after temporary errors.")
    max_tokens: Count = Field(default=300, ge=16, description="Longest answer, in tokens.")
    structured: bool = Field(
        default=True, description="Ask the server to force answers into a JSON schema; false if it cannot."
    )
    logprobs: bool = Field(
        default=False,
        description="Ask for the probability of every yes and no; yes-or-no scorers add an AUC if the server gives it.",
    )
    price_read: float | None = Field(default=None, ge=0, description="Price of a million tokens read; shown as cost.")
    price_written: float | None = Field(default=None, ge=0, description="Price of a million tokens written.")


class Prompt(NamedTuple):
    """A prompt: instructions, data, and the JSON schema of the answer."""

    system: str
    user: str
    schema: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the judge reads."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


class Answer(NamedTuple):
    """The judge's JSON value, or None with the reason; and the tokens that were paid for now.

    `yes_probabilities` holds the probability of yes at every yes or no of the answer, in order, if the server tells it.
    """

    value: Any
    failure: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    yes_probabilities: list[float] | None = None


class Spent(NamedTuple):
    """What asking a judge took: requests answered now, answered from the cache, failed; tokens read and written."""

    asked: int
    cached: int
    failed: int
    prompt_tokens: int
    answer_tokens: int


class Judge:
    """Asks prompts concurrently. An answer is cached at once and never paid for again, so a stopped run resumes."""

    def __init__(self, config: JudgeConfig, cache: Path):
        self.config, self._cache = config, AnswerCache(cache)
        self.spent = Spent(0, 0, 0, 0, answer_tokens=0)

    def close(self) -> None:
        """Closes the cache."""
        self._cache.close()

    @property
    def cost(self) -> float | None:
        """What was spent, in the unit of the prices; None without prices."""
        prices = self.config.price_read, self.config.price_written
        if prices == (None, None):
            return None
        return (self.spent.prompt_tokens * (prices[0] or 0) + self.spent.answer_tokens * (prices[1] or 0)) / 1e6

    def ask(self, prompts: list[Prompt], report: Callable[[int, Spent], None] = lambda n, s: None) -> list[Answer]:
        """One answer for every prompt, in order; `report` is called with (prompts done, what was spent so far).

        Raises `ConfigError` if the server refuses the request itself, `UnavailableError` if nothing but failures comes
        back.
        """
        answers: dict[int, Answer] = {}
        for number, prompt in enumerate(prompts):
            stored = self._cache.get(self.config.model, prompt.digest, self.config.logprobs)
            if stored is not None:
                answers[number] = read(stored[0])._replace(yes_probabilities=stored[1])
                self._count(cached=1, failed=int(answers[number].failure is not None))

        uncached_prompts = [n for n in range(len(prompts)) if n not in answers]
        report(len(answers), self.spent)
        if uncached_prompts:
            asyncio.run(self._ask_all([(n, prompts[n]) for n in uncached_prompts], answers, report))

        return [answers[n] for n in range(len(prompts))]

    def _count(self, **increments: int) -> None:
        self.spent = Spent(**{name: value + increments.get(name, 0) for name, value in self.spent._asdict().items()})

    async def _ask_all(
        self, prompts: list[tuple[int, Prompt]], answers: dict[int, Answer], report: Callable[[int, Spent], None]
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise UnavailableError("a judge needs the OpenAI client. Install it: pip install 'saedex[judge]'") from None

        config = self.config
        key = os.environ.get(config.key_variable) or "none"
        client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.retries
        )
        gate, in_a_row = asyncio.Semaphore(config.concurrency), 0

        async def one(number: int, prompt: Prompt) -> None:
            nonlocal in_a_row
            async with gate:
                answer = await self._one(client, prompt)
            answers[number] = answer
            in_a_row = in_a_row + 1 if answer.failure and answer.failure.startswith("no answer") else 0
            nothing = self.spent.asked + self.spent.cached <= self.spent.failed
            if in_a_row >= FAILED_ANSWERS_IN_A_ROW or (nothing and in_a_row == len(prompts)):
                raise UnavailableError(
                    f"judge {config.base_url}: {in_a_row} requests in a row got {answer.failure}. What was answered is "
                    "kept; the same command goes on from there."
                )

            self._count(
                asked=1, failed=int(answer.failure is not None), prompt_tokens=answer.prompt_tokens,
                answer_tokens=answer.answer_tokens,
            )  # fmt: skip
            report(len(answers), self.spent)

        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for number, prompt in prompts:
                        group.create_task(one(number, prompt))
            except* (UnavailableError, ConfigError) as errors:
                raise errors.exceptions[0] from None

    async def _one(self, client: Any, prompt: Prompt) -> Answer:
        import openai

        options: dict[str, Any] = {}
        if self.config.structured:
            schema = {"name": "answer", "schema": prompt.schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}

        if self.config.logprobs:
            options |= {"logprobs": True, "top_logprobs": ALTERNATIVES}

        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        try:
            completion = await client.chat.completions.create(
                model=self.config.model,
                messages=messages,
                temperature=0,
                seed=0,
                max_tokens=self.config.max_tokens,
                **options,
            )
            choice = completion.choices[0]
            text, whole, usage = choice.message.content or "", choice.finish_reason != "length", completion.usage
            probabilities = yes_probabilities(choice.logprobs.content or []) if choice.logprobs else None
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
            openai.BadRequestError,
        ) as error:
            if isinstance(error, openai.BadRequestError) and self.spent.asked + self.spent.cached > self.spent.failed:
                return Answer(None, "the server refused this prompt")  # others it took: too long, or filtered
            raise ConfigError(
                f"judge {self.config.base_url}: it refuses the request: {error}. Check model and key"
                + "".join(f", or set {n} to false" for n in ("structured", "logprobs") if getattr(self.config, n))
                + "."
            ) from None
        except openai.OpenAIError as error:
            return Answer(None, f"no answer ({type(error).__name__})")
        except (ValueError, AttributeError, TypeError, IndexError) as error:
            return Answer(None, f"no answer in the form of a chat completion ({type(error).__name__})")

        if whole:
            self._cache.put(
                self.config.model, prompt.digest, self.config.logprobs, text, yes_probabilities=probabilities
            )

        return read(text)._replace(
            prompt_tokens=usage.prompt_tokens if usage else 0,
            answer_tokens=usage.completion_tokens if usage else 0,
            yes_probabilities=probabilities,
        )


def yes_probabilities(tokens: list[Any]) -> list[float]:
    """P(yes) / (P(yes) + P(no)) at every yes or no of an answer, among its likeliest alternatives."""
    probabilities = []
    for token in tokens:
        if _word(token) in (*YES, *NO):
            alternatives = {t.token: t for t in (*(token.top_logprobs or ()), token)}.values()
            yes, no = (sum(exp(t.logprob) for t in alternatives if _word(t) in words) for words in (YES, NO))
            probabilities.append(yes / (yes + no) if yes + no > 0 else float(_word(token) in YES))
    return probabilities


def _word(token: Any) -> str:
    return token.token.strip(" \n\t[],:").lower()


def read(text: str) -> Answer:
    """The JSON object in an answer; text around it (a fence, a preface) is passed over."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return Answer(None, "no JSON in the answer")
    try:
        return Answer(json.loads(text[start : end + 1]))
    except ValueError:
        return Answer(None, "the answer is no valid JSON")
