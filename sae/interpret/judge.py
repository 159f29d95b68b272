"""The one client to a language model that reads prompts: any OpenAI-compatible endpoint, cached on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from sae.errors import ConfigError, UnavailableError
from sae.section import Count, Section

FAILED_ANSWERS_IN_A_ROW = 20


class JudgeConfig(Section):
    """Where the judge answers and how it is asked."""

    base_url: str = Field(description="Address of an OpenAI-compatible server, for example http://127.0.0.1:8080/v1")
    model: str = Field(description="Model name, as the server lists it.")
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="Environment variable that holds the key; local servers need none."
    )
    concurrency: Count = Field(default=8, ge=1, le=256, description="Requests under way at once.")
    timeout_s: float = Field(default=60.0, gt=0, description="Seconds until an answer counts as lost.")
    retries: Count = Field(default=5, ge=0, le=100, description="Further attempts after errors that may pass.")
    max_tokens: Count = Field(default=300, ge=16, description="Longest answer, in tokens.")
    structured: bool = Field(
        default=True, description="Have the server hold the answer to a JSON schema; false where it cannot."
    )


class Prompt(NamedTuple):
    """What the judge is asked: instructions, data, and the JSON schema of the answer."""

    system: str
    user: str
    schema: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the judge reads."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


class Answer(NamedTuple):
    """The judge's JSON value, or None with the reason why there is none; tokens that were paid for now."""

    value: Any
    failure: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Spent(NamedTuple):
    """What a judge was asked: requests answered now, from the cache, failed; tokens read and written."""

    asked: int
    cached: int
    failed: int
    prompt_tokens: int
    answer_tokens: int


class Judge:
    """Asks prompts concurrently; an answer once given is never paid for again, so a stopped run goes on."""

    def __init__(self, config: JudgeConfig, cache: Path):
        self.config = config
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._cache = sqlite3.connect(cache)
        self._cache.execute(
            "create table if not exists answer (model text, prompt text, text text, primary key (model, prompt))"
        )
        self.spent = Spent(0, 0, 0, 0, 0)

    def close(self) -> None:
        """Closes the cache."""
        self._cache.close()

    def ask(self, prompts: list[Prompt], report: Callable[[int, Spent], None] = lambda n, s: None) -> list[Answer]:
        """One answer for every prompt, in order. `report` is given (prompts done, what was spent so far).

        Raises `UnavailableError` where the server refuses the request itself, or nothing but failures comes back.
        """
        found: dict[int, Answer] = {}
        for number, prompt in enumerate(prompts):
            text = self._cached(prompt)
            if text is not None:
                found[number] = read(text)
                self._count(cached=1, failed=int(found[number].failure is not None))
        missing = [n for n in range(len(prompts)) if n not in found]
        report(len(found), self.spent)
        if missing:
            asyncio.run(self._ask_all([(n, prompts[n]) for n in missing], found, report))
        return [found[n] for n in range(len(prompts))]

    def _cached(self, prompt: Prompt) -> str | None:
        with closing(self._cache.cursor()) as cursor:
            row = cursor.execute(
                "select text from answer where model = ? and prompt = ?", (self.config.model, prompt.digest)
            ).fetchone()
        return None if row is None else row[0]

    def _keep(self, prompt: Prompt, text: str) -> None:
        with self._cache:
            self._cache.execute(
                "insert or replace into answer values (?, ?, ?)", (self.config.model, prompt.digest, text)
            )

    def _count(self, **more: int) -> None:
        self.spent = Spent(**{name: value + more.get(name, 0) for name, value in self.spent._asdict().items()})

    async def _ask_all(
        self, prompts: list[tuple[int, Prompt]], found: dict[int, Answer], report: Callable[[int, Spent], None]
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
            found[number] = answer
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
            report(len(found), self.spent)

        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for number, prompt in prompts:
                        group.create_task(one(number, prompt))
            except* (UnavailableError, ConfigError) as errors:
                raise errors.exceptions[0] from None

    async def _one(self, client: Any, prompt: Prompt) -> Answer:
        import openai

        more: dict[str, Any] = {}
        if self.config.structured:
            schema = {"name": "answer", "schema": prompt.schema, "strict": True}
            more["response_format"] = {"type": "json_schema", "json_schema": schema}
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        try:
            made = await client.chat.completions.create(
                model=self.config.model,
                messages=messages,
                temperature=0,
                seed=0,
                max_tokens=self.config.max_tokens,
                **more,
            )
            choice = made.choices[0]
            text, whole, usage = choice.message.content or "", choice.finish_reason != "length", made.usage
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
                + (", or set structured to false." if self.config.structured else ".")
            ) from None
        except openai.OpenAIError as error:
            return Answer(None, f"no answer ({type(error).__name__})")
        except (ValueError, AttributeError, TypeError, IndexError) as error:
            return Answer(None, f"no answer in the form of a chat completion ({type(error).__name__})")
        if whole:
            self._keep(prompt, text)
        return read(text)._replace(
            prompt_tokens=usage.prompt_tokens if usage else 0, answer_tokens=usage.completion_tokens if usage else 0
        )


def read(text: str) -> Answer:
    """The JSON object in an answer; text around it (a fence, a preface) is passed over."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return Answer(None, "no JSON in the answer")
    try:
        return Answer(json.loads(text[start : end + 1]))
    except ValueError:
        return Answer(None, "the answer is no valid JSON")
